"""Networks of other libraries, built by reference, and built again from what was noted with their weights."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from deepres.adapters.surgery import NOTE, removed_parts, repeat_removals
from deepres.errors import DeepresError


@dataclass
class Origin:
    """How a network that is not ours came about, so that its weights can be read back without its user's code."""

    reference: str  # "MODULE:FUNCTION", "timm:NAME", or "transformers:CLASS" with its configuration
    classes: int | None = None
    channels: int | None = None
    config: dict[str, Any] | None = None  # Hugging Face's, as it was when built
    removed: list[list[str]] = field(default_factory=list)  # call by call; see adapters.repeat_removals

    def build(self) -> nn.Module:
        """The network, freshly initialised."""
        kind, _, rest = self.reference.partition(":")
        if kind == "transformers":
            transformers = _need("transformers", "transformers")
            settings = json.loads(json.dumps(self.config))
            model: nn.Module = getattr(transformers, rest)._from_config(transformers.AutoConfig.for_model(**settings))
        elif kind == "timm":
            model = _timm(rest, self.classes, self.channels)
        else:
            model = _called(kind, rest, self.classes)
        setattr(model, NOTE, Origin(self.reference, self.classes, self.channels, self.config))
        repeat_removals(model, self.removed)
        return model


def origin(model: nn.Module) -> Origin | None:
    """How ``model`` came about, where that is known: a Hugging Face model tells by itself."""
    noted = getattr(model, NOTE, None)
    config = getattr(model, "config", None)
    if type(model).__module__.startswith("transformers.") and config is not None:
        noted = Origin(f"transformers:{type(model).__name__}", config=config.to_dict())
    if not isinstance(noted, Origin):
        return None
    parts = removed_parts(model)
    return replace(noted, removed=[*noted.removed, parts] if parts else noted.removed)


def build(reference: str, classes: int | None = None, channels: int | None = None) -> nn.Module:
    """``timm:NAME``, ``hf:FOLDER`` (with its weights) or ``MODULE:FUNCTION``.

    Raises ``DeepresError`` for what does not exist.
    """
    kind, _, rest = reference.partition(":")
    if kind == "hf":
        return _hugging_face(rest)
    return Origin(reference, classes, channels).build()


def to_json(noted: Origin) -> dict[str, Any]:
    return asdict(noted)


def _need(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DeepresError(f"{name} is not installed; install deepres[{extra}]") from error


def _timm(name: str, classes: int | None, channels: int | None) -> nn.Module:
    timm = _need("timm", "timm")
    options = {key: value for key, value in (("num_classes", classes), ("in_chans", channels)) if value}
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, TypeError) as error:
        raise DeepresError(f"timm:{name}: {str(error).splitlines()[0]}") from error


def _hugging_face(path: str) -> nn.Module:
    transformers = _need("transformers", "transformers")
    if not (Path(path) / "config.json").is_file():
        raise DeepresError(f"hf:{path}: no config.json there; give a folder that save_pretrained wrote")
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        kind = getattr(transformers, (config.architectures or ["AutoModelForImageClassification"])[0])
        return kind.from_pretrained(path)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        raise DeepresError(f"hf:{path}: {str(error).splitlines()[0]}") from error


def _called(module: str, function: str, classes: int | None) -> nn.Module:
    try:
        build: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeepresError(
            f"{module}:{function}: {error}; a reference is MODULE:FUNCTION, such as torchvision.models:resnet50"
        ) from error
    try:
        known = inspect.signature(build).parameters
        takes = "num_classes" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
        model = build(num_classes=classes) if classes and takes else build()
    except TypeError as error:
        raise DeepresError(f"{module}:{function}: cannot be called without more arguments ({error})") from error
    if not isinstance(model, nn.Module):
        raise DeepresError(f"{module}:{function}: gives a {type(model).__name__}, not a torch.nn.Module")
    return model
