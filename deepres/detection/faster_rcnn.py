"""``detector``: Faster R-CNN on a network, of torchvision's parts. Read: DetectorConfig -> detector -> assemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from deepres.adapters import Level, trunk
from deepres.detection.backbone import Body, PlainBackbone, PyramidBackbone, norms_of
from deepres.detection.heads import ContextHead, FloatPredictor, FloatRPNHead, LinearHead, StageHead
from deepres.detection.pooling import ContextPool, RegionPool
from deepres.errors import DeepresError
from deepres.models import need_layers, open_model

Form = Literal["fpn", "c4"]
C4_STRIDE = 16  # of the map that regions are proposed on and taken from (Ren et al. 2015)
RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
USUAL_SIDE = 800  # pixels of the short side at which the usual anchors are 32 to 512 pixels


@dataclass(frozen=True)
class DetectorConfig:
    """All that is needed to build a detector again around its network. Lengths in pixels of the resized image."""

    classes: tuple[str, ...]  # without the background
    form: Form = "fpn"
    size: int = 800  # short side of the images
    longest: int = 1333  # at most, of the long side, which then decides
    canvas: tuple[int, int] | None = None  # (height, width) that all images are padded to; None: by the largest of each batch
    frozen: bool = True  # whether batch norms keep what they were pretrained to
    fixed: int = 0  # levels of the network that are not trained, from the image on
    strides: tuple[int, ...] = (4, 8, 16, 32)  # of the pyramid's maps
    channels: int = 256  # of the pyramid's maps
    neck_norm: bool = False  # batch norm in the pyramid
    width: int = 1024  # of the two fully connected layers behind a region's features
    anchors: tuple[float, ...] = ()  # sides; of the pyramid one a map, its pooled map too; () for the usual ones
    octaves: int = 1  # anchors of each ratio at a pixel of the pyramid, in steps of 2 ** (1 / octaves)
    proposals: tuple[int, int] = (
        2000,
        1000,
    )  # regions that are kept, in training and in testing; of each map before suppression
    samples: int = 512  # regions of an image that a training step learns from
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    antialias: bool = False  # whether large images are smoothed before they are made smaller, as training images are
    context: bool = False  # whether each region also sees the features of the whole image (He et al. 2015, appendix B)
    eps: float | None = None  # that batch norms add to the variance; None: the network's own

    def __post_init__(self) -> None:
        if not self.classes:
            raise DeepresError("a detector needs at least one class")
        if self.form not in ("fpn", "c4"):
            raise DeepresError(f"unknown form {self.form!r} of a detector; there are 'fpn' and 'c4'")
        if self.size < 32 or self.longest < self.size:
            raise DeepresError(f"size {self.size} (short side) must be at least 32 and at most longest, {self.longest}")
        if self.form == "fpn" and self.anchors and len(self.anchors) != len(self.strides) + 1:
            raise DeepresError(
                f"{len(self.anchors)} anchors are given for the {len(self.strides) + 1} maps of a feature pyramid, which has one a map; "
                "leave them out, or use --form c4, as the recipes paper-voc and paper-coco are made for"
            )

    def sides(self) -> tuple[tuple[float, ...], ...]:
        """Sides of the anchors of each map. The usual ones are in proportion to the images' size."""
        scale = self.size / USUAL_SIDE
        if self.form == "c4":
            return (self.anchors or tuple(side * scale for side in (128.0, 256.0, 512.0)),)
        usual = tuple(8.0 * stride * scale for stride in (*self.strides, 2 * self.strides[-1]))
        steps = [2 ** (step / self.octaves) for step in range(self.octaves)]
        return tuple(tuple(side * step for step in steps) for side in self.anchors or usual)


