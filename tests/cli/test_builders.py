"""``--builder``: networks that a function of the user's own builds, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from deepres.cli.main import main
from deepres.data import open_data

CODE = """import timm


def build(num_classes=3):
    return timm.create_model("test_resnet", num_classes=num_classes)
"""


@pytest.fixture
def run(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose header names a function of a module in the current folder, as if another process had trained it."""
    (tmp_path / "nets_of_mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DEEPRES_BUILDERS", "")  # is set by the command, and restored after the test
    notes = {
        "classes": [f"digit-{i}" for i in range(3)],
        "prepare": open_data(small_folder, size=32, channels=3).prepare.to_notes(),
    }
    header = {"origin": {"reference": "nets_of_mine:build", "classes": 3}, "notes": notes}
    Path("run").mkdir()
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    save_file(state, "run/best.safetensors", metadata={"deepres": json.dumps(header)})
    return Path("run")


def test_commands_open_a_run_of_a_users_own_network(
    run: Path, small_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data", str(small_folder)]
    image = str(next(small_folder.rglob("*.png")))
    for command in (
        ["evaluate", "run", *data, "--json"],
        ["look", "run", *data, "--examples", "8", "--pairs", "0", "--out", "look"],
        ["predict", "run", image],
        ["train", "--net", "run", *data],
    ):
        monkeypatch.setenv("DEEPRES_BUILDERS", "another:build")
        assert main(command) == 2
        assert "add --builder nets_of_mine:build to the command" in capsys.readouterr().err
        if command[0] != "train":
            assert main([*command, "--builder", "nets_of_mine:build"]) == 0
            said = capsys.readouterr().out
            assert command[0] != "evaluate" or json.loads(said)["classes"] == [f"digit-{i}" for i in range(3)]
    assert len(json.loads(Path("look/findings.json").read_text())[0]["sites"]) > 2


def test_what_is_no_builder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("nets_of_mine", "nets_of_mine:", "a/b.py:build"):
        assert main(["evaluate", "run", "--builder", wrong]) == 2
        assert f"--builder is MODULE:FUNCTION, such as my_nets:build, not {wrong!r}" in capsys.readouterr().err
