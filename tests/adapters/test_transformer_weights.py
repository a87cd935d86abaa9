"""Hugging Face's GPT-2, Llama and ViT in our Transformers: equal logits both ways, on random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepres import DeepresError
from deepres.adapters.transformer_weights import from_hugging_face, to_hugging_face, transformer_config
from deepres.nn.attention import scaled_rates

transformers = pytest.importorskip("transformers")


def gpt2(**options: object) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, **options
    )
    return transformers.GPT2LMHeadModel(config).eval()


def llama(**options: object) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
        **options,
    )
    return transformers.LlamaForCausalLM(config).eval()


def vit(**options: object) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8, **options
    )
    return transformers.ViTForImageClassification(config).eval()


TOKENS, IMAGES = torch.arange(24).view(2, 12), torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def scramble(model: nn.Module) -> nn.Module:
    """Give every tensor values that show where it is used: biases and norms start at constants."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
@pytest.mark.parametrize(("build", "inputs"), [(gpt2, TOKENS), (llama, TOKENS), (vit, IMAGES)])
def test_logits_agree_both_ways(build, inputs: Tensor) -> None:  # type: ignore[no-untyped-def]
    theirs = scramble(build())
    expected = theirs(inputs).logits
    ours = from_hugging_face(theirs)
    torch.testing.assert_close(ours(inputs), expected, rtol=1e-4, atol=1e-4)
    back = to_hugging_face(ours, build())
    torch.testing.assert_close(back(inputs).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_settings_that_change_the_logits_are_kept_or_refused() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12}
    kept = [
        (llama(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}), TOKENS),
        (llama(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}), TOKENS),
        (llama(rope_parameters=rope), TOKENS),
        (llama(head_dim=24), TOKENS),
        (gpt2(activation_function="gelu"), TOKENS),
        (gpt2(activation_function="gelu_pytorch_tanh", tie_word_embeddings=False), TOKENS),
        (vit(hidden_act="gelu_new"), IMAGES),
    ]
    for theirs, inputs in kept:
        scramble(theirs)
        torch.testing.assert_close(from_hugging_face(theirs)(inputs), theirs(inputs).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(DeepresError, match="rope_type 'dynamic'"):
        transformer_config(llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}))
    with pytest.raises(DeepresError, match="scale_attn_weights=False"):
        transformer_config(gpt2(scale_attn_weights=False))
    with pytest.raises(DeepresError, match="activation_function='relu'"):
        transformer_config(gpt2(activation_function="relu"))
    with pytest.raises(DeepresError, match="not a family"):
        from_hugging_face(_Other())
    with pytest.raises(DeepresError, match="configuration"):
        to_hugging_face(from_hugging_face(gpt2()), gpt2(n_inner=80))


def test_llama3_rates_keep_the_fast_ones_and_divide_the_slow_ones() -> None:
    turns = torch.tensor([5.0, 4.0, 2.5, 1.0, 0.1], dtype=torch.float64)  # in the first context
    scaled = scaled_rates(turns * 2 * torch.pi / 100, (8.0, 1.0, 4.0, 100.0))
    torch.testing.assert_close(scaled / (2 * torch.pi / 100) / turns, torch.tensor([1, 1, 0.5625, 0.125, 0.125]).double())


class _Other(nn.Module):
    config = None
