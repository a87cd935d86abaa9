"""Files that the first release wrote still load, and still give the same outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import deepres
from deepres.cli.main import main
from deepres.data import open_data
from deepres.ghosting import Point, Settings

SAVED = Path(__file__).parents[1] / "saved"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """The outputs at the time of saving, by file."""
    return load_file(SAVED / "expected.safetensors")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    data = open_data("digits")
    return data.prepare.normalise(data.test.pixels[:8])  # type: ignore[union-attr]


def assert_as_saved(outputs: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["run", "shrunk"])
def test_networks_of_ours(name: str, expected: dict[str, Tensor], digits: Tensor) -> None:
    assert_as_saved(deepres.load(SAVED / name)(digits), expected[name])


@torch.no_grad()
def test_a_ghost_with_its_settings(expected: dict[str, Tensor], digits: Tensor) -> None:
    ghost, noted = deepres.load_ghost(SAVED / "ghost")
    assert_as_saved(ghost(digits), expected["ghost"])
    assert noted["classes"] == list("0123456789")
    told = json.loads((SAVED / "ghost" / "ghost.json").read_text())
    points = [Point.from_dict(point) for point in told["points"]]
    assert Point.from_dict(told["point"]).settings == Settings(exit_threshold=0.4, exits=(0,))
    assert [point.exited for point in points] == [point["left"] for point in told["points"]]


@torch.no_grad()
def test_other_libraries_networks_with_blocks_removed(expected: dict[str, Tensor]) -> None:
    vit: nn.Module = deepres.load(SAVED / "timm-vit.safetensors")
    assert len(vit.blocks) == 5  # type: ignore[arg-type]
    side = 160
    assert_as_saved(vit(torch.linspace(-1, 1, 2 * 3 * side * side).view(2, 3, side, side)), expected["timm-vit.safetensors"])
    gpt = deepres.load(SAVED / "hf-gpt2.safetensors")
    assert gpt.config.num_hidden_layers == 2
    assert_as_saved(gpt(torch.arange(16).view(2, 8)).logits, expected["hf-gpt2.safetensors"])


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, expected: dict[str, Tensor], digits: Tensor) -> None:
    out = tmp_path / "halted"
    shutil.copytree(SAVED / "halted", out)
    result = deepres.resume(out, show=False)
    with torch.no_grad():
        assert_as_saved(result.model(digits), expected["halted/finished"])


def test_a_shrinking_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor], digits: Tensor
) -> None:
    """One block was the identity and one constrained; the options and the checkpoint have names of the first release."""
    shutil.copytree(SAVED / "shrinking", tmp_path / "shrinking")
    shutil.copy(SAVED / "shrinking" / "net.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["shrink", "--resume", "shrinking"]) == 0
    with torch.no_grad():
        assert_as_saved(deepres.load("shrinking/blocks-4")(digits), expected["shrinking/finished"])
    told = json.loads(Path("shrinking/blocks-4/shrink.json").read_text())
    assert told["removed"] == ["stages.0.blocks.1", "stages.1.blocks.1"]
    assert told["identity_at"] == {"stages.1.blocks.1": 13, "stages.0.blocks.1": 20}
