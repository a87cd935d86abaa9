"""Training batches of images with boxes. What happens to an image is a function of (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from deepres.data import Shard, draws, open_image, seeded
from deepres.data.detection import BoxExample
from deepres.detection.recipe import DetectRecipe

SEEN = 0.3  # share of a box's area that must be left in the picture for it to be trained on
GREY = 114  # about the mean of ImageNet's pixels
DRAWS = 9  # random numbers of an image
AHEAD = 2  # batches that are prepared while the network works

BoxTarget = dict[str, Tensor]  # "boxes" (n, 4) and "labels" (n,), which count from 1


@dataclass(frozen=True, eq=False)
class BoxBatch:
    """Images as float tensors (3, H, W) in 0..1, this process's part of the global batch."""

    images: list[Tensor]
    targets: list[BoxTarget]
    total: int  # images of the global batch


def load_picture(example: BoxExample) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(open_image(example.path))).permute(2, 0, 1).contiguous()


def resized_side(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """(height, width) of an image of ``size`` (width, height) after resizing to ``short``, or to ``longest`` where that is less."""
    width, height = size
    scale = min(short / min(size), longest / max(size))
    return max(1, round(height * scale)), max(1, round(width * scale))


class BoxLoader:
    """Batches of ``examples``, in an order that depends on seed and epoch, so that a run can be taken up at any step."""

    def __init__(
        self,
        examples: Sequence[BoxExample],
        recipe: DetectRecipe,
        side: tuple[int, int],
        *,
        seed: int,
        share: Shard | None = None,
        workers: int = 2,
    ) -> None:
        self.examples, self.recipe, self.side, self.seed = examples, recipe, side, seed
        self.share = share or Shard()
        self.batch = min(recipe.batch, len(examples))
        self.workers = workers

    @property
    def steps(self) -> int:
        """Steps of an epoch; images that do not fill a batch are left for other epochs."""
        return max(1, len(self.examples) // self.batch)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[BoxBatch]:
        """The batches of ``epoch`` from step ``first`` on."""
        order = torch.randperm(len(self.examples), generator=seeded(self.seed, epoch)).tolist()
        groups = [order[step * self.batch : (step + 1) * self.batch] for step in range(first, self.steps)]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            waiting = []
            for group in groups[:AHEAD]:
                waiting.append(self._begin(pool, group, epoch))
            for position in range(len(groups)):
                futures, total = waiting.pop(0)
                if position + AHEAD < len(groups):
                    waiting.append(self._begin(pool, groups[position + AHEAD], epoch))
                images, targets = zip(*[future.result() for future in futures], strict=True)
                yield BoxBatch(list(images), list(targets), total)

    def _begin(
        self, pool: ThreadPoolExecutor, group: list[int], epoch: int
    ) -> tuple[list[Future[tuple[Tensor, BoxTarget]]], int]:
        rank, world, count = self.share.rank, self.share.world, len(group)
        # not `Shard.of`, which keeps pairs together for mixing: 8 images on 8 processes are one each
        mine = group[count * rank // world : count * (rank + 1) // world]
        return [pool.submit(self._one, index, epoch) for index in mine], len(group)

    def _one(self, index: int, epoch: int) -> tuple[Tensor, BoxTarget]:
        random = draws(DRAWS, torch.tensor([index]), self.seed, epoch)[0].tolist()
        return augmented(self.examples[index], self.recipe, self.side, random)


def augmented(
    example: BoxExample, recipe: DetectRecipe, side: tuple[int, int], random: Sequence[float]
) -> tuple[Tensor, BoxTarget]:
    """(image (3, H, W) in 0..1, target) of one example, mirrored, zoomed and recoloured by ``DRAWS`` numbers in [0, 1).

    ``side``: short side and longest side of the resized image. A zoomed image keeps the size that it has without: what reaches out is
    cut, what is missing is grey. Boxes of which too little is left are dropped, as are ignored ones.
    """
    mirror, flip, zoom, top, left, *colours = random
    image: Tensor = tv_tensors.Image(load_picture(example))
    tall, wide = resized_side(example.size, *side)
    boxes: Tensor = tv_tensors.BoundingBoxes(example.boxes, format="XYXY", canvas_size=image.shape[-2:])
    labels = example.labels + 1
    low, high = recipe.zoom
    factor = low * (high / low) ** zoom
    inner = [max(1, round(tall * factor)), max(1, round(wide * factor))]
    image, boxes = (F.resize(one, inner, antialias=True) for one in (image, boxes))
    if "h" in recipe.flips and mirror < 0.5:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    if "v" in recipe.flips and flip < 0.5:
        image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
    if recipe.colour:
        for value, change in zip(colours, (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), strict=False):
            image = change(image, 1 + recipe.colour * (2 * value - 1))
    plain, kept = boxes.as_subclass(torch.Tensor), ~example.ignored
    if inner != [tall, wide]:
        before = area(plain)
        image, plain = framed(image, plain, (tall, wide), (top, left))
        kept &= area(plain) > SEEN * before
    kept &= (plain[:, 2] - plain[:, 0] >= 1) & (plain[:, 3] - plain[:, 1] >= 1)  # below a pixel there is nothing to see
    return F.to_dtype(image, torch.float32, scale=True).as_subclass(torch.Tensor), {
        "boxes": plain[kept],
        "labels": labels[kept],
    }


def framed(image: Tensor, boxes: Tensor, frame: tuple[int, int], place: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Cut or pad ``image`` to ``frame`` (height, width). ``place``: two numbers in [0, 1), where in the frame it lies."""
    height, width = image.shape[-2:]
    # of the picture's corner in the frame; negative where the picture is the larger one
    down, right = (round(share * (side - own)) for share, side, own in zip(place, frame, (height, width), strict=True))
    image = F.crop(image, max(-down, 0), max(-right, 0), min(frame[0], height), min(frame[1], width))
    below, beside = max(frame[0] - height - down, 0), max(frame[1] - width - right, 0)
    image = F.pad(image, [max(right, 0), max(down, 0), beside, below], fill=GREY)
    moved = boxes + torch.tensor([right, down, right, down], dtype=boxes.dtype)
    return image, torch.stack([moved[:, i].clamp(0, frame[1 - i % 2]) for i in range(4)], 1)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)
