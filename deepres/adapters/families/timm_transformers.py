"""timm's plain vision Transformers, and those that work in windows: Swin, MaxViT, MobileViT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._timm import Timm, timm_model
from deepres.adapters.patterns import SitePattern, pre_norm


class _Windows(Timm):
    def spec(self, model: nn.Module) -> dict[str, Any]:
        kind = type(model).__module__.rpartition(".")[2]
        layout = {"vision_transformer": "NLC", "deit": "NLC", "swin_transformer": "NHWC"}.get(kind, "NCHW")
        return {**super().spec(model), "layout": layout}


_m, _ends = "timm.models.", ("drop_path1", "drop_path2")
_halves = ("norm1", "attn", "norm2", "mlp")
_windowed, _mlp = pre_norm(*_halves, ends=_ends, folds=True, layout="NHWC")
_flat_mlp = replace(_mlp, layout="NLC")  # Swin flattens the image in front of its MLP
_vit: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2}
_swin: dict[str, Any] = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "num_heads": (2, 2)}


def _mobilevit(depth: int = 2) -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    def bottleneck(**options: Any) -> Any:
        return ByoBlockCfg(type="bottle", gs=1, br=2.0, block_kwargs={"bottle_in": True, "linear_out": True}, **options)

    transformer: dict[str, Any] = {"transformer_dim": 16, "transformer_depth": depth, "patch_size": 2}
    blocks = (
        bottleneck(d=2, c=8, s=2),
        (bottleneck(d=1, c=12, s=2), ByoBlockCfg("mobilevit", 1, 12, block_kwargs=transformer)),
    )
    return ByobNet(ByoModelCfg(blocks, stem_chs=8, stem_type="3x3", stem_pool="", downsample=""), num_classes=10)


ADAPTER = (
    _Windows(
        "ViT, DeiT, AugReg, DINO, CLIP's and other plain ViTs",
        "timm",
        (_m + "vision_transformer", _m + "deit"),
        {_m + "vision_transformer:Block": pre_norm(*_halves, ends=_ends)},
        examples=(
            Example(
                "ViT",
                timm_model("vit_tiny_patch16_224", depth=3, **_vit),
                6,
                rebuild=timm_model("vit_tiny_patch16_224", depth=2, **_vit),
            ),
            Example(
                "DeiT",
                timm_model("deit_tiny_distilled_patch16_224", depth=2, **_vit),
                4,
                rebuild=timm_model("deit_tiny_distilled_patch16_224", depth=1, **_vit),
            ),
        ),
    ),
    _Windows(
        "Swin",
        "timm",
        (_m + "swin_transformer",),
        {_m + "swin_transformer:SwinTransformerBlock": (_windowed, _flat_mlp)},
        notes="windows are shifted in every second block, so `depths` can describe a network only if the deleted blocks were the last "
        "ones of their stages",
        examples=(
            Example(
                "Swin",
                timm_model("swin_tiny_patch4_window7_224", depths=(2, 2), **_swin),
                8,
                rebuild=timm_model("swin_tiny_patch4_window7_224", depths=(2, 1), **_swin),
            ),
        ),
    ),
    _Windows(
        "MaxViT",
        "timm",
        (_m + "maxxvit",),
        {
            _m + "maxxvit:MbConvBlock": (SitePattern(("drop_path",), ("shortcut",)),),
            _m + "maxxvit:ConvNeXtBlock": (SitePattern(("drop_path",), ("shortcut",)),),
            _m + "maxxvit:PartitionAttentionCl": pre_norm(*_halves, ends=_ends, folds=True, layout="NHWC"),
        },
        notes="window attention and grid attention are separate blocks that are not in a list, so their branches are removed instead; "
        "timm's constructors cannot build the result, so use `deepres.save` for such a network",
        examples=(Example("MaxViT", timm_model("test_maxvit", img_size=64), 20, (4, 3, 64, 64)),),
    ),
    _Windows(
        "MobileViT",
        "timm",
        (_m + "mobilevit", _m + "byobnet"),
        {
            _m + "byobnet:BasicBlock": (SitePattern(("drop_path",), ("shortcut",), ("act",), when="shortcut"),),
            _m + "byobnet:BottleneckBlock": (SitePattern(("drop_path",), ("shortcut",), ("act",), when="shortcut"),),
        },
        folding=(_m + "mobilevit:MobileVitBlock",),
        notes="inside its Transformers an example is several rows of the batch; all rows of an example skip a block together",
        examples=(Example("MobileViT", _mobilevit, 5, (4, 3, 64, 64), rebuild=lambda: _mobilevit(1)),),
    ),
)
