"""Networks of other libraries, built by reference, and built again from the header of a weights file.

A header is data from a stranger: it can name a builder, and what it names is called. So only builders on the allow-list are built
from a header: torchvision's and timm's own models by name, model classes of transformers, and builders that the user has named: as
a reference, by ``allow_builder``, or by ``--builder``, which sets the environment variable ``DEEPRES_BUILDERS``, so that processes that
are started inherit it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from deepres.adapters.surgery import NOTE, removed_parts, repeat_removals
from deepres.errors import DeepresError, first_line
from deepres.models.formats import describe_folder
from deepres.models.options import BUILDERS

_NAMED: set[str] = set()  # "MODULE:FUNCTION" references that the caller of this process has named
# keys of a Hugging Face configuration by which it fetches or runs code, or downloads weights
_HOSTILE = {
    "auto_map",
    "trust_remote_code",
    "quantization_config",
    "custom_pipelines",
    "use_pretrained_backbone",
    "use_kernels",
}
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")


@dataclass
class Origin:
    """Record of the call that built a network of another library, so that it can be built again without its user's code."""

    reference: str  # "MODULE:FUNCTION", "timm:NAME", or "transformers:CLASS" with its configuration
    classes: int | None = None
    channels: int | None = None
    config: dict[str, Any] | None = None  # Hugging Face's, as it was when built
    removed: list[list[str]] = field(default_factory=list)  # call by call; see adapters.repeat_removals
    generation: dict[str, Any] | None = None  # Hugging Face's settings of generate(), where they are not the library's own

    def build(self) -> nn.Module:
        """The network, freshly initialised.

        Raises ``DeepresError`` for a builder that is not on the allow-list, and for one that does not exist.
        """
        kind, _, rest = self.reference.partition(":")
        if kind == "transformers":
            model = _from_config(rest, self.config, self.generation)
        elif kind == "timm":
            model = _timm(rest, self.classes, self.channels)
        elif kind == "torchvision.models":
            model = _call(_torchvision(rest), self.reference, self.classes)
        elif self.reference in _NAMED or self.reference in _in_environment():
            model = _call(_imported(kind, rest), self.reference, self.classes)
        else:
            raise DeepresError(_not_allowed(self.reference))
        setattr(model, NOTE, Origin(self.reference, self.classes, self.channels, self.config))
        repeat_removals(model, self.removed)
        return model

    @classmethod
    def from_header(cls, values: object) -> Origin:
        """Raises ``DeepresError`` for what ``to_json`` did not write."""
        if not isinstance(values, Mapping) or not isinstance(values.get("reference"), str):
            raise DeepresError("its header is not one that deepres wrote")
        try:
            found = cls(**values)
        except TypeError as error:
            raise DeepresError(f"its header is not one that deepres wrote ({error})") from error
        counts = (found.classes, found.channels)
        if not all(n is None or (isinstance(n, int) and 0 < n < 2**24) for n in counts) or not isinstance(found.removed, list):
            raise DeepresError("its header is not one that deepres wrote")
        return found


def allow_builder(reference: str) -> None:
    """Let files whose header names ``reference``, a ``MODULE:FUNCTION`` of yours, be loaded in this process.

    ``DEEPRES_BUILDERS=MODULE:FUNCTION`` in the environment does the same for commands, and for the processes that they start.
    """
    _NAMED.add(reference)


def _in_environment() -> list[str]:
    return [name.strip() for name in os.environ.get(BUILDERS, "").split(",")]


def _not_allowed(reference: str) -> str:
    said = f"it says that {reference!r} builds its network, which is neither torchvision's, timm's nor transformers'"
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", reference):
        return f"{said}; a builder is MODULE:FUNCTION"
    return (
        f"{said}; code named in a weights file is not run without your word. If the function is yours, add --builder {reference} to the "
        f"command, or call deepres.models.allow_builder({reference!r}) in Python"
    )


def origin(model: nn.Module) -> Origin | None:
    """Return the call that built ``model``, if it is known; the configuration of a Hugging Face model suffices."""
    noted = getattr(model, NOTE, None)
    config = getattr(model, "config", None)
    if type(model).__module__.startswith("transformers.") and config is not None:
        noted = Origin(f"transformers:{type(model).__name__}", config=config.to_dict(), generation=_generation(model))
    if not isinstance(noted, Origin):
        return None
    parts = removed_parts(model)
    return replace(noted, removed=[*noted.removed, parts] if parts else noted.removed)


def _generation(model: Any) -> dict[str, Any] | None:
    """The settings of ``generate()`` that differ from the library's own."""
    chosen = getattr(model, "generation_config", None)
    return (json.loads(chosen.to_json_string(ignore_metadata=True)) or None) if chosen is not None else None


def build(reference: str, classes: int | None = None, channels: int | None = None) -> nn.Module:
    """``timm:NAME``, ``hf:FOLDER`` (with its weights) or ``MODULE:FUNCTION``, as the caller names it.

    Raises ``DeepresError`` for what does not exist.
    """
    kind, _, rest = reference.partition(":")
    if kind == "hf":
        return _hugging_face(rest)
    if kind not in ("timm", "transformers", "torchvision.models"):
        allow_builder(reference)
    return Origin(reference, classes, channels).build()


