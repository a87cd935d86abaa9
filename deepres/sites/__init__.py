"""Residual sites: find them in any network, and observe, scale, bypass or remove what they add."""

from deepres._room import callable_room
from deepres.sites.adapters import Row, register_site
from deepres.sites.site import Flow, Observation, Site, sites
from deepres.sites.units import Unit, find_units

__all__ = ["Flow", "Observation", "Row", "Site", "Unit", "find_units", "register_site", "sites"]

callable_room(__name__)
