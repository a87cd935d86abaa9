"""Distillation of the signals inside a network: what the remaining blocks pass on follows the whole network's (Romero et al. 2015)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import Block
from deepres.adapters.calls import signal_in


def block_before(model: nn.Module, path: str, gone: Collection[str] = ()) -> str | None:
    """Path of the nearest module in front of ``path`` in its list that is not among ``gone``; None if there is none."""
    container, _, name = path.rpartition(".")
    names = list(model.get_submodule(container)._modules)
    for other in reversed(names[: names.index(name)]):
        if (found := f"{container}.{other}" if container else other) not in gone:
            return found
    return None


def compared_places(model: nn.Module, blocks: Sequence[Block], gone: Collection[str]) -> dict[str, str]:
    """Blocks of the whole network ``model`` behind which signals are compared -> modules that give that signal without ``gone``.

    Behind a run of removed blocks it is the last module in front of them, which learns to pass on what they passed on; what it
    passed on before is compared no more. A run at the beginning of its list is left out.
    """
    found = {block.path: block.path for block in blocks if block.path not in gone}
    for path in (block.path for block in blocks if block.path in gone):
        giver = block_before(model, path, gone)
        if giver is None:
            continue
        found = {place: by for place, by in found.items() if by != giver}
        found[path] = giver
    return found


class FeatureDistillation:
    """Hooks behind the blocks of a network and of its teacher, and the loss that compares them; ``detach`` removes the hooks.

    ``student`` and ``teacher`` have all ``blocks`` when this is made; those of the student may be deleted later.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, blocks: Sequence[Block]) -> None:
        self.teacher, self.blocks = teacher, blocks
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
        self._hooks = ExitStack()
        paths = [block.path for block in blocks]
        fronts = [block_before(student, path) for path in paths]  # some are no blocks: they have no shortcut
        for model, seen in ((student, self._seen[0]), (teacher, self._seen[1])):
            for path in dict.fromkeys([*paths, *(front for front in fronts if front is not None)]):
                self._hooks.callback(model.get_submodule(path).register_forward_hook(partial(self._see, seen, path)).remove)

    def loss(self, gone: Collection[str]) -> Tensor:
        """Mean over the places of ``|a - b|^2 / |b|^2``, for the signals a of the last forward pass and b of the teacher's.

        ``gone``: the removed blocks; one that is still there, as it is being constrained, counts by its own output.
        """
        student, teacher = self._seen
        terms = []
        for place, giver in compared_places(self.teacher, self.blocks, gone).items():
            own, theirs = student.get(place, student.get(giver)), teacher[place].detach().float()
            if own is not None:
                terms.append((own.float() - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12))
        device = next(iter(teacher.values())).device
        self.clear()
        return torch.stack(terms).mean() if terms else torch.zeros((), device=device)

    def clear(self) -> None:
        """Discard the signals, and with them the graph that they hold."""
        for seen in self._seen:
            seen.clear()

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.close()
        self.clear()

    @staticmethod
    def _see(seen: dict[str, Tensor], path: str, _: nn.Module, __: Any, out: Any) -> None:
        seen[path] = signal_in(out)
