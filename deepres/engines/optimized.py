"""A network as the chosen engine runs it, called like the original."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepres.engines.answers import Answers, close_calls, has_close_calls, margin_of, replace_rows
from deepres.engines.engine import Precision, Runner
from deepres.errors import DeepresError

CHOICE = "choice.json"
FIRST = 64  # images that the margin is measured on, where no images were given before


@dataclass(frozen=True)
class Choice:
    """Choice of the way in which a network runs, sufficient to build it again without measuring."""

    engine: str
    precision: Precision
    answers: Answers
    shape: tuple[int, ...]  # of the batch that it is built for
    margin: float | None = None  # below which two logits are a close call; None until it is measured on the first images
    # name of the weights that the files beside it are for; not a part of the choice
    weights: str = dataclasses.field(default="", compare=False)

    def save(self, path: str | Path) -> None:
        """Write the choice as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Choice:
        """Read what ``save`` wrote. Raises ``DeepresError`` for anything else."""
        try:
            values = json.loads(Path(path).read_text())
            return cls(**{**values, "shape": tuple(values["shape"])})
        except OSError as error:
            raise DeepresError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DeepresError(f"{path}: not a choice of an engine, as `deepres optimize --out` writes it ({error})") from error

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}" + ("" if self.precision == "float32" else f", {self.answers} answers")


@dataclass(frozen=True)
class Candidate:
    """One engine and precision, and what was measured of it."""

    engine: str
    precision: Precision
    answers: Answers
    rate: float = 0.0  # images per second, from the median time of a batch
    lowest: float = 0.0  # over the turns
    highest: float = 0.0
    ratio: float = 0.0  # of the rate to that of the network as it is, median over the turns
    close: float = 0.0  # share of the images that are computed again in float32
    changed: int = 0  # of the images' predicted classes, how many are not the original's
    images: int = 0  # that `changed` was counted on
    difference: float = 0.0  # the largest between two logits
    margin: float | None = None  # of close calls
    rise: float | None = None  # of the validation error, in points; measured of int8 only
    problem: str = ""  # why it could not be measured
    level: tuple[str, ...] = ()  # names of others that the measured times could not tell apart from it

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    def chosen(self, shape: Sequence[int]) -> Choice:
        """The choice of this candidate for batches of ``shape``."""
        return Choice(self.engine, self.precision, self.answers, tuple(shape), self.margin)


class Optimized(nn.Module):
    """A network for inference, called like the original: float32 (N, C, H, W) -> float32 (N, K), for any N.

    With an ``exact`` network, close calls are recomputed by it: inputs whose two best logits are closer than ``margin``. The margin is
    four standard deviations of the difference between the two networks, on the images that were given to ``optimize`` or on the first
    ones. ``candidates`` are the engines that were measured, the fastest first.

    Of a ghost whose inputs leave by early exits, ``exited_at`` (N,) is the exit of each input of the last call, as a ghost's trace counts
    them: -1 for one that passed all segments.
    """

    def __init__(self, runner: Runner, choice: Choice, exact: nn.Module | None, candidates: tuple[Candidate, ...] = ()) -> None:
        super().__init__()
        self.runner, self.exact, self.choice, self.candidates = runner, exact, choice, candidates
        self.margin = choice.margin
        self._run = runner.forward  # a module's call looks for hooks first
        self.advice = ""  # a sentence for the user where the choice is not clear
        self.slower_than_whole = ""  # a sentence where a ghost is slower than the network that it was made of
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if not x.shape[0]:
            return self._none(x)
        logits: Tensor = self._run(x)
        return logits if self.exact is None else self._recompute_close_calls(logits, x, self.exact)

    def _none(self, x: Tensor) -> Tensor:
        """The logits (0, K) of no inputs. Not every engine can be called without any."""
        logits: Tensor = self._run(x.new_zeros(*(self.choice.shape[:1] or (1,)), *x.shape[1:]))
        if self.runner.exited_at is not None:
            self.runner.exited_at = self.runner.exited_at[:0]
        return logits[:0]

    def _recompute_close_calls(self, logits: Tensor, x: Tensor, exact: nn.Module) -> Tensor:
        """``logits``, where those of close calls come from the exact network."""
        if not has_close_calls(logits):
            return logits
        if self.margin is None:
            with torch.no_grad():
                self.margin = margin_of(logits[:FIRST], exact(x[:FIRST]).float())
            self.choice = dataclasses.replace(self.choice, margin=self.margin)
        close = close_calls(logits, self.margin)
        if not close:
            return logits
        with torch.no_grad():
            return replace_rows(logits, close, exact(x[close]).float())

    @property
    def exited_at(self) -> Tensor | None:
        return self.runner.exited_at

    def leave_from(self, thresholds: Sequence[float]) -> None:
        """Let the inputs of a ghost leave from other confidences on, one for each exit that it uses. Nothing is compiled anew.

        Raises ``DeepresError`` where there are not as many exits.
        """
        exits = len(self.runner.thresholds)
        if len(thresholds) != exits:
            raise DeepresError(f"{len(thresholds)} exit thresholds were given, and the network has {exits} early exits")
        self.runner.thresholds = tuple(thresholds)

    def save(self, folder: str | Path) -> Path:
        """Write the choice, and what the engine needs to load the network without converting it; see ``build_choice``.

        Raises ``DeepresError`` where the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.runner.save(folder)
            self.choice.save(folder / CHOICE)
        except OSError as error:
            raise DeepresError(f"{folder}: cannot be written ({error.strerror or error}); name another folder") from error
        return folder

    def train(self, mode: bool = True) -> Optimized:
        """Stays in eval mode: folded norms and frozen weights cannot be trained."""
        if mode:
            raise RuntimeError("an optimized network is for inference only; train the original")
        return super().train(False)
