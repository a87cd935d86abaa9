"""ModelSpec: what a network takes and gives, for whoever feeds it or replaces its first or last layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn

from deepres.adapters.adapter import adapter_of, folds_rows
from deepres.adapters.compiled import unwrapped
from deepres.adapters.patterns import Layout

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
    vocabulary: int | None = None  # tokens that the first layer embeds
    labels: tuple[str, ...] | None = None  # names of the classes, in the order of the outputs
    mean: tuple[float, ...] | None = None  # per channel, of pixels in 0..1
    std: tuple[float, ...] | None = None
    interpolation: str | None = None  # "nearest", "bilinear", "bicubic", ...
    crop: float | None = None  # side of the centre crop divided by the short side that the image is resized to
    squash: bool = False  # whether both sides of the image are resized alike, whatever their ratio
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

    @property
    def classifies_texts(self) -> bool:
        """True if the network reads tokens and answers with other classes than the next token."""
        return self.inputs == "tokens" and self.classes is not None and self.classes != self.vocabulary

    def with_processor(self, settings: Mapping[str, Any]) -> ModelSpec:
        """The spec with the preprocessing of a Hugging Face ``preprocessor_config.json``, given as a dictionary.

        Raises ``ValueError`` or ``TypeError`` for settings that are none.
        """
        if not isinstance(settings, Mapping):
            raise TypeError("no JSON object")
        found: dict[str, Any] = _normalisation(settings)
        if settings.get("resample") in _RESAMPLING:
            found["interpolation"] = _RESAMPLING[settings["resample"]]
        size, crop = _side(settings.get("size")), _side(settings.get("crop_size"))
        sides = settings.get("size")
        if isinstance(sides, Mapping) and "height" in sides and sides["height"] == sides.get("width"):
            found["squash"] = bool(settings.get("do_resize", True))
        if settings.get("do_center_crop") and size and crop:
            found |= {"usual_size": crop, "crop": crop / size}
        elif settings.get("crop_pct") and size:
            found |= {"usual_size": size, "crop": float(settings["crop_pct"])}
        elif size:
            found |= {"usual_size": size, "crop": 1.0}
        return dataclasses.replace(self, **found)


def _normalisation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation of pixels in 0..1, with the processor's scale and offset in them; empty where it leaves them to its class."""
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if settings.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    elif mean is None or std is None or [] in (mean, std):
        return {}
    means, stds = (tuple(map(float, v)) if isinstance(v, list | tuple) else (float(v),) for v in (mean, std))
    if min(stds) <= 0:
        raise ValueError(f"image_std is {std}, and has to be above 0")
    scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    full = 255 * scale if abs(255 * scale - 1) > 1e-9 else 1.0  # what a pixel of 255 becomes
    if full <= 0:
        raise ValueError(f"rescale_factor is {scale}, and has to be above 0")
    below = 1.0 if settings.get("rescale_offset") and settings.get("do_rescale", True) else 0.0
    return {"mean": tuple((value + below) / full for value in means), "std": tuple(value / full for value in stds)}


def _side(value: Any) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge") or value.get("height")
    return value if isinstance(value, int) else None


def spec_of(model: nn.Module) -> ModelSpec:
    """The ``ModelSpec`` of ``model``, read off its layers, its configuration and what its library notes in it.

    A module without layers to read, such as one that calls another engine, states its own in an attribute ``model_spec``.
    """
    if isinstance(stated := getattr(model, "model_spec", None), ModelSpec):
        return stated
    model = unwrapped(model)
    convolution, embedding = _first(model, nn.Conv2d), _first(model, nn.Embedding)
    tokens = convolution is None and embedding is not None
    channels = None if convolution is None else model.get_submodule(convolution).in_channels
    classifier = _classifier(model)
    general: dict[str, Any] = {
        "inputs": "tokens" if tokens else "images",
        "channels": channels,
        "classes": None if classifier is None else model.get_submodule(classifier).out_features,
        "vocabulary": model.get_submodule(embedding).num_embeddings if tokens and embedding else None,
        "classifier": classifier,
        "folds_rows": any(map(folds_rows, model.modules())),
        "first": embedding if tokens else convolution,
    }
    size = getattr(model, "image_size", None)
    if isinstance(size, int):
        general["size"] = size
    inner = next(((module, adapter) for module in model.modules() if (adapter := adapter_of(module)) is not None), None)
    found = inner[1].spec(inner[0]) if inner is not None else {}  # a user's own network may wrap a library's
    known = {**general, **{key: value for key, value in found.items() if value is not None}}
    last = dict(model.named_modules()).get(known["classifier"] or "")
    if isinstance(last, nn.Conv2d):  # timm's ResNetV2 classifies by a convolution
        known["classes"] = last.out_channels
    return ModelSpec(**known)


def _classifier(model: nn.Module) -> str | None:
    """Path of the last linear layer. Some networks of Hugging Face build the head before the trunk, so layers of the trunk come last."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    trunks = {f"{path}.{name}.".lstrip(".") for path, module in model.named_modules() if (name := _trunk(module))}
    outside = [path for path in linear if not path.startswith(tuple(trunks))]
    return next(reversed(outside or linear), None)


def _trunk(module: nn.Module) -> str:
    """The name in ``module`` of its trunk, as Hugging Face's networks have one; empty for others."""
    name = getattr(module, "base_model_prefix", None)
    return name if isinstance(name, str) and isinstance(getattr(module, name, None), nn.Module) else ""


def _first(model: nn.Module, kind: type[nn.Module]) -> str | None:
    return next((path for path, module in model.named_modules() if isinstance(module, kind)), None)


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's weights; the CPU for one without any."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")
