"""Options of a training run: a frozen ``Run``, saved in the run's folder, from which it can be run again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deepres.data.options import parse_bytes
from deepres.errors import DeepresError
from deepres.options import SizeOption, WorkersOption
from deepres.training.options import CheckpointOptions, StepOptions
from deepres.training.recipes import Recipe, recipe
from deepres.training.speed import check_speed

RUN_FILE = "run.json"
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class _Subject:
    """What is trained on what; the fields of ``Run`` that may be given by position."""

    net: str  # a name from `deepres nets`, such as resnet20-cifar, or a reference such as timm:resnet26
    data: str = "digits"  # digits, cifar10, a folder of images or tar shards, or a text (.txt, .jsonl, a folder of these)
    recipe: Recipe | str = "auto"  # a recipe or its name; auto: by the kind of network, see `usual_recipe`
    out: str | None = None  # folder for weights, checkpoints and logs; None: nothing is written
    seed: int = 0  # seed of the weights, the order of the examples and all random draws
    epochs: float | None = None  # passes over the training set [the recipe's]


@dataclass(frozen=True, kw_only=True)
class RunOptions(StepOptions, SizeOption, WorkersOption):
    """Options of the computation of a run. ``shrink`` takes them too."""

    memory: str = "auto"  # auto, all (no activation checkpointing), or the most to use, such as 3GiB


@dataclass(frozen=True, kw_only=True)
class Run(CheckpointOptions, RunOptions, _Subject):
    """One training run. ``Run("resnet20-cifar", "digits")`` is enough."""

    # weight of early exits in the loss, which `deepres ghost` can use; 0.5 is usual [the recipe's, 0]
    exits: float | None = None
    width: float = 1.0  # multiplies the network's channels
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the network's configuration
    # of a text: characters, bpe:4096 (so many byte pairs, found in the training part) or a tokenizer.json
    # [those of the weights to start from, else characters]
    tokens: str | None = None
    # weights to start from: a run, a file, pretrained, torchvision:ENTRY, timm:NAME, hf:OWNER/NAME, or none; a head of another size is left
    # out [pretrained for the recipe finetune, where the network has some, else none]
    init: str | None = None
    sync_norm: bool = False  # compute batch norm over the global batch of all processes
    watch_test: bool = False  # also measure the test error after each epoch; nothing is chosen by it

    def __post_init__(self) -> None:
        changes = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr, "exits": self.exits}
        # "auto" is resolved by `train`, when the network is there; until then the changes are only checked
        chosen = recipe("fast-cifar" if self.recipe == "auto" else self.recipe) if isinstance(self.recipe, str) else self.recipe
        chosen = dataclasses.replace(chosen, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
        if self.recipe != "auto":
            object.__setattr__(self, "recipe", chosen)
        check_speed(self.speed)
        if self.memory not in ("auto", "all"):
            try:
                parse_bytes(self.memory)
            except DeepresError as error:
                raise DeepresError(f"memory is neither 'auto' nor 'all', and {error}") from error
        if self.keep < 1:
            raise DeepresError(f"keep is the number of checkpoints to keep and at least 1, not {self.keep}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """From a run's folder or its ``run.json``. Raises ``DeepresError`` where there is none."""
        return read_saved(cls, path, Recipe, "a run")


def read_saved(kind: type[_Kind], path: str | Path, recipe_kind: type[Any], what: str) -> _Kind:
    """A run of this ``kind``, read from its folder or its ``run.json``; its recipe is made a ``recipe_kind`` again.

    Raises ``DeepresError`` where there is no file, and for one that is not ``what``, such as ``"a run"``, or is of a later version.
    """
    path = Path(path)
    file = path / RUN_FILE if path.is_dir() else path
    try:
        values = {key: tuples_in(value) for key, value in json.loads(file.read_text()).items()}
        return kind(**{**values, "recipe": recipe_kind(**values["recipe"])})
    except FileNotFoundError as error:
        raise DeepresError(f"{file}: no such file, so there is no run to read here") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeepresError(f"{file}: not {what} that deepres saved ({error})") from error


def tuples_in(value: Any) -> Any:
    """A value read from JSON, with tuples in place of its lists, also within dictionaries."""
    if isinstance(value, dict):
        return {key: tuples_in(one) for key, one in value.items()}
    return tuple(tuples_in(one) for one in value) if isinstance(value, list) else value
