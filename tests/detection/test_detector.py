"""Detectors are equal to torchvision's where torchvision has them, and hold what the paper says where it has not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from tiny_detector import NarrowVgg
from torch import nn

import deepres
from deepres import DeepresError
from deepres.adapters import adapters, delete_blocks, sites, trunk
from deepres.detection import detector, load_detector, load_torchvision, save_detector, to_torchvision
from deepres.detection.pooling import RegionPool
from deepres.detection.recipe import detect_recipe
from deepres.detection.trainer import optimizer_of
from deepres.models import open_model


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 40, 50], [20, 10, 60, 44]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def small_net(**options) -> nn.Module:
    torch.manual_seed(0)
    return deepres.create("resnet18", width=0.25, **options)


def small(form: str = "fpn", **options):
    torch.manual_seed(0)
    usual = {"size": 64, "longest": 96, "samples": 16, "proposals": (50, 30)}
    if form == "fpn":
        usual |= {"channels": 16, "width": 32}
    return detector(small_net(), 2, form, **{"frozen": False, **usual, **options})


def test_torchvision_s_detector_by_name_in_both_directions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96
    ).eval()
    for module in theirs.modules():  # trained networks have other statistics than a fresh one
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    anchors = {"anchors": (32.0, 64.0, 128.0, 256.0, 512.0), "proposals": (2000, 1000), "size": 64, "longest": 96}
    ours = detector("resnet50", 3, frozen=True, neck_norm=False, **anchors).eval()
    load_torchvision(ours, theirs.state_dict())
    back = to_torchvision(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    with torch.no_grad():
        for mine, other in zip(ours(images((48, 64), (64, 40))), theirs(images((48, 64), (64, 40))), strict=True):
            assert len(mine["boxes"]) > 5
            for key in ("boxes", "labels", "scores"):
                torch.testing.assert_close(
                    mine[key], other[key], rtol=1e-4, atol=1e-3
                )  # the regions are pooled in another order
    frozen = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_torchvision(ours, frozen)  # as torchvision publishes them
    del frozen["rpn.head.conv.0.0.weight"]
    with pytest.raises(DeepresError, match=r"rpn\.head\.conv\.0\.0\.weight and 0 more"):
        load_torchvision(ours, frozen)


@pytest.mark.parametrize("family", [a for a in adapters() if not a.refused], ids=lambda a: a.name)
def test_a_trunk_run_module_by_module_is_the_network(family) -> None:
    for example in family.examples:
        model = example.build().eval()
        if example.vocabulary or example.shape[1:] != (3, 32, 32) or sites(model)[0].layout != "NCHW":
            with pytest.raises(DeepresError):
                trunk(model)
            continue
        levels = trunk(model)
        seen = {}
        last = model.get_submodule(levels[-1].paths[-1])
        handle = last.register_forward_hook(lambda _, __, out, seen=seen: seen.update(out=out))
        x = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            model(x)
            expected = seen["out"].clone()
            for level in levels:
                for path in level.paths:
                    x = model.get_submodule(path)(x)
                assert x.shape[1:] == (level.channels, 64 // level.stride, 96 // level.stride)
        handle.remove()
        torch.testing.assert_close(x, expected, rtol=0, atol=0)


class Joined(nn.Module):
    """Adds outside of its modules, where no module sees the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x))
        return self.c(x + 1).mean((2, 3))


def test_a_network_that_adds_outside_of_its_modules_is_refused() -> None:
    with pytest.raises(DeepresError, match="do not simply follow one another behind 'b'"):
        trunk(Joined())


@pytest.mark.parametrize("form", ["fpn", "c4"])
def test_learns_and_predicts(form: str) -> None:
    model = small(form).train()
    losses = model(images((64, 64), (48, 64)), TARGETS)
    sum(losses.values()).backward()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(images((64, 64), (48, 80)))
    assert [set(one) for one in found] == [{"boxes", "labels", "scores"}] * 2
    assert all(one["labels"].min() >= 1 and one["labels"].max() <= 2 for one in found if len(one["labels"]))