class FixedTransform(GeneralizedRCNNTransform):
    """torchvision's resizing and normalisation; every batch may be padded to one size, for which a compiled network is compiled once."""

    canvas: tuple[int, int] | None = None
    antialias = False

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        if not self.antialias:
            return super().resize(image, target)
        height, width = image.shape[-2:]
        scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
        side = [max(1, round(height * scale)), max(1, round(width * scale))]
        if side != [height, width]:
            image = nn.functional.interpolate(image[None], side, mode="bilinear", antialias=True)[0]
            if target is not None:
                target["boxes"] = resize_boxes(target["boxes"], [height, width], side)
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        batch = super().batch_images(images, size_divisible)
        if self.canvas is None:
            return batch
        down, right = (max(0, wanted - has) for wanted, has in zip(self.canvas, batch.shape[-2:], strict=True))
        return nn.functional.pad(batch, (0, right, 0, down))


class Detector(FasterRCNN):
    """torchvision's Faster R-CNN with what is needed to use, save and build it again.

    In training: ``model(images, targets) -> losses`` by name; else ``model(images) -> [{"boxes", "labels", "scores"}, ...]``. Images
    are tensors (3, H, W) with values in 0..1, boxes (n, 4) are left, top, right, bottom in pixels, and labels (n,) count from 1.
    """

    config: DetectorConfig
    remarks: tuple[str, ...]  # sentences on how it was put together
    of_net: frozenset[str]  # names of the parameters that were those of the network

    @property
    def net(self) -> nn.Module:
        """The network that it was built on, up to its last shared level."""
        return self.backbone.body.net


