"""Match the classes of a network with those of a data set: by name, else by position."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from deepres.data import Data, Resident, Split
from deepres.models.wordnet import are_ids, imagenet_ids, imagenet_places

_NUMBERED = re.compile(r"(n\d{8}|\d+)[\s._\-]+(.+)")


@dataclass(frozen=True)
class LabelMatch:
    """Match of a data set's classes with a network's outputs."""

    by: Literal["name", "position", "none"]
    order: tuple[int, ...] = ()  # output of the network for each class of the data; empty where they do not fit
    remark: str = ""  # a sentence for the user; empty where both agree in number, names and order

    @property
    def fits(self) -> bool:
        return self.by != "none"


def match_labels(
    labels: Sequence[str] | None, outputs: int | None, classes: Sequence[str], *, positional: bool = True
) -> LabelMatch:
    """Find the output of a network for each class of a data set.

    ``labels``: the network's own, in the order of its ``outputs``, or None where it has none. Names are compared without regard to
    case, ``_``, ``-``, spaces, and a number or WordNet id in front of every name; of a label with synonyms, such as
    ``"tench, Tinca tinca"``, any one is enough. WordNet ids are placed by ImageNet's order of the 1000. The data may hold fewer classes
    than the network tells apart. By position where no name agrees and the numbers do, if ``positional``; labels that were taken from a
    folder of images shall agree by name.
    """
    here = tuple(range(len(classes)))
    size = outputs if labels is None else len(labels)
    if size == 1000 and are_ids(classes) and not (labels and are_ids(labels)):
        usual = imagenet_places(classes, labels)
        if usual is not None:
            why = f"{len(classes)} WordNet ids are matched with the network's outputs by ImageNet's usual order"
            return LabelMatch("name", usual, why)
    if labels is None:
        if outputs is None or outputs == len(classes):
            return LabelMatch("position", here)
        return LabelMatch("none", remark=f"the data have {len(classes)} classes and the network {outputs}")
    if list(labels) == list(classes):
        return LabelMatch("name", here)
    places = _places(labels)
    found = [places.get(_plain(name)) for name in classes]
    if None in found:
        found = _without_numbers(labels, classes) or found
    order = tuple(i for i in found if i is not None)
    if len(order) == len(classes) == len(set(order)):
        if len(labels) > len(classes):
            return LabelMatch(
                "name", order, f"{len(classes)} of the network's {len(labels)} labels are the data's, matched by name"
            )
        return LabelMatch("name", order, "labels are matched by name" if order != here else "")
    if positional and not order and len(labels) == len(classes):
        why = f"no label of the network is a class of the data ({labels[0]!r}, {classes[0]!r}), so they are matched by position"
        return LabelMatch("position", here, why)
    if not positional and not order:
        why = f"its {len(classes)} classes are not the {len(labels)} that the network was trained on"
        return LabelMatch("none", remark=why)
    missing = [name for name, place in zip(classes, found, strict=True) if place is None]
    why = f"the network has no label {', '.join(map(repr, missing[:3]))}" if missing else "labels are not unique"
    return LabelMatch(
        "none", remark=f"{why}: {len(order)} of the data's {len(classes)} classes are among the network's {len(labels)}"
    )


def _without_numbers(labels: Sequence[str], classes: Sequence[str]) -> list[int | None] | None:
    """Outputs of the classes where every name of a side begins with a number or an id, as "001.Laysan" and "n01440764 tench" do.

    None where that does not match all classes.
    """
    parts = [[match.groups() for name in names if (match := _NUMBERED.fullmatch(name))] for names in (labels, classes)]
    ours = [classes, [rest for _, rest in parts[1]]]
    theirs = [labels, [rest for _, rest in parts[0]], [number for number, _ in parts[0]]]
    for known in theirs:
        for asked in ours:
            if len(known) == len(labels) and len(asked) == len(classes):
                places = _places(known)
                found = [places.get(_plain(name)) for name in asked]
                if None not in found:
                    return found
    return None


def output_names(outputs: int | None, classes: Sequence[str]) -> Sequence[str]:
    """Names of the outputs of a network that has none of its own: the data's, or of more outputs WordNet ids or numbers."""
    if outputs is None or outputs <= len(classes):
        return classes
    return imagenet_ids() if are_ids(classes) and len(imagenet_ids()) == outputs else [str(i) for i in range(outputs)]


def _places(labels: Sequence[str]) -> dict[str, int | None]:
    """Output by plain name. A name of two outputs belongs to none; a whole label counts before a synonym."""
    places: dict[str, int | None] = {}
    for i, label in enumerate(labels):
        key = _plain(label)
        places[key] = None if key in places else i
    synonyms: dict[str, int | None] = {}
    for i, label in enumerate(labels):
        for word in label.split(",") if "," in label else ():
            key = _plain(word)
            synonyms[key] = None if key in synonyms and synonyms[key] != i else i
    return {**synonyms, **places}


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


def relabel(data: Data, order: Sequence[int], labels: Sequence[str]) -> Data:
    """``data`` with the label ``order[i]`` for its class i. A class keeps its name in the data; other outputs get the network's."""
    names = list(labels)
    for i, place in enumerate(order):
        names[place] = data.classes[i]
    if tuple(order) == tuple(range(len(names))):
        return replace(data, classes=tuple(names))

    def relabelled(split: Split) -> Split:
        if isinstance(split, Resident):
            return replace(split, labels=torch.tensor(order, device=split.labels.device)[split.labels])
        return replace(split, items=tuple(replace(item, label=order[item.label]) for item in split.items))

    train, val, test = relabelled(data.train), relabelled(data.val), relabelled(data.test)
    return replace(data, classes=tuple(names), train=train, val=val, test=test)