def test_c4_runs_the_last_stage_on_each_region() -> None:
    model = small("c4").eval()
    net = model.net
    assert model.backbone.out_channels == 64 and model.rpn.anchor_generator.num_anchors_per_location() == [9]
    features = torch.randn(5, 64, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(model.roi_heads.box_head(features), net.stages[3](features).mean((2, 3)))
        x = torch.randn(1, 3, 64, 64)
        whole = small_net().eval()
        torch.testing.assert_close(model.backbone(x)["0"], whole.stages[2](whole.stages[1](whole.stages[0](whole.stem(x)))))
    names = [name for name, _ in model.named_parameters()]
    assert (
        len(names)
        == len(set(names))
        == len(list(model.state_dict())) - sum("running" in n or "num_b" in n for n in model.state_dict())
    )
    assert not any("head.fc" in name for name in names)


def test_vgg_16_brings_its_fully_connected_layers_to_the_regions() -> None:
    net = NarrowVgg()
    first = net.classifier[0].weight
    model = detector(net, 2, "c4", size=64, longest=96)
    assert model.roi_heads.box_head.fc6.weight is first and model.roi_heads.box_head.fc7.out_features == 24
    assert model.backbone.out_channels == 8 and model.backbone.body.levels[-1][-1] == "features.13"  # without the last pooling
    losses = model.train()(images((64, 64)), TARGETS[:1])
    assert torch.isfinite(sum(losses.values()))


def test_norms_are_frozen_with_pretrained_weights_and_trained_without(tmp_path: Path) -> None:
    fresh = detector("resnet18", 2)
    assert "batch norms are trained, as there are no pretrained weights" in fresh.remarks and fresh.config.neck_norm
    path = deepres.save(small_net(num_classes=7), tmp_path / "net.safetensors")
    model = detector(str(path), 2, channels=16, width=32, size=64, longest=96)
    assert "batch norms are frozen, as the weights are pretrained" in model.remarks and not model.config.neck_norm
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sum(model.train()(images((64, 64)), TARGETS[:1]).values()).backward()
    optimizer.step()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed and not any("norm" in name for name in changed)
    assert any("stages.3" in name for name in changed)
    weights = open_model(path).model.state_dict()
    assert torch.equal(
        before["backbone.body.net.stages.1.blocks.0.branch.conv1.weight"], weights["stages.1.blocks.0.branch.conv1.weight"]
    )


@pytest.mark.parametrize("form", ["fpn", "c4"])
def test_pretrained_weights_with_frozen_norms_learn_at_a_rate_of_their_own(form: str) -> None:
    """All that was the network's, the stage behind the regions too; where its norms are trained, nothing."""
    net = small_net()
    of_net = {id(p) for p in net.parameters()}
    model = detector(net, 2, form, frozen=True, size=64, longest=96)
    groups = optimizer_of(model, detect_recipe("small", pretrained_rate=0.25), model.of_net).param_groups
    shares = {id(p): group["share"] for group in groups for p in group["params"]}
    assert all(shares[id(p)] == (0.25 if id(p) in of_net else 1.0) for p in model.parameters() if p.requires_grad)
    assert len(shares) == sum(p.requires_grad for p in model.parameters()) and set(shares.values()) == {0.25, 1.0}
    assert all((group["weight_decay"] > 0) == (p.ndim > 1) for group in groups for p in group["params"])


@pytest.mark.parametrize("form", ["fpn", "c4"])
def test_saved_loaded_and_with_a_block_deleted(form: str, tmp_path: Path) -> None:
    model = small(form, canvas=(96, 96)).eval()
    delete_blocks(model.net, ["stages.1.blocks.1"])
    again = load_detector(save_detector(model, tmp_path / "d.safetensors", epochs=3))
    assert again.config == model.config and len(sites(again)) == len(sites(model)) == 7
    with torch.no_grad():
        mine, other = model(images((48, 64)))[0], again(images((48, 64)))[0]
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    with pytest.raises(DeepresError, match="not a detector"):
        load_detector(deepres.save(small_net(), tmp_path / "net.safetensors"))


def test_networks_of_other_libraries_are_built_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = detector("timm:resnet18", 2, channels=16, width=32, size=64, longest=96).eval()
    again = load_detector(save_detector(model, tmp_path / "d.safetensors"))
    with torch.no_grad():
        assert torch.equal(model(images((48, 64)))[0]["scores"], again(images((48, 64)))[0]["scores"])


def test_a_canvas_changes_the_batch_and_not_the_boxes() -> None:
    model = small().eval()
    with torch.no_grad():
        plain = model.transform(images((48, 64)))[0]
        model.transform.canvas = (128, 160)
        padded = model.transform(images((48, 64)))[0]
    assert padded.tensors.shape == (1, 3, 128, 160) and padded.image_sizes == plain.image_sizes
    assert torch.equal(padded.tensors[:, :, : plain.tensors.shape[2], : plain.tensors.shape[3]], plain.tensors)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DeepresError, match="no feature map of stride 8, but of 1, 2, 4"):
        detector("resnet20-cifar", 2, strides=(4, 8))
    with pytest.raises(DeepresError, match="no feature map of stride 16"):
        detector("resnet20-cifar", 2, "c4")
    with pytest.raises(DeepresError, match="not a feature map"):
        detector("torchvision.models:vit_b_16", 2)
    with pytest.raises(DeepresError, match="unknown form 'c5'"):
        detector(small_net(), 2, "c5")
    with pytest.raises(DeepresError, match="unexpected keyword argument 'sizes'"):
        detector(small_net(), 2, sizes=3)
    with pytest.raises(DeepresError, match="takes images of 1 channels, and a detector sees colour images"):
        detector(small_net(in_channels=1), 2)
    with pytest.raises(DeepresError, match="3 anchors are given for the 5 maps of a feature pyramid"):
        detector(small_net(), 2, anchors=(128.0, 256.0, 512.0))
    with pytest.raises(DeepresError, match="timm:resnet18: takes no option width"):
        detector("timm:resnet18", 2, net_options={"width": 0.5})


