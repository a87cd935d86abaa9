"""Shared parts of timm's families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from deepres.adapters.adapter import Adapter, Owners


class Timm(Adapter):
    """timm notes in ``pretrained_cfg`` how images are prepared, and in ``feature_info`` a row per block of a ViT."""

    def deleted(self, owners: Owners, index: int, before: int) -> None:
        for owner in owners:
            rows = getattr(owner, "feature_info", None)
            if isinstance(rows, list) and len(rows) == before and getattr(owner, "blocks", None) is owners[-1]:
                stay = rows[:index] + rows[index + 1 :]
                owner.feature_info = [{**row, "module": f"blocks.{i}"} for i, row in enumerate(stay)]  # type: ignore[assignment]

    def spec(self, model: nn.Module) -> dict[str, Any]:
        noted = getattr(model, "pretrained_cfg", None)
        if not isinstance(noted, Mapping):
            return {}
        patches = getattr(model, "patch_embed", None)
        size = getattr(patches, "img_size", None) if getattr(patches, "strict_img_size", True) else None
        found = {
            "mean": tuple(noted["mean"]) if noted.get("mean") else None,
            "std": tuple(noted["std"]) if noted.get("std") else None,
            "interpolation": noted.get("interpolation"),
            "crop": noted.get("crop_pct"),
            "squash": noted.get("crop_mode") == "squash",
            "usual_size": (noted.get("input_size") or (3, 224, 224))[-1],
            "classes": getattr(model, "num_classes", None),
            "classifier": noted["classifier"] if isinstance(noted.get("classifier"), str) else None,
            "labels": tuple(noted["label_names"]) if noted.get("label_names") else None,
        }
        return {**found, "size": size[0]} if isinstance(size, tuple) else found


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A builder of timm's network ``name`` with ten classes."""

    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=10, **options)
        return model

    return build
