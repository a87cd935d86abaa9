"""WordNet ids, by which ImageNet's folders are called, among the outputs of a network that was trained on ImageNet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_ID = re.compile(r"n\d{8}")


def are_ids(classes: Sequence[str]) -> bool:
    """Return whether all classes are WordNet ids such as n01440764."""
    return bool(classes) and all(_ID.fullmatch(name) for name in classes)


def imagenet_ids() -> tuple[str, ...]:
    """The ids of the 1000 classes in order; empty where timm is not installed."""
    return _timm_lists()[0]


def imagenet_places(classes: Sequence[str], labels: Sequence[str] | None) -> tuple[int, ...] | None:
    """The output of a 1000-class ImageNet network for each WordNet id: its place in the sorted list of the 1000 ids.

    ``labels``: the network's own. Where it has any, at least half of the ids' names have to be among the labels at their places. None
    where they are not, where an id is none of the 1000, and where timm, whose list is read, is not installed.
    """
    ids, names = _timm_lists()
    places = {name: place for place, name in enumerate(ids)}
    order = tuple(places[name] for name in classes if name in places)
    if len(order) != len(classes):
        return None
    if labels is not None:
        agree = sum(
            bool(_words(names.get(name, "")) & _words(labels[place])) for name, place in zip(classes, order, strict=True)
        )
        if 2 * agree < len(classes):
            return None
    return order


def _words(text: str) -> frozenset[str]:
    return frozenset(part.strip().replace("_", " ").casefold() for part in text.split(","))


@cache
def _timm_lists() -> tuple[tuple[str, ...], dict[str, str]]:
    """(the 1000 ids in order, names by id), from the files of timm, without importing it; empty where it is not installed."""
    found = find_spec("timm")
    for folder in (found.submodule_search_locations or []) if found else []:
        try:
            info = Path(folder) / "data" / "_info"
            ids = tuple((info / "imagenet_synsets.txt").read_text().split())
            lines = (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
        except OSError:
            continue
        return ids, dict(line.split("\t", 1) for line in lines if "\t" in line)
    return (), {}
