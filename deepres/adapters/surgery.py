"""Take blocks and branches out of a network for good; the adapter keeps its library's configuration up to date."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from deepres.adapters.adapter import Adapter, patterns_of, runs_in_order
from deepres.adapters.calls import PassOn, ZeroBranch
from deepres.adapters.compiled import is_inside_compiled
from deepres.adapters.patterns import SitePattern
from deepres.errors import DeepresError

if TYPE_CHECKING:
    from deepres.adapters.site import Site

NOTE = "deepres_origin"  # the attribute that says how a network of another library came about


def _owners(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules around the block at ``path``, from ``model`` to the list that it stands in."""
    owners = [model]
    for word in path.split(".")[:-1]:
        owners.append(owners[-1].get_submodule(word))
    return owners


def _adapter(model: nn.Module, path: str) -> Adapter:
    return patterns_of(model.get_submodule(path))[0]


def why_not_deletable(model: nn.Module, path: str) -> str:
    """Reason why the block at ``path`` cannot be deleted; empty if it can."""
    if is_inside_compiled(path):
        return "it stands inside a compiled module; delete it before compiling"
    owners = _owners(model, path)
    if not path or not runs_in_order(owners[-1]):
        return f"it does not stand in a list of blocks but in a {type(owners[-1]).__name__}"
    return _adapter(model, path).undeletable(owners, path.rpartition(".")[2])


def can_delete(model: nn.Module, path: str) -> bool:
    """Return whether the block at ``path`` stands in a list whose other blocks can do without it."""
    return not why_not_deletable(model, path)


def delete_blocks(model: nn.Module, paths: Iterable[str]) -> None:
    """Delete the blocks at ``paths``; those behind them in their list move up, as if the network had been built without them.

    The configuration follows: depth, per-layer lists and the numbers by which a layer knows its place. What a block did is
    gone, so this is for blocks that compute the identity, or whose ablation is wanted. A Transformer's layer with norms behind
    its sums is not the identity without its branches, so only these go: it stays in its list, and its norms with it.

    Raises ``DeepresError`` for a block that does not stand in a list, or that its stage is built on.
    """
    paths = sorted(paths, key=_order, reverse=True)  # from the end, so that the paths in front stay right
    gone = []
    for path in paths:
        adapter, owners = _adapter(model, path), _owners(model, path)
        if reason := why_not_deletable(model, path):
            raise DeepresError(f"block {path!r} cannot be deleted: {reason}")
        if norms_behind(model.get_submodule(path)):
            _remove_branches(owners, path.rpartition(".")[2])
            continue
        gone.append(path)
        name, before = path.rpartition(".")[2], len(owners[-1]._modules)
        index = list(owners[-1]._modules).index(name)
        _drop(owners[-1], name)
        adapter.deleted(owners, index, before)
    if gone:  # removed parts are noted by the modules that stand in for them
        _note(model, gone)


def norms_behind(block: nn.Module) -> list[nn.Module]:
    """The norms behind the sums of a block with several sites, such as BERT's layers; empty where none follow."""
    found = [row.find(block, "after") for row in patterns_of(block)[1] if row.part]
    return [norm for norm in found if norm is not None]


def remove_site(site: Site) -> None:
    """``Site.remove``."""
    if site.reshapes:
        raise DeepresError(f"site {site.name!r} changes the signal's shape, so it cannot be removed")
    owners = _owners(site.model, site.path)
    index = site.path.rpartition(".")[2]
    if getattr(owners[-1], index, None) is not site.block and site.path:
        raise DeepresError(f"site {site.name!r} is stale: the model changed since; call sites(model) again")
    if is_inside_compiled(site.path):
        raise DeepresError(f"site {site.name!r} stands inside a compiled module; remove it before compiling")
    if site.is_inner:
        _remove_part(site, owners)
        return
    after = site.activation
    reason = why_not_deletable(site.model, site.path)
    adapter = _adapter(site.model, site.path)
    repeats = after is None or (
        isinstance(after, nn.ReLU) and (adapter.activates_inputs(owners) or _follows_relu(owners[-1], index))
    )
    if not reason and repeats:
        delete_blocks(site.model, [site.path])
        return
    if adapter.is_configured(owners):  # its configuration has no word for an activation alone
        raise DeepresError(f"site {site.name!r} cannot be removed: {reason or 'its activation would have to stay'}")
    setattr(owners[-1], index, after if after is not None else nn.Identity())
    _note(site.model, [_WITHOUT + site.path])


