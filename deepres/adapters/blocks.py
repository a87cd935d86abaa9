"""Blocks as wholes: each with the sites inside it, one, or the several of a Transformer's layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from deepres.adapters.site import Site, sites
from deepres.adapters.surgery import can_delete


@dataclass(frozen=True, eq=False)
class Block:
    """A block that is kept or taken out as a whole: one site, or all the sites of a Transformer's layer."""

    index: int  # counted from 1, over all blocks
    path: str
    sites: tuple[Site, ...]
    removable: bool  # whether it can become the identity: its shortcut is one, and its list can do without it
    params: int
    time: float = 0.0  # its share of a forward pass, measured
    macs: int = 0  # multiply-adds of one example

    @property
    def container(self) -> str:
        """Path of the list that the block stands in."""
        return self.path.rpartition(".")[0]

    @property
    def reshapes(self) -> bool:
        """Whether it changes the signal's shape, so that it is no identity without its branch."""
        return any(site.reshapes for site in self.sites)


def find_blocks(model: nn.Module) -> list[Block]:
    """All blocks of ``model`` that hold sites, in order; nothing is measured."""
    blocks: dict[str, list[Site]] = {}
    for site in sites(model):
        blocks.setdefault(site.path, []).append(site)
    return [
        Block(
            index=number,
            path=path,
            sites=tuple(members),
            removable=not any(site.reshapes for site in members) and can_delete(model, path),
            params=sum(p.numel() for p in members[0].block.parameters()),
        )
        for number, (path, members) in enumerate(blocks.items(), 1)
    ]
