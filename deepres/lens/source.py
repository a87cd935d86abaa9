"""A network by reference, together with the examples to look at it with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepres.data import Data, Loader, Prepare, Resident, Split, open_data, open_image, seeded
from deepres.data.text import is_text
from deepres.errors import DeepresError
from deepres.models import input_channels, input_size, open_model, output_classes
from deepres.nn import ResNet
from deepres.training.distribute import pick_device


def short_name(reference: str) -> str:
    """What a network is called on a page: its folder's or file's name, or the reference as it is."""
    return Path(reference).name if Path(reference).exists() else reference


@dataclass(eq=False)
class Source:
    """What ``deepres look`` looks at."""

    name: str
    model: nn.Module
    data: Data
    prepare: Prepare
    split: Split
    device: torch.device
    fits: bool  # whether the network's classes are the data's; else its answers are held to its own
    order: list[int] | None = None

    @classmethod
    def open(
        cls,
        reference: str,
        data: str | Path | Data,
        *,
        weights: str | Path | None = None,
        size: int | None = None,
        split: Literal["train", "val", "test"] = "val",
        device: str = "auto",
    ) -> Source:
        """Raises ``DeepresError`` for a reference or data that do not exist, and for images that the network cannot take."""
        fixed = data if isinstance(data, Data) else None
        given = fixed or (open_data(data, size=size) if not Path(reference).exists() else None)  # type: ignore[arg-type]
        if given is None and is_text(data):
            given = open_data(data, size=size)  # type: ignore[arg-type]
        classes = len(given.classes) if given is not None else None
        model, noted = open_model(
            reference,
            weights=weights,
            classes=classes,
            channels=(given.prepare.channels or None) if given is not None else None,
        )
        prepare = Prepare.from_notes(noted["prepare"]) if "prepare" in noted else None
        wanted = size or input_size(model) or (prepare.size if prepare else None)
        channels = input_channels(model)
        if given is not None and given.is_text:
            if channels is not None:
                raise DeepresError(f"{reference}: takes images and {given.name} is a text")
            longest = getattr(getattr(model, "config", None), "max_position_embeddings", None) or given.prepare.size
            if size is not None and size > longest:
                raise DeepresError(f"{reference}: reads at most {longest} characters at a time, and --size asks for {size}")
            context = size or min(longest, prepare.size if prepare is not None else given.prepare.size)
            if fixed is None and context != given.prepare.size:
                given = open_data(data, size=context)  # type: ignore[arg-type]
            prepare = given.prepare
        elif channels is None:
            raise DeepresError(
                f"{reference}: has no convolution, so it takes no images; give it a text as --data, and from Python lens.look "
                "takes any input"
            )
        elif fixed is None and (
            given is None or (wanted is not None and wanted != given.prepare.size) or channels != given.prepare.channels
        ):
            if wanted is None and isinstance(model, ResNet) and model.config.stem == "imagenet":
                wanted = 224
            given = open_data(data, size=wanted, channels=channels)  # type: ignore[arg-type]
        assert given is not None
        if prepare is None:  # weights that do not say are most likely used to ImageNet's mean and deviation
            elsewhere = weights is not None or reference.startswith("hf:") or Path(reference).exists()
            prepare = Prepare.usual(given.prepare.size, given.prepare.channels) if elsewhere else given.prepare
        trained = noted.get("classes")
        fits = list(trained) == list(given.classes) if trained else output_classes(model) == len(given.classes)
        name = short_name(reference)
        return cls(name, model, given, prepare, getattr(given, split), pick_device(device), fits)

    def batches(self, examples: int, batch: int) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Up to ``examples`` of the split, drawn once and always the same."""
        count = min(examples, len(self.split))
        chosen = torch.randperm(len(self.split), generator=seeded(0))[:count].sort().values
        loader = Loader(self.split.take(chosen), self.prepare, min(batch, count), shuffle=False, device=self.device)
        order = chosen.tolist()
        self.order = [order[i] for i in range(count)]
        for step in loader.epoch(0):
            if len(step.labels):
                yield (step.images, step.labels) if self.fits else step.images

    def pixels(self, i: int) -> Any:
        """The i-th example that ``batches`` gave, as bytes (C, H, W)."""
        where = self.order[i] if self.order is not None else i
        if isinstance(self.split, Resident):
            return self.split.pixels[where]
        return self.prepare.image(open_image(self.split.items[where].read(), self.prepare.channels))
