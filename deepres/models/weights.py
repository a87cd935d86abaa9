"""Load any checkpoint into any network, by name, with a report of what was and was not taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from deepres.adapters import ModelSpec, spec_of
from deepres.errors import DeepresError
from deepres.models.checkpoint import Unwrapped, unwrap
from deepres.models.names import our_name
from deepres.nn.resnet import ResNet


@dataclass(frozen=True)
class Matched:
    """Report of loading a checkpoint: how its tensors matched the network's."""

    loaded: int
    missing: tuple[str, ...] = field(default=())  # the network's that the checkpoint does not have
    unexpected: tuple[str, ...] = field(default=())  # the checkpoint's that the network has no place for
    shapes: tuple[str, ...] = field(default=())  # "name: theirs (..) ours (..)"
    head: tuple[str, ...] = field(
        default=()
    )  # of the classifier: not in the checkpoint, or left out as it tells other classes apart
    found: Unwrapped | None = None
    broken: tuple[str, ...] = ()  # tensors with values that are not finite

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that the user should see although loading succeeded."""
        said = [str(self.found)] if self.found is not None and str(self.found) else []
        if self.head:
            how = "is missing" if self.found is not None and self.found.base else "was left out"
            said.append(f"the head {how} and starts afresh ({', '.join(self.head)})")
        if self.broken:
            more = f" and {len(self.broken) - 4} more" if len(self.broken) > 4 else ""
            said.append(f"values are not finite (NaN or infinite) in {', '.join(self.broken[:4])}{more}")
        return tuple(said)

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for what, items in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of other shape", self.shapes),
        ):
            if items:
                more = f" and {len(items) - 4} more" if len(items) > 4 else ""
                parts.append(f"{len(items)} {what} ({', '.join(items[:4])}{more})")
        return "; ".join((*parts, *self.remarks))


def load_weights(model: nn.Module, state: Mapping[str, Any], *, strict: bool = True, new_head: bool = False) -> Matched:
    """Load a checkpoint into ``model``, by name, whatever dictionaries and name prefixes it is wrapped in.

    A network of ours also takes the names that torchvision, timm and common CIFAR implementations use.

    Strict: anything missing, left over or of another shape raises ``DeepresError`` with the report, and the model is left
    as it was. Not strict: what fits is loaded and the report returned. ``new_head``: a classifier of another number of classes, or
    none, is left out of the checkpoint, and everything else has to fit; for fine-tuning. The weights of a Hugging Face base model, which
    has no head, go into a network with one; ``Matched.head`` names what starts afresh.
    """
    spec = spec_of(model)
    found, theirs = tensors_for(model, state, spec)
    ours = model.state_dict()
    shapes = {n: t for n, t in theirs.items() if n in ours and t.shape != ours[n].shape}
    fits = {n: t for n, t in theirs.items() if n in ours and n not in shapes}
    if empty := [name for name, tensor in fits.items() if tensor.is_meta]:
        raise DeepresError(
            f"the tensor {empty[0]} has a shape and no values (device meta), so it was saved before it was loaded"
        )
    loaded = {ours[name].data_ptr() for name in fits if ours[name].numel()}
    missing = [
        name
        for name, tensor in ours.items()
        if name not in theirs
        and not name.endswith("num_batches_tracked")  # absent from old checkpoints
        and not (tensor.numel() and tensor.data_ptr() in loaded)  # tied weights are kept once
    ]
    unexpected = [name for name in theirs if name not in ours]
    head: list[str] = []
    if found.base:
        head = [name for name in missing if not name.startswith(found.base)]
        missing = [name for name in missing if name.startswith(found.base)]
    elif new_head and spec.classifier is not None:
        inside = f"{spec.classifier}."
        root = f"{_root(spec.classifier)}."
        head = [n for n in shapes if n.startswith(inside)] + [n for n in missing if n.startswith(inside)]
        if head:  # its bias fits where its weight does, or is left out with it
            head += [n for n in unexpected if n.startswith(root)]
            fits = {n: t for n, t in fits.items() if not n.startswith(inside)}
        shapes = {n: t for n, t in shapes.items() if n not in head}
        missing, unexpected = [n for n in missing if n not in head], [n for n in unexpected if n not in head]
    matched = Matched(
        loaded=len(fits),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        shapes=tuple(f"{n}: {tuple(t.shape)} for {tuple(ours[n].shape)}" for n, t in shapes.items()),
        head=tuple(head),
        found=found,
        broken=tuple(name for name, tensor in fits.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())),
    )
    if strict and not matched.complete:
        raise DeepresError(f"the weights are of another network: {matched}")
    model.load_state_dict(fits, strict=False)
    return matched


def tensors_for(model: nn.Module, state: Mapping[str, Any], spec: ModelSpec) -> tuple[Unwrapped, dict[str, Tensor]]:
    """(what was found in a checkpoint, its tensors under the names of ``model``)."""
    names = set(model.state_dict())
    translate: Callable[[str], str] = our_name if isinstance(model, ResNet) else lambda name: name
    roots = {name.split(".")[0] for name in names}
    root = _root(spec.classifier) if spec.classifier is not None else None

    def known(name: str) -> bool:
        name = translate(name)
        return name in names or (root is not None and name.startswith(f"{root}."))

    found = unwrap(state, known, lambda name: translate(name).split(".")[0] in roots)
    if 2 * sum(map(known, found.tensors)) < len(found.tensors):
        found = _of_base(state, names) or found
    tensors = {translate(name): tensor for name, tensor in found.tensors.items()}
    return found, _one_head(tensors, spec.classifier, names)


def library_names(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint under the names that transformers has in memory, where ``model`` is its own and most names are those of its files.

    transformers renames tensors when it loads and when it saves. Any other checkpoint is returned as it is.
    """
    if not type(model).__module__.startswith("transformers.") or not hasattr(model, "_from_config"):
        return state
    names = set(model.state_dict())
    found = unwrap(state, lambda name: name in names)
    if 2 * len(names & found.tensors.keys()) > len(names):
        return state
    try:
        again, report = type(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=copy.deepcopy(model.config), state_dict=dict(found.tensors), output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return state
    return state if report["missing_keys"] or report["unexpected_keys"] else again.state_dict()


def _of_base(state: Mapping[str, Any], names: set[str]) -> Unwrapped | None:
    """The tensors of a checkpoint of a network's base model alone, such as a ``BertModel``'s, under the whole network's names.

    None where the checkpoint does not hold the better part of any one part of the network.
    """
    for base in sorted({name.split(".")[0] + "." for name in names if "." in name}):
        inside = {name.removeprefix(base) for name in names if name.startswith(base)}
        roots = {name.split(".")[0] for name in inside}
        found = unwrap(state, inside.__contains__, lambda name, roots=roots: name.split(".")[0] in roots)  # type: ignore[misc]
        if 2 * len(inside & found.tensors.keys()) > len(names):
            return replace(found, tensors={base + name: tensor for name, tensor in found.tensors.items()}, base=base)
    return None


def _root(classifier: str) -> str:
    """The module that holds the head: ``classifier`` of ``classifier.2``, ``fc`` of ``fc``."""
    parent, _, last = classifier.rpartition(".")
    return parent if last.isdigit() and parent else classifier


def _one_head(tensors: dict[str, Tensor], classifier: str | None, names: set[str]) -> dict[str, Tensor]:
    """A head with layers without weights around its one linear layer, such as ``Sequential(Dropout, Linear)``, as that layer.

    A head of several linear layers stays as it is, and does not fit.
    """
    if classifier is None or f"{classifier}.weight" in tensors:
        return tensors
    root = f"{_root(classifier)}."
    matrices = [name for name, tensor in tensors.items() if name.startswith(root) and tensor.ndim > 1]
    strangers = [name for name in tensors if name.startswith(root) and name not in names]
    if len(matrices) != 1 or matrices[0] not in strangers or not matrices[0].endswith("weight"):
        return tensors
    linear = matrices[0].removesuffix("weight")
    return {
        f"{classifier}.{n.removeprefix(linear)}" if n in (f"{linear}weight", f"{linear}bias") else n: t
        for n, t in tensors.items()
    }


def shape_in(model: nn.Module, state: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(classes, channels) of the network that a checkpoint is of: the shapes of its classifier and of its first layer, by name."""
    spec = spec_of(model)
    _, tensors = tensors_for(model, state, spec)
    last = tensors.get(f"{spec.classifier}.weight")
    first = tensors.get(f"{spec.first}.weight") if spec.inputs == "images" else None
    return (None if last is None else len(last)), (first.shape[1] if first is not None and first.ndim == 4 else None)
