"""Public sets as their authors pack them: lists that give the splits, labels in MATLAB files and texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import write
from scipy.io import savemat

from deepres import DeepresError
from deepres.data import Resident, open_data

WORDS = ("old pie", "soup")
NAMES = [f"{word}/{word}_{i}" for word in WORDS for i in range(10)]


def greys(split: Any) -> dict[int, int]:
    """The label of each image, by its grey, which is its number."""
    assert isinstance(split, Resident)
    return dict(zip(split.pixels[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))


def lines(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def part(first: int, last: int) -> list[str]:
    return [name for name in NAMES if first <= int(name[-1]) < last]


def food(root: Path) -> None:
    write(root, [f"food-101/images/{name}.jpg" for name in NAMES])
    (root / "food-101/meta").mkdir()
    for split, names in (("train", part(0, 6)), ("test", part(6, 10))):
        (root / f"food-101/meta/{split}.txt").write_text(lines(names))
    (root / "food-101/meta/classes.txt").write_text(lines(list(WORDS)))


def textures(root: Path) -> None:
    """DTD has ten divisions, of which the first is used."""
    write(root, [f"images/{name}.jpg" for name in NAMES])
    (root / "labels").mkdir()
    for i, shift in ((1, 0), (2, 1), (10, 2)):
        for split, first, last in (("train", 0, 3), ("val", 3, 6), ("test", 6, 10)):
            (root / f"labels/{split}{i}.txt").write_text(lines([f"{name}.jpg" for name in part(first + shift, last + shift)]))


def birds(root: Path) -> None:
    write(root, [f"CUB_200_2011/images/{name}.jpg" for name in NAMES])
    top = root / "CUB_200_2011"
    (top / "images.txt").write_text(lines([f"{i} {name}.jpg" for i, name in enumerate(NAMES, 1)]))
    (top / "train_test_split.txt").write_text(lines([f"{i} {int(int(name[-1]) < 6)}" for i, name in enumerate(NAMES, 1)]))
    (top / "image_class_labels.txt").write_text(lines([f"{i} {1 + i // 11}" for i in range(1, 21)]))


def dogs(root: Path) -> None:
    write(root, [f"Images/{name}.jpg" for name in NAMES])
    for split, names in (("train", part(0, 6)), ("test", part(6, 10))):
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = [f"{name}.jpg" for name in names]
        savemat(root / f"{split}_list.mat", {"file_list": cells, "labels": np.ones((len(names), 1))})


def pets(root: Path) -> None:
    """Classes in the file names, splits in lists, and a mask for each image."""
    write(root, [f"images/{name.partition('/')[2]}.jpg" for name in NAMES])
    write(root, [f"annotations/trimaps/{name.partition('/')[2]}.png" for name in NAMES])
    for split, names in (("trainval", part(0, 6)), ("test", part(6, 10))):
        rows = [f"{name.partition('/')[2]} 1 1 1" for name in names]
        (root / f"annotations/{split}.txt").write_text(lines(rows))
    (root / "annotations/list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")


@pytest.mark.parametrize("make", [food, textures, birds, dogs, pets])
def test_lists_give_the_splits(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    data = open_data(tmp_path)
    test = {i: i // 10 for i in range(20) if i % 10 >= 6}
    train = {i: i // 10 for i in range(20) if i % 10 < 6}
    assert data.classes == WORDS and greys(data.test) == test and greys(data.train) | greys(data.val) == train
    assert any("the splits are those of" in note for note in data.notes)


def test_lists_that_do_not_fit_are_counted_or_left_alone(tmp_path: Path) -> None:
    food(tmp_path)
    for split, names in (("train", part(0, 5)), ("test", part(4, 8))):
        (tmp_path / f"food-101/meta/{split}.txt").write_text(lines([*names, "soup/missing"]))
    data = open_data(tmp_path)
    assert {i % 10 for i in greys(data.test)} == {4, 5, 6, 7}, "an image of both lists is a test image"
    said = str(data)
    assert "4 images are in none of these lists" in said and "2 lines of these lists name no image" in said
    (tmp_path / "food-101/meta/test.txt").write_text("a list\nof something else\n")
    data = open_data(tmp_path)
    assert len(data.train) + len(data.val) + len(data.test) == 20 and "not read as labels" in str(data)


def test_clutter_is_no_class(tmp_path: Path) -> None:
    write(
        tmp_path,
        [f"101_ObjectCategories/{word}/image_{i:04d}.jpg" for word in ("ant", "BACKGROUND_Google", "bee") for i in range(6)],
    )
    data = open_data(tmp_path)
    assert data.classes == ("ant", "bee") and "6 images of BACKGROUND_Google" in str(data)


def test_flowers(tmp_path: Path) -> None:
    write(tmp_path, [f"jpg/image_{i:05d}.jpg" for i in range(1, 31)])
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[1 + i % 3 for i in range(30)]], np.uint8)})
    sets = {"trnid": np.arange(1, 11), "valid": np.arange(11, 21), "tstid": np.arange(21, 31)}
    savemat(tmp_path / "setid.mat", {name: numbers[None].astype(np.uint16) for name, numbers in sets.items()})
    data = open_data(tmp_path)
    assert data.classes == ("1", "2", "3")
    assert greys(data.train) == {i: i % 3 for i in range(10)} and greys(data.test) == {i: i % 3 for i in range(20, 30)}
    (tmp_path / "jpg/image_00030.jpg").unlink()
    with pytest.raises(DeepresError, match=r"imagelabels\.mat: has 30 labels, and there is no image_00030"):
        open_data(tmp_path)
    (tmp_path / "imagelabels.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DeepresError, match=r"imagelabels\.mat: not a MATLAB file that can be read"):
        open_data(tmp_path)


def test_cars(tmp_path: Path) -> None:
    write(tmp_path, [*(f"cars_train/{i:05d}.jpg" for i in range(12)), *(f"cars_test/{i:05d}.jpg" for i in range(4))])
    (tmp_path / "devkit").mkdir()
    for split, count in (("train", 12), ("test", 4)):
        rows = np.empty((1, count), dtype=[(name, object) for name in ("bbox_x1", "class", "fname")])
        rows[0] = [(1.0, 1.0 + i % 2, f"{i:05d}.jpg") for i in range(count)]
        savemat(tmp_path / f"devkit/cars_{split}_annos.mat", {"annotations": rows})
    names = np.empty((1, 2), object)
    names[0] = ["Audi S4", "BMW M3"]
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": names})
    data = open_data(tmp_path)
    assert data.classes == ("Audi S4", "BMW M3") and greys(data.test) == {12: 0, 13: 1, 14: 0, 15: 1}


def test_aircraft(tmp_path: Path) -> None:
    write(tmp_path, [f"data/images/{i:07d}.jpg" for i in range(30)])
    for k, split in enumerate(("train", "val", "test")):
        for kind, labels in (("variant", ("707-320", "A330 neo")), ("family", ("Boeing 707", "A330"))):
            rows = [f"{i:07d} {labels[i % 2]}" for i in range(10 * k, 10 * k + 10)]
            (tmp_path / f"data/images_{kind}_{split}.txt").write_text(lines(rows))
    data = open_data(tmp_path)
    assert data.classes == ("707-320", "A330 neo") and greys(data.test) == {i: i % 2 for i in range(20, 30)}
    assert "the classes are the variants" in str(data)
