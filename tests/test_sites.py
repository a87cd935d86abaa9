"""Sites: all there are, seen without changing a bit, and skipped or removed exactly."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import deepres
from deepres import DeepresError
from deepres.sites import Observation

MODELS = {
    "ours": (lambda: deepres.create("resnet20-cifar"), 9),
    "ours-preact": (lambda: deepres.create("resnet29-cifar-preact-bottleneck"), 9),
    "torchvision-18": (lambda: torchvision.models.resnet18(num_classes=10), 8),
    "torchvision-50": (lambda: torchvision.models.resnet50(num_classes=10), 16),
    "torchvision-resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 16),
    "timm-18": (lambda: timm.create_model("resnet18", num_classes=10), 8),
    "timm-50": (lambda: timm.create_model("resnet50", num_classes=10), 16),
    "timm-seresnet50": (lambda: timm.create_model("seresnet50", num_classes=10), 16),
}
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=list(MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    build, count = MODELS[request.param]
    net = build()
    with torch.no_grad():
        net.train()(X)  # running statistics that are not 0 and 1
    assert len(deepres.sites(net)) == count
    return net.eval()


@torch.no_grad()
def test_observing_changes_no_bit_and_sees_the_equation(model: nn.Module) -> None:
    expected = model(X)
    for site in deepres.sites(model):
        seen: list[Observation] = []
        with site.observe(seen.append):
            assert torch.equal(model(X), expected)
        assert torch.equal(model(X), expected) and len(seen) == 1
        after = site.row.find(site.block, "after")
        total = seen[0].shortcut + seen[0].branch
        torch.testing.assert_close(seen[0].out, torch.relu(total) if isinstance(after, nn.ReLU) else total)
        assert site.reshapes == (seen[0].x is not seen[0].shortcut and not torch.equal(seen[0].x, seen[0].shortcut))


@torch.no_grad()
def test_bypass_is_a_scale_of_zero(model: nn.Module) -> None:
    expected = model(X)
    for site in deepres.sites(model):
        with site.scale(0.0):
            nothing = model(X)
        with site.bypass():
            torch.testing.assert_close(model(X), nothing)
        skip = torch.tensor([True, False, True, False])
        with site.bypass(skip):
            mixed = model(X)
        torch.testing.assert_close(mixed, torch.where(skip[:, None], nothing, expected))
        with site.scale((~skip).float()):
            torch.testing.assert_close(model(X), mixed)
        assert torch.equal(model(X), expected)


def test_bypass_does_not_compute_the_branch(model: nn.Module) -> None:
    site = deepres.sites(model)[1]
    calls: list[int] = []
    handle = site.end.register_forward_hook(lambda *_: calls.append(1))
    with site.bypass():
        model(X)
    assert not calls
    handle.remove()
    with pytest.raises(DeepresError, match="one truth value per sample"), site.bypass(torch.tensor([True])):
        model(X)
    model(X)


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_removal_is_exact(name: str) -> None:
    torch.manual_seed(0)
    net = MODELS[name][0]()
    net.train()(X)
    net.eval()
    for position in (1, 0):
        site = deepres.sites(net)[position]
        if site.reshapes:
            with pytest.raises(DeepresError, match="changes the signal's shape"):
                site.remove()
            continue
        with site.bypass():
            expected = net(X)
        before = sum(p.numel() for p in net.parameters())
        site.remove()
        torch.testing.assert_close(net(X), expected, rtol=1e-5, atol=1e-5)
        assert sum(p.numel() for p in net.parameters()) < before


@torch.no_grad()
def test_a_network_of_ours_can_be_saved_after_removal(tmp_path) -> None:
    net = deepres.create("resnet20-cifar").eval()
    for _ in range(2):
        deepres.sites(net)[1].remove()
    assert net.config.blocks == (1, 3, 3)
    with pytest.raises(DeepresError, match="last block of its stage"):
        deepres.sites(net)[0].remove()
    again = deepres.load(deepres.save(net, tmp_path / "small.safetensors"))
    assert torch.equal(again(X), net(X))


class MyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.norm(self.conv(x)))


@torch.no_grad()
def test_users_blocks_take_one_row() -> None:
    net = nn.Sequential(MyBlock(), MyBlock()).eval()
    assert deepres.sites(net) == []
    deepres.register_site(MyBlock, end="norm", after="act")
    first, second = deepres.sites(net)
    with second.bypass():
        expected = net(X)
    second.remove()  # GELU twice is not GELU once, so the activation has to stay
    torch.testing.assert_close(net(X), expected)
    with pytest.raises(DeepresError, match="stale"):
        second.remove()
    assert first.name == "0"
    with pytest.raises(DeepresError, match="class"):
        deepres.register_site("MyBlock", end="norm")  # type: ignore[arg-type]


def test_a_failure_inside_a_context_restores_the_model() -> None:
    net = deepres.create("resnet20-cifar").eval()
    expected = net(X)
    site = deepres.sites(net)[3]
    for context in (site.bypass(), site.scale(0.5), site.observe(print)):
        with pytest.raises(ZeroDivisionError), context:
            raise ZeroDivisionError
    assert torch.equal(net(X), expected)
