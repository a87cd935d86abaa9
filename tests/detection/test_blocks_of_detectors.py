"""Blocks of a detector: leaving a branch out, deleting its block and building without it are the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from deepres import DeepresError
from deepres.adapters import find_blocks, sites
from deepres.data.detection import open_boxes
from deepres.detection import detector, load_detector, measure_detector, save_detector
from deepres.detection.blocks import look_at_detector, refuse_ghost, shrink_detector, without_blocks


def tiny(net: str = "resnet18", form: str = "fpn", **options):
    torch.manual_seed(0)
    usual = {"size": 64, "longest": 64, "proposals": (40, 20), "frozen": False} | (
        {"channels": 16, "width": 32} if form == "fpn" else {}
    )
    model = detector(net, ("blue", "red"), form, **{**usual, **options})
    for module in model.modules():  # branches that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(("net", "form"), [("resnet18", "fpn"), ("resnet18", "c4"), ("torchvision.models:mobilenet_v2", "fpn")])
def test_a_deleted_block_is_a_branch_left_out(net: str, form: str) -> None:
    model = tiny(net, form)
    image = [torch.rand(3, 64, 64)]
    blocks = [block for block in find_blocks(model.net) if block.removable]
    for block in (blocks[0], blocks[-1]):
        small = without_blocks(model, [block.path])
        (site,) = block.sites
        with torch.no_grad(), site.bypass():
            expected = model(image)[0]
        with torch.no_grad():
            got = small(image)[0]
        assert len(sites(small.net)) == len(sites(model.net)) - 1
        for key in expected:
            torch.testing.assert_close(got[key], expected[key])


def test_look_measures_in_map_and_leaves_the_detector_alone(shapes: Path) -> None:
    data, model = open_boxes(shapes), tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = look_at_detector(model, data.test)
    assert len(found.sites) == 8 and found.images == 8 and sum(site.reshapes for site in found.sites) == 3
    assert all(site.change == pytest.approx(site.ap50 - found.ap50) for site in found.sites)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    modes = [module.training for module in model.train().modules()]
    missing = dataclasses.replace(data.test[0], path=Path("nothing.png"))
    with pytest.raises(DeepresError, match=r"nothing\.png"):
        measure_detector(model, [missing], data.classes)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(DeepresError, match="no residual sites"):
        look_at_detector(tiny("plain18"), data.test)


def test_shrinking_takes_out_what_does_nothing_and_nothing_else(shapes: Path, tmp_path: Path) -> None:
    data, model = open_boxes(shapes), tiny()
    idle = model.net.stages[1].blocks[1].branch
    with torch.no_grad():
        for parameter in list(idle.parameters())[-2:]:  # the last norm's: the block is the identity
            parameter.zero_()
    result = shrink_detector(model, data.test, drop=0.0)
    assert "stages.1.blocks.1" in result.removed and result.after >= result.before and result.params[1] < result.params[0]
    again = load_detector(save_detector(result.model, tmp_path / "small.safetensors"))
    assert len(sites(again.net)) == 8 - len(result.removed)
    kept = shrink_detector(model, data.test, drop=-1.0)  # a gain that no block's end brings
    assert kept.removed == () and kept.model is model


def test_there_is_no_ghost_of_a_detector() -> None:
    with pytest.raises(DeepresError, match=r"cannot be made of a detector: .*no input to let out early"):
        refuse_ghost(tiny())
