"""SitePattern: where the parts of a residual site are in a block of some class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Layout = Literal["NCHW", "NHWC", "NLC"]


@dataclass(frozen=True)
class SitePattern:
    """Places of the parts of ``after(shortcut(x) + branch(x))`` in a block. Names are attribute paths inside the block.

    Of several names the first that the block has counts. Most blocks are one site, from their input to their output. A
    Transformer's block holds several in a row: their patterns carry a ``part``, a ``start`` and a ``core``.
    """

    end: tuple[str, ...]  # the module whose output is the branch's
    shortcut: tuple[str, ...] = ()  # the module on the shortcut; absent or None means identity
    after: tuple[str, ...] = ()  # the activation (or, in a post-norm block, the norm) behind the sum; absent means none
    shared: tuple[str, ...] = ()  # what a shortcut that is a module takes its input from, together with the branch
    part: str = ""  # the site's name inside its block
    start: tuple[str, ...] = ()  # the branch's first module, whose input is the site's; absent: the block's input is
    core: tuple[str, ...] = ()  # the module that does the work; the layers behind it in the branch must map zero to zero
    then: tuple[str, ...] = ()  # the module that the sum goes into; absent: the sum is the block's output
    pair: bool = False  # whether the core returns a tuple that begins with the signal
    start_pair: bool = False  # the same of the start
    when: str = ""  # an attribute of the block that is None or False where the block has no shortcut, so is no site
    folds: bool = False  # whether the core sees windows as rows of the batch, from the start's output to the end's input
    layout: Layout = "NCHW"

    def find(self, block: nn.Module, part: str) -> nn.Module | None:
        """The module that plays ``part`` in ``block``."""
        path = self.name_in(block, part)
        return None if path is None else block.get_submodule(path)

    def name_in(self, block: nn.Module, part: str) -> str | None:
        """The path inside ``block`` of the module that plays ``part``."""
        for path in getattr(self, part):
            module: object = block
            for name in path.split("."):
                module = getattr(module, name, None)
            if isinstance(module, nn.Module):
                return str(path)
        return None

    def fits(self, block: nn.Module) -> bool:
        """Return whether ``block`` has this site: its shortcut, and the part where it is one of several."""
        if self.when and getattr(block, self.when, None) in (None, False):
            return False
        return not self.part or self.find(block, "core") is not None


def pre_norm(
    first: str,
    attention: str,
    second: str,
    mlp: str,
    *,
    pair: bool = False,
    ends: tuple[str, str] | None = None,
    folds: bool = False,
    layout: Layout = "NLC",
) -> tuple[SitePattern, ...]:
    """Both sites of a pre-norm Transformer block: ``x = x + attention(first(x)); x = x + mlp(second(x))``."""
    ends = ends or (attention, mlp)
    return (
        SitePattern(
            (ends[0],),
            part="attention",
            start=(first,),
            core=(attention,),
            then=(second,),
            pair=pair,
            folds=folds,
            layout=layout,
        ),
        SitePattern((ends[1],), part="mlp", start=(second,), core=(mlp,), layout=layout),
    )
