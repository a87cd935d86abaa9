"""Adapter: the knowledge of one family of networks; one file in ``families`` for each.

Classes are named by text, so that no library is imported to know its blocks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn

from deepres.adapters.patterns import Layout, SitePattern
from deepres.errors import DeepresError

Owners = Sequence[nn.Module]  # the modules around a block, from the model itself to the list that the block stands in


@dataclass(frozen=True)
class Example:
    """A small network of a family, on which the tests hold the adapter to its word."""

    name: str
    build: Callable[[], nn.Module]
    sites: int  # counted by hand from the library's forward passes
    shape: tuple[int, ...] = (4, 3, 32, 32)  # of the input
    vocabulary: int = 0  # of a network that reads tokens
    other_additions: int = 0  # sums of two equal shapes that are no residual sites: rotary positions, embeddings, splits
    rebuild: Callable[[], nn.Module] | None = None  # the library's constructor, without the last deletable block
    generates: bool = False  # whether it generates text with a cache of keys and values

    def inputs(self) -> Tensor:
        """Inputs of fixed random content."""
        import torch

        generator = torch.Generator().manual_seed(0)
        if self.vocabulary:
            return torch.randint(1, self.vocabulary, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class Adapter:
    """Knowledge of one family: the sites of its blocks, the blocks that can be deleted, and the configuration that a deletion changes.

    Subclasses override the methods where their library keeps more than its lists of modules.
    """

    name: str  # of the family, as the table of architectures shows it
    library: str
    modules: tuple[str, ...]  # Python modules (by prefix) whose classes belong to the family
    patterns: Mapping[str, tuple[SitePattern, ...]] = field(default_factory=dict)  # "module:Class" -> its sites, in order
    containers: tuple[str, ...] = ()  # "module:Class" of lists besides Sequential and ModuleList that run child after child
    folding: tuple[str, ...] = ()  # "module:Class" inside which patches or windows are rows of the batch
    refused: str = ""  # why its networks cannot be used; says what a user can do instead
    notes: str = ""  # limits, for the table
    examples: tuple[Example, ...] = ()

    def undeletable(self, owners: Owners, name: str) -> str:
        """Reason why the block ``name`` of the list ``owners[-1]`` cannot be deleted; empty if it can."""
        return ""

    def is_configured(self, owners: Owners) -> bool:
        """Return whether a configuration describes every block, so that none can be replaced by its activation alone."""
        return False

    def activates_inputs(self, owners: Owners) -> bool:
        """Return whether every block receives a signal that passed a ReLU, the first of the network too."""
        return False

    def deleted(self, owners: Owners, index: int, before: int) -> None:
        """Bring the configuration up to date after block ``index`` of the ``before`` in ``owners[-1]`` was deleted."""

    def part_irremovable(self, owners: Owners, core: nn.Module) -> str:
        """Reason why the site whose work is done by ``core``, one of several in a block, cannot be removed; empty if it can."""
        return ""

    def part_removed(self, owners: Owners, block: nn.Module) -> None:
        """Bring the configuration up to date after one of the several sites of ``block`` was removed."""

    def kind(self, block: nn.Module, pattern: SitePattern) -> str:
        """The kind of a site of ``block``: the part's name where the block holds several sites, else the block's class."""
        return pattern.part or type(block).__name__

    def layout(self, block: nn.Module, pattern: SitePattern) -> Layout:
        """Dimensions of the signal at a site of ``block``."""
        return pattern.layout

    def classes_changed(self, model: nn.Module, classes: int) -> None:
        """Bring the configuration up to date after the last layer was replaced by one of ``classes`` outputs."""
        config: Any = getattr(model, "config", None)
        if hasattr(config, "num_labels"):
            config.num_labels = classes  # Hugging Face's, also in families that have no adapter; its place-holder labels follow

    def spec(self, model: nn.Module) -> dict[str, Any]:
        """Fields of the ``ModelSpec`` that this family's library notes somewhere."""
        return {}


_registered: dict[str, list[SitePattern]] = {}  # users' own blocks
_USERS = Adapter("your own blocks", "register_site", ())


@cache
def adapters() -> tuple[Adapter, ...]:
    """All adapters: every ``ADAPTER`` in the modules of ``deepres.adapters.families``."""
    from deepres.adapters import families

    names = sorted(module.name for module in pkgutil.iter_modules(families.__path__) if not module.name.startswith("_"))
    found: list[Adapter] = []
    for name in names:
        given = importlib.import_module(f"{families.__name__}.{name}").ADAPTER
        found += given if isinstance(given, tuple) else (given,)
    return tuple(found)


