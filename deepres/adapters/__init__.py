"""What deepres knows of architectures, and the residual sites that everything else is written against.

Read: patterns -> site -> blocks -> segments; surgery deletes blocks, outputs reads logits.
"""

from deepres.adapters.blocks import Block, find_blocks
from deepres.adapters.outputs import flat, logits_in, logits_of
from deepres.adapters.patterns import SitePattern, register_site
from deepres.adapters.segments import Segment, segments
from deepres.adapters.site import GradientSplit, Observation, Site, sites
from deepres.adapters.spec import ModelSpec, spec_of
from deepres.adapters.surgery import can_delete, delete_blocks

__all__ = [
    "Block",
    "GradientSplit",
    "ModelSpec",
    "Observation",
    "Segment",
    "Site",
    "SitePattern",
    "can_delete",
    "delete_blocks",
    "find_blocks",
    "flat",
    "logits_in",
    "logits_of",
    "register_site",
    "segments",
    "sites",
    "spec_of",
]
