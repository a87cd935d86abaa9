"""Take whole blocks out of a network for good, and keep its names and configuration as its own library writes them."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

from deepres.errors import DeepresError
from deepres.nn.resnet import ResNet, Stage

NOTE = "deepres_origin"  # the attribute that says how a network of another library came about


def _container(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def can_delete(model: nn.Module, path: str) -> bool:
    """Whether the block at ``path`` stands in a list whose other blocks can do without it.

    In a network of ours a stage keeps at least one block, and a pre-activation stage the one that opens it, which is built
    unlike the others.
    """
    parent, name = _container(model, path)
    if type(parent).forward is not nn.Sequential.forward and not isinstance(parent, nn.ModuleList):
        return False
    if isinstance(model, ResNet):
        return len(list(parent.children())) > 1 and not (model.config.preact and name == "0")
    return True


def delete_blocks(model: nn.Module, paths: Iterable[str]) -> None:
    """Delete the blocks at ``paths``; those behind them in their list move up, as if the network had been built without them.

    The configuration follows: ``blocks`` of ours, ``num_hidden_layers`` of Hugging Face's, and the numbers by which a layer
    knows its place. What a block did is gone, so it is for blocks that compute the identity, or that shall be missed.

    Raises ``DeepresError`` for a block that does not stand in a list, and where a stage of ours would be left empty.
    """
    paths = sorted(paths, key=_order, reverse=True)  # from the end, so that the paths in front stay right
    noted = getattr(model, NOTE, None)
    if noted is not None:
        noted.removed.append(list(paths))
    for path in paths:
        if not can_delete(model, path):
            raise DeepresError(f"block {path!r} cannot be deleted: it is the only one, or one that its stage is built on")
        parent, name = _container(model, path)
        before = len(list(parent.children()))
        _drop(parent, name)
        if isinstance(model, ResNet):
            if model.config.survival < 1:  # which depends on how many blocks there are
                model.fold_survival()
            _count_again(model)
        config = getattr(model, "config", None)
        if not isinstance(model, ResNet) and getattr(config, "num_hidden_layers", None) == before:
            config.num_hidden_layers = before - 1  # type: ignore[union-attr]
        for i, block in enumerate(parent.children()):
            for module in block.modules():
                if isinstance(getattr(module, "layer_idx", None), int):  # the place of its keys and values in a cache
                    module.layer_idx = i  # type: ignore[assignment]


def _order(path: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"[._]", path)]


def _drop(parent: nn.Module, name: str) -> None:
    """Numbered names, such as ``3`` and ``encoder_layer_3``, close the gap."""
    if all(key.isdigit() for key in parent._modules):
        del parent[int(name)]  # type: ignore[operator]
        return
    kept = [(key, module) for key, module in parent._modules.items() if key != name]
    stem = re.sub(r"\d+$", "", name)
    numbered = all(re.fullmatch(re.escape(stem) + r"\d+", key) for key in parent._modules)
    parent._modules.clear()
    parent._modules.update(OrderedDict((f"{stem}{i}" if numbered else key, module) for i, (key, module) in enumerate(kept)))


def _count_again(model: ResNet) -> None:
    blocks = tuple(len(stage.blocks) for stage in model.stages if isinstance(stage, Stage))
    model.config = dataclasses.replace(model.config, blocks=blocks)
