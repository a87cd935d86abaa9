"""Options of ``serve``, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import OmitArgPrefixes

from deepres.models.options import WeightsOptions
from deepres.options import DeviceOption
from deepres.serve.limits import Limits

_USUAL = Limits()


@dataclass(frozen=True, kw_only=True)
class ServeOptions(WeightsOptions, DeviceOption):
    """Options of ``serve``: its address and its computation."""

    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 for all addresses of the machine
    port: int = 8000  # port to listen at; 0 for a free one
    limits: OmitArgPrefixes[Limits] = _USUAL  # bounds of the server
    tighten: bool = False  # under load, let a ghost exit earlier before requests queue up
    # auto: fastest that keeps the answers; none; a name of `optimize --engine`; a folder of `optimize --out`
    engine: str = "auto"
    data: str | None = None  # images such as will be sent: engines are compared on its validation split [noise]
