"""Continuous batching: sequences join a running batch when there is room and leave it when they end, in one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from deepres.data import TokenStream
from deepres.evaluation.sampling import Sampling, StopWords
from deepres.models.language import LanguageModel
from deepres.nn.generate import draw, sampling_distribution
from deepres.nn.slots import SlotCache

Finish = Literal["stop", "length", "error"]


class SequencesFull(Exception):
    """Raised where the queue of waiting sequences is full."""


@dataclass(frozen=True)
class Piece:
    """A part of a sequence's text, as it becomes known."""

    text: str
    tokens: int  # drawn so far
    finish: Finish | None = None  # why nothing follows


@dataclass(eq=False)
class Sequence:
    """A prompt on its way through ``ContinuousBatching``."""

    prompt: Tensor  # (1, L)
    sampling: Sampling
    deliver: Callable[[Piece], None]  # called from the batching thread
    generator: torch.Generator
    stream: TokenStream
    words: StopWords
    drawn: int = 0
    token: int = -1  # the last one, not yet in the cache
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Let it leave the batch at the next step; nothing is delivered any more."""
        self.cancelled.set()


class ContinuousBatching:
    """Draws the tokens of many sequences together. ``slots`` run at a time, ``queue`` more may wait.

    A sequence's prompt is computed when it joins; each step then draws one token for every running sequence.
    """

    def __init__(self, language: LanguageModel, slots: int = 16, queue: int = 64) -> None:
        self.language, self.queue = language, queue
        self._cache = SlotCache(language.model, slots)
        self._running: list[Sequence] = []  # by row of the cache
        self._waiting: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="continuous batching", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in front of it."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Return whether sequences are computed."""
        return self._thread.is_alive()

    def submit(self, prompt: Tensor, sampling: Sampling, deliver: Callable[[Piece], None]) -> Sequence:
        """Queue a prompt of tokens (1, L). ``deliver`` gets its pieces; the last one has a ``finish``.

        Raises ``SequencesFull`` where the queue is.
        """
        generator = sampling.generator()
        stream, words = self.language.vocabulary.stream(), StopWords(sampling.stop)
        made = Sequence(prompt, sampling, deliver, generator, stream, words)
        with self._changed:
            room = self.queue + self._cache.slots - len(self._running)  # free slots are taken at the next step
            if self._closing or len(self._waiting) >= room:
                raise SequencesFull
            self._waiting.append(made)
            self._changed.notify()
        return made

    def close(self) -> None:
        """Stop the thread, with what runs and waits left unfinished. Call it when nobody waits for an answer any more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # ---- in the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._running and not self._waiting:
                    self._changed.wait()
                if self._closing:
                    return
            try:
                self._leave_cancelled()
                self._join_waiting()
                if self._running:
                    self._step()
            except Exception:  # of the network, such as out of memory: its sequences end, the next ones begin anew
                for sequence in self._running:
                    sequence.deliver(Piece("", sequence.drawn, "error"))
                for row in reversed(range(self._cache.running)):
                    self._cache.leave(row)
                self._running.clear()

    def _leave_cancelled(self) -> None:
        for row in reversed(range(len(self._running))):
            if self._running[row].cancelled.is_set():
                self._leave(row)

    def _leave(self, row: int) -> None:
        self._cache.leave(row)
        self._running[row] = self._running[-1]
        self._running.pop()

    def _join_waiting(self) -> None:
        while len(self._running) < self._cache.slots:
            with self._changed:
                if not self._waiting:
                    return
                sequence = self._waiting.popleft()
            if sequence.cancelled.is_set():
                continue
            self._running.append(sequence)
            logits = self._cache.join(sequence.prompt.to(self._cache.device))
            if self._take(sequence, logits):
                self._leave(len(self._running) - 1)

    def _step(self) -> None:
        tokens = torch.tensor([[sequence.token] for sequence in self._running], device=self._cache.device)
        logits = self._cache.step(tokens)
        self.steps += 1
        ended = [row for row, sequence in enumerate(self._running) if self._take(sequence, logits[row : row + 1])]
        for row in reversed(ended):
            self._leave(row)

    def _take(self, sequence: Sequence, logits: Tensor) -> bool:
        """Draw the next token of ``sequence`` and deliver its text; returns whether the sequence has ended."""
        how, vocabulary = sequence.sampling, self.language.vocabulary
        probabilities = sampling_distribution(logits.float().cpu(), how.temperature, how.top_p)
        sequence.token = int(draw(probabilities, sequence.generator))
        sequence.drawn += 1
        finish: Finish | None = None
        if sequence.token == vocabulary.end:
            text, finish = sequence.words.push(sequence.stream.close()), "stop"
        else:
            text = sequence.words.push(sequence.stream.push(sequence.token))
            full = sequence.prompt.shape[1] + sequence.drawn > self.language.context  # the token would have no place
            if sequence.words.found:
                finish = "stop"
            elif sequence.drawn >= how.max_tokens or full:
                finish = "length"
                text += sequence.words.push(sequence.stream.close())
        if finish is not None:
            text += sequence.words.close()
        if (text or finish is not None) and not sequence.cancelled.is_set():
            sequence.deliver(Piece(text, sequence.drawn, finish))
        return finish is not None
