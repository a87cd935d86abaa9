"""Families that are not supported, each with the reason and what can be done instead."""

from __future__ import annotations

from deepres.adapters.adapter import Adapter

ADAPTER = (
    Adapter(
        "U-Nets",
        "diffusers",
        ("diffusers.models.unets",),
        refused="its blocks take the image and the time step, and its output is an image, not logits; name the blocks that you "
        "are interested in with register_site and call sites() on a network that contains only these",
    ),
    Adapter(
        "Swin V2",
        "timm",
        ("timm.models.swin_transformer_v2",),
        refused="it cuts its windows before the first layer of a branch, so no layer sees the branch's input; torchvision's "
        "Swin V2 is supported",
    ),
)
