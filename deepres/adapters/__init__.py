"""Knowledge of architectures, and the residual sites that everything else is written against.

Read: patterns -> adapter -> one file of families -> site (calls, compiled, observing, bypassing, surgery) -> blocks -> segments.
``spec`` describes what a network takes and gives, ``outputs`` reads its logits, ``table`` writes the documentation's table of
architectures.
"""

from deepres.adapters.adapter import Adapter, adapters, register_site
from deepres.adapters.blocks import Block, find_blocks
from deepres.adapters.compiled import as_written, uncompiled, unwrapped
from deepres.adapters.modes import kept_modes, on_cpu
from deepres.adapters.observing import GradientSplit, Observation
from deepres.adapters.outputs import flat, logits_in, logits_of
from deepres.adapters.patterns import SitePattern
from deepres.adapters.segments import Segment, segments
from deepres.adapters.site import Site, sites
from deepres.adapters.spec import ModelSpec, device_of, spec_of
from deepres.adapters.surgery import NOTE, can_delete, delete_blocks, removed_parts, repeat_removals
from deepres.adapters.trunk import Level, trunk

__all__ = [
    "NOTE",
    "Adapter",
    "Block",
    "GradientSplit",
    "Level",
    "ModelSpec",
    "Observation",
    "Segment",
    "Site",
    "SitePattern",
    "adapters",
    "as_written",
    "can_delete",
    "delete_blocks",
    "device_of",
    "find_blocks",
    "flat",
    "kept_modes",
    "logits_in",
    "logits_of",
    "on_cpu",
    "register_site",
    "removed_parts",
    "repeat_removals",
    "segments",
    "sites",
    "spec_of",
    "trunk",
    "uncompiled",
    "unwrapped",
]
