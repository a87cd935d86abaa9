"""torchvision's ViT and Swin."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._torchvision import Torchvision
from deepres.adapters.patterns import SitePattern, pre_norm


class _Transformers(Torchvision):
    def spec(self, model: nn.Module) -> dict[str, Any]:
        size = getattr(model, "image_size", None)
        layout = "NLC" if size is not None else "NHWC"
        return {**super().spec(model), "layout": layout, "size": size}


def _vit(layers: int = 2) -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=layers, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    nn.init.normal_(model.heads.head.weight, std=0.1)  # it starts at zero, where every answer is the same
    return model


def _swin(last: int = 2, version: int = 1) -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    second: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    options = second if version == 2 else {}
    return SwinTransformer([4, 4], 16, [2, last], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=10, **options)


_post = (
    SitePattern(("norm1",), part="attention", start=("attn",), core=("norm1",), then=("mlp",), layout="NHWC"),
    SitePattern(("norm2",), part="mlp", start=("mlp",), core=("norm2",), layout="NHWC"),
)
ADAPTER = _Transformers(
    "ViT, Swin, Swin V2",
    "torchvision",
    ("torchvision.models.vision_transformer", "torchvision.models.swin_transformer"),
    {
        "torchvision.models.vision_transformer:EncoderBlock": pre_norm(
            "ln_1", "self_attention", "ln_2", "mlp", pair=True, ends=("dropout", "mlp")
        ),
        "torchvision.models.swin_transformer:SwinTransformerBlock": pre_norm("norm1", "attn", "norm2", "mlp", layout="NHWC"),
        "torchvision.models.swin_transformer:SwinTransformerBlockV2": _post,
    },
    notes="Swin's windows are shifted in every second block, so its `depths` can describe a network only if the deleted blocks were "
    "the last ones of their stages",
    examples=(
        Example("ViT", _vit, 4, rebuild=lambda: _vit(1)),
        Example("Swin", _swin, 8, rebuild=lambda: _swin(1)),
        Example("Swin V2", lambda: _swin(version=2), 8, rebuild=lambda: _swin(1, 2)),
    ),
)
