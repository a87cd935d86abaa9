"""Residual sites: find them in any network, and observe, scale, bypass or remove what they add."""

from deepres._room import callable_room
from deepres.sites.adapters import Row, register_site
from deepres.sites.chunks import Chunk, chunks
from deepres.sites.clock import block_times, branch_times
from deepres.sites.readout import Coarser, coarse, learnt, pooled, pooled_by_quarter, readers
from deepres.sites.site import Flow, Observation, Site, sites
from deepres.sites.units import Unit, find_units

__all__ = [
    "Chunk",
    "Coarser",
    "Flow",
    "Observation",
    "Row",
    "Site",
    "Unit",
    "block_times",
    "branch_times",
    "chunks",
    "coarse",
    "find_units",
    "learnt",
    "pooled",
    "pooled_by_quarter",
    "readers",
    "register_site",
    "sites",
]

callable_room(__name__)