def to_json(noted: Origin) -> dict[str, Any]:
    """The record as plain values; ``generation`` only where there is one, which earlier versions do not know."""
    return {key: value for key, value in asdict(noted).items() if key != "generation" or value is not None}


def need_library(name: str, extra: str) -> Any:
    """Import an optional library; raises ``DeepresError`` with the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DeepresError(f"{name} is not installed; install deepres[{extra}]") from error


def _timm(name: str, classes: int | None, channels: int | None) -> nn.Module:
    timm = need_library("timm", "timm")
    if not re.fullmatch(r"[\w.]+", name):  # "hf-hub:..." and "local-dir:..." fetch files
        raise DeepresError(f"timm:{name}: not the name of a model of timm")
    options = {key: value for key, value in (("num_classes", classes), ("in_chans", channels)) if value}
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, TypeError) as error:
        raise DeepresError(f"timm:{name}: {first_line(error)}") from error


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise DeepresError(f"torchvision.models:{name}: torchvision.models has no attribute {name!r} that builds a network")
    found: Callable[..., Any] = models.get_model_builder(name)
    return found


def model_class(name: object) -> Any:
    """A class of transformers that is a network.

    Raises ``DeepresError`` for any other attribute of the library.
    """
    transformers = need_library("transformers", "transformers")
    found: Any = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    inside = inspect.isclass(found) and found.__module__.startswith("transformers.models.")
    if not inside or not issubclass(found, transformers.PreTrainedModel):
        raise DeepresError(f"transformers:{name}: not a model class of transformers")
    return found


def check_config(settings: object) -> dict[str, Any]:
    """A Hugging Face configuration that names no code.

    Raises ``DeepresError`` for one that names code of its own, or weights to download.
    """
    if not isinstance(settings, Mapping):
        raise DeepresError("its header holds no configuration of a Hugging Face model")
    for key, value in _entries(settings):
        attention = key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
        if (key in _HOSTILE and value) or (attention and isinstance(value, str) and value not in _ATTENTION):
            raise DeepresError(
                f"its configuration sets {key!r}, which fetches or runs code or weights that it names, so it is refused"
            )
    return json.loads(json.dumps(settings))


def _entries(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key), inner
            yield from _entries(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _entries(inner)


def _from_config(name: str, settings: object, generation: object) -> nn.Module:
    kind, checked = model_class(name), check_config(settings)
    transformers = need_library("transformers", "transformers")
    try:
        model: Any = _in_float32(kind._from_config(transformers.AutoConfig.for_model(**checked)))
        if generation is not None and getattr(model, "generation_config", None) is not None:
            model.generation_config = type(model.generation_config).from_dict(check_config(generation))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeepresError(f"transformers:{name}: {first_line(error)}") from error
    built: nn.Module = model
    return built


def _in_float32(model: Any) -> Any:
    """``model`` in float32, as its inputs are; transformers builds it in the precision that its weights were saved in."""
    if getattr(model.config, "dtype", None) is not None:
        model.config.dtype = torch.float32
    return model.float()


def _hugging_face(path: str) -> nn.Module:
    transformers = need_library("transformers", "transformers")
    if not (Path(path) / "config.json").is_file():
        what = describe_folder(Path(path)) if (Path(path) / "adapter_config.json").is_file() else "has no config.json"
        raise DeepresError(f"hf:{path}: the folder {what}; give a folder that save_pretrained wrote")
    try:
        settings = check_config(json.loads((Path(path) / "config.json").read_text()))
        named = settings.get("architectures")
        kind = model_class(named[0]) if named else transformers.AutoModelForImageClassification
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        model: nn.Module = _in_float32(kind.from_pretrained(path, config=config))
    except DeepresError as error:
        raise DeepresError(f"hf:{path}: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        if "ignore_mismatched_sizes" in reason:
            count = len(config.id2label or ())
            reason = f"config.json describes other sizes than the weights have; it names {count} labels, and num_labels is their number"
        again = (
            "; a file is missing or truncated, so download it again" if isinstance(error, (OSError, SafetensorError)) else ""
        )
        raise DeepresError(f"hf:{path}: {reason}{again}") from error
    return model


def _imported(module: str, function: str) -> Callable[..., Any]:
    if os.getcwd() not in sys.path:  # the path of the `deepres` script begins with its own folder
        sys.path.append(os.getcwd())
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeepresError(
            f"{module}:{function}: {error}; a reference is MODULE:FUNCTION, such as torchvision.models:resnet50"
        ) from error
    return found


def _call(builder: Callable[..., Any], reference: str, classes: int | None) -> nn.Module:
    try:
        known = inspect.signature(builder).parameters
        takes = "num_classes" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())
        model = builder(num_classes=classes) if classes and takes else builder()
    except TypeError as error:
        raise DeepresError(f"{reference}: cannot be called without more arguments ({error})") from error
    if not isinstance(model, nn.Module):
        raise DeepresError(f"{reference}: gives a {type(model).__name__}, not a torch.nn.Module")
    return model
