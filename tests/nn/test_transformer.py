"""Residual Transformers against Hugging Face's, against their own full forward pass, and against the papers' formulas."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError
from deepres.nn.attention import Attention, Rotary, attend, attentions
from deepres.nn.generate import generate_tokens, sampling_distribution
from deepres.nn.residual import Residual
from deepres.nn.transformer import Transformer, TransformerConfig, deepnorm
from deepres.nn.transformer_zoo import layers, transformer, transformer_names

SMALL = {
    "gpt-tiny": {"width": 32, "vocabulary": 40, "context": 24},
    "llama-tiny": {"width": 32, "vocabulary": 40, "context": 24},
}


def small(name: str, **options: object) -> Transformer:
    return transformer(name, depth=2, **{**SMALL[name], **options}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),  # Radford et al. 2019, as published in the checkpoint
        ("vit-b16", 86_567_656),  # Dosovitskiy et al. 2021: 86M
        ("vit-s16", 22_050_664),  # Touvron et al. 2021: 22M
    ],
)
def test_parameters_are_the_papers(name: str, count: int) -> None:
    with torch.device("meta"):
        model = transformer(name)
    assert sum(p.numel() for p in model.parameters()) == count


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
def test_a_cache_changes_nothing_however_the_tokens_come(name: str) -> None:
    model = small(name)
    tokens = torch.randint(40, (3, 20))
    whole = model(tokens)
    for cuts in ([20], [1] * 20, [7, 1, 5, 7]):
        cache, start = model.empty_cache(3), 0
        for size in cuts:
            logits = model(tokens[:, start : start + size], cache)
            torch.testing.assert_close(logits, whole[:, start : start + size], rtol=1e-4, atol=1e-5)
            start += size
    assert all(layer.cache is None for layer in attentions(model))


@torch.no_grad()
def test_later_tokens_change_no_earlier_answer() -> None:
    model = small("llama-tiny")
    tokens = torch.randint(40, (1, 12))
    other = tokens.clone()
    other[:, 8:] = (other[:, 8:] + 1) % 40
    assert torch.equal(model(tokens)[:, :8], model(other)[:, :8])


@torch.no_grad()
def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(8, 64)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    scores = [float((rotary(q, i + 5) * rotary(k, i)).sum()) for i in (0, 3, 40)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    # By hand for the first pair at position 1: a turn by one radian.
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1.0
    turned = rotary(x, 1).flatten()
    assert float(turned[0]) == pytest.approx(math.cos(1)) and float(turned[4]) == pytest.approx(math.sin(1))


@torch.no_grad()
def test_grouped_queries_equal_attention_with_repeated_heads() -> None:
    grouped = Attention(16, 4, 2, causal=True)
    full = Attention(16, 4, 4, causal=True)
    q, k, v = grouped.qkv.weight.split([16, 8, 8])
    qb, kb, vb = grouped.qkv.bias.split([16, 8, 8])
    twice = [t.unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1) for t in (k, v, kb, vb)]
    full.qkv.weight.copy_(torch.cat((q, twice[0], twice[1])))
    full.qkv.bias.copy_(torch.cat((qb, twice[2], twice[3])))
    full.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(grouped(x), full(x))


@pytest.mark.parametrize("causal", [True, False])
def test_short_attention_in_bfloat16_equals_float32_with_its_gradients(causal: bool) -> None:
    """On a CPU it is computed another way, which has to give the same answer up to bfloat16's rounding."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 24, 8), torch.randn(2, 2, 24, 8), torch.randn(2, 2, 24, 8)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        parts = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
        out = attend(parts[0], parts[1], parts[2], causal=causal)
        (out * torch.arange(8.0).to(dtype)).sum().backward()
        found.append([out, *(part.grad for part in parts)])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype is torch.bfloat16
        assert torch.allclose(exact, rounded.float(), atol=0.02 * float(exact.detach().abs().max()), rtol=0.05)


@pytest.mark.parametrize("order", ["pre", "post", "deepnorm"])
def test_blocks_compute_their_formula(order: str) -> None:
    model = small("gpt-tiny", order=order)
    block = model.blocks[1]
    assert isinstance(block, Residual)
    x = torch.randn(2, 6, 32)
    norm = nn.LayerNorm(32)
    alpha = deepnorm(model.config)[0]
    core = block.branch.core
    expected = {
        "pre": lambda: x + core(norm(x)),
        "post": lambda: norm(x + core(x)),
        "deepnorm": lambda: norm(alpha * x + core(x)),
    }
    torch.testing.assert_close(block(x), expected[order]())
    assert isinstance(model.norm, nn.LayerNorm) == (order == "pre")


def test_deepnorm_constants_are_the_papers() -> None:
    config = dataclasses.replace(small("gpt-tiny").config, blocks=layers(18), order="deepnorm")
    assert deepnorm(config) == pytest.approx((36**0.25, 144**-0.25))  # Wang et al. 2022, decoder of M = 18 layers


@torch.no_grad()
def test_a_deep_pre_norm_signal_keeps_its_size() -> None:
    torch.manual_seed(0)
    sizes = []
    for depth in (2, 24):
        model = (
            small("gpt-tiny", blocks=layers(depth)) if depth == 2 else transformer("gpt-tiny", depth=depth, **SMALL["gpt-tiny"])
        )
        x = model.embed(torch.randint(40, (4, 20)))
        sizes.append(float(model.blocks(x).std() / x.std()))
    assert sizes[1] < 2 * sizes[0]


