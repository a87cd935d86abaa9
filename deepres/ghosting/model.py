"""``Ghost``: a network that computes for each input only some of its blocks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import can_delete, delete_blocks, find_blocks, logits_in
from deepres.errors import DeepresError
from deepres.evaluation.timing import now
from deepres.ghosting.context import CURRENT, AllExited, Pass, Trace, select_rows, wrapped
from deepres.ghosting.route import Router
from deepres.ghosting.settings import Settings


class Ghost(Router):
    """``net`` with gates and early exits. It is called as ``net`` is.

    With the default settings the outputs equal those of ``net`` to the bit. The answer for an input does not depend on the other
    inputs of the batch, up to rounding.
    """

    def static(self) -> nn.Module:
        """Copy the network without the blocks that a fixed setting skips: an ordinary network of its class.

        Its shapes do not depend on the data, so it suits ``torch.compile``, ``torch.export`` and CUDA graphs.
        Raises ``DeepresError`` for settings that decide for each input.
        """
        settings = self.settings
        if settings.exit_threshold is not None or (settings.skip_threshold is not None and not settings.fixed):
            raise DeepresError(
                "the blocks that run depend on the input; make the ghost with gates='fixed' and exits=False for a static network"
            )
        self.route(False)
        net = copy.deepcopy(self.net)
        blocks = find_blocks(net)
        for i in reversed(self.skipped_by_all()):  # from the end, so that paths in front stay valid
            if blocks[i].removable and can_delete(net, blocks[i].path):
                delete_blocks(net, [blocks[i].path])
            else:  # the only block of its list: keep the activation behind its sum
                site = blocks[i].sites[0]
                net.set_submodule(blocks[i].path, site.activation or nn.Identity())
        return net

    def train(self, mode: bool = True) -> Ghost:
        """Stay in eval mode, because gates and exits are fitted to a frozen network."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ghost:
        raise DeepresError("a ghost cannot be copied; make it again from its network, or load it from its file")

    @torch.no_grad()
    def forward(self, *args: Any, trace: bool = False, **kwargs: Any) -> Any:
        """Compute logits (N, classes), in the form in which the network gives them; arguments are those of the network.

        ``trace``: record in ``self.trace`` which blocks ran for each input.
        """
        if self.settings.whole and self.deadline is None and not trace:
            self.route(False)
            return self.net(*args, **kwargs)
        out, call = self._pass(args, kwargs, self.settings, trace)
        self.trace = call.trace
        if call.answers is None and call.average is None and not self._may_fall_back(call):
            return out
        last = logits_in(out).float() if out is not None else None
        if last is not None and call.full_head and len(call.rows) < call.n:
            last = last[call.rows]
        if last is not None and call.average is not None:
            last = call.average.with_last(last / self.temperature)
        answers = call.answers if call.answers is not None else last
        assert answers is not None
        if last is not None and call.answers is not None:
            answers[call.rows] = last.to(answers.dtype)
        if last is not None and self._may_fall_back(call):
            answers = self._fall_back(args, kwargs, answers, last, call)
        return wrapped(out, answers)

    @torch.no_grad()
    def record(self, x: Tensor, settings: Settings) -> tuple[Tensor, Trace, list[tuple[Tensor, Tensor] | None]]:
        """Run without early exits and fallback: (logits, trace, logits and confidences of each exit)."""
        out, call = self._pass((x,), {}, replace(settings, exit_threshold=None, fallback_threshold=0.0), True, record=True)
        assert call.trace is not None
        return logits_in(out).float(), call.trace, call.exits

    def _pass(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings, trace: bool, *, record: bool = False
    ) -> tuple[Any, Pass]:
        self.route(True)
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        n, blocks = len(x), len(self.blocks)
        recorded = None
        if trace:
            ran = torch.zeros(n, blocks, dtype=torch.bool)
            recorded = Trace(ran, torch.full((n,), -1), torch.zeros(n, dtype=torch.bool))
        call = Pass(n, settings, torch.arange(n, device=x.device), recorded, record=record)
        if not (trace or record or self.deadline is not None):
            call.passive = self._passive_with(settings)
        if not x.is_floating_point():
            # a head behind tokens may index all rows, as Llama's does to find the last token that is not padding
            call.full_head = True
            call.passive -= {blocks - 1}
        if self.deadline is not None:
            call.deadline = now(x.device) + self.deadline
        token = CURRENT.set(call)
        out: Any = None
        try:
            out = self.net(*args, **kwargs)
        except AllExited:
            pass
        finally:
            CURRENT.reset(token)
        return out, call

    @staticmethod
    def _may_fall_back(call: Pass) -> bool:
        return call.settings.fallback_threshold > 0 and call.skipped is not None and call.deadline is None

    def _fall_back(self, args: tuple[Any, ...], kwargs: dict[str, Any], answers: Tensor, last: Tensor, call: Pass) -> Tensor:
        """Compute the whole network for inputs that skipped blocks and whose confidence is below the fallback threshold."""
        assert call.skipped is not None
        unsure = (last.softmax(1).amax(1) < call.settings.fallback_threshold) & call.skipped[call.rows]
        rows = call.rows[unsure]
        if len(rows):
            answers = answers.clone()
            selected = select_rows(rows, call.n, args, kwargs)
            answers[rows] = logits_in(self.net(*selected[0], **selected[1])).float()
            if call.trace is not None:
                call.trace.recomputed[rows.cpu()] = True
        return answers
