"""Sites of users' own blocks, in wrapped networks, and the gradient split; ``test_walk`` goes through all families."""

import pytest
import torch
import transformers
from torch import nn

import deepres
from deepres import DeepresError
from deepres.adapters import GradientSplit, Site, adapters, delete_blocks, find_blocks, logits_of

EXAMPLES = {f"{adapter.library} {example.name}": example for adapter in adapters() for example in adapter.examples}
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def some(net: nn.Module) -> list[Site]:
    """A few sites from all over the network, an opening of a stage among them."""
    found = deepres.sites(net)
    return [site for i, site in enumerate(found) if i in {0, 1, len(found) // 2, len(found) - 1}]


class Logits(nn.Module):
    """A user's network around one of Hugging Face, which gives an object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


@torch.no_grad()
def test_sites_are_found_inside_a_users_network() -> None:
    net = Logits(EXAMPLES["Hugging Face DINOv2"].build()).eval()
    site = deepres.sites(net)[2]
    assert site.path.startswith("model.") and site.name == f"{site.path}.attention"
    with pytest.raises(DeepresError, match="one truth value per sample"), site.bypass(torch.tensor([True])):
        net(X)
    with site.bypass():
        expected = net(X)
    assert not torch.allclose(net(X), expected)
    site.remove()
    torch.testing.assert_close(net(X), expected)
    assert len(deepres.sites(net)) == 5


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


SMALL = [
    "deepres resnet20-cifar",
    "torchvision ResNet",
    "torchvision ViT",
    "torchvision Swin V2",
    "timm ResNet",
    "timm ResNetV2",
    "timm ConvNeXt",
    "timm ViT",
    "Hugging Face ViT",
]


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_splits_into_the_two_ways(name: str) -> None:
    """Against autograd with one way cut off at a time."""
    torch.manual_seed(0)
    model = EXAMPLES[name].build().eval()
    for site in some(model):
        if not site.splits_gradient:
            with pytest.raises(DeepresError, match="cannot be told apart"), site.gradients():
                pass
            continue
        splits_gradient: list[GradientSplit] = []
        with site.gradients(splits_gradient.append):
            x = X.clone().requires_grad_()
            out = logits_of(model, x)
            whole = torch.autograd.grad(out.square().sum(), x)[0]
        plain = X.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(logits_of(model, plain).square().sum(), plain)[0], whole)
        assert len(splits_gradient) == 1
        torch.testing.assert_close(
            splits_gradient[0].total, splits_gradient[0].shortcut + splits_gradient[0].branch, rtol=1e-4, atol=1e-6
        )
        parts = []
        for way in ("shortcut", "branch"):
            with site.gradients(through=way):
                x = X.clone().requires_grad_()
                assert torch.equal(logits_of(model, x), out)
                parts.append(torch.autograd.grad(logits_of(model, x).square().sum(), x)[0])
        torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


def test_the_two_ways_agree_with_a_finite_difference() -> None:
    """dL along a direction u at a block's input = (shortcut + branch) . u, each way perturbed by itself, in float64."""
    torch.manual_seed(0)
    block = deepres.nn.Residual(deepres.nn.basic(3, 3), after=nn.Tanh()).double().eval()
    x, u = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(2, 3, 5, 5, dtype=torch.float64)

    def loss(by_shortcut: float, by_branch: float) -> torch.Tensor:
        return block.after(x + by_shortcut * u + block.branch(x + by_branch * u)).square().sum()

    splits_gradient: list[GradientSplit] = []
    with deepres.sites(nn.Sequential(block))[0].gradients(splits_gradient.append):
        block(x.clone().requires_grad_()).square().sum().backward()
    step = 1e-6
    for part, moved in (("shortcut", (step, 0.0)), ("branch", (0.0, step)), ("total", (step, step))):
        difference = (loss(*moved) - loss(-moved[0], -moved[1])) / (2 * step)
        torch.testing.assert_close((getattr(splits_gradient[0], part) * u).sum(), difference, rtol=1e-6, atol=1e-6)


def test_a_layer_that_scales_the_others_by_their_place_is_not_deleted() -> None:
    """GPT-2 with ``scale_attn_by_inverse_layer_idx``: the layers behind would be scaled by another number."""
    size = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 1}
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, scale_attn_by_inverse_layer_idx=True)).eval()
    assert [block.removable for block in find_blocks(net)] == [False, False]
    with pytest.raises(DeepresError, match="scale_attn_by_inverse_layer_idx"):
        delete_blocks(net, ["transformer.h.0"])
    assert net.config.n_layer == len(net.transformer.h) == 2


class TwoPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.a, self.n2, self.b = nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.a(self.n1(x))
        return x + self.b(self.n2(x))


@torch.no_grad()
def test_a_users_block_may_hold_two_sites() -> None:
    deepres.register_site(TwoPart, part="a", start="n1", core="a", end="a", then="n2")
    deepres.register_site(TwoPart, part="b", start="n2", core="b", end="b")
    net, x = nn.Sequential(TwoPart(), TwoPart()), torch.randn(4, 3, 8)
    found = deepres.sites(net)
    assert [site.name for site in found] == ["0.a", "0.b", "1.a", "1.b"]
    with found[1].bypass():
        torch.testing.assert_close(net(x), net[1](x + net[0].a(net[0].n1(x))))
    with pytest.raises(DeepresError, match="belong together"):
        deepres.register_site(TwoPart, part="a", end="a")


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n1, self.n2 = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.n1(x + self.drop(self.a(x)))
        return self.n2(x + self.b(x))


@torch.no_grad()
def test_a_deleted_post_norm_block_keeps_its_norms() -> None:
    deepres.register_site(PostNorm, part="a", start="a", core="a", end="drop", after="n1")
    deepres.register_site(PostNorm, part="b", start="b", core="b", end="b", after="n2")
    net, x = nn.Sequential(PostNorm(), PostNorm(), PostNorm()).eval(), torch.randn(4, 3, 8)
    expected = net[2](net[1].n2(net[1].n1(net[0](x))))
    block = find_blocks(net)[1]
    assert block.removable
    torch.testing.assert_close(block.without_branches(net[0](x)), net[1].n2(net[1].n1(net[0](x))))
    with block.sites[0].bypass(), block.sites[1].bypass():
        torch.testing.assert_close(net(x), expected)
    delete_blocks(net, [block.path])
    torch.testing.assert_close(net(x), expected)
    assert [site.name for site in deepres.sites(net)] == ["0.a", "0.b", "2.a", "2.b"]
