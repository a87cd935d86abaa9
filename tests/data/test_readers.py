"""Small sets in the ways that people store them."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture, tree, write

from deepres import DeepresError
from deepres.data import Resident, open_data


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "dev"), ("train", "eval"), ("training_set", "test_set")])
def test_splits_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    data = open_data(write(tmp_path, tree(*names)))
    assert data.classes == ("cat", "dog") and len(data.test) == 12


def test_what_is_ignored_is_named(tmp_path: Path) -> None:
    write(tmp_path, tree("train", "test"))
    write(
        tmp_path, [".git/a/x.png", "__MACOSX/a/x.png", "extra/b.png", "train/cat/.ipynb_checkpoints/0.png", "train/dog/._0.png"]
    )
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "bird").mkdir()
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.val) == 12
    for word in ("extra", ".git", "__MACOSX", ".ipynb_checkpoints", ".txt 1", "bird"):
        assert word in str(data) and any(word in note for note in data.report()["notes"])


def test_few_images_are_said(tmp_path: Path) -> None:
    write(tmp_path, [f"{label}/{label}.png" for label in "abc"])
    data = open_data(tmp_path)
    assert len(data.train) == len(data.val) == len(data.test) == 3 and "too few images to split" in str(data)
    write(tmp_path, [f"{label}/{i}.png" for label in "ab" for i in range(9)])
    more = open_data(tmp_path)
    assert more.train.labels.bincount().tolist()[2] == 1 and "1 class has one training image" in str(more)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for label in ("a", "b"):
        folder = os.path.join(os.fsencode(tmp_path), label.encode() + b"\xff")
        os.mkdir(folder)
        for i in range(8):
            with open(os.path.join(folder, b"\xe9%d.png" % i), "wb") as file:
                file.write(picture(i))
    data = open_data(tmp_path)
    assert data.classes == ("a\udcff", "b\udcff") and torch.equal(open_data(tmp_path).train.labels, data.train.labels)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("head", [True, False])
def test_a_table(head: bool, mark: str, tmp_path: Path) -> None:
    write(tmp_path, [f"images/{i}.png" for i in range(12)])
    rows = [["file_name", "label", "split"]] if head else []
    rows += [[f"images/{i}.png", str(i % 2 + 9), "train" if i < 8 else "test"] for i in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(mark.join(row) for row in rows))
    data = open_data(tmp_path / "list.csv")
    assert data.classes == ("9", "10") and len(data.test) == 4


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("9.png,x", ":4: there is no image"),
        ("1.png", ":4: has 1 cells"),
        ("1.png,", ":4: the label"),
        (",x", ":4: there is no image ''"),
        ("A" * 300 + ",x", ":4: there is no image 'AAA"),
        ("0.png,y", "in line 2"),
    ],
)
def test_a_bad_row_is_named(row: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [f"{i}.png" for i in range(3)])
    (tmp_path / "list.csv").write_text(f"path,label\n0.png,x\n2.png,y\n{row}\n")
    monkeypatch.chdir(tmp_path)
    for table in (tmp_path / "list.csv", Path("list.csv")):
        with pytest.raises(DeepresError, match=says):
            open_data(table)


@pytest.mark.parametrize("name", ["list.jsonl", "LIST.JSONL"])
def test_json_lines_may_hold_what_ends_lines_elsewhere(name: str, tmp_path: Path) -> None:
    write(tmp_path, [f"{i}.png" for i in range(12)])
    rows = [{"Caption": "one\u2028two\x85", "File_Name": f"{i}.png", "Label": "ab"[i % 2]} for i in range(12)]
    (tmp_path / name).write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
    data = open_data(tmp_path / name)
    assert data.classes == ("a", "b") and len(data.train) + len(data.val) + len(data.test) == 12


@pytest.mark.parametrize(
    "name", ["train.csv", "train/metadata.csv", "train/metadata.jsonl", "train/metadata.parquet", "train/_classes.csv"]
)
def test_tables_in_folders(name: str, tmp_path: Path) -> None:
    write(tmp_path, [f"train/{i}.png" for i in range(12)])
    kind = {"train.csv": "id,breed\n", "train/_classes.csv": "filename,cat,dog\n"}.get(name, "file_name,label\n")
    body = [f"{i}{'' if name == 'train.csv' else '.png'},{'cat' if i % 2 else 'dog'}" for i in range(12)]
    if "_classes" in name:
        body = [f"{i}.png,{i % 2},{1 - i % 2}" for i in range(12)]
    if name.endswith("jsonl"):
        kind, body = "", [f'{{"file_name": "{i}.png", "label": "{"cat" if i % 2 else "dog"}"}}' for i in range(12)]
    (tmp_path / name).write_text(kind + "\n".join(body))
    if name.endswith("parquet"):
        cells = [row.split(",") for row in body]
        pq.write_table(pa.table({"file_name": [one for one, _ in cells], "label": [two for _, two in cells]}), tmp_path / name)
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.val) + len(data.test) == 12


def test_imagenets_validation_images_and_a_list(tmp_path: Path) -> None:
    write(tmp_path, [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(8)])
    (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_{i:08d}.JPEG {i % 4}\n" for i in range(8)))
    data = open_data(tmp_path)
    assert len(data.test) == 8 and not len(data.train) and "not trained on" in str(data)
    assert data.test.labels.tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_in_place(how: int, tmp_path: Path) -> None:
    write(tmp_path / "loose", tree("train", "test"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w", how) as archive:
        for path in sorted((tmp_path / "loose").rglob("*.png")):
            archive.write(path, f"top/{path.relative_to(tmp_path / 'loose')}")
        archive.writestr("__MACOSX/top/train/._x.png", b"")
    loose, zipped = open_data(tmp_path / "loose"), open_data(tmp_path / "set.zip")
    assert isinstance(loose.train, Resident) and isinstance(zipped.train, Resident)
    assert torch.equal(loose.train.pixels, zipped.train.pixels) and torch.equal(loose.test.labels, zipped.test.labels)


@pytest.mark.parametrize("label", ["cls", "json"])
def test_a_webdataset(label: str, tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 4)):
        with tarfile.open(tmp_path / f"{split}-000.tar", "w") as tar:
            for i in range(count):
                text = str(i % 2) if label == "cls" else f'{{"label": {i % 2}}}'
                for name, content in ((f"{i:03d}.png", picture(i)), (f"{i:03d}.{label}", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    data = open_data(tmp_path)
    assert data.classes == ("0", "1") and data.test.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("names", ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels"])
def test_numpy_archives(names: str, tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.uint8)[:, None, None].repeat(9, 1).repeat(9, 2)
    labels = np.arange(20) % 2
    for images, first in ((values, 4), (values.astype(np.uint16) * 257, 4), (values / np.float32(255), 4)):
        np.savez(
            tmp_path / "set.npz",
            **dict(zip(names.split(), (images, labels, images[first:8], labels[first:8, None]), strict=True)),
        )
        data = open_data(tmp_path / "set.npz")
        assert isinstance(data.test, Resident) and data.test.pixels[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    np.savez(tmp_path / "set.npz", images=values.astype(np.float32), labels=labels)
    with pytest.raises(DeepresError, match=r"lie in \[0, 1\]"):
        open_data(tmp_path / "set.npz")
    np.savez_compressed(
        tmp_path / "set.npz", images=np.random.default_rng(0).integers(0, 255, (20, 9, 9), np.uint8), labels=labels
    )
    damaged = bytearray((tmp_path / "set.npz").read_bytes())
    damaged[200:240] = bytes(40)
    (tmp_path / "set.npz").write_bytes(damaged)
    np.save(tmp_path / "one.npy", values)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("set.npz", "one.npz"):
        with pytest.raises(DeepresError, match=rf"{name}: not a NumPy archive"):
            open_data(tmp_path / name)


def test_cifars_pickles_and_a_hostile_one(tmp_path: Path) -> None:
    pixels = np.arange(8, dtype=np.uint8)[:, None].repeat(3072, 1)
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1] * 4}, protocol=2))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car"]}, protocol=2))
    data = open_data(tmp_path)
    assert data.classes == ("plane", "car") and data.shape == (3, 32, 32) and len(data.test) == 8

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DeepresError, match="asks for"):
        open_data(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_tables_of_pixels(tmp_path: Path) -> None:
    """Kaggle's MNIST and sign language, and FER-2013."""
    head = "label," + ",".join(f"pixel{i}" for i in range(25)) + "\n"
    rows = "".join(f"{i % 2 + 9}," + ",".join([str(i)] * 25) + "\n" for i in range(16))
    (tmp_path / "signs").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"signs/sign_{split}.csv").write_text(head + rows)
    (tmp_path / "signs/unlabelled.csv").write_text((head + rows).replace("label", "id", 1))
    data = open_data(tmp_path / "signs")
    assert data.classes == ("9", "10") and data.shape == (1, 5, 5) and "for want of labels: unlabelled.csv" in str(data)
    assert isinstance(data.test, Resident) and data.test.pixels[:, 0, 4, 4].tolist() == list(range(16))
    assert data.test.labels.tolist() == [0, 1] * 8
    one = open_data(tmp_path / "signs/sign_train.csv")
    assert len(one.train) + len(one.val) + len(one.test) == 16
    usage = ["Training"] * 12 + ["PublicTest"] * 4 + ["PrivateTest"] * 4
    fer = "".join(f"{i % 3},{' '.join([str(i)] * 16)},{part}\n" for i, part in enumerate(usage))
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n" + fer)
    data = open_data(tmp_path / "fer2013.csv")
    assert (len(data.train), len(data.val), len(data.test)) == (12, 4, 4) and data.shape == (1, 4, 4)
    assert isinstance(data.test, Resident) and data.test.pixels[:, 0, 0, 0].tolist() == [16, 17, 18, 19]
    for bad in ("256 " + "1 " * 15, "x " * 16, "0.5 " * 16, "256.0 " * 16, "-1.0 " * 16, "0.0 " + "nan " * 15):
        (tmp_path / "bad.csv").write_text(f"emotion,pixels,Usage\n0,{'1 ' * 16},Training\n1,{bad},Training\n")
        with pytest.raises(DeepresError, match=r"bad\.csv:3: pixels are whole numbers"):
            open_data(tmp_path / "bad.csv")
    (tmp_path / "floats.csv").write_text("emotion,pixels\n" + "".join(f"{i % 2},{f'{i}.0 ' * 16}\n" for i in range(20)))
    data = open_data(tmp_path / "floats.csv")
    assert isinstance(data.train, Resident) and 19 in torch.cat([data.train.pixels, data.val.pixels, data.test.pixels])
    (tmp_path / "bad.csv").write_text(f"emotion,pixels\n0,{'1 ' * 5}\n1,{'1 ' * 5}\n")
    with pytest.raises(DeepresError, match="5 pixels, which is no square"):
        open_data(tmp_path / "bad.csv")


def test_mnists_files(tmp_path: Path) -> None:
    for split in ("train", "t10k"):
        images = struct.pack(">IIII", 0x803, 10, 5, 5) + bytes(250)
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 10) + bytes([0, 1] * 5))
    data = open_data(tmp_path)
    assert data.shape == (1, 5, 5) and len(data.test) == 10 and data.classes == ("0", "1")


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(DeepresError, match="not a way of storing images"):
        open_data(tmp_path / "x.h5")
