"""OpenVINO with a thread for each part of a batch, instead of all threads for each layer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepres.engines.engine import Precision
from deepres.engines.openvino_engine import OpenVINO
from deepres.engines.openvino_runner import OpenVINORunner, outputs_of
from deepres.engines.openvino_segments import GhostRunner

if TYPE_CHECKING:
    from deepres.data import Data
    from deepres.engines.int8 import Quantized
    from deepres.engines.source import Source

WORTH = 8e-3  # seconds of one part: in much shorter ones, starting it costs more than is gained
MOST_PARTS = 8  # parts for each thread, whose lengths are even enough then
QUEUED = 2  # parts that wait for each thread, so that none runs out of work
_PART = ["deepres", "part"]  # where a saved graph keeps the size of its parts


class StreamsRunner(OpenVINORunner):
    """A model whose batches are computed in parts, one thread each, as many at a time as there are threads.

    Layers then wait for no other thread at their ends, and the signals of a few inputs stay in a core's own cache. Inputs that fill no
    two parts are computed as ``OpenVINORunner`` does, by all threads together.
    """

    def __init__(self, model: Any, batch: int, precision: Precision) -> None:
        super().__init__(model.clone(), None, precision)  # a copy, as the size of the parts is noted in it
        self._sizes = {1}
        self._streams = torch.get_num_threads()
        if not self.model.has_rt_info(_PART):
            self.model.set_rt_info(self._measured_part(batch), _PART)
        self.part = int(self.model.get_rt_info(_PART).value)
        self._part_requests = self._requests_for(self.part, QUEUED * self._streams)

    def _measured_part(self, batch: int) -> int:
        """Inputs of a part: so many that it takes about ``WORTH`` seconds, and that all threads get equally many parts of ``batch``."""
        (request,) = self._requests_for(1, 1)
        took = []
        for _ in range(4):
            began = time.perf_counter()
            request.infer()
            took.append(time.perf_counter() - began)
        rounds = min(MOST_PARTS, max(1, round(min(took) * batch / (WORTH * self._streams))))
        return max(1, -(-batch // (rounds * self._streams)))

    def _requests_for(self, size: int, count: int) -> list[Any]:
        compiled = self._compiled(self._reshaped(size), {"NUM_STREAMS": self._streams})
        return [compiled.create_infer_request() for _ in range(count)]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        count = len(inputs[0])
        whole = count - count % self.part
        if whole < 2 * self.part:
            return super().run(inputs)
        found = self._in_parts([x[:whole] for x in inputs])
        if whole < count:
            rest = super().run([x[whole:] for x in inputs])
            found = [torch.cat(pair) for pair in zip(found, rest, strict=True)]
        return found

    def _in_parts(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        parts = list(zip(*(x.split(self.part) for x in self._readable(inputs)), strict=True))
        found: list[list[Tensor]] = []
        with self._lock:
            waiting: deque[Any] = deque()

            def finish_oldest() -> None:
                found.append(_answer(waiting[0]))
                waiting.popleft()

            try:
                for number, part in enumerate(parts):
                    if len(waiting) == len(self._part_requests):
                        finish_oldest()
                    request = self._part_requests[number % len(self._part_requests)]
                    self._give(request, part)
                    request.start_async()
                    waiting.append(request)
                while waiting:
                    finish_oldest()
            finally:  # after Ctrl-C too, requests read the inputs until they are done
                for request in waiting:
                    request.wait()
        return [torch.cat(one) for one in zip(*found, strict=True)]


def _answer(request: Any) -> list[Tensor]:
    request.wait()
    return [value.clone() for value in outputs_of(request)]


class OpenVINOStreams(OpenVINO):
    """OpenVINO's CPU plugin, with a batch in parts on single threads."""

    name = "openvino-streams"
    runner = StreamsRunner

    def is_worth_trying(self, example: Tensor) -> bool:
        return 1 < torch.get_num_threads() <= len(example)

    def quantize(self, source: Source, data: Data, *, error: float, log: Callable[[str], None]) -> Quantized:
        found = super().quantize(source, data, error=error, log=log)
        whole, batch = found.runner, len(source.example)
        if isinstance(whole, GhostRunner):
            return replace(found, runner=GhostRunner(whole.graphs, batch, "int8", self.runner))
        assert isinstance(whole, OpenVINORunner)
        return replace(found, runner=self.runner(whole.model, batch, "int8"))
