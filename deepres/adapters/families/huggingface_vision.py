"""Hugging Face's plain Vision Transformers."""

from __future__ import annotations

from typing import Any

from deepres.adapters.adapter import Example
from deepres.adapters.families._huggingface import TINY, HuggingFace, from_config
from deepres.adapters.patterns import pre_norm

_images: dict[str, Any] = {**TINY, "image_size": 32, "patch_size": 8}
_before = pre_norm("layernorm_before", "attention", "layernorm_after", "mlp", pair=True)
_scaled = pre_norm("norm1", "attention", "norm2", "mlp", pair=True, ends=("layer_scale1", "layer_scale2"))
_beit = pre_norm("layernorm_before", "attention", "layernorm_after", "mlp", pair=True, ends=("drop_path", "drop_path"))
_clip = pre_norm("layer_norm1", "self_attn", "layer_norm2", "mlp", pair=True)
_m = "transformers.models."


def _example(kind: str, name: str = "", **options: Any) -> Example:
    build = from_config(f"{kind}ForImageClassification", f"{kind}Config", **_images, num_labels=10, **options)
    return Example(name or kind, build, 6)


def _two_towers(kind: str, name: str, other_additions: int = 0) -> Example:
    build = from_config(f"{kind}ForImageClassification", f"{kind}Config", vision_config=_images, num_labels=10)
    return Example(name, build, 6, other_additions=other_additions)


ADAPTER = HuggingFace(
    "ViT, DeiT, BEiT, ViT-MSN, DINOv2 (with registers too), CLIP, SigLIP",
    "Hugging Face",
    tuple(_m + name for name in ("vit", "deit", "beit", "vit_msn", "dinov2", "dinov2_with_registers", "clip", "siglip")),
    {
        _m + "vit.modeling_vit:ViTLayer": _before,
        _m + "deit.modeling_deit:DeiTLayer": _before,
        _m + "beit.modeling_beit:BeitLayer": _beit,
        _m + "vit_msn.modeling_vit_msn:ViTMSNLayer": _before,
        _m + "dinov2.modeling_dinov2:Dinov2Layer": _scaled,
        _m + "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersLayer": _scaled,
        _m + "clip.modeling_clip:CLIPEncoderLayer": _clip,
        _m + "siglip.modeling_siglip:SiglipEncoderLayer": _clip,
    },
    notes="of CLIP and SigLIP, the image and the text encoder have sites, and a call needs the inputs of both; their classifiers of images "
    "have the image encoder alone",
    examples=(
        _example("ViT"),
        _example("DeiT"),
        _example("Beit", "BEiT", layer_scale_init_value=0.5, use_relative_position_bias=True),
        _example("ViTMSN", "ViT-MSN"),
        _example("Dinov2", "DINOv2", layerscale_value=0.5),
        _example("Dinov2WithRegisters", "DINOv2 with registers", layerscale_value=0.5),
        _two_towers("CLIP", "CLIP"),
        _two_towers("Siglip", "SigLIP", 1),  # of the positions
    ),
)
