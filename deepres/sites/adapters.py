"""How blocks are built, one row per block class: which module ends the branch, which is the shortcut, what comes after.

Classes are named by text, so that no library is imported to know its blocks. A row also serves subclasses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from deepres.errors import DeepresError


@dataclass(frozen=True)
class Row:
    """Where in a block the parts of ``after(shortcut(x) + branch(x))`` are. Names are attribute paths inside the block."""

    end: tuple[str, ...]  # the module whose output is the branch's: the first of these that the block has
    shortcut: tuple[str, ...] = ()  # the module on the shortcut; absent or None means identity
    after: tuple[str, ...] = ()  # the activation behind the sum; absent means none

    def find(self, block: nn.Module, part: str) -> nn.Module | None:
        """The module that plays ``part`` in ``block``."""
        for path in getattr(self, part):
            module: object = block
            for name in path.split("."):
                module = getattr(module, name, None)
            if isinstance(module, nn.Module):
                return module
        return None


_ROWS: dict[str, Row] = {
    "deepres.nn.residual:Residual": Row(("branch",), ("shortcut",), ("after",)),
    "torchvision.models.resnet:BasicBlock": Row(("bn2",), ("downsample",), ("relu",)),
    "torchvision.models.resnet:Bottleneck": Row(("bn3",), ("downsample",), ("relu",)),
    "timm.models.resnet:BasicBlock": Row(("drop_path", "se", "bn2"), ("downsample",), ("act2",)),
    "timm.models.resnet:Bottleneck": Row(("drop_path", "se", "bn3"), ("downsample",), ("act3",)),
}


def _key(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def row_of(block: nn.Module) -> Row | None:
    """The row of a block's class or of the nearest of its base classes."""
    return next((_ROWS[key] for kind in type(block).__mro__ if (key := _key(kind)) in _ROWS), None)


def register_site(block: type[nn.Module], *, end: str, shortcut: str | None = None, after: str | None = None) -> None:
    """Make blocks of your own class known: ``register_site(MyBlock, end="norm2", shortcut="proj", after="relu")``.

    The block's forward must compute ``after(shortcut(x) + f(x))`` with ``f(x)`` the output of the module ``end``; leave out
    ``shortcut`` where it is the identity and ``after`` where nothing follows. A second call replaces the first.
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise DeepresError(f"register_site takes a class of torch.nn.Module, not {block!r}")
    _ROWS[_key(block)] = Row((end,), (shortcut,) if shortcut else (), (after,) if after else ())
