"""Options of drawing text from a language model, and the end of a text. This module does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepres.errors import DeepresError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of drawing the next tokens.

    Raises ``DeepresError`` for values out of range.
    """

    max_tokens: int = 200  # tokens at most
    temperature: float = 1.0  # 0 takes the likeliest token; below 1 likely ones more often than the model says
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    stop: tuple[str, ...] = ()  # words in front of which the text ends [none]
    seed: int | None = None  # the same seed gives the same text [another text each time]

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):  # not its letters
            object.__setattr__(self, "stop", (self.stop,))
        if self.max_tokens < 1:
            raise DeepresError(f"max-tokens is at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise DeepresError(
                f"temperature is 0 or more and top-p above 0 and at most 1, not {self.temperature:g} and {self.top_p:g}"
            )
        if any(not word for word in self.stop):
            raise DeepresError("a stop word has at least one character")

    def generator(self, device: Any = "cpu") -> Any:
        """A ``torch.Generator`` on ``device`` with the seed, or another one each time without."""
        import torch

        made = torch.Generator(device)
        if self.seed is None:
            made.seed()
        else:
            made.manual_seed(self.seed)
        return made


class StopWords:
    """Passes a stream of text on up to the first of some words. What may yet become such a word is held back.

    Of words that overlap, the first is the one that is complete first, so that the text does not depend on how it is cut.
    """

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to stand in front of a stop word. After one was found, nothing."""
        if self.found:
            return ""
        self._held += text
        found = [(start + len(word), start) for word in self.words if (start := self._held.find(word)) >= 0]
        if found:
            self.found = True
            _, start = min(found)
            out, self._held = self._held[:start], ""
            return out
        keep = max((_overlap(self._held, word) for word in self.words), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def close(self) -> str:
        """Return the text that was held back, because it did not become a stop word."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, word: str) -> int:
    """Characters at the end of ``text`` with which ``word`` begins."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
