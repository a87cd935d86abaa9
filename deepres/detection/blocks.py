"""The site tools on a detector: what its blocks do for mAP, and which it can do without."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import Site, delete_blocks, device_of, find_blocks, sites, trunk
from deepres.data.detection import BoxExample
from deepres.detection.backbone import Body
from deepres.detection.faster_rcnn import Detector
from deepres.detection.measure import measure_detector
from deepres.errors import DeepresError
from deepres.evaluation.timing import time_against

NO_GHOST = (
    "a ghost routes each input to an answer of its own, and gives some the answer of an early exit; a detector answers for every region "
    "of an image from feature maps that its last blocks must have computed, so there is no input to let out early; use "
    "deepres.detection.shrink_detector, which takes blocks out for all images"
)


@dataclass(frozen=True)
class SiteEffect:
    """The change of mAP where one branch of the network is left out. Average precisions are shares in 0..1."""

    name: str  # of the site, in the network
    kind: str  # the block's class
    ap50: float  # without the branch
    change: float  # of AP at IoU 0.5; negative is worse
    reshapes: bool  # such a branch cannot be left out; the other values are the whole detector's


@dataclass(frozen=True)
class DetectorLook:
    """Ablations of a detector's network, in mAP on the same images."""

    ap50: float  # of the whole detector
    images: int
    sites: tuple[SiteEffect, ...]


def look_at_detector(
    model: Detector,
    examples: Sequence[BoxExample],
    *,
    progress: Callable[[str, float], None] = lambda what, share: None,
    batch: int = 8,
) -> DetectorLook:
    """Leave out each branch of the detector's network in turn, and measure AP at IoU 0.5 on ``examples``.

    The detector is left unchanged. Differences below a point on a few hundred objects are within chance.

    Raises ``DeepresError`` for a network without residual sites.
    """
    found = sites(model.net)
    if not found:
        raise DeepresError(f"{type(model.net).__name__}: has no residual sites to leave out")
    classes = model.config.classes

    def measured() -> float:
        return measure_detector(model, examples, classes, batch=batch).coco.ap50

    progress("the whole detector", 0.0)
    whole = measured()
    effects = []
    for number, site in enumerate(found, 1):
        progress(f"ablation of {site.name}", number / (len(found) + 1))
        if site.reshapes:
            effects.append(SiteEffect(site.name, site.kind, whole, 0.0, True))
            continue
        with site.bypass():
            now = measured()
        effects.append(SiteEffect(site.name, site.kind, now, now - whole, False))
    return DetectorLook(whole, len(examples), tuple(effects))


def without_blocks(model: Detector, paths: Sequence[str]) -> Detector:
    """A copy of the detector without the blocks at ``paths`` of its network, ready to be used, trained or saved.

    Raises ``DeepresError`` for a block that its stage is built on.
    """
    small = copy.deepcopy(model)
    delete_blocks(small.net, paths)
    body = small.backbone.body
    assert isinstance(body, Body)
    body.levels = tuple(tuple(level.paths) for level in trunk(small.net))[: max(body.take) + 1]
    return small


@dataclass(frozen=True, eq=False)
class ShrunkDetector:
    """Result of ``shrink_detector``. Average precisions are shares in 0..1, at IoU 0.5."""

    model: Detector
    removed: tuple[str, ...]  # paths of the blocks in the network, in the order in which they were taken out
    before: float  # on the validation images
    after: float
    time: float  # of the backbone, relative to the whole one's; below 1 is faster
    params: tuple[int, int]  # before and after


def shrink_detector(
    model: Detector,
    examples: Sequence[BoxExample],
    *,
    drop: float = 0.01,
    tune: Callable[[Detector], None] | None = None,
    batch: int = 8,
    log: Callable[[str], None] = lambda text: None,
) -> ShrunkDetector:
    """Take blocks out of a trained detector's network, one after the other, as long as AP at IoU 0.5 falls by at most ``drop``.

    In each round the block goes whose ablation costs least on ``examples``, which should be validation images. ``tune``, if given,
    trains the smaller detector on before it is measured; without it blocks that matter little are all that can go.
    """
    classes = model.config.classes
    before = measure_detector(model, examples, classes, batch=batch).coco.ap50
    current, after, removed = model, before, []
    while candidates := _removable(current):
        costs = {}
        for path, members in candidates.items():
            with _bypassed(members):
                costs[path] = measure_detector(current, examples, classes, batch=batch).coco.ap50
        path = max(costs, key=costs.__getitem__)
        smaller = without_blocks(current, [path])
        if tune is not None:
            tune(smaller)
        now = measure_detector(smaller, examples, classes, batch=batch).coco.ap50 if tune is not None else costs[path]
        log(f"without {path}: mAP@.5 {100 * now:.1f} % (the whole {100 * before:.1f} %)")
        if now < before - drop:
            break
        current, after = smaller, now
        removed.append(path)
    counts = tuple(sum(p.numel() for p in one.parameters()) for one in (model, current))
    return ShrunkDetector(current, tuple(removed), before, after, backbone_time(model, current), (counts[0], counts[1]))


def backbone_time(whole: Detector, small: Detector) -> float:
    """Time of ``small``'s backbone relative to ``whole``'s, on one image of the usual size: the median of alternating turns."""
    size = whole.config.canvas or (whole.config.size, whole.config.longest)
    image = torch.rand(1, 3, *(-(-side // 32) * 32 for side in size), device=device_of(whole))

    def call(model: Detector) -> Callable[[Tensor], object]:
        model.eval()

        def forward(x: Tensor) -> object:
            with torch.inference_mode():
                return model.backbone(x)

        return forward

    return time_against(call(whole), call(small), image, 1)[0]


def _removable(model: Detector) -> dict[str, list[Site]]:
    return {block.path: list(block.sites) for block in find_blocks(model.net) if block.removable}


@contextlib.contextmanager
def _bypassed(members: Sequence[Site]) -> Iterator[None]:
    """While open, several sites are left out."""
    with contextlib.ExitStack() as stack:
        for site in members:
            stack.enter_context(site.bypass())
        yield


def refuse_ghost(model: nn.Module) -> None:
    """Raises ``DeepresError`` for a detector, of which there is no ghost, with the reason."""
    if isinstance(model, Detector):
        raise DeepresError(f"a ghost cannot be made of a detector: {NO_GHOST}")
