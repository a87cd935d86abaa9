"""Sites: all there are, seen without changing a bit, and skipped or removed exactly."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import deepres
from deepres import DeepresError
from deepres.adapters import GradientSplit, Observation, Site, delete_blocks, find_blocks

MODELS = {
    "ours": (lambda: deepres.create("resnet20-cifar"), 9),
    "ours-preact": (lambda: deepres.create("resnet29-cifar-preact-bottleneck"), 9),
    "torchvision-18": (lambda: torchvision.models.resnet18(num_classes=10), 8),
    "torchvision-50": (lambda: torchvision.models.resnet50(num_classes=10), 16),
    "torchvision-resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 16),
    "timm-18": (lambda: timm.create_model("resnet18", num_classes=10), 8),
    "timm-50": (lambda: timm.create_model("resnet50", num_classes=10), 16),
    "timm-seresnet50": (lambda: timm.create_model("seresnet50", num_classes=10), 16),
    "torchvision-wide": (lambda: torchvision.models.wide_resnet50_2(num_classes=10), 16),
    "torchvision-convnext": (lambda: _lively(torchvision.models.convnext_tiny(num_classes=10)), 18),
    "torchvision-vit": (lambda: _vit(), 4),
    "timm-res2net": (lambda: timm.create_model("res2net50_26w_4s", num_classes=10), 16),
    "timm-resnest": (lambda: timm.create_model("resnest14d", num_classes=10), 4),
    "timm-sknet": (lambda: timm.create_model("skresnet18", num_classes=10), 8),
    "timm-resnetv2": (lambda: timm.create_model("resnetv2_50", num_classes=10), 16),
    "timm-convnext": (lambda: _lively(timm.create_model("convnext_atto", num_classes=10)), 12),
    "timm-vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=10), 6),
    "hf-vit": (lambda: _hf("ViTForImageClassification", "ViTConfig"), 6),
    "hf-dinov2": (lambda: _hf("Dinov2ForImageClassification", "Dinov2Config"), 6),
    "hf-deit": (lambda: _hf("DeiTForImageClassification", "DeiTConfig"), 6),
}


def some(net: nn.Module) -> list[Site]:
    """A few sites from all over the network, an opening of a stage among them: every site of fifty layers takes minutes."""
    found = deepres.sites(net)
    return [site for i, site in enumerate(found) if i in {0, 1, len(found) // 2, len(found) - 1}]


def _vit() -> nn.Module:
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    nn.init.normal_(net.heads.head.weight, std=0.1)  # zero as it comes, so every answer would be the same
    return net


def _lively(net: nn.Module) -> nn.Module:
    """ConvNeXt's layer scale starts at 1e-6, which hides every branch."""
    for name, parameter in net.named_parameters():
        if name.endswith(("layer_scale", "gamma")):
            nn.init.constant_(parameter, 0.5)
    return net


class Logits(nn.Module):
    """Hugging Face's models give an object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def _hf(model: str, config: str) -> nn.Module:
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
    settings = getattr(transformers, config)(**small, patch_size=8, num_labels=10)
    return Logits(getattr(transformers, model)(settings))


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
    for site in some(model):
        seen: list[Observation] = []
        with site.observe(seen.append):
            assert torch.equal(model(X), expected)
        assert torch.equal(model(X), expected) and len(seen) == 1
        after = site.activation
        total = seen[0].shortcut + seen[0].branch
        expected_out = after(total) if after is not None else total
        torch.testing.assert_close(seen[0].out, expected_out, rtol=1e-5, atol=1e-4)
        assert site.reshapes == (seen[0].x is not seen[0].shortcut and not torch.equal(seen[0].x, seen[0].shortcut))


@torch.no_grad()
def test_bypass_is_a_scale_of_zero(model: nn.Module) -> None:
    expected = model(X)
    for site in some(model):
        with site.scale(0.0):
            nothing = model(X)
        with site.bypass():
            torch.testing.assert_close(model(X), nothing)
        skip = torch.tensor([True, False, True, False])
        with site.bypass(skip):
            mixed = model(X)
        torch.testing.assert_close(mixed, torch.where(skip[:, None], nothing, expected), rtol=1e-4, atol=1e-4)
        for everyone, all_of in ((torch.ones(4), nothing), (torch.zeros(4), expected)):
            with site.bypass(everyone.bool()):
                torch.testing.assert_close(model(X), all_of)
        with site.scale((~skip).float()):
            torch.testing.assert_close(model(X), mixed, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(X), expected)


def test_bypass_does_not_compute_the_branch(model: nn.Module) -> None:
    site = deepres.sites(model)[1]
    calls: list[int] = []
    core = next(m for module in site.branch_modules for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    handle = core.register_forward_hook(lambda *_: calls.append(1))
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


SMALL = ["ours", "torchvision-18", "timm-18", "timm-resnetv2", "timm-convnext", "torchvision-vit", "timm-vit", "hf-vit"]


@pytest.mark.parametrize("model", SMALL, indirect=True)
def test_the_gradient_splits_into_the_two_ways(model: nn.Module) -> None:
    """Against autograd with one way cut off at a time."""
    for site in some(model):
        if not site.splits_gradient:
            with pytest.raises(DeepresError, match="cannot be told apart"), site.gradients():
                pass
            continue
        splits_gradient: list[GradientSplit] = []
        with site.gradients(splits_gradient.append):
            x = X.clone().requires_grad_()
            out = model(x)
            whole = torch.autograd.grad(out.square().sum(), x)[0]
        plain = X.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(model(plain).square().sum(), plain)[0], whole)
        assert len(splits_gradient) == 1
        torch.testing.assert_close(
            splits_gradient[0].total, splits_gradient[0].shortcut + splits_gradient[0].branch, rtol=1e-4, atol=1e-6
        )
        parts = []
        for way in ("shortcut", "branch"):
            with site.gradients(through=way):
                x = X.clone().requires_grad_()
                assert torch.equal(model(x), out)
                parts.append(torch.autograd.grad(model(x).square().sum(), x)[0])
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


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=3, n_head=2, use_cache=False)
    return transformers.GPT2LMHeadModel(config).eval()


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, use_cache=False
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("build", [_gpt2, _llama])
@torch.no_grad()
def test_language_models_have_two_sites_a_layer(build) -> None:
    net = build()
    tokens = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    expected = net(tokens).logits
    found = deepres.sites(net)
    assert [site.kind for site in found] == ["attention", "mlp"] * 3
    for site in found:
        seen: list[Observation] = []
        with site.observe(seen.append):
            assert torch.equal(net(tokens).logits, expected)
        torch.testing.assert_close(seen[0].out, seen[0].shortcut + seen[0].branch)
        with site.scale(0.0):
            nothing = net(tokens).logits
        with site.bypass():
            torch.testing.assert_close(net(tokens).logits, nothing)
        skip = torch.tensor([False, True, True, False])
        with site.bypass(skip):
            mixed = net(tokens).logits
        torch.testing.assert_close(mixed, torch.where(skip[:, None, None], nothing, expected), rtol=1e-4, atol=1e-4)
    site = found[2]
    with site.bypass():
        expected = net(tokens).logits
    site.remove()
    torch.testing.assert_close(net(tokens).logits, expected)
    assert len(deepres.sites(net)) == 5


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