@cache
def _table() -> dict[str, tuple[Adapter, tuple[SitePattern, ...]]]:
    return {key: (adapter, rows) for adapter in adapters() for key, rows in adapter.patterns.items()}


def class_key(kind: type) -> str:
    """``module:Class``, the name under which adapters know a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _is_a(module: nn.Module, keys: Sequence[str]) -> bool:
    return any(class_key(kind) in keys for kind in type(module).__mro__)


def patterns_of(block: nn.Module) -> tuple[Adapter, list[SitePattern]]:
    """The adapter and site patterns of a block's class, or of the nearest of its base classes that is known."""
    for kind in type(block).__mro__:
        key = class_key(kind)
        if key in _registered:
            return _USERS, [row for row in _registered[key] if row.fits(block)]
        if key in _table():
            adapter, rows = _table()[key]
            return adapter, [row for row in rows if row.fits(block)]
    return _USERS, []


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter of the family that the class of ``module``, or the nearest of its base classes, belongs to."""
    for kind in type(module).__mro__:
        for adapter in adapters():
            if any(kind.__module__ == prefix or kind.__module__.startswith(prefix + ".") for prefix in adapter.modules):
                return adapter
    return None


def note_classes(model: nn.Module, classes: int) -> None:
    """Tell the configuration of ``model`` that its last layer now has ``classes`` outputs."""
    (adapter_of(model) or _USERS).classes_changed(model, classes)


def folds_rows(module: nn.Module) -> bool:
    """Return whether patches or windows are rows of the batch inside ``module``."""
    adapter = adapter_of(module)
    return adapter is not None and _is_a(module, adapter.folding)


def runs_in_order(module: nn.Module) -> bool:
    """Return whether ``module`` is a list that calls its children one after the other, or that another module goes through."""
    if type(module).forward is nn.Sequential.forward or isinstance(module, nn.ModuleList):
        return True
    return any(_is_a(module, adapter.containers) for adapter in adapters() if adapter.containers)


def refuse(model: nn.Module) -> None:
    """Raise ``DeepresError`` with the adapter's reason where ``model`` or a part of it is of a family that is refused."""
    for module in model.modules():
        adapter = adapter_of(module)
        if adapter is not None and adapter.refused:
            raise DeepresError(f"{type(module).__name__} ({adapter.name}): {adapter.refused}")


def register_site(
    block: type[nn.Module],
    *,
    end: str,
    shortcut: str | None = None,
    after: str | None = None,
    part: str = "",
    start: str | None = None,
    core: str | None = None,
    then: str | None = None,
    pair: bool = False,
) -> None:
    """Make blocks of your own class known: ``register_site(MyBlock, end="norm2", shortcut="proj", after="relu")``.

    The block's forward must compute ``after(shortcut(x) + f(x))`` with ``f(x)`` the output of the module ``end``; leave out
    ``shortcut`` where it is the identity and ``after`` where nothing follows.

    A block with several sites in a row, such as a Transformer's, takes a call for each, with a ``part`` to name it by:
    ``register_site(MyLayer, part="attention", start="norm1", core="attn", end="drop1", then="norm2")``. ``start`` is the
    branch's first module, ``core`` the one that does the work (``pair`` where it returns a tuple; layers between ``core`` and
    ``end`` must map zero to zero), and ``then`` the module that the sum goes into (leave it out for the block's last site).

    A second call for the same class and part replaces the first. Raises ``DeepresError`` for what is no module class, and
    where only some of ``part``, ``start`` and ``core`` are given.
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise DeepresError(f"register_site takes a class of torch.nn.Module, not {block!r}")
    if bool(part) != bool(start and core):
        raise DeepresError("register_site: part, start and core belong together: a site inside a block needs all three")
    names = {"shortcut": shortcut, "after": after, "start": start, "core": core, "then": then}
    row = SitePattern((end,), part=part, pair=pair, **{key: (name,) if name else () for key, name in names.items()})  # type: ignore[arg-type]
    others = [known for known in _registered.get(class_key(block), []) if part and known.part and known.part != part]
    _registered[class_key(block)] = [*others, row]
