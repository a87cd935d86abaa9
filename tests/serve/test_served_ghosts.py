"""A ghost is served on an engine where its exits alone decide, with the depth and the answers that it has in PyTorch."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ghost_helpers import CLASSES, X, ghost, saved
from PIL import Image
from running import png, start

from deepres import DeepresError
from deepres.cli.main import main
from deepres.data import Prepare
from deepres.engines import ENGINES, Candidate
from deepres.ghosting import Ghost, Settings, load_ghost
from deepres.serve import loading
from deepres.serve.spec import Spec

PREPARE = Prepare.usual(16)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (PREPARE.mean, PREPARE.std))
PIXELS = ((X * STD + MEAN) * 255).round().clamp(0, 255).byte().numpy()  # for which the ghost's exits are fitted
IMAGES = PREPARE.normalise(torch.from_numpy(PIXELS))
OWN = Settings(exit_threshold=0.5)


def earlier(*thresholds: float) -> tuple[Settings, ...]:
    return tuple(dataclasses.replace(OWN, exit_threshold=one) for one in thresholds)


@torch.no_grad()
def expected(made: Ghost, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and depth of ``IMAGES`` in PyTorch."""
    made.settings = settings
    logits = made(IMAGES, trace=True)
    assert made.trace is not None
    return logits, made.trace.ran.float().mean(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(ghost(average=False), tmp_path_factory.mktemp("served") / "ghost", earlier(0.45, 0.4))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MEASURING", 0.2)


def test_over_http_on_a_choice_that_was_kept(folder: Path, tmp_path: Path) -> None:
    asked = [
        "--engine",
        "openvino",
        "--precision",
        "float32",
        "--batch",
        "4",
        "--seconds",
        "0.1",
        "--out",
        str(tmp_path / "fast"),
    ]
    assert main(["optimize", str(folder), *asked]) == 0
    server = start(folder, "--engine", str(tmp_path / "fast"))
    try:
        assert server.said == "deepres: ghost runs on openvino float32\n"
        logits, depth = expected(load_ghost(folder)[0], OWN)
        assert len(depth.unique()) == 3
        for pixels, wanted, share in zip(PIXELS, logits.softmax(1), depth.tolist(), strict=True):
            status, text = server.ask("/predict", png(Image.fromarray(pixels.transpose(1, 2, 0))))
            answer = json.loads(text)
            found = {one["name"]: one["probability"] for one in answer["classes"]}
            assert status == 200 and [found[name] for name in CLASSES] == pytest.approx(wanted.tolist(), abs=1e-4)
            assert answer["depth"] == pytest.approx(share)
        assert server.metric("deepres_depth_sum") == pytest.approx(float(depth.sum()))
    finally:
        server.process.kill()
        server.process.communicate()


def test_tightening_lets_inputs_leave_earlier_on_the_engine_too(tmp_path: Path) -> None:
    steps = tuple(dataclasses.replace(one, average=True) for one in (OWN, *earlier(0.45, 0.4)))
    made = ghost(average=True)
    folder = saved(made, tmp_path / "ghost", steps[1:])
    answering, facts = loading.load_answering(Spec(str(folder), tighten=True))
    assert facts.engine.startswith("openvino") and facts.levels == 2 and facts.blocks == 6 and not facts.why_not
    depths = []
    for level in (0, 1, 2, 0):
        logits, depth = expected(made, steps[level])
        for rows in (24, 1, 7):
            found, ran = answering(IMAGES[:rows], level)
            torch.testing.assert_close(found, logits[:rows], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(ran, depth[:rows])
        depths.append(float(depth.mean()))
    assert depths[0] > depths[1] > depths[2] and depths[3] == depths[0]


def test_blocks_skipped_for_all_inputs_are_an_ordinary_network(tmp_path: Path) -> None:
    made = ghost(average=False, gates=True)
    made.settings = dataclasses.replace(made.settings, exit_threshold=None)
    answering, facts = loading.load_answering(Spec(str(saved(made, tmp_path / "ghost")), engine="torch-eager"))
    logits, depth = expected(made, made.settings)
    found, ran = answering(IMAGES, 0)
    assert facts.engine.startswith("torch-eager") and facts.blocks == 6
    assert torch.equal(found.argmax(1), logits.argmax(1)) and torch.equal(ran, depth) and float(ran[0]) == pytest.approx(5 / 6)


def test_what_no_engine_takes_runs_in_pytorch_and_says_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(made: Ghost, name: str, *faster: Settings, engine: str = "auto", tighten: bool = False) -> str:
        answering, facts = loading.load_answering(
            Spec(str(saved(made, tmp_path / name, faster)), engine=engine, tighten=tighten)
        )
        logits, depth = expected(made, made.settings)
        with torch.no_grad():
            found, ran = answering(IMAGES, 0)
        assert facts.engine == "none" and facts.levels == len(faster) and torch.equal(found, logits) and torch.equal(ran, depth)
        return facts.why_not

    gates, late, exits = ghost(average=False, gates=True), ghost(average=False), ghost(average=False)
    gates.settings = dataclasses.replace(gates.settings, fixed=False)
    assert "gates choose for each input which blocks run" in load(gates, "gates")
    late.deadline = 100.0
    assert "keeps a deadline" in load(late, "late")
    others = dataclasses.replace(OWN, skip_threshold=0.0, fixed=True)
    assert load(exits, "others", others, tighten=True).startswith("--tighten changes which blocks")
    assert load(exits, "none", engine="none") == ""
    for engine, more, says in (
        ("torch-eager", {}, "early exits, which run on openvino and openvino-streams alone"),
        ("openvino", {"tighten": True}, "--engine openvino: --tighten changes"),
    ):
        with pytest.raises(DeepresError, match=says):
            loading.load_answering(Spec(str(tmp_path / "others"), engine=engine, **more))
    with pytest.raises(DeepresError, match="holds its weights"):
        loading.load_answering(Spec(str(folder), weights="other.safetensors"))
    with monkeypatch.context() as patch:
        measured = Candidate("openvino", "float32", "exact", ratio=0.5)
        fast = SimpleNamespace(choice=measured.chosen((8, 3, 16, 16)), candidates=(measured,))
        patch.setattr(loading, "_on_engine", lambda *asked: fast)
        assert load(exits, "slow") == "openvino float32 takes 2.00 times as long here"
    monkeypatch.setattr(type(ENGINES["openvino"]), "package", "no_such_package")
    assert "no_such_package is not installed; pip install" in load(exits, "missing")
