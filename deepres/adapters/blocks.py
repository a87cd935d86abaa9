"""Blocks as wholes: each with the sites inside it, one, or the several of a Transformer's layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from deepres.adapters.site import Site, sites
from deepres.adapters.surgery import can_delete, norms_behind


@dataclass(frozen=True, eq=False)
class Block:
    """A block that is kept or taken out as a whole: one site, or all the sites of a Transformer's layer."""

    index: int  # counted from 1, over all blocks
    path: str
    sites: tuple[Site, ...]
    removable: bool  # whether its branches can go for good: its shortcuts are identities, and its list can do without it
    params: int
    time: float = 0.0  # its share of a forward pass, measured
    macs: int = 0  # multiply-adds of one example

    @property
    def container(self) -> str:
        """Path of the list that the block stands in."""
        return self.path.rpartition(".")[0]

    @property
    def reshapes(self) -> bool:
        """Return whether it changes the signal's shape, so that it is no identity without its branch."""
        return any(site.reshapes for site in self.sites)

    def without_branches(self, x: Tensor) -> Tensor:
        """The block's output for the signal ``x`` when all of its branches are zero: ``x`` itself, unless norms follow its sums."""
        if not self.sites[0].is_inner:
            return self.sites[0].without_branch(x)
        for norm in norms_behind(self.sites[0].block):
            x = norm(x)
        return x


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
