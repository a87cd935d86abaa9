"""ModelSpec: what a network takes and gives, for whoever feeds it or replaces its first or last layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from deepres.nn import ResNet

Layout = Literal["NCHW", "NHWC", "NLC"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


@dataclass(frozen=True)
class ModelSpec:
    """Input, output and preprocessing of a network. None means unknown, or that the network does not insist."""

    inputs: Literal["images", "tokens"] = "images"
    layout: Layout = "NCHW"  # of the signal between blocks: channels first, channels last, or tokens (N, L, C)
    size: int | None = None  # side of the images that the network insists on, pixels; of tokens the longest sequence
    usual_size: int = 224  # side of the images where neither the network nor the user asks for one
    channels: int | None = None  # of the images
    classes: int | None = None  # outputs of the classifier; of a language model its vocabulary
    labels: tuple[str, ...] | None = None  # names of the classes, in the order of the outputs
    mean: tuple[float, ...] | None = None  # per channel, of pixels in 0..1
    std: tuple[float, ...] | None = None
    interpolation: str | None = None  # "nearest", "bilinear", "bicubic", ...
    crop: float | None = None  # side of the centre crop divided by the short side that the image is resized to
    folds_rows: bool = False  # whether blocks see windows or patches as rows of the batch, so that rows are not examples
    classifier: str | None = None  # path of the last layer, which gives the logits
    first: str | None = None  # path of the first layer: the convolution that takes the image, or the token embedding

    @property
    def image_size(self) -> int:
        """Side of the images to use, pixels: the one that the network insists on, else the usual one."""
        return self.size or self.usual_size

    @property
    def longest(self) -> int | None:
        """Longest sequence that a language model reads, in tokens; None for images or where any length will do."""
        return self.size if self.inputs == "tokens" else None

    def with_processor(self, settings: Mapping[str, Any]) -> ModelSpec:
        """The spec with the preprocessing of a Hugging Face ``preprocessor_config.json``, given as a dictionary."""
        found: dict[str, Any] = {}
        if settings.get("do_normalize", True) and settings.get("image_mean") and settings.get("image_std"):
            found |= {"mean": tuple(settings["image_mean"]), "std": tuple(settings["image_std"])}
        if settings.get("resample") in _RESAMPLING:
            found["interpolation"] = _RESAMPLING[settings["resample"]]
        size, crop = _side(settings.get("size")), _side(settings.get("crop_size"))
        if settings.get("do_center_crop") and size and crop:
            found |= {"usual_size": crop, "crop": crop / size}
        elif settings.get("crop_pct") and size:
            found |= {"usual_size": size, "crop": float(settings["crop_pct"])}
        elif size:
            found |= {"usual_size": size, "crop": 1.0}
        return dataclasses.replace(self, **found)


def _side(value: Any) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge") or value.get("height")
    return value if isinstance(value, int) else None


def spec_of(model: nn.Module) -> ModelSpec:
    """The ``ModelSpec`` of ``model``, read off its layers, its configuration and what its library notes in it."""
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    config = getattr(model, "config", None)
    convolution = _first(model, nn.Conv2d)
    embedding = _first(model, nn.Embedding)
    if convolution is None and embedding is not None:
        return ModelSpec(
            inputs="tokens",
            layout="NLC",
            size=getattr(config, "max_position_embeddings", None),
            usual_size=0,
            classes=_outputs(model),
            labels=_labels(config),
            classifier=_classifier(model),
            first=embedding,
        )
    return ModelSpec(
        size=_insisted_size(model),
        usual_size=32 if isinstance(model, ResNet) and model.config.stem == "cifar" else 224,
        channels=None if convolution is None else model.get_submodule(convolution).in_channels,  # type: ignore[arg-type]
        classes=_outputs(model),
        labels=_labels(config),
        classifier=_classifier(model),
        first=convolution,
        **_preprocessing(model),
    )


def _first(model: nn.Module, kind: type[nn.Module]) -> str | None:
    return next((path for path, module in model.named_modules() if isinstance(module, kind)), None)


def _classifier(model: nn.Module) -> str | None:
    return next((path for path, module in reversed([*model.named_modules()]) if isinstance(module, nn.Linear)), None)


def _outputs(model: nn.Module) -> int | None:
    path = _classifier(model)
    return None if path is None else model.get_submodule(path).out_features  # type: ignore[return-value]


def _labels(config: object) -> tuple[str, ...] | None:
    """Hugging Face's ``id2label``, unless it holds only the place holders of a fresh configuration."""
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping) or all(str(name) == f"LABEL_{i}" for i, name in names.items()):
        return None
    return tuple(str(names[i]) for i in sorted(names, key=int))


def _insisted_size(model: nn.Module) -> int | None:
    for holder in (model, getattr(model, "config", None)):
        size = getattr(holder, "image_size", None)
        if isinstance(size, int):
            return size
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm
    return size[0] if isinstance(size, tuple) else None


def _preprocessing(model: nn.Module) -> dict[str, Any]:
    noted = getattr(model, "pretrained_cfg", None)  # timm
    if isinstance(noted, Mapping):
        return {
            "mean": tuple(noted["mean"]) if noted.get("mean") else None,
            "std": tuple(noted["std"]) if noted.get("std") else None,
            "interpolation": noted.get("interpolation"),
            "crop": noted.get("crop_pct"),
        }
    if type(model).__module__.startswith("torchvision.models."):
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bilinear", "crop": 224 / 256}
    return {}