def test_it_learns_to_repeat() -> None:
    torch.manual_seed(0)
    model = small("llama-tiny").train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(400):
        tokens = torch.randint(40, (16, 6)).repeat(1, 2)
        loss = nn.functional.cross_entropy(model(tokens[:, :-1])[:, 5:].flatten(0, 1), tokens[:, 6:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * math.log(40)  # half of what guessing costs


@torch.no_grad()
def test_images_take_the_class_token() -> None:
    model = transformer("vit-tiny-cifar", depth=1, width=24, heads=3, num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 5)
    with pytest.raises(DeepresError, match="32x32"):
        model(torch.randn(2, 3, 16, 16))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
def test_greedy_generation_is_the_argmax_of_the_whole_pass(name: str) -> None:
    model = small(name)
    prompt = torch.randint(40, (2, 4))
    made = torch.stack(list(generate_tokens(model, prompt, 15, temperature=0)), dim=1)
    tokens = prompt
    for _ in range(15):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(made, tokens[:, 4:])


def test_generation_goes_on_beyond_the_context() -> None:
    model = small("llama-tiny")
    assert (
        len(list(generate_tokens(model, torch.zeros(1, 3, dtype=torch.int64), 60, generator=torch.Generator().manual_seed(0))))
        == 60
    )


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    full = logits.softmax(-1)
    torch.testing.assert_close(sampling_distribution(logits), full)
    torch.testing.assert_close(sampling_distribution(logits, 0.5), (logits / 0.5).softmax(-1))
    nucleus = sampling_distribution(logits, 1.0, 0.7)  # 0.644 alone is less than 0.7, so two tokens stay
    torch.testing.assert_close(nucleus[0, :2], full[0, :2] / full[0, :2].sum())
    assert nucleus[0, 2:].tolist() == [0, 0]
    assert sampling_distribution(logits, 1.0, 1e-6)[0].tolist() == [1, 0, 0, 0]
    assert sampling_distribution(logits, 0)[0].tolist() == [1, 0, 0, 0]


def test_the_same_seed_gives_the_same_text() -> None:
    model = small("gpt-tiny")
    prompt = torch.zeros(1, 2, dtype=torch.int64)
    runs = [
        [
            int(t)
            for t in itertools.islice(generate_tokens(model, prompt, 12, generator=torch.Generator().manual_seed(seed)), 12)
        ]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 30}, "multiple"),
        ({"kv_heads": 3}, "multiple"),
        ({"blocks": ("conv",)}, "'attention' or 'mlp'"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": "rotary", "head_width": 7}, "a head has 7"),
        ({"positions": "rotary", "rotary_scaling": (8.0, 1.0)}, "rotary_scaling"),
        ({"depth": 0}, "at least 1"),
        ({"heads": 0}, "heads must be at least 1, not 0"),
        ({"context": 0}, "context must be at least 1, not 0"),
        ({"mlp": "swish"}, "mlp is one of 'gelu', 'gelu-tanh', 'swiglu', not 'swish'"),
        ({"norm": "rmsnorm"}, "norm is one of 'layer', 'rms'"),
        ({"order": "Post"}, "order is one of 'pre', 'post', 'deepnorm'"),
        ({"positions": "rope"}, "positions is one of 'learned', 'rotary'"),
        ({"wdith": 3}, "did you mean 'width'"),
    ],
)
def test_wrong_options_get_a_sentence(options: dict[str, object], match: str) -> None:
    with pytest.raises(DeepresError, match=match):
        transformer("gpt-tiny", **options)  # type: ignore[arg-type]


def test_wrong_calls_get_a_sentence() -> None:
    model = small("gpt-tiny")
    with pytest.raises(DeepresError, match="did you mean 'gpt2'"):
        transformer("gpt3")
    with pytest.raises(DeepresError, match="longer than the context of 24"):
        model(torch.zeros(1, 25, dtype=torch.int64))
    for prompt in (torch.zeros(1, 0), torch.zeros(1, 25), torch.zeros(3)):
        with pytest.raises(DeepresError, match="context of 24"):
            next(generate_tokens(model, prompt.long(), 1))
    with pytest.raises(DeepresError, match="vocabulary of 40"):
        next(generate_tokens(model, torch.tensor([[40]]), 1))
    with torch.no_grad():
        model.positions.fill_(torch.nan)
    with pytest.raises(DeepresError, match="not finite"):
        next(generate_tokens(model, torch.tensor([[1]]), 1))
    with pytest.raises(DeepresError, match="decoder"):
        next(generate_tokens(transformer("vit-tiny-cifar", depth=1), torch.zeros(1, 1).long(), 1))
    with pytest.raises(DeepresError, match="patches"):
        TransformerConfig(layers(1), 32, 4, image=30, patch=16)
    assert transformer_names("gpt2*") == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]


@torch.no_grad()
def test_every_branch_is_a_site() -> None:
    model = small("llama-tiny")
    tokens = torch.randint(40, (2, 9))
    sites = deepres.sites(model)
    assert [site.path for site in sites] == [f"blocks.{i}" for i in range(4)]
    with sites[2].bypass():
        without = model(tokens)
    fewer = dataclasses.replace(model.config, blocks=("attention", "mlp", "mlp"))
    shorter = Transformer(fewer).eval()
    state = {name.replace("blocks.3", "blocks.2"): t for name, t in model.state_dict().items() if "blocks.2" not in name}
    shorter.load_state_dict(state)
    torch.testing.assert_close(shorter(tokens), without)
