"""Accelerated networks compute, learn and keep what the ordinary ones do."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from run_helpers import Stop
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

import deepres
from deepres import DeepresError
from deepres.nn.fused import FusedNorm, FusedReLU
from deepres.training import memory
from deepres.training.fusion import accelerate, undo_acceleration
from deepres.training.sync_norm import SyncBatchNorm2d, synchronise_norms


def ours(name: str) -> Callable[[], nn.Module]:
    return lambda: deepres.create(name, width=0.5, num_classes=7)


# network -> batch norms that stay apart from a ReLU: the shortcuts' own, and those in front of something else
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "basic": (ours("resnet8-cifar"), 0),
    "option C": (ours("resnet8-cifar-c"), 3),
    "bottleneck": (ours("resnet11-cifar-bottleneck"), 3),
    "pre-activation": (ours("resnet8-cifar-preact"), 0),
    "plain": (ours("plain8-cifar"), 0),
    "torchvision basic": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7), 3),
    "torchvision bottleneck": (lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7), 4),
    "timm basic": (lambda: timm.models.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7), 3),
    "timm deep stem": (
        lambda: timm.models.ResNet(
            timm.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, stem_type="deep", block_args={"attn_layer": "se"}
        ),
        4,  # squeeze and excitation stand behind a last norm; the norm of the shortcut takes the sum
    ),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = NETS[name][0]().double().to(memory_format=torch.channels_last)
    return model, accelerate(copy.deepcopy(model))


def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(8) % 7


@pytest.mark.parametrize("name", NETS)
def test_a_training_step_is_the_same(name: str, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary, fused = pair(name)
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, FusedNorm) for norm in norms)
    activated = []
    run = FusedNorm.forward
    monkeypatch.setattr(FusedNorm, "forward", lambda *a: activated.append(a[0].relu or a[-1] is True) or run(*a))
    found = step(fused, *batch)
    assert len(activated) == len(norms) and activated.count(False) == NETS[name][1]
    expected = step(ordinary, *batch)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fused.state_dict(), ordinary.state_dict(), rtol=1e-9, atol=1e-12)  # running statistics too


@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
def test_eval_is_the_same_to_the_bit_and_back_is_back(name: str, batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair(name)
    expected = ordinary.eval()(batch[0])
    assert torch.equal(fused.eval()(batch[0]), expected)
    assert fused.state_dict().keys() == ordinary.state_dict().keys()
    kinds = [type(m) for m in ordinary.modules()]
    assert [type(m) for m in undo_acceleration(accelerate(fused)).modules()] == kinds  # and twice is once
    assert torch.equal(fused(batch[0]), expected)


@pytest.mark.parametrize("name", ["basic", "torchvision basic"])
def test_sites_see_what_they_see_elsewhere(name: str, batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair(name)
    for mode in (True, False):
        seen: list[list[Tensor]] = []
        for model in (ordinary.train(mode), fused.train(mode)):
            found: list[Tensor] = []
            site = deepres.sites(model)[0]
            assert site.kind == deepres.sites(ordinary)[0].kind
            with torch.no_grad(), site.observe(lambda o, found=found: found.extend((o.x, o.shortcut, o.branch, o.out))):
                found.append(model(batch[0]))
            with torch.no_grad(), site.bypass():
                found.append(model(batch[0]))
            with torch.no_grad(), site.scale(0.5):
                found.append(model(batch[0]))
            seen.append(found)
        assert len(seen[0]) == len(seen[1]) == 7
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-9, atol=1e-11)


def test_what_is_drawn_in_each_step_is_drawn_in_each_step(batch: tuple[Tensor, Tensor]) -> None:
    """Stochastic depth is not frozen into the fused forward, as tracing would do with a number that is drawn."""
    torch.manual_seed(0)
    ordinary = deepres.create("resnet8-cifar", num_classes=7, survival=0.5, dropout=0.5).double()
    fused = accelerate(copy.deepcopy(ordinary))
    outputs = []
    for seed in range(6):
        torch.manual_seed(seed)
        expected = ordinary(batch[0])
        torch.manual_seed(seed)
        outputs.append(fused(batch[0]))
        torch.testing.assert_close(outputs[-1], expected, rtol=1e-9, atol=1e-11)
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("name", ["basic", "torchvision bottleneck"])
def test_copies_and_pickles_compute_the_same(name: str, batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair(name)
    expected = ordinary(batch[0])
    stream = io.BytesIO()
    torch.save(fused, stream)
    stream.seek(0)
    for copied in (copy.deepcopy(fused), torch.load(stream, weights_only=False)):
        torch.testing.assert_close(copied(batch[0]), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(accelerate(copied)(batch[0]), expected, rtol=1e-9, atol=1e-11)


def test_a_block_that_cannot_be_traced_stays_as_it_is(batch: tuple[Tensor, Tensor]) -> None:
    class Whimsical(BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.mean() > -1e9 else x

    model = ResNet(Whimsical, [1, 1, 1, 1], num_classes=7).double()
    expected = copy.deepcopy(model)(batch[0])
    fused = accelerate(model)
    assert [type(block) for block in fused.layer1] == [Whimsical]
    assert isinstance(fused.bn1, FusedNorm) and isinstance(fused.relu, FusedReLU)  # the stem can be
    torch.testing.assert_close(fused(batch[0]), expected, rtol=1e-9, atol=1e-11)


def _repeated(shared: str) -> nn.Module:
    """A network in which one module stands in two places: a ReLU in two sequences or twice in one, or a convolution or norm likewise."""
    torch.manual_seed(0)
    convs, norms, relus = (
        [kind() for _ in range(2)] for kind in (lambda: nn.Conv2d(3, 3, 1), lambda: nn.BatchNorm2d(3), nn.ReLU)
    )
    if shared == "convolution":  # its second call is between the norm and the ReLU
        return nn.Sequential(convs[0], norms[0], convs[0], relus[0], nn.Flatten(), nn.LazyLinear(7))
    if shared == "norm":
        norms[1] = norms[0]
    else:
        relus[1] = relus[0]
    layers = [nn.Sequential(*three) for three in zip(convs, norms, relus, strict=True)]
    body = [layer for three in layers for layer in three] if shared == "ReLU in one sequence" else layers
    return nn.Sequential(*body, nn.Conv2d(3, 3, 1), relus[1], nn.Flatten(), nn.LazyLinear(7))


@pytest.mark.parametrize("shared", ["ReLU", "ReLU in one sequence", "norm", "convolution", "ReLU of stem and blocks"])
def test_a_layer_in_several_places_is_called_in_each(shared: str, batch: tuple[Tensor, Tensor]) -> None:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7) if shared.endswith("blocks") else _repeated(shared)
    if isinstance(model, ResNet):
        for block in (module for module in model.modules() if isinstance(module, BasicBlock)):
            block.relu = model.relu
    model(batch[0].float())
    ordinary = model.double().to(memory_format=torch.channels_last)
    fused = accelerate(copy.deepcopy(ordinary))
    torch.testing.assert_close(step(fused, *batch), step(ordinary, *batch), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fused.eval()(batch[0]), ordinary.eval()(batch[0]), rtol=1e-7, atol=1e-9)


def test_a_step_in_bf16_is_as_close_as_pytorchs(batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = (model.float() for model in pair("basic"))
    images, labels = batch[0].float(), batch[1]
    exact = step(copy.deepcopy(ordinary), images, labels)[0]
    with torch.autocast("cpu", torch.bfloat16):
        theirs, mine = (step(model, images, labels)[0].float() for model in (ordinary, fused))
    assert float((mine - exact).norm()) < 1.5 * float((theirs - exact).norm()) + 1e-3


def test_the_compiler_sees_a_node_for_each_norm(batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair("torchvision basic")
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(module)
        return module

    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(batch[0]), ordinary(batch[0]), rtol=1e-9, atol=1e-11)
    called = [node.target for node in graphs[0].graph.nodes if "norm_act" in str(node.target)]
    assert len(graphs) == 1 and len(called) == sum(isinstance(m, FusedNorm) for m in fused.modules())


def test_a_run_trains_fused_and_returns_an_ordinary_network() -> None:
    run = deepres.Run("resnet8-cifar", "digits", "digits", epochs=1, width=0.5, speed="float32-channels-last")
    seen = []

    class See(deepres.Callback):
        def after_epoch(self, trainer: deepres.training.Trainer, record: deepres.training.Record) -> None:
            seen.append(sum(isinstance(module, FusedNorm) for module in trainer.model.modules()))

    ordinary = deepres.train(run, show=False)
    given = deepres.create("resnet8-cifar", width=0.5, in_channels=1, num_classes=10)
    start = deepres.training.network.open_run(run).model
    given.load_state_dict(start.state_dict())
    fused = deepres.train(dataclasses.replace(run, speed="float32-fused"), show=False, model=given, callbacks=[See()])
    assert seen == [7] and fused.speed == "float32-fused"
    assert fused.history[0].loss == pytest.approx(ordinary.history[0].loss, rel=0.02)
    kinds = [type(module) for module in ordinary.model.modules()]
    assert [type(module) for module in fused.model.modules()] == [type(module) for module in given.modules()] == kinds


def test_norms_that_are_fused_already_can_be_synchronised() -> None:
    model = synchronise_norms(accelerate(deepres.create("resnet8-cifar")), torch.device("cpu"))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, FusedNorm) and norm.synchronised for norm in norms)
    undo_acceleration(model)
    assert all(type(norm) is SyncBatchNorm2d for norm in norms)


@pytest.mark.parametrize("why", ["memory", "optimizer", "interrupted"])
def test_a_run_that_fails_gives_the_callers_network_back_as_it_was(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not fused, and without groups of blocks that are recomputed."""
    model = deepres.create("resnet8-cifar", in_channels=1)
    kinds = [type(module) for module in model.modules()]
    run = deepres.Run("resnet8-cifar", "digits", "digits", speed="float32-fused")
    if why == "memory":
        run, says = dataclasses.replace(run, memory="1MiB"), "a training step needs"
    elif why == "optimizer":
        run, says = dataclasses.replace(run, recipe=deepres.training.recipe("language-muon")), "has none"
    else:
        monkeypatch.setattr(memory, "available_bytes", lambda _: 60_000_000)
        says = "interrupted after step 2"
    with pytest.raises(DeepresError, match=says):
        deepres.train(run, model=model, show=False, callbacks=[Stop(2)] if why == "interrupted" else [])
    assert [type(module) for module in model.modules()] == kinds


def test_one_value_per_channel_is_refused() -> None:
    fused = accelerate(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    with pytest.raises(ValueError, match="more than 1 value"):
        fused(torch.randn(1, 3, 1, 1))


def test_an_observed_block_that_adds_its_shortcut_in_place_still_learns() -> None:
    """Hooks bring back the block's ordinary ``forward``, whose fused norm must not need the output that the sum overwrites."""
    torch.manual_seed(0)
    net, images = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7).train(), torch.randn(4, 3, 32, 32)
    gradients = []
    for model in (net, accelerate(copy.deepcopy(net))):
        for site in deepres.sites(model):
            site.end.register_forward_hook(lambda *_: None)
        loss = F.cross_entropy(model(images), torch.arange(4))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
