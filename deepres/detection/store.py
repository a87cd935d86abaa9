"""Detectors on disk, and torchvision's detectors by the names of their tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepres.detection.faster_rcnn import Detector, DetectorConfig, assemble
from deepres.errors import DeepresError, first_line
from deepres.models import read_checkpoint
from deepres.models.builders import Origin, origin, to_json
from deepres.models.checkpoint import header_of
from deepres.models.names import our_name, to_others
from deepres.models.store import locate, write_tensors
from deepres.nn.resnet import ResNet, ResNetConfig
from deepres.training.run import tuples_in
from deepres.training.trainer import BEST

COUNTER = "num_batches_tracked"  # a buffer of batch norm that torchvision's frozen norms do not have
_BODY, _NET = "backbone.body.", "backbone.body.net."


def save_detector(model: Detector, path: str | Path, **notes: Any) -> Path:
    """Write a detector's weights, how to build it, and ``notes`` (plain values) as one safetensors file.

    Raises ``DeepresError`` where the file cannot be written, and for a network that could not be built again from it.
    """
    net = model.net
    path = Path(path)
    header: dict[str, Any] = {"detector": dataclasses.asdict(model.config), "notes": notes}
    if isinstance(net, ResNet):
        header["config"] = dataclasses.asdict(net.config)
    elif (noted := origin(net)) is not None:
        header["origin"] = to_json(noted)
    else:
        raise DeepresError(f"{path}: not written: how its {type(net).__name__} is built is not known; build it by open_model")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return write_tensors(path, tensors, json.dumps(header))


def load_detector(path: str | Path) -> Detector:
    """Load a detector from a file that `save_detector` wrote, or the best of a run's folder; in eval mode.

    Raises ``DeepresError`` for a file that is missing, truncated or no detector.
    """
    path = locate(path)
    state, header = read_checkpoint(path)
    if "detector" not in header:
        raise DeepresError(f"{path}: not a detector; `deepres detect train` and `deepres.detection.save_detector` write them")
    try:
        config = DetectorConfig(**{key: tuples_in(value) for key, value in header["detector"].items()})
        if "config" in header:
            net: nn.Module = ResNet(ResNetConfig(**{key: tuples_in(value) for key, value in header["config"].items()}))
        else:
            net = Origin.from_header(header["origin"]).build()
        model = assemble(net, config)
        model.load_state_dict(state)
    except (DeepresError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise DeepresError(f"{path}: not a detector that can be built again ({first_line(error)})") from error
    return model.eval()


def is_detector(reference: object) -> bool:
    """Tell whether ``reference`` names a detector's file, or a run's folder with one, without reading its weights."""
    path = Path(str(reference))
    path = path / BEST if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    return "detector" in header_of(path)  # whoever opens a damaged one says what is wrong with it


def load_torchvision(model: Detector, state: Mapping[str, Tensor]) -> None:
    """Load the tensors of one of torchvision's Faster R-CNNs into ``model``, by name: of the same depth, classes and form "fpn".

    The weights published as ``FasterRCNN_ResNet50_FPN_Weights.COCO_V1`` belong to norms with ``eps=0``; build the detector with
    ``detector(..., frozen=True, eps=0.0)`` for them.

    Raises ``DeepresError`` with the first tensor that is missing, left over or of another shape.
    """
    ours = isinstance(model.net, ResNet)
    renamed = {}
    for name, tensor in state.items():
        inner = name.removeprefix(_BODY)
        renamed[name if inner == name else _NET + (our_name(inner) if ours else inner)] = tensor
    wanted = model.state_dict()
    # torchvision's frozen norms have no counter, and ours do not read it
    renamed |= {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER) and name not in renamed}
    wrong = sorted(renamed.keys() ^ wanted.keys()) or [name for name in wanted if wanted[name].shape != renamed[name].shape]
    if wrong:
        raise DeepresError(f"not the weights of this detector: {wrong[0]} and {len(wrong) - 1} more tensors do not fit")
    model.load_state_dict(renamed)


def to_torchvision(model: Detector) -> dict[str, Tensor]:
    """The tensors of ``model`` under the names of torchvision's Faster R-CNN of the same depth."""
    state = model.state_dict()
    net = {name.removeprefix(_NET): tensor for name, tensor in state.items() if name.startswith(_NET)}
    if isinstance(model.net, ResNet):
        net = to_others(model.net)
    body = {_BODY + name: tensor for name, tensor in net.items()}
    return {**body, **{name: tensor for name, tensor in state.items() if not name.startswith(_NET)}}
