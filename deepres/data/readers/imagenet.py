"""Lists of ImageNet's and Tiny ImageNet's validation labels, each in a format of its own."""

from __future__ import annotations

import io
from collections.abc import Sequence

from deepres.data.tree import Tree
from deepres.errors import DeepresError

_KIT = "ilsvrc2012_validation_ground_truth.txt"
_KAGGLE = "loc_val_solution.csv"
_TINY = "val_annotations.txt"
LISTS = frozenset({_KIT, _KAGGLE, _TINY})


def validation_labels(tree: Tree, table: str, images: Sequence[str]) -> list[tuple[str, str]]:
    """(WordNet id, image) for the images of a list whose name is one of ``LISTS``, in lower case.

    Raises ``DeepresError`` that names the line of a bad row.
    """
    if table.rpartition("/")[2].lower() == _KIT:
        return _by_number(tree, table, images)
    by_stem = {name.rpartition("/")[2].rpartition(".")[0]: name for name in images}
    found = []
    for line, text in enumerate(_text(tree, table).splitlines(), 1):
        cells = text.replace(",", " ").split()  # of both: the image, a WordNet id, four numbers of a box, perhaps further boxes
        if not cells or cells[0].lower() == "imageid":
            continue
        image = by_stem.get(cells[0].rpartition(".")[0] or cells[0])
        if image is None or len(cells) < 2:
            raise DeepresError(
                f"{tree.root}/{table}:{line}: " + ("has no label" if image else f"there is no image {cells[0]!r}")
            )
        found.append((cells[1], image))
    return found


def _text(tree: Tree, table: str) -> str:
    return tree.files[table].read().decode("utf-8", errors="surrogateescape")


def _by_number(tree: Tree, table: str, images: Sequence[str]) -> list[tuple[str, str]]:
    """The development kit's list: one number for each image, in the order of the images' names.

    The numbers are the kit's own and not in the order of a network's outputs, so ``meta.mat`` or ``map_clsloc.txt`` has to map them.
    """
    numbers = _text(tree, table).split()
    ordered = sorted(images, key=lambda name: name.rpartition("/")[2])
    if len(numbers) != len(ordered):
        raise DeepresError(f"{tree.root}/{table}: has {len(numbers)} numbers for {len(ordered)} images")
    ids = _synsets(tree)
    if not ids:
        raise DeepresError(
            f"{tree.root}/{table}: its numbers are the development kit's own; put the kit's meta.mat beside it, "
            "which maps them to WordNet ids"
        )
    unknown = next((i for i, number in enumerate(numbers) if number not in ids), None)
    if unknown is not None:
        raise DeepresError(f"{tree.root}/{table}:{unknown + 1}: {numbers[unknown]!r} is no number of a class")
    return [(ids[number], name) for number, name in zip(numbers, ordered, strict=True)]


def _synsets(tree: Tree) -> dict[str, str]:
    """WordNet id by the development kit's number."""
    for name, item in tree.files.items():
        last = name.rpartition("/")[2].lower()
        if last == "meta.mat":
            from scipy.io import loadmat

            try:
                table = loadmat(io.BytesIO(item.read()), squeeze_me=True)["synsets"]
                return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
            except Exception as error:  # of a damaged file loadmat raises a dozen kinds
                raise DeepresError(f"{tree.root}/{name}: not the meta.mat of ImageNet's development kit ({error})") from error
        if last == "map_clsloc.txt":
            rows = [line.split() for line in _text(tree, name).splitlines()]
            return {cells[1]: cells[0] for cells in rows if len(cells) >= 2}
    return {}
