"""Training finds the rectangles, and is the same to the bit however often it is interrupted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from run_helpers import torchrun
from tiny_detector import TINY

from deepres import DeepresError
from deepres.data.detection import open_boxes
from deepres.detection import DetectRun, load_detector, resume_detector, train_detector
from deepres.detection.batches import DRAWS, BoxLoader, augmented
from deepres.detection.recipe import DETECT_RECIPES, DetectRecipe, detect_recipe
from deepres.detection.trainer import DetectTrainer, common_canvas
from deepres.detection.training import built
from deepres.nn.fused import FusedNorm
from deepres.training.distribute import DistributedContext
from deepres.training.epoch import Interrupted


def tiny_run(data: Path, out: Path | None, **changes) -> DetectRun:
    recipe = detect_recipe(
        "small",
        epochs=changes.pop("epochs", 2),
        lr=changes.pop("lr", 5e-3),
        zoom=(1.0, 1.0),
        detector=TINY | {"strides": (8, 16, 32)},
    )
    return DetectRun("resnet18", str(data), recipe=recipe, out=str(out) if out else None, speed="exact", width=0.25, **changes)


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "learned"
    return train_detector(tiny_run(shapes, out, epochs=14), show=False)


def test_learns_the_rectangles(trained) -> None:
    assert trained.val > 0.5 and trained.test.coco.ap50 > 0.5 and trained.test.voc12 > 0.5  # it begins at 0.02
    assert max(record.ap50 for record in trained.history) == trained.val == trained.history[trained.best_epoch - 1].ap50


def test_the_folder_holds_what_was_measured(trained) -> None:
    saved = json.loads((trained.out / "result.json").read_text())
    assert saved["test"] == trained.test.to_dict() and saved["best_epoch"] == trained.best_epoch
    again = load_detector(trained.out)
    assert again.config == trained.model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.model.state_dict().values(), strict=True))
    assert list((trained.out / "tensorboard").iterdir())
    with pytest.raises(DeepresError, match="holds a run already"):
        train_detector(trained.run, show=False)


def test_fused_kernels_train_the_same_detector(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = FusedNorm.forward
    monkeypatch.setattr(FusedNorm, "forward", lambda self, *args: calls.append(self.training) or run(self, *args))
    results = [
        train_detector(dataclasses.replace(tiny_run(shapes, None, epochs=1), speed=speed), show=False)
        for speed in ("float32-channels-last", "float32-fused")
    ]
    assert sum(calls) > 0 and not any(isinstance(module, FusedNorm) for module in results[1].model.modules())
    assert results[1].history[0].loss == pytest.approx(results[0].history[0].loss, rel=0.02)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the step."""
    whole = DetectTrainer.take_step

    def step(self: DetectTrainer, batch) -> None:
        whole(self, batch)
        if self.progress.done == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DetectTrainer, "take_step", step)


def test_a_resumed_run_is_the_same_to_the_bit(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_detector(tiny_run(shapes, tmp_path / "whole"), show=False)
    with monkeypatch.context() as patch:
        stop_after(8, patch)  # 6 steps an epoch
        with pytest.raises(Interrupted, match="interrupted after step 8 of 12; resume with --resume"):
            train_detector(tiny_run(shapes, tmp_path / "parts"), show=False)
    parts = resume_detector(tmp_path / "parts", show=False)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name
    assert whole.test.to_dict() == parts.test.to_dict()
    assert [record.losses for record in whole.history] == [record.losses for record in parts.history]


def test_other_data_are_refused_on_resume(shapes: Path, tmp_path: Path) -> None:
    run = tiny_run(shapes, tmp_path / "run", epochs=1)
    train_detector(run, show=False)
    data = open_boxes(shapes)
    with pytest.raises(DeepresError, match="the data have changed since"):
        train_detector(run, resume=True, show=False, data=dataclasses.replace(data, train=data.train[:-1]))


def test_without_objects_to_validate_on_the_last_weights_are_kept(shapes: Path, tmp_path: Path) -> None:
    data = open_boxes(shapes)
    bare = [dataclasses.replace(one, boxes=one.boxes[:0], labels=one.labels[:0], ignored=one.ignored[:0]) for one in data.val]
    result = train_detector(tiny_run(shapes, tmp_path / "run"), show=False, data=dataclasses.replace(data, val=tuple(bare)))
    assert result.best_epoch == 2 and math.isnan(result.val)
    assert json.loads((tmp_path / "run/result.json").read_text())["val_ap50"] is None
    kept, last = load_detector(tmp_path / "run").state_dict(), result.model.state_dict()
    assert all(torch.equal(kept[name], last[name]) for name in last)


def test_a_run_that_cannot_begin_leaves_no_folder(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: DetectTrainer, *_: object) -> None:
        raise DeepresError("cannot begin")

    with monkeypatch.context() as patch:
        patch.setattr(DetectTrainer, "__init__", refuse)
        with pytest.raises(DeepresError, match="cannot begin"):
            train_detector(tiny_run(shapes, tmp_path / "runs/a"), show=False)
    assert not (tmp_path / "runs").exists()


def test_batches_depend_on_seed_epoch_and_index_alone(shapes: Path) -> None:
    data = open_boxes(shapes)
    recipe = detect_recipe("small", epochs=1)
    loader = BoxLoader(data.train, recipe, (64, 64), seed=3, workers=3)
    whole = list(loader.epoch(1))
    late = list(BoxLoader(data.train, recipe, (64, 64), seed=3, workers=1).epoch(1, first=4))
    assert len(whole) == 6 and len(late) == 2
    for one, two in zip(whole[4:], late, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.images, two.images, strict=True))
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(one.targets, two.targets, strict=True))
    assert not torch.equal(whole[0].images[0], next(iter(loader.epoch(2))).images[0])


