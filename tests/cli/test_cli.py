"""The command line as a newcomer meets it: answers, exit codes, one sentence for each mistake, no traceback."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm

import deepres
from deepres.cli.common import default_out
from deepres.cli.main import COMMANDS, main
from deepres.data import Prepare
from deepres.training import read_log


def call(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(list(args))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    options = ["--net", "resnet8-cifar", "--recipe", "digits", "--epochs", "2", "--speed", "float32", "--out", str(out)]
    assert main(["train", *options]) == 0
    return out


def test_help_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "deepres", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS) and "exit codes" in done.stdout
    assert not re.search(r"\| +(torch|torchvision|numpy)\n", done.stderr)  # the imports that take seconds


DETECT = ("train", "evaluate", "predict", "look", "shrink")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"detect {name}" for name in DETECT)])
def test_every_option_of_every_command_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "usage" in said
    assert "None" not in said and "(default: )" not in said and "``" not in said
    lines = [line.strip("│|").rstrip() for line in said.splitlines() if not re.fullmatch("[ ╭╮╰╯─-]*", line)]
    options = re.split(r"\n(?= {1,2}--\w)", "\n".join(lines))  # the lines of a help stand further to the right
    assert len(options) > 1 or command in ("nets", "detect")  # detect has commands of its own
    for option in options[1:]:
        # without its name, what it takes, and its default
        text = re.sub(r"--[\w-]+,?|\{[^}]*\}|\(default:[^)]*\)|\[[^]]*\]|\b[A-Z]+\b|\|", "", option)
        assert re.search("[a-z]", text), f"deepres {command}: {option}"


def test_help_into_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m deepres train --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr and done.returncode in (0, 1)


def test_a_run_that_cannot_begin_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--net", "hf:nowhere"]) == 2
    assert main(["train", "--net", "hf:nowhere", "--out", "a/b/c"]) == 2
    assert "no config.json" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version", capsys=capsys) == (0, f"deepres {deepres.__version__}\n", "")


def test_wrong_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--epochs", "many"])
    assert stopped.value.code == 2
    capsys.readouterr()


def test_nets_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("nets", "*50*", capsys=capsys)
    assert code == 0 and {"resnet50", "plain50", "resnet50-v1"} <= set(out.split())
    code, out, _ = call("info", "resnet50", "--stride-in", "1x1", "--batch", "32", capsys=capsys)
    assert code == 0 and "25,557,032 parameters" in out and "3.858 G multiply-adds" in out and "GiB" in out
    assert [line.split()[1] for line in out.splitlines() if line[:1].isdigit()][:4] == ["3", "4", "6", "3"]
    code, out, _ = call("info", "gpt-tiny", "--size", "16", "--batch", "2", capsys=capsys)
    assert code == 0 and "8 residual sites" in out and "multiply-adds for a text of 16 tokens" in out and "2 texts" in out
    code, out, _ = call("info", "timm:test_resnet", "--num-classes", "3", capsys=capsys)
    assert (
        code == 0 and f"{sum(p.numel() for p in timm.create_model('test_resnet', num_classes=3).parameters()):,} param" in out
    )


def test_mistakes_get_one_sentence_and_exit_code_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "best.safetensors").read_bytes()[:1000])
    for args, says in {
        ("train",): "Give --net",
        ("train", "--net", "resnet20-cifer"): "did you mean 'resnet20-cifar'",
        ("train", "--net", "resnet20-cifar", "--data", "digitz"): "did you mean 'digits'",
        ("train", "--net", "resnet20-cifar", "--recipe", "paper"): "unknown recipe 'paper'",
        ("train", "--net", "resnet20-cifar", "--speed", "fast"): "unknown speed 'fast'; there are auto, exact, ",
        ("train", "--net", "resnet20-cifar", "--device", "cuda", "--out", str(tmp_path / "x")): "--device cpu",
        ("train", "--resume", str(tmp_path)): "no run to read here",
        ("train", "--net", "resnet1202-cifar", "--memory", "1MiB", "--out", str(tmp_path / "y")): "lower --batch",
        ("info", "resnet21-cifar"): "nearest: 20 and 26",
        ("info", "resnet18", "--size", "0"): "at least 1",
        ("info", "resnet18", "--batch", "0"): "at least 1",
        ("info", "timm:test_resnet", "--survival", "0.5"): "--survival shape a network of ours that is given by its name",
        ("info", str(run), "--width", "2", "--num-classes", "3"): "--width, --num-classes shape a network of ours",
        ("info", "gpt-tiny", "--width", "0.5"): "the width of a Transformer is its number of channels",
        ("info", "resnet18", "--size", "10000000"): "out of memory (",
        ("train", "--again", str(run), "--seed", "1", "--epochs", "3"): "so --seed, --epochs would change nothing",
        ("train", "--again", str(run), "--resume", str(run)): "give one of them",
        ("nets", "vgg*"): "no network's name matches",
        ("evaluate", str(tmp_path / "none")): "no such file",
        ("evaluate", str(cut)): "truncated",
        ("evaluate", str(run), "--size", "0"): "size is the side of the input in pixels, or tokens of a text, and at least 1",
        ("predict", str(run), "x.png", "--size", "-8"): "at least 1, not -8",
        ("evaluate", str(run), "--scales", "8", "16"): "--scales are the sizes of --protocol multiscale",
        ("evaluate", str(run), "--out", str(cut)): "cut.safetensors: is a file; name a folder",
        ("look", str(run), "--out", str(cut / "x")): "cut.safetensors; choose another --out",
        ("ghost", str(run), "--budget", "0.5", "--out", str(cut)): "cut.safetensors: is a file; name a folder",
        ("ghost", str(run), "--budget", "0.5", "--confidence", "0.8"): "--confirm and --confidence tell how --error is kept",
        ("export", str(run), "--to", "openvino", "--opset", "18"): "--opset is the version of ONNX's operations",
        ("optimize", str(run), "--error", "0.5"): "--error limits what changes on validation images",
        ("generate", str(run), "--ahead", "2"): "--ahead is the number of tokens that --speculate drafts",
        ("predict", str(run), str(tmp_path / "nowhere")): "",
        ("degrade", "--depths", "20"): "two different depths",
    }.items():
        code, _, err = call(*args, capsys=capsys)
        if says:
            assert code == 2 and says in err, (args, err)
            assert err.count("\n") == 1 and "Traceback" not in err
        else:
            assert code == 1


def test_evaluate_prints_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("evaluate", str(run), "--data", "digits", "--out", str(tmp_path), capsys=capsys)
    assert code == 0 and "359 examples, top-1 error" in out and "calibration error" in out and "taken for" in out
    code, out, _ = call("evaluate", str(run), "--json", capsys=capsys)
    assert json.loads(out) == json.loads((tmp_path / "evaluation.json").read_text())


def test_predict_in_every_format(small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = deepres.create("resnet8-cifar", in_channels=1, num_classes=3)
    notes = {"classes": ["a", "b", "c"], "prepare": Prepare(16, 1, (0.2,), (0.3,)).to_notes()}
    path = str(deepres.save(model, tmp_path / "net.safetensors", **notes))
    good, bad = str(small_folder / "digit-0"), tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    code, out, err = call("predict", path, good, capsys=capsys)
    assert (code, err) == (0, "") and len(out.splitlines()) == 24 and "%" in out
    code, out, err = call("predict", path, good, str(bad), "--format", "csv", "--top", "2", capsys=capsys)
    table = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and len(table) == 48 and {row["class"] for row in table} <= set("abc")
    assert "skipped" in err and "bad.png" in err and "1 image could not be read" in err
    code, _, _ = call("predict", path, good, "--format", "json", "--out", str(tmp_path / "a.json"), capsys=capsys)
    assert code == 0 and len(json.loads((tmp_path / "a.json").read_text())) == 24
    code, _, err = call("predict", path, good, "--out", str(tmp_path / "no" / "a.json"), capsys=capsys)
    assert code == 2 and "cannot be written" in err


def test_a_run_can_be_run_again_from_its_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tested = json.loads((run / "result.json").read_text())["test"]
    says = f"test error {tested['top1']:.2f} % (top-5 {tested['top5']:.2f} %) on 359 examples"
    code, out, _ = call("train", "--resume", str(run), capsys=capsys)  # finished: only tested once more
    assert code == 0 and says in out
    code, out, _ = call("train", "--again", str(run / "run.json"), "--out", str(tmp_path / "again"), capsys=capsys)
    assert code == 0 and "with the weights of epoch" in out
    saved, again = (json.loads((folder / "run.json").read_text()) for folder in (run, tmp_path / "again"))
    assert {**saved, "out": None} == {**again, "out": None}
    (one,), (other,) = (read_log(folder)[:1] for folder in (run, tmp_path / "again"))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_degrade_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("degrade", "--depths", "8", "14", "--epochs", "1", "--out", str(tmp_path / "d"))
    code, out, _ = call(*args, capsys=capsys)
    assert code == 0 and "plain-14" in out and "report.html" in out
    assert {"report.html", "findings.json", "runs"} <= {path.name for path in (tmp_path / "d").iterdir()}


def test_ctrl_c_saves_and_exits_with_1(tmp_path: Path) -> None:
    import os
    import signal

    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "deepres", "train", "--net", "resnet20-cifar", "--epochs", "500", "--recipe", "digits"]
    process = subprocess.Popen([*command, "--speed", "float32", "--out", str(out)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "log.jsonl").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and f"resume with --resume {out}" in err.replace("\n", " ") and "Traceback" not in err
    assert list((out / "checkpoints").glob("*.pt"))


def test_a_damaged_note_of_a_command_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "command.json").write_text("[1, 2]")
    code, _, err = call("shrink", "--resume", str(tmp_path), capsys=capsys)
    assert code == 2 and "command.json: not what deepres shrink wrote" in err


def test_a_shrinking_that_cannot_begin_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for args, says in ((["resnet8-cifar", "--data", "digitz"], "did you mean 'digits'"), (["resnet8-cifr"], "unknown network")):
        code, _, err = call("shrink", *args, "--out", "out", capsys=capsys)
        assert code == 2 and says in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["/data/net-1", "../net-1", "hf:owner/net-1", "timm:net-1"])
def test_the_usual_folder_of_a_run_is_in_runs(name: str) -> None:
    out = default_out(name)
    assert out.parent == Path("runs") and re.fullmatch(r"(timm-)?net-1-\d{8}-\d{6}", out.name)
