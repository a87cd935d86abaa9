"""Ghosts for engines: as an ordinary network, or in segments between early exits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deepres.engines.registry import ENGINES, engines_for
from deepres.engines.segmenting import check_segments
from deepres.errors import DeepresError
from deepres.ghosting import Ghost


def for_engines(model: nn.Module, asked: str | Sequence[str], device: torch.device) -> tuple[nn.Module, str | Sequence[str]]:
    """(the network to give to engines, those of the engines ``asked`` that take it).

    A ghost that skips the same blocks for every input becomes an ordinary network, and one with early exits goes to the engines that
    run its segments. Any other network is returned as it is.

    Raises ``DeepresError`` where a ghost's gates decide by input, and where none of these engines takes its exits.
    """
    if not isinstance(model, Ghost):
        return model, asked
    check_segments(model)
    if model.settings.exit_threshold is None:
        return model.static(), asked
    found = [engine.name for engine in engines_for(asked, device) if engine.takes_exits]
    if found:
        return model, found
    able = [engine for engine in ENGINES.values() if engine.takes_exits]
    missing = [reason for engine in able if (reason := engine.missing(device))]
    why = missing[0] if missing else f"not on {asked if isinstance(asked, str) else ', '.join(asked)}"
    raise DeepresError(
        f"the ghost's inputs leave by early exits, which run on {' and '.join(one.name for one in able)} alone: {why}"
    )