@pytest.mark.parametrize("seed", range(4))
def test_boxes_stay_on_their_objects(shapes: Path, seed: int) -> None:
    """Inside each box, after mirroring, zooming and cutting, is the colour of its class, and around it grey."""
    data = open_boxes(shapes)
    recipe = DetectRecipe("test", epochs=1, flips="hv", zoom=(0.5, 2.0))
    generator = torch.Generator().manual_seed(seed)
    for example in data.train:
        image, target = augmented(example, recipe, (64, 64), torch.rand(DRAWS, generator=generator).tolist())
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32 and type(target["boxes"]) is torch.Tensor
        for (left, top, right, bottom), label in zip(
            target["boxes"].round().int().tolist(), target["labels"].tolist(), strict=True
        ):
            inner = image[:, top + 2 : bottom - 2, left + 2 : right - 2].mean((1, 2))
            colour = ("blue", "red")[label - 1]
            assert inner[0 if colour == "red" else 2] > 0.7 and inner[2 if colour == "red" else 0] < 0.3
    # an image keeps all that is in it where nothing is drawn
    plain = DetectRecipe("test", epochs=1, flips="")
    image, target = augmented(data.train[0], plain, (64, 64), [0.0] * DRAWS)
    assert torch.equal(target["boxes"], data.train[0].boxes)


def test_a_canvas_for_all_images_unless_it_wastes_memory(shapes: Path) -> None:
    data = open_boxes(shapes)
    assert common_canvas(data, 240, 320) == (256, 256)
    tall = dataclasses.replace(data.train[0], size=(64, 256))
    wide = dataclasses.replace(data.train[0], size=(256, 64))
    assert common_canvas(dataclasses.replace(data, train=(tall, wide), val=(), test=()), 240, 960) is None


def test_recipes() -> None:
    for name in DETECT_RECIPES:
        made = detect_recipe(name)
        assert made.name == name
        rates = [made.rate(step / 1000) for step in range(1000)]
        assert max(rates) <= made.lr * (1 + 1e-9) and min(rates) > 0 and rates[-1] < made.lr * 0.2
    assert [detect_recipe("paper-voc").rate(share) for share in (0, 0.74, 0.76)] == pytest.approx([1e-3, 1e-3, 1e-4])
    with pytest.raises(DeepresError, match="did you mean 'small'"):
        detect_recipe("smal")
    with pytest.raises(DeepresError, match="flips is"):
        detect_recipe("small", flips="x")
    with pytest.raises(DeepresError, match="unknown speed 'fast'"):
        DetectRun("resnet18", "data", speed="fast")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_step_takes_the_rate_of_each_part(shapes: Path, frozen: bool) -> None:
    run = dataclasses.replace(tiny_run(shapes, None), options={"frozen": frozen})
    data = open_boxes(shapes)
    trainer = DetectTrainer(run, data, DistributedContext(torch.device("cpu")), built(run, data))
    trainer.model.train()
    trainer.take_step(next(iter(trainer.loader.epoch(0))))
    rates = {group["lr"] / trainer.recipe.rate(0) for group in trainer.optimizer.param_groups}
    assert rates == ({0.1, 1.0} if frozen else {1.0})


def test_two_processes_train_as_one_and_agree(shapes: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path\nfrom test_training_of_detectors import tiny_run\nfrom deepres.detection import train_detector\n"
        "result = train_detector(tiny_run(Path(sys.argv[1]), Path(sys.argv[2]), epochs=1), show=False)\n"
        "total = sum(float(t.double().sum()) for t in result.model.state_dict().values())\n"
        "import os\nPath(sys.argv[2], os.environ['RANK']).write_text(f'{total} {result.test.coco.ap50}')\n"
    )
    torchrun(str(script), str(shapes), str(tmp_path / "run"), str(Path(__file__).parent), PYTHONWARNINGS="ignore")
    assert (tmp_path / "run/0").read_text() == (tmp_path / "run/1").read_text()
    assert load_detector(tmp_path / "run").config.classes == ("blue", "red")


def test_interrupting_does_not_need_the_main_thread(shapes: Path) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(train_detector(tiny_run(shapes, None, epochs=0.2), show=False)))
    thread.start()
    thread.join()
    assert found[0].history[0].step == 1 and found[0].out is None
