"""int8: within the allowed loss, or refused with a sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch

import deepres
from deepres import DeepresError
from deepres.data import Data, open_data
from deepres.engines import build_choice
from deepres.engines.inputs import some_inputs


@pytest.fixture(scope="module")
def known() -> tuple[torch.nn.Module, Data]:
    """A network whose classifier holds the mean features of the classes, which takes no training, and digits."""
    data = open_data("digits")
    model = deepres.create("resnet8-cifar", in_channels=1, width=0.5)
    images, labels = some_inputs(data.train, data.prepare, 512)
    features: list[torch.Tensor] = []
    head = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
        hook = head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        model.eval()(images)
        hook.remove()
        spread = (features[0] - features[0].mean(0)) / features[0].std(0)
        means = torch.stack([spread[labels == k].mean(0) for k in range(10)])
        head.weight.copy_(means / features[0].std(0))
        head.bias.copy_(-head.weight @ features[0].mean(0) - means.square().sum(1) / 2)
    return model, dataclasses.replace(data, train=data.train.take(torch.arange(96)))


@torch.no_grad()
def test_int8_is_calibrated_measured_and_kept(known: tuple[torch.nn.Module, Data], tmp_path: Path) -> None:
    model, data = known
    images = some_inputs(data.val, data.prepare, 64)[0]
    fast = deepres.optimize(model, images[:16], images=images, data=data, error=5.0, precision="int8", seconds=0.1)
    int8 = next(one for one in fast.candidates if one.precision == "int8")
    assert fast.choice.precision == "int8" and int8.rise is not None and int8.rise <= 5.0
    assert torch.nn.functional.cosine_similarity(fast(images), model(images)).mean() > 0.9
    built = build_choice(model, images[:16], fast.save(tmp_path / "fast"))
    assert torch.equal(built(images[:16]), fast(images[:16]))
    remembered = deepres.optimize(model, images[:16], images=images, data=data, error=5.0, precision="int8")
    assert torch.equal(remembered(images[:16]), fast(images[:16])) and remembered.candidates == fast.candidates
    with pytest.raises(DeepresError, match=r"int8 raises the error on 143 validation images from .* to .* %, and at most -101"):
        deepres.optimize(model, images[:16], data=data, error=-101.0, precision="int8")


def test_what_int8_needs_is_said(known: tuple[torch.nn.Module, Data]) -> None:
    model, data = known
    images = some_inputs(data.val, data.prepare, 4)[0]
    few = dataclasses.replace(data, train=data.train.take(torch.arange(20)))
    with pytest.raises(DeepresError, match="its training split has 20 images, and calibrating int8 takes at least 32"):
        deepres.optimize(model, images, data=few, precision="int8")
    with pytest.raises(DeepresError, match="give data"):
        deepres.optimize(model, images, precision="int8")
    with pytest.raises(DeepresError, match="name it, or auto"):
        deepres.optimize(model, images, data=data, precision="int8", engine="onnxruntime")
