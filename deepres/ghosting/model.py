"""``Ghost``: a network that spends its depth by input."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import can_delete, delete_blocks, find_blocks, logits_in
from deepres.errors import DeepresError
from deepres.evaluation.timing import now
from deepres.ghosting.context import CURRENT, AllExited, Pass, Trace, gather, wrapped
from deepres.ghosting.route import Router
from deepres.ghosting.settings import Settings


class Ghost(Router):
    """``net`` with a depth per input. Called like it.

    With the default settings the outputs are ``net``'s own, to the bit. The answer for an input does not depend on what else is in
    the batch (up to the rounding of the convolutions' own batching).
    """

    def static(self) -> nn.Module:
        """The network without the blocks that a fixed setting skips for all inputs: an ordinary one of its class.

        Its shapes do not depend on the data, so ``torch.compile``, ``torch.export`` and CUDA graphs take it.
        Raises ``DeepresError`` for settings that decide by input.
        """
        settings = self.settings
        if settings.exit_threshold is not None or (settings.skip_threshold is not None and not settings.fixed):
            raise DeepresError(
                "which blocks run depends on the input here; make the ghost with gates='fixed' and exits=False for one whose shapes are "
                "static"
            )
        self.route(False)
        net = copy.deepcopy(self.net)
        units = find_blocks(net)
        skipped = [
            i
            for c, segment in enumerate(self.segments)
            if (kept := self._kept_by_all(c, settings)) is not None
            for i, keeps in zip(segment.skippable, kept.tolist(), strict=True)
            if not keeps
        ]
        for i in reversed(skipped):  # from the end, so that the paths in front stay right
            if units[i].removable and can_delete(net, units[i].path):
                delete_blocks(net, [units[i].path])
            else:  # the only one of its list: keep what follows its sum
                site = units[i].sites[0]
                net.set_submodule(units[i].path, site.activation or nn.Identity())
        return net

    def train(self, mode: bool = True) -> Ghost:
        """Stay in eval mode: gates and exits are fitted to a frozen network."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ghost:
        raise DeepresError("a ghost cannot be copied; make it again from its network, or load it from its file")

    @torch.no_grad()
    def forward(self, *args: Any, trace: bool = False, **kwargs: Any) -> Any:
        """Called as the network is. Logits (N, classes), or what the network's own library wraps them in.

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
        """(logits, trace, each exit's logits and confidences) of a pass without early exits and without fallback."""
        out, call = self._pass((x,), {}, replace(settings, exit_threshold=None, fallback_threshold=0.0), True, record=True)
        assert call.trace is not None
        return logits_in(out).float(), call.trace, call.exits

    def _pass(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings, trace: bool, *, record: bool = False
    ) -> tuple[Any, Pass]:
        self.route(True)
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        n, blocks = len(x), len(self.units)
        noted = None
        if trace:
            yes = torch.zeros(n, blocks, dtype=torch.bool)
            noted = Trace(yes, torch.full((n,), -1), torch.zeros(n, dtype=torch.bool))
        call = Pass(n, settings, torch.arange(n, device=x.device), noted, record=record)
        if not (trace or record or self.deadline is not None):
            call.quiet = self._quiet_with(settings)
        if not x.is_floating_point():
            # A head behind tokens may look at them again, as Llama's does for the last one that is no padding, and indexes all rows.
            call.full_head = True
            call.quiet -= {blocks - 1}
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
        return call.settings.fallback_threshold > 0 and call.ghosted is not None and call.deadline is None

    def _fall_back(self, args: tuple[Any, ...], kwargs: dict[str, Any], answers: Tensor, last: Tensor, call: Pass) -> Tensor:
        """Compute the whole network for inputs that skipped blocks and whose confidence is below the fallback threshold."""
        assert call.ghosted is not None
        unsure = (last.softmax(1).amax(1) < call.settings.fallback_threshold) & call.ghosted[call.rows]
        rows = call.rows[unsure]
        if len(rows):
            answers = answers.clone()
            mine = gather(rows, call.n, args, kwargs)
            answers[rows] = logits_in(self.net(*mine[0], **mine[1])).float()
            if call.trace is not None:
                call.trace.again[rows.cpu()] = True
        return answers
