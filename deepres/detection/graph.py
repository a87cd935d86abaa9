"""A detector as one graph of fixed shapes, for export: an image of any size in, boxes out.

torchvision's detector keeps as many boxes as there are; a graph that is captured once needs to know how many. Here every list of boxes
has its largest length, and boxes that do not count have a score of -1. The two steps that other engines have operations of their own for,
suppression and pooling, are operations of ours: `engines.detector_export` translates them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from deepres.detection.faster_rcnn import Detector
from deepres.detection.pooling import pool_regions

NOTHING = -1.0  # the score of a box that does not count
_LEAST_PROPOSAL, _LEAST_BOX = 1e-3, 1e-2  # sides below which torchvision drops a box, pixels


@torch.library.custom_op("deepres::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, overlap: float, count: int) -> Tensor:
    """Non-maximum suppression of boxes (N, 4) with scores (N,) above 0 -> ``count`` indices, the best first, padded by -1."""
    usable = (scores > 0).nonzero()[:, 0]
    kept = usable[nms(boxes[usable], scores[usable], overlap)][:count]
    return nn.functional.pad(kept, (0, count - len(kept)), value=-1)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, overlap: float, count: int) -> Tensor:
    return scores.new_empty(count, dtype=torch.int64)


@torch.library.custom_op("deepres::region_pool", mutates_args=())
def region_pool(maps: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float], side: int) -> Tensor:
    """Pool boxes (R, 4) of one image, each from the map (1, C, H, W) that ``level`` (R,) names -> (R, C, side, side)."""
    image = torch.zeros_like(level)
    return pool_regions(maps, boxes * boxes.new_tensor(scales)[level][:, None], image, level, (side, side), 2).contiguous()


@region_pool.register_fake
def _(maps: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float], side: int) -> Tensor:
    return boxes.new_empty(len(boxes), maps[0].shape[1], side, side)


class DetectorGraph(nn.Module):
    """``model`` on one image, (H, W, 3) uint8 -> boxes (n, 4) in its pixels, labels (n,) that count from 0, scores (n,), the best first.

    ``canvas``: (height, width) that resized images are padded to.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Detector, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.canvas = model.eval(), canvas
        config = model.config
        empty = torch.zeros(1, 3, *canvas)
        with torch.no_grad():
            maps = list(model.backbone(empty).values())
            anchors = model.rpn.anchor_generator(ImageList(empty, [canvas]), maps)[0]
        per_pixel = model.rpn.anchor_generator.num_anchors_per_location()
        counts = [one.shape[2] * one.shape[3] * each for one, each in zip(maps, per_pixel, strict=True)]
        for number, one in enumerate(anchors.split(counts)):
            self.register_buffer(f"anchors_{number}", one, persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels, size, new = self.resized(image)
        maps = self.model.backbone(pixels[None])
        proposals, scores = self.proposals(list(maps.values()), new)
        boxes, labels, scores = self.detections(maps, proposals, scores, new)
        kept = scores > 0
        back = (size / new).float().flip(0).repeat(2)
        return boxes[kept] * back, labels[kept], scores[kept]

    def resized(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(image as the network takes it, on the canvas; (height, width) as it was; (height, width) after resizing).

        Resizing is linear along each axis, so that it is two matrix products, of which only the matrices depend on the size.
        """
        config = self.model.config
        places = [torch.arange(side, dtype=torch.float64) for side in image.shape[:2]]
        size = torch.stack([one[-1] + 1 for one in places])
        scale = torch.minimum(config.size / size.min(), config.longest / size.max())
        # without antialiasing, torchvision computes the size
        new = (size * scale).round().clamp(min=1) if config.antialias else (size * scale).floor()
        rows, columns = (
            self._line(place, side, to, length)
            for place, side, to, length in zip(places, size.unbind(), new.unbind(), self.canvas, strict=True)
        )
        channels = image.permute(2, 0, 1).float() / 255
        inside = ((rows.sum(1) > 0)[:, None] & (columns.sum(1) > 0)[None]).float()
        found = (rows @ channels) @ columns.T
        return (found - self.mean) / self.std * inside, size, new

    def _line(self, places: Tensor, side: Tensor, new: Tensor, length: int) -> Tensor:
        """Weights (length, side) of the pixels of one axis in those of the canvas; 0 behind the image's end."""
        out = torch.arange(length, dtype=torch.float64)
        scale = side / new
        if self.model.config.antialias:
            wide = scale.clamp(min=1)
            weights = (1 - ((places[None] + 0.5) - (scale * (out + 0.5))[:, None]).abs() / wide).clamp(min=0)
        else:
            at = torch.minimum((scale * (out + 0.5) - 0.5).clamp(min=0), side - 1)
            weights = (1 - (places[None] - at[:, None]).abs()).clamp(min=0)
        total = weights.sum(1, keepdim=True).clamp(min=1e-9)
        return (weights / total * (out < new)[:, None]).float()

    def proposals(self, maps: Sequence[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """The best regions (P, 4) of the canvas and their scores (P,), as ``RegionProposalNetwork.filter_proposals`` chooses them."""
        rpn = self.model.rpn
        before, after = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        boxes, scores = [], []
        for number, (logits, deltas) in enumerate(zip(*rpn.head(list(maps)), strict=True)):
            anchors: Tensor = getattr(self, f"anchors_{number}")
            flat = logits.permute(0, 2, 3, 1).reshape(-1)
            best = flat.topk(min(before, len(anchors))).indices
            each = deltas.view(logits.shape[1], 4, *deltas.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            level = clipped(rpn.box_coder.decode_single(each[best], anchors[best]), size)
            score = counting(flat[best].sigmoid(), level, _LEAST_PROPOSAL)
            level, score = taken(suppress(level, score, rpn.nms_thresh, min(after, len(best))), level, score)
            boxes.append(level)
            scores.append(score)
        every, score = torch.cat(boxes), torch.cat(scores)
        found = score.topk(min(after, len(score)))
        return every[found.indices], found.values

    def detections(
        self, maps: dict[str, Tensor], proposals: Tensor, scores: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (D, 4) of the canvas, labels (D,) and scores (D,), as ``RoIHeads.postprocess_detections`` chooses them."""
        heads = self.model.roi_heads
        pool = heads.box_roi_pool
        regions = proposals
        if self.model.config.context:
            whole = torch.cat([torch.zeros(2, dtype=torch.float64), size.flip(0)]).float()
            regions = torch.cat([proposals, whole[None]])
        named = [maps[name] for name in pool.featmap_names]
        level = pool.map_levels([regions]) if len(named) > 1 else torch.zeros(len(regions), dtype=torch.int64)
        features = region_pool(named, regions, level, pool.scales, pool.output_size[0])
        if self.model.config.context:
            features = (features, torch.zeros(len(proposals), dtype=torch.int64))
        logits, deltas = heads.box_predictor(heads.box_head(features))
        decoded = heads.box_coder.decode_single(deltas, proposals).view(len(proposals), -1, 4)[:, 1:]
        classes = decoded.shape[1]
        boxes = clipped(decoded.reshape(-1, 4), size)
        labels = torch.arange(classes).repeat(len(proposals))
        chances = torch.where(scores[:, None] > 0, logits.softmax(-1)[:, 1:], NOTHING).reshape(-1)
        chances = torch.where(chances > heads.score_thresh, counting(chances, boxes, _LEAST_BOX), NOTHING)
        # boxes of different classes are moved apart, so that they do not suppress one another
        apart = boxes + (labels * (max(self.canvas) + 1.0))[:, None]
        most = min(heads.detections_per_img, len(boxes))
        index = suppress(apart, chances, heads.nms_thresh, most)
        found, chance = taken(index, boxes, chances)
        return found, labels[index.clamp(min=0)], chance


def taken(index: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and scores at ``index``, of which -1 stands for none."""
    at = index.clamp(min=0)
    return boxes[at], torch.where(index >= 0, scores[at], NOTHING)


def counting(scores: Tensor, boxes: Tensor, least: float) -> Tensor:
    """``scores``, where boxes with a side below ``least`` do not count."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.where((sides >= least).all(1), scores, NOTHING)


def clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (N, 4) cut at an image of ``size`` (height, width)."""
    return torch.minimum(boxes.clamp(min=0), size.float().flip(0).repeat(2))
