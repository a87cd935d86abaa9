"""Situations from bug reports of other projects: links, archives in archives, odd names, tables from spreadsheets."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture, tree, write

from deepres import DeepresError
from deepres.data import Streamed, open_data
from deepres.data.files import Item
from deepres.data.leaks import shared_images


def zipped(target: Path, root: Path, names: Sequence[str] | None = None) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")) if names is None else [root / name for name in names]:
            if path != target:
                archive.write(path, path.relative_to(root))
    return target


def test_links_are_followed_everywhere_but_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "real", tree("", each=6))
    write(tmp_path / "more", ["x.png"])
    for split in ("train", "test"):
        (tmp_path / f"set/top/{split}").mkdir(parents=True)
        for label in ("cat", "dog"):
            (tmp_path / f"set/top/{split}/{label}").symlink_to(tmp_path / "real" / label)
    (tmp_path / "real/cat/more").symlink_to(tmp_path / "more")
    (tmp_path / "real/dog/round").symlink_to(tmp_path / "real/dog")
    (tmp_path / "real/dog/lost.png").symlink_to(tmp_path / "nowhere.png")
    data = open_data(tmp_path / "set")
    assert data.classes == ("cat", "dog") and len(data.test) == 13 and len(data.train) + len(data.val) == 13
    assert "links to a folder around them, skipped: top/test/dog/round" in str(data)
    assert "links that lead nowhere, skipped: top/test/dog/lost.png" in str(data)


@pytest.mark.parametrize(
    ("names", "classes", "test", "says"),
    [
        (
            tree("cat", "dog", each=6),
            ("cat", "dog"),
            None,
            "no test split",
        ),  # cat/cat, cat/dog, dog/cat, ...: classes and their folders
        (
            [f"{c}/{s}/{i}.png" for c in "ab" for s in ("train", "test") for i in range(6)],
            ("a", "b"),
            12,
            "each class has its splits",
        ),
        ([f"{s}{c}/{i}.png" for c in "AB" for s in ("train", "test") for i in range(6)], ("A", "B"), 12, "class 'A' of test"),
        (
            [f"{s}_{c}/{i}.png" for c in ("cat", "dog") for s in ("Train", "Val") for i in range(6)],
            ("cat", "dog"),
            12,
            "class 'cat' of",
        ),
        (
            [f"{c}-{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "test") for i in range(6)],
            ("cat", "dog"),
            12,
            "class 'cat' of",
        ),
        ([f"fold_{k}/{c}/{i}.png" for k in range(3) for c in "ab" for i in range(4)], ("a", "b"), None, "parts of one set"),
        (
            [f"part1/{i}.png" for i in range(6)] + [f"part2/{i}.png" for i in range(6)],
            ("part1", "part2"),
            None,
            "no test split",
        ),
    ],
)
def test_names_of_splits_and_classes_in_one(
    names: list[str], classes: tuple[str, ...], test: int | None, says: str, tmp_path: Path
) -> None:
    data = open_data(write(tmp_path, names))
    assert data.classes == classes and says in str(data) and (test is None or len(data.test) == test)
    assert len(data.train) + len(data.val) + len(data.test) == len(names)


def test_classes_spelled_alike_in_several_splits_are_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        [f"{top}/{i}.png" for top in ("train/black cat", "train/dog", "test/Black_Cat", "test/dog ") for i in range(6)],
    )
    data = open_data(tmp_path)
    assert data.classes == ("black cat", "dog") and "'Black_Cat' as 'black cat'" in str(data)
    write(tmp_path, [f"train/Black_Cat/{i}.png" for i in range(6)])  # now both are in one split, so they are two classes
    assert set(open_data(tmp_path).classes) == {"black cat", "Black_Cat", "dog"}


@pytest.mark.parametrize("size", [12, 100])  # kept in memory, decoded when needed
def test_images_in_two_splits_are_counted(size: int, tmp_path: Path) -> None:
    for i, name in enumerate(tree("train", "test")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(i, size))
    assert "training images as well" not in str(open_data(tmp_path))
    for i in range(3):
        shutil.copy(tmp_path / f"train/cat/{i}.png", tmp_path / f"test/cat/copy{i}.png")
    data = open_data(tmp_path, val_share=0.01)
    assert "of the 15 test images are training images as well" in str(data)


def test_a_set_too_large_for_counting_them_says_so(tmp_path: Path) -> None:
    many = Streamed(tuple(Item(f"{i}.png", 0) for i in range(50_001)))
    assert shared_images(many, many.take(torch.arange(9))) is None
    for part in ("train", "test"):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            with open(tmp_path / part / label / "0.png", "wb") as file:
                file.write(picture(0, 100))
                file.truncate(140 << 20)  # one content, too long to be read for this
    assert "was not looked at, as the set is too large" in str(open_data(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz", "deep"])
def test_archives_in_folders_and_archives(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "loose", [*(f"train/{i}.png" for i in range(12)), *(f"test/{i}.png" for i in range(3))])
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        zipped(folder / f"{split}.zip", tmp_path / "loose" / split)
    (folder / "train.csv").write_text("id,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(12)))
    path = folder
    if kind == "tar.gz":
        path = tmp_path / "set.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, "set")
    elif kind != "folder":
        path = zipped(tmp_path / "set.zip", folder)
        path = zipped(tmp_path / "outer.zip", tmp_path, ["set.zip"]) if kind == "deep" else path
    for _ in range(2):  # the second time from the cache
        data = open_data(path)
        assert data.classes == ("a", "b") and len(data.train) + len(data.val) + len(data.test) == 12
        assert data.name == path.name and "3 images have no row" in str(data)


@pytest.mark.parametrize("kind", ["parquet", "npz", "pixels", "parquet in zip"])
def test_zips_of_tables_and_arrays(kind: str, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    if kind.startswith("parquet"):
        for split in ("train", "test"):
            images = [{"bytes": picture(i), "path": None} for i in range(12)]
            pq.write_table(pa.table({"image": images, "label": [i % 2 for i in range(12)]}), loose / f"{split}-00000.parquet")
    elif kind == "npz":
        np.savez(loose / "set.npz", x_train=np.zeros((12, 8, 8), np.uint8), y_train=np.arange(12) % 2)
    else:
        head = "label," + ",".join(f"pixel{i}" for i in range(16))
        (loose / "train.csv").write_text("\n".join([head, *(f"{i % 2}," + ",".join([str(i)] * 16) for i in range(12))]))
    path = zipped(tmp_path / "set.zip", loose)
    if kind.endswith("zip"):
        path = zipped(tmp_path / "outer.zip", tmp_path, ["set.zip"])
    data = open_data(path)
    assert len(data.classes) == 2 and len(data.train) + len(data.val) + len(data.test) == (24 if "parquet" in kind else 12)


def test_bad_archives_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DeepresError, match=r"set\.tar\.gz: cannot be unpacked"):
        open_data(tmp_path / "set.tar.gz")
    noise = np.random.default_rng(0).integers(0, 255, 200_000, np.uint8).tobytes()
    for kind in ("bz2", "xz"):  # damaged in the middle
        with tarfile.open(tmp_path / f"bad.tar.{kind}", f"w:{kind}") as archive:
            for i in range(4):
                info = tarfile.TarInfo(f"a/{i}.png")
                info.size = len(noise)
                archive.addfile(info, io.BytesIO(noise))
        damaged = bytearray((tmp_path / f"bad.tar.{kind}").read_bytes())
        damaged[len(damaged) // 2 : len(damaged) // 2 + 4000] = bytes(4000)
        (tmp_path / f"bad.tar.{kind}").write_bytes(damaged)
        with pytest.raises(DeepresError, match=rf"bad\.tar\.{kind}: cannot be unpacked"):
            open_data(tmp_path / f"bad.tar.{kind}")
    with tarfile.open(tmp_path / "out.tgz", "w:gz") as archive:
        (tmp_path / "x.png").write_bytes(picture(1))
        archive.add(tmp_path / "x.png", "../../evil.png")
    with pytest.raises(DeepresError, match=r"out\.tgz: no images found"):
        open_data(tmp_path / "out.tgz")
    assert not list(tmp_path.parent.rglob("evil.png"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.md").write_text("x")
    with pytest.raises(DeepresError, match=r"notes\.zip: no images found: 1 files are not images \(\.md 1\)"):
        open_data(zipped(tmp_path / "notes.zip", tmp_path / "notes"))


@pytest.mark.parametrize(
    ("name", "text", "classes", "says"),
    [
        (
            "l.csv",
            "Image;Label\r\n" + "".join(f'"images/{i}.png";"{"äb"[i % 2]}"\r\n' for i in range(12)) + ";\r\n",
            ("b", "ä"),
            "",
        ),
        ("l.csv", ",path,label\n" + "".join(f"{i},images/{i}.png,{i % 2}.0\n" for i in range(12)), ("0", "1"), ""),
        ("l.csv", "path,label\n" + "".join(f"/content/drive/images/{i}.png,{i % 2}\n" for i in range(12)), ("0", "1"), ""),
        ("l.csv", "path,label\n" + "".join(f"C:\\me\\images\\{i}.png,{i % 2}\n" for i in range(12)), ("0", "1"), ""),
        (
            "l.csv",
            "path,labels\n" + "".join(f"images/{i}.png,{'a b' if i % 2 else 'b'}\n" for i in range(12)),
            ("a b", "b"),
            "such as 'a b'",
        ),
        ("l.json", json.dumps({f"images/{i}.png": i % 2 for i in range(12)}), ("0", "1"), ""),
        ("l.json", json.dumps([{"file_name": f"images/{i}.png", "label": "ab"[i % 2]} for i in range(12)]), ("a", "b"), ""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_of_spreadsheets_and_scripts(
    name: str, text: str, classes: tuple[str, ...], says: str, encoding: str, tmp_path: Path
) -> None:
    write(tmp_path, [f"images/{i}.png" for i in range(12)])
    (tmp_path / name).write_text(text, encoding=encoding)
    found = [open_data(tmp_path / name)]
    (tmp_path / name).rename(tmp_path / f"labels{name[1:]}")
    found.append(open_data(tmp_path))  # the folder finds its table
    for data in found:
        assert data.classes == classes and len(data.train) + len(data.val) + len(data.test) == 12 and says in str(data)


def test_what_is_no_set_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["one.png"])
    with pytest.raises(DeepresError, match="is one image"):
        open_data(tmp_path / "one.png")
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(DeepresError, match="files and folders that are read: a table"):
        open_data(tmp_path / "x.h5")
    (tmp_path / "raw").mkdir()
    for i in range(3):
        (tmp_path / f"raw/img{i}").write_bytes(picture(i))
    with pytest.raises(DeepresError, match=r"no images found: 3 files are not images \(no suffix 3\)"):
        open_data(tmp_path / "raw")
