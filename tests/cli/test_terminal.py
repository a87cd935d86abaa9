"""The command line and its shell: home folders, odd file names, locales, unforeseen errors."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deepres
from deepres.cli.main import main
from deepres.cli.nets import Nets
from deepres.data import Prepare

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # a C locale that Python does not mend
LOCALES = {"utf-8": {"PYTHONUTF8": "1"}, "C": {"LC_ALL": "C"}, "ascii": ASCII, "io": {"PYTHONIOENCODING": "ascii"}}


def deepres_in(environment: dict[str, str], *args: str | bytes) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LANG", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING")}
    return subprocess.run([sys.executable, "-m", "deepres", *args], capture_output=True, env={**clean, **environment})


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = deepres.create("resnet8-cifar", in_channels=1, num_classes=3)
    notes = {"classes": ["a", "b", "\u00e4"], "prepare": Prepare(16, 1, (0.2,), (0.3,)).to_notes()}
    return deepres.save(model, tmp_path_factory.mktemp("net") / "net.safetensors", **notes)


@pytest.mark.parametrize("locale", LOCALES)
def test_file_names_are_bytes(net: Path, small_folder: Path, tmp_path: Path, locale: str) -> None:
    image = next(small_folder.rglob("*.png")).read_bytes()
    names = [b"\xff.png", "\u00fc.png".encode()]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(image)
    (tmp_path / os.fsdecode(b"\xfe.jpg")).write_bytes(b"broken")
    for form in ("text", "csv", "json") if locale == "ascii" else ("text",):
        done = deepres_in(LOCALES[locale], "predict", str(net), os.fsencode(tmp_path), "--format", form)
        assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
        assert b"\xfe.jpg" in done.stderr
        if form == "json":
            assert b"\\udcff.png" in done.stdout
        else:
            assert b"\xff.png" in done.stdout
    out = tmp_path / "out.csv"
    assert (
        deepres_in(LOCALES[locale], "predict", str(net), os.fsencode(tmp_path), "--format", "csv", "--out", str(out)).returncode
        == 1
    )
    with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {os.fsencode(Path(row["file"]).name) for row in csv.DictReader(file)} == set(names)


def test_classes_whose_names_are_no_text(small_folder: Path, tmp_path: Path) -> None:
    for label in (b"\xff", b"b"):
        folder = tmp_path / "data" / os.fsdecode(label)
        folder.mkdir(parents=True)
        for i, image in enumerate(sorted((small_folder / "digit-0").iterdir())[:12]):
            (folder / f"{i}.png").write_bytes(image.read_bytes())
    options = ("--net", "resnet8-cifar", "--recipe", "digits", "--epochs", "1", "--batch", "8", "--speed", "float32")
    out = tmp_path / "run"
    data = ("--data", str(tmp_path / "data"))
    for args in (("train", *options, *data, "--out", str(out)), ("evaluate", str(out), *data)):
        done = deepres_in(LOCALES["ascii"], *args)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def test_home_is_expanded_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], net: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "net.safetensors").write_bytes(net.read_bytes())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert main(["info", "~/net.safetensors"]) == 0
    assert main(["evaluate", "--data=~/nothing", "~/net.safetensors"]) == 2
    assert str(home / "nothing") in capsys.readouterr().err
    assert main(["info", "hf:~/nothing"]) == 2
    assert str(home / "nothing") in capsys.readouterr().err
    options = ["--net", "resnet8-cifar", "--recipe", "digits", "--epochs", "0.1", "--speed", "float32"]
    assert main(["train", *options, "--out=~/run"]) == 0
    assert (home / "run" / "run.json").exists() and [p.name for p in tmp_path.iterdir()] == ["home"]


def test_an_unforeseen_error_has_its_own_code_and_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(self: Nets) -> int:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(Nets, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["nets", "*50*"]) == 70
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ZeroDivisionError: nobody thought of this" in err
    (written,) = tmp_path.iterdir()
    assert str(written) in err
    text = written.read_text()
    assert "Traceback" in text and "deepres nets '*50*'" in text and deepres.__version__ in text


def test_closed_output_is_no_fault(net: Path, small_folder: Path) -> None:
    image = str(next(small_folder.rglob("*.png")))
    command = '"$0" -m deepres predict "$1" "$2" >&-'
    done = subprocess.run(["sh", "-c", command, sys.executable, str(net), image], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert main([]) == 2