@pytest.mark.parametrize("maps", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_region_pooling_is_torchvision_s_forward_and_backward(maps: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    features = {str(i): torch.randn(2, 6, 32 >> i, 40 >> i).to(memory_format=memory_format) for i in range(maps)}
    boxes = [torch.rand(count, 4) * 400 - 30 for count in (30, 0)]
    nothing = RegionPool([8, 16, 32][:maps], 7)(features, [torch.zeros(0, 4)] * 2, [(256, 320)] * 2)
    assert nothing.shape == (0, 6, 7, 7)
    boxes[0][:, 2:] = boxes[0][:, :2] + boxes[0][:, 2:].abs()  # some reach out of the image, some are less than a pixel
    boxes[0][0] = torch.tensor([20.0, 20, 20.1, 20.1])
    names, results = list(features), []
    for pool in (RegionPool([8, 16, 32][:maps], 7), torchvision.ops.MultiScaleRoIAlign(names, 7, 2)):
        given = {name: one.clone().requires_grad_() for name, one in features.items()}
        out = pool(given, boxes, [(256, 320)] * 2)
        (out * torch.arange(49).view(7, 7)).sum().backward()
        results.append((out, *(one.grad for one in given.values())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_panorama_before_other_images_does_not_change_what_is_found_in_them() -> None:
    model = small(canvas=(64, 96)).eval()
    with torch.no_grad():
        alone = model(images((48, 64)))[0]
        assert len(model(images((16, 240)))[0]["boxes"]) > 0
        again = model(images((48, 64)))[0]
        fresh = small(canvas=(64, 96)).eval()
        fresh(images((16, 240)))
        after = fresh(images((48, 64)))[0]
    for key, expected in alone.items():
        assert torch.equal(again[key], expected) and torch.equal(after[key], expected)


@pytest.mark.parametrize("form", ["fpn", "c4"])
def test_global_context_is_the_whole_image_s_feature_beside_each_region_s(form: str, tmp_path: Path) -> None:
    model = small(form, context=True).eval()
    heads, seen = model.roi_heads, {}
    heads.box_head.register_forward_hook(lambda _, __, out: seen.update(joined=out))
    heads.box_roi_pool.register_forward_hook(lambda _, args, __: seen.update(args=args))
    with torch.no_grad():
        found = model(images((64, 64), (48, 64)))
        maps, proposals, shapes = seen["args"]
        joined = seen["joined"]
        whole = [torch.tensor([[0.0, 0, wide, tall]]) for tall, wide in shapes]
        context = heads.box_head.head(RegionPool.forward(heads.box_roi_pool, maps, whole, shapes))
        regions = heads.box_head.head(RegionPool.forward(heads.box_roi_pool, maps, proposals, shapes))
    counts = torch.tensor([len(one) for one in proposals])
    torch.testing.assert_close(joined, torch.cat((regions, context.repeat_interleave(counts, 0)), 1))
    again = load_detector(save_detector(model, tmp_path / "d.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(images((64, 64), (48, 64)))[1]["scores"], found[1]["scores"])
    assert torch.isfinite(sum(model.train()(images((64, 64), (48, 64)), TARGETS).values()))