def detector(
    net: nn.Module | str | Path,
    classes: Sequence[str] | int,
    form: Form = "fpn",
    *,
    weights: str | Path | None = None,
    frozen: bool | None = None,
    net_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Detector:
    """Build a Faster R-CNN (Ren et al. 2015) on a network of ours, torchvision's, timm's or your own.

    >>> model = deepres.detection.detector("resnet50", ("cat", "dog"))
    >>> model.eval()([torch.rand(3, 480, 640)])[0]["boxes"]

    ``form``: ``"fpn"`` takes regions from a feature pyramid (Lin et al. 2017); ``"c4"``, as in the ResNet paper, takes them from
    the map of stride 16 and runs the network's last stage on each region. A network without a stage behind stride 16, such as
    VGG-16, gets two fully connected layers there, which are its own where it has them.

    ``net``: a reference of ``open_model``, with ``weights`` to load, or a module, which becomes part of the detector. ``classes``:
    names, or how many. ``frozen``: whether batch norms keep their statistics [yes with pretrained weights; without them they must be
    trained]. ``net_options``: as in ``create``, for a network of ours. ``options``: fields of ``DetectorConfig``.

    Raises ``DeepresError`` for a network that gives no feature maps, or not at the strides that are asked for.
    """
    names = tuple(f"class {i + 1}" for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    opened = open_model(net, weights=weights, **(net_options or {}))
    need_layers(opened.model, opened.name)
    if opened.spec.channels not in (None, 3):
        raise DeepresError(
            f"{opened.name}: takes images of {opened.spec.channels} channels, and a detector sees colour images; give a network of 3"
        )
    frozen = opened.trained if frozen is None else frozen
    if "mean" not in options and opened.spec.channels == 3:
        prepare = opened.preparation()
        options |= {"mean": prepare.mean, "std": prepare.std}
    if not frozen and form == "fpn":
        options.setdefault("neck_norm", True)
    try:
        config = DetectorConfig(names, form, frozen=frozen, **options)
    except TypeError as error:
        raise DeepresError(f"detector: {str(error).removeprefix('DetectorConfig.__init__() ')}") from error
    why = "the weights are pretrained" if opened.trained else "there are no pretrained weights"
    said = f"batch norms are {'frozen' if frozen else 'trained'}, as {why}" if frozen == opened.trained else (
        f"batch norms are {'frozen' if frozen else 'trained'}, as asked for, although {why}"
    )  # fmt: skip
    return assemble(opened.model, config, (*opened.remarks, said))


def assemble(net: nn.Module, config: DetectorConfig, remarks: Sequence[str] = ()) -> Detector:
    """The detector of ``config`` around ``net``, which becomes a part of it."""
    of_net = {id(p) for p in net.parameters()}
    levels = trunk(net)
    if config.eps is not None:
        for norm in norms_of(net):
            norm.eps = config.eps  # type: ignore[assignment]
    build = _with_pyramid if config.form == "fpn" else _with_stage
    backbone, options = build(net, levels, config)
    anchors = AnchorGenerator(config.sides(), (RATIOS,) * len(config.sides()))
    training, testing = config.proposals
    model = Detector(
        backbone,
        min_size=config.size,
        max_size=config.longest,
        image_mean=list(config.mean),
        image_std=list(config.std),
        rpn_anchor_generator=anchors,
        rpn_head=FloatRPNHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=training,
        rpn_post_nms_top_n_train=training,
        rpn_pre_nms_top_n_test=testing,
        rpn_post_nms_top_n_test=testing,
        box_batch_size_per_image=config.samples,
        **options,
    )
    model.transform = FixedTransform(config.size, config.longest, list(config.mean), list(config.std))
    model.transform.canvas, model.transform.antialias = config.canvas, config.antialias
    model.config, model.remarks = config, tuple(remarks)
    model.of_net = frozenset(name for name, p in model.named_parameters() if id(p) in of_net)
    return model


def _with_pyramid(net: nn.Module, levels: Sequence[Level], config: DetectorConfig) -> tuple[nn.Module, dict[str, Any]]:
    strides = [level.stride for level in levels]
    if missing := [stride for stride in config.strides if stride not in strides]:
        raise DeepresError(
            f"{type(net).__name__}: has no feature map of stride {missing[0]}, but of {', '.join(map(str, strides))}; give `strides`"
        )
    take = [strides.index(stride) for stride in config.strides]
    body = Body(net, levels[: max(take) + 1], take, frozen=config.frozen, fixed=config.fixed)
    channels = [levels[index].channels for index in take]
    backbone = PyramidBackbone(body, channels, config.channels, norm=config.neck_norm)
    head = TwoMLPHead(config.channels * 49, config.width)
    return backbone, _region_parts(config, config.strides, 7, head, config.width)


def _with_stage(net: nn.Module, levels: Sequence[Level], config: DetectorConfig) -> tuple[nn.Module, dict[str, Any]]:
    shared = [level for level in levels if level.stride <= C4_STRIDE]
    behind = [net.get_submodule(path) for level in levels[len(shared) :] for path in level.paths]
    if shared[-1].stride != C4_STRIDE:
        raise DeepresError(
            f"{type(net).__name__}: has no feature map of stride {C4_STRIDE}, which the form 'c4' needs; use the form 'fpn' with `strides`"
        )
    channels = shared[-1].channels
    head: nn.Module
    if behind:
        head, side, width = StageHead(behind), 14, levels[-1].channels
    else:
        linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
        own = linear[:2] if len(linear) > 1 and linear[0].in_features == channels * 49 else []
        width = own[1].out_features if own else 4096
        head, side = LinearHead(channels, width, own), 7
    body = Body(net, levels, [len(shared) - 1], frozen=config.frozen, fixed=config.fixed)
    return PlainBackbone(body, channels), _region_parts(config, [C4_STRIDE], side, head, width)


def _region_parts(
    config: DetectorConfig, strides: Sequence[int], side: int, head: nn.Module, width: int
) -> dict[str, nn.Module]:
    """What computes classes and boxes of regions: pooling, ``head`` with ``width`` features, and the last layers."""
    outputs = len(config.classes) + 1
    parts: tuple[nn.Module, ...]
    if config.context:
        parts = (ContextPool(strides, side), ContextHead(head), FloatPredictor(2 * width, outputs))
    else:
        parts = (RegionPool(strides, side), head, FloatPredictor(width, outputs))
    return dict(zip(("box_roi_pool", "box_head", "box_predictor"), parts, strict=True))
