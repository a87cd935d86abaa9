"""What can be taken out: a network's blocks, each with the sites inside it and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepres.lens.signals import time_shares
from deepres.nn import can_delete, logits_of
from deepres.sites import Site, sites


@dataclass(frozen=True, eq=False)
class Unit:
    """A block that is kept or taken out as a whole: one site, or all the sites of a Transformer's layer."""

    index: int  # counted from 1, over all blocks
    path: str
    sites: tuple[Site, ...]
    removable: bool  # whether it can become the identity: its shortcut is one, and its list can do without it
    params: int
    time: float = 0.0  # its branches' share of a forward pass, measured
    macs: int = 0  # multiply-adds of one example


def find(model: nn.Module, inputs: Tensor) -> list[Unit]:
    """All blocks of ``model`` that hold sites, in order, measured on ``inputs``. The model is left as it was."""
    plain = find_units(model)
    if not plain:
        return []
    was = model.training
    model.eval()
    try:
        found = [site for unit in plain for site in unit.sites]
        shares = iter(time_shares(model, found, inputs))
        macs = _macs(model, found, inputs[:1])
    finally:
        model.train(was)
    return [dataclasses.replace(unit, time=sum(next(shares) for _ in unit.sites), macs=macs[unit.path]) for unit in plain]


def find_units(model: nn.Module) -> list[Unit]:
    """The same, with nothing measured."""
    blocks: dict[str, list[Site]] = {}
    for site in sites(model):
        blocks.setdefault(site.path, []).append(site)
    return [
        Unit(
            index=number,
            path=path,
            sites=tuple(members),
            removable=not any(site.reshapes for site in members) and can_delete(model, path),
            params=sum(p.numel() for p in members[0].block.parameters()),
        )
        for number, (path, members) in enumerate(blocks.items(), 1)
    ]


@torch.no_grad()
def _macs(model: nn.Module, found: Sequence[Site], inputs: Tensor) -> dict[str, int]:
    """Of each block: what a pass costs in all, less what it costs without it."""
    counted: dict[str, int] = {}
    handles = []
    open_at: dict[str, int] = {}
    with FlopCounterMode(display=False) as flops:
        for path, block in {site.path: site.block for site in found}.items():

            def enter(*_: object, path: str = path) -> None:
                open_at[path] = flops.get_total_flops()

            def leave(*_: object, path: str = path) -> None:
                counted[path] = (flops.get_total_flops() - open_at[path]) // 2

            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        try:
            logits_of(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return counted


def stage_of(unit: Unit) -> str:
    """The list that the unit stands in."""
    return unit.path.rpartition(".")[0]
