"""Hugging Face's ViT, DeiT and DINOv2."""

from __future__ import annotations

from deepres.adapters.adapter import Example
from deepres.adapters.families._huggingface import TINY, HuggingFace, from_config
from deepres.adapters.patterns import pre_norm

_images = {**TINY, "image_size": 32, "patch_size": 8, "num_labels": 10}
_before = pre_norm("layernorm_before", "attention", "layernorm_after", "mlp", pair=True)
_m = "transformers.models."
ADAPTER = HuggingFace(
    "ViT, DeiT, DINOv2",
    "Hugging Face",
    (_m + "vit", _m + "deit", _m + "dinov2"),
    {
        _m + "vit.modeling_vit:ViTLayer": _before,
        _m + "deit.modeling_deit:DeiTLayer": _before,
        _m + "dinov2.modeling_dinov2:Dinov2Layer": pre_norm(
            "norm1", "attention", "norm2", "mlp", pair=True, ends=("layer_scale1", "layer_scale2")
        ),
    },
    examples=(
        Example("ViT", from_config("ViTForImageClassification", "ViTConfig", **_images), 6),
        Example("DeiT", from_config("DeiTForImageClassification", "DeiTConfig", **_images), 6),
        Example("DINOv2", from_config("Dinov2ForImageClassification", "Dinov2Config", **_images, layerscale_value=0.5), 6),
    ),
)