def _remove_part(site: Site, owners: Sequence[nn.Module]) -> None:
    adapter = _adapter(site.model, site.path)
    if reason := adapter.part_irremovable(owners, site.need("core")):
        raise DeepresError(f"site {site.name!r} cannot be removed: {reason}")
    _stand_in(site.block, site.pattern)
    adapter.part_removed(owners, site.block)


def _remove_branches(owners: Sequence[nn.Module], name: str) -> None:
    """All branches of the block ``name`` in ``owners[-1]``; its norms stay."""
    block = owners[-1].get_submodule(name)
    adapter, rows = patterns_of(block)
    for row in rows:
        core = row.find(block, "core")
        assert core is not None
        if reason := adapter.part_irremovable(owners, core):
            raise DeepresError(f"block {name!r} cannot be deleted: {reason}")
        if not isinstance(core, ZeroBranch):
            _stand_in(block, row)
    adapter.part_removed(owners, block)


def _stand_in(block: nn.Module, pattern: SitePattern) -> None:
    """Put modules without weights, which add nothing to the sum, in the place of a branch's start and core."""
    for part, module in (("start", PassOn(pattern.start_pair)), ("core", ZeroBranch(pattern.pair))):
        name = pattern.name_in(block, part)
        assert name is not None
        block.set_submodule(name, module)


def removed_parts(model: nn.Module) -> list[str]:
    """List the removed sites of blocks with several sites, as ``save`` notes them: "PATH:PART"."""
    found = []
    for path, block in model.named_modules():
        for row in patterns_of(block)[1]:
            if row.part and isinstance(row.find(block, "core"), ZeroBranch):
                found.append(f"{path}{_PART}{row.part}")
    return found


_WITHOUT, _PART = "without:", ":"  # marks of removals that are no deletions: "without:PATH" and "PATH:PART"


def repeat_removals(model: nn.Module, removed: Iterable[Sequence[str]]) -> None:
    """Remove again what was noted: each call's list of deleted blocks, of blocks without their branch, of removed parts."""
    from deepres.adapters.site import sites

    for entries in removed:
        blocks = [entry for entry in entries if _PART not in entry]
        if blocks:
            delete_blocks(model, blocks)
        for entry in entries:
            if _PART not in entry:
                continue
            name = entry.removeprefix(_WITHOUT) if entry.startswith(_WITHOUT) else entry.replace(_PART, ".")
            site = next((site for site in sites(model) if site.name == name), None)
            if site is None:
                raise DeepresError(f"the file says that {entry!r} was removed, and this network has no such site")
            site.remove()


def _note(model: nn.Module, entries: Sequence[str]) -> None:
    noted = getattr(model, NOTE, None)
    if noted is not None:
        noted.removed.append(list(entries))


def _follows_relu(parent: nn.Module, index: str) -> bool:
    """Return whether the block in front ends in a ReLU, so that another one behind it changes nothing."""
    names = list(parent._modules)
    position = names.index(index)
    before = parent._modules[names[position - 1]] if position else None
    return before is not None and any(isinstance(row.find(before, "after"), nn.ReLU) for row in patterns_of(before)[1])


def _order(path: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"[._]", path)]


def _drop(parent: nn.Module, name: str) -> None:
    """Numbered names, such as ``3`` and ``encoder_layer_3``, close the gap."""
    keys = list(parent._modules)
    if all(key.isdigit() for key in keys):
        del parent[int(name)]  # type: ignore[operator]
        return
    kept = [module for key, module in parent._modules.items() if key != name]
    stem = re.sub(r"\d+$", "", name)
    numbers = [re.fullmatch(re.escape(stem) + r"(\d+)", key) for key in keys]
    names = [key for key in keys if key != name]
    if all(numbers):
        first = int(numbers[0][1])  # type: ignore[index]
        names = [f"{stem}{first + i}" for i in range(len(kept))]
    parent._modules.clear()
    parent._modules.update(OrderedDict(zip(names, kept, strict=True)))
