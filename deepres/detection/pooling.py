"""Region pooling: the features of each region, on a fixed grid, from the maps of a backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper


class RegionPool(MultiScaleRoIAlign):
    """torchvision's ``MultiScaleRoIAlign``, several times as fast on a CPU, forward and backward, and equal up to rounding.

    Bilinear sampling reads a weighted sum of map pixels for each bin of a region. Here it is one ``embedding_bag`` over the pixels of
    all maps in channels-last order, so that each pixel is read as one vector of channels; torchvision's CPU kernel reads channel by
    channel. On other devices torchvision's kernel runs.

    ``strides``: of the maps "0", "1", ...; torchvision guesses them from the first image, wrongly where that fills little of the canvas
    that it is padded to. ``side``: bins of the grid along each axis.
    """

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__([str(index) for index in range(len(strides))], side, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = initLevelMapper(round(math.log2(strides[0])), round(math.log2(strides[-1])))

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps (N, C, H, W) by name and N tensors of boxes (R_i, 4) -> (sum of R_i, C, side, side), float32."""
        maps = [x[name] for name in self.featmap_names]
        if maps[0].device.type != "cpu":
            return super().forward(x, boxes, image_shapes)
        assert self.scales is not None and self.map_levels is not None
        regions = torch.cat(boxes).float()
        image = torch.cat([torch.full((len(one),), number) for number, one in enumerate(boxes)])
        level = self.map_levels(boxes) if len(maps) > 1 else torch.zeros(len(regions), dtype=torch.int64)
        with torch.autocast("cpu", enabled=False):
            scaled = regions * torch.tensor(self.scales)[level][:, None]
            return pool_regions(maps, scaled, image, level, self.output_size, self.sampling_ratio)


class ContextPool(RegionPool):
    """Pools the regions and, behind them, the whole of each image -> (features of R + N regions, image of each of R regions)."""

    def forward(  # type: ignore[override]
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        wholes = [one.new_tensor([[0.0, 0.0, wide, tall]]) for one, (tall, wide) in zip(boxes, image_shapes, strict=True)]
        features = super().forward(x, [torch.cat(pair) for pair in zip(boxes, wholes, strict=True)], image_shapes)
        counts = torch.tensor([len(one) for one in boxes], device=features.device)
        image = torch.arange(len(boxes), device=features.device).repeat_interleave(counts)
        place = torch.arange(len(image), device=features.device) + image  # each image's whole stands behind its regions
        return torch.cat(
            (features[place], features[counts.cumsum(0) + torch.arange(len(boxes), device=features.device)])
        ), image


def pool_regions(
    maps: Sequence[Tensor], regions: Tensor, image: Tensor, level: Tensor, side: tuple[int, int], samples: int
) -> Tensor:
    """``regions`` (R, 4) in pixels of their map, which ``image`` and ``level`` name -> (R, C, *side)."""
    channels = maps[0].shape[1]
    pixels = torch.cat([one.float().permute(0, 2, 3, 1).reshape(-1, channels) for one in maps])
    heights, widths = (torch.tensor([one.shape[axis] for one in maps]) for axis in (2, 3))
    sizes = heights * widths * maps[0].shape[0]
    height, width = heights[level], widths[level]
    first = (sizes.cumsum(0) - sizes)[level] + image * height * width
    left, top, right, bottom = regions.unbind(1)
    rows, row_weights = _line(top, bottom, side[0], samples, height)
    columns, column_weights = _line(left, right, side[1], samples, width)
    # (R, bins down, bins right, samples down, samples right)
    at = (
        first[:, None, None, None, None]
        + rows[:, :, None, :, None] * width[:, None, None, None, None]
        + columns[:, None, :, None, :]
    )
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    count = 4 * samples * samples
    found = torch.nn.functional.embedding_bag(
        at.reshape(-1, count), pixels, per_sample_weights=weights.reshape(-1, count), mode="sum"
    )
    return found.view(len(regions), side[0] * side[1], channels).transpose(1, 2).reshape(len(regions), channels, *side)


def _line(begin: Tensor, end: Tensor, bins: int, samples: int, length: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels read along one axis, and their weights, which sum to 1 for each bin inside the map: two of (R, bins, 2 * samples).

    ``begin``, ``end``: of the regions (R,). ``length``: pixels of each region's map on this axis (R,).
    """
    step = (end - begin).clamp(min=1)[:, None] / (bins * samples)
    at = begin[:, None] + (torch.arange(bins * samples) + 0.5) * step
    last = (length - 1)[:, None].float()
    inside = (at >= -1) & (at <= last + 1)  # samples further out count as 0
    at = torch.minimum(at.clamp(min=0), last)
    low = at.floor()
    share = at - low
    pixels = torch.stack((low, torch.minimum(low + 1, last)), -1).long()
    weights = torch.stack((1 - share, share), -1) * inside[..., None] / samples
    return pixels.view(len(begin), bins, 2 * samples), weights.view(len(begin), bins, 2 * samples)
