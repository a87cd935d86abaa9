"""Parquet files, folders of the Hugging Face hub and what ``save_to_disk`` writes, made here with pyarrow alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture

from deepres import DeepresError
from deepres.data import Resident, Streamed, cache_folder, open_data, pack
from deepres.data.readers import find

NAMES = ["dog", "cat"]  # not in alphabetical order: the file's order is the network's
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def rows(values: Sequence[int], labels: Sequence[Any], features: dict[str, Any] | None = FEATURES, side: int = 12) -> pa.Table:
    """Images of one grey each, as ``datasets`` stores them."""
    images = [{"bytes": picture(value, side), "path": f"{value}.png"} for value in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.table({"image": pa.array(images, kind), "label": labels}).replace_schema_metadata(metadata)


def save(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        with pa.ipc.new_stream(path, table.schema, **options) as writer:
            writer.write_table(table, max_chunksize=5)
    return path


def save_to_disk(folder: Path, table: pa.Table, split: str) -> None:
    half = len(table) // 2
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    save(folder / names[0], table.slice(0, half))
    save(folder / names[1], table.slice(half))
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def greys(split: Any) -> list[int]:
    assert isinstance(split, Resident)
    return split.pixels[:, 0, 0, 0].tolist()


LABELS = [0, 1] * 8


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_a_hub_folder(compression: str, tmp_path: Path) -> None:
    save(tmp_path / "data/train-00000-of-00002.parquet", rows(range(16), LABELS), compression=compression)
    save(tmp_path / "data/train-00001-of-00002.parquet", rows(range(16, 32), LABELS), row_group_size=3)
    save(tmp_path / "data/validation-00000-of-00001.parquet", rows(range(40, 44), LABELS[:4]))
    save(tmp_path / "data/test-00000-of-00001.parquet", rows(range(50, 56), [-1] * 6))
    data = open_data(tmp_path)
    assert data.classes == ("dog", "cat") and "6 rows have the label -1" in str(data)
    assert sorted(greys(data.train) + greys(data.val)) == list(range(32))
    assert [value % 2 for value in greys(data.train)] == data.train.labels.tolist()
    assert greys(data.test) == [40, 41, 42, 43] and data.test.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["set.parquet", "set.arrow"])
def test_one_file_and_its_labels_as_text(name: str, tmp_path: Path) -> None:
    data = open_data(save(tmp_path / name, rows(range(16), ["b", "a"] * 8, None)))
    assert data.classes == ("a", "b")
    for split in (data.train, data.val, data.test):
        assert [value % 2 == 0 for value in greys(split)] == (split.labels == 1).tolist()


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    for split, values in (("train", range(16)), ("test", range(20, 26))):
        save_to_disk(tmp_path / split, rows(values, LABELS[: len(values)], None), split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = open_data(tmp_path)
    assert data.classes == ("dog", "cat") and greys(data.test) == list(range(20, 26))
    assert sorted(greys(data.train) + greys(data.val)) == list(range(16))
    assert greys(open_data(tmp_path / "test").test) == list(range(20, 26))  # a single split
    listing = find(tmp_path)
    assert all(item.path.endswith(".arrow") for items in listing.splits.values() for item in items)  # nothing is copied


def test_rows_are_read_by_offset_and_named(tmp_path: Path) -> None:
    for name, options in (
        ("a/train.parquet", {}),
        ("b/train.arrow", {}),
        ("c/train.arrow", {"options": pa.ipc.IpcWriteOptions(compression="zstd")}),
    ):
        path = save(tmp_path / name, rows(range(8), LABELS[:8], side=100), **options)
        data = open_data(path.parent)
        assert isinstance(data.train, Streamed)
        read = {item.name: item.read() for split in (data.train, data.val, data.test) for item in split.items}
        assert read == {f"{path}:row {i}": picture(i, 100) for i in range(8)}


def test_class_names_of_a_readme(tmp_path: Path) -> None:
    save(tmp_path / "data/train-00000-of-00001.parquet", rows(range(16), LABELS, None))
    text = (
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n"
    )
    (tmp_path / "README.md").write_text(
        text + "        names:\n          '0': dog\n          '1': \"cat\"\n  splits:\n---\n# x\n"
    )
    assert open_data(tmp_path).classes == ("dog", "cat")


def test_several_columns_of_labels(tmp_path: Path) -> None:
    features = {
        "img": {"_type": "Image"},
        "fine_label": FEATURES["label"],
        "coarse_label": {"names": ["x", "y"], "_type": "ClassLabel"},
    }
    table = (
        rows(range(16), LABELS, None).rename_columns(["img", "fine_label"]).append_column("coarse_label", pa.array([0] * 16))
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    data = open_data(save(tmp_path / "train.parquet", table))
    assert data.classes == ("dog", "cat") and "labels 'fine_label'; not read: coarse_label" in str(data)


def test_paths_instead_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(16):
        (tmp_path / f"images/{i}.png").write_bytes(picture(i))
    for column in (
        pa.array([f"images/{i}.png" for i in range(16)]),
        pa.array([{"bytes": None, "path": str(tmp_path / f"images/{i}.png")} for i in range(16)], rows([], []).schema[0].type),
    ):
        for name in ("train.parquet", "train.arrow"):
            data = open_data(save(tmp_path / name, pa.table({"image": column, "label": LABELS})))
            assert sorted(greys(data.train) + greys(data.val) + greys(data.test)) == list(range(16))


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_a_bad_row_is_named(name: str, tmp_path: Path) -> None:
    whole = rows(range(8), LABELS[:8])
    for column, value, says in (
        ("label", None, "row 5: the label is missing"),
        ("label", 7, "row 5: the label is 7, and there are 2 class names"),
        ("image", None, "row 5: the image is missing"),
        ("image", {"bytes": None, "path": "no.png"}, "row 5: holds no bytes, and there is no file 'no.png'"),
    ):
        values = whole[column].to_pylist()
        values[5] = value
        at = whole.schema.get_field_index(column)
        table = whole.set_column(at, column, pa.array(values, whole.schema.field(column).type))
        with pytest.raises(DeepresError, match=f"{name}: {says}"):
            open_data(save(tmp_path / name, table))
    images = [*whole["image"].to_pylist()[:7], {"bytes": b"no image", "path": "7.png"}]
    table = whole.set_column(0, "image", pa.array(images, whole.schema[0].type))
    assert open_data(save(tmp_path / name, table)).unreadable == (f"{tmp_path / name}:row 7",)


def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "x.arrow").write_bytes(b"\xff\xff\xff\xff no")
    save(tmp_path / "text.parquet", pa.table({"text": ["a", "b"], "label": [0, 1]}))
    save(tmp_path / "many.parquet", rows([1, 2], [[0], [1]], None))
    save(tmp_path / "several/a/train.parquet", rows(range(4), LABELS[:4]))
    save(tmp_path / "several/b/train.parquet", rows(range(4), LABELS[:4]))
    save_to_disk(tmp_path / "gone", rows(range(4), LABELS[:4]), "train")
    (tmp_path / "gone/data-00001-of-00002.arrow").unlink()
    for name, says in {
        "x.parquet": "not a whole Parquet or Arrow file",
        "x.arrow": "not a whole Parquet or Arrow file",
        "text.parquet": "no column holds encoded images",
        "many.parquet": "no column is called label",
        "several": "several configurations, 'a', 'b'",
        "gone": "data-00001-of-00002.arrow, which state.json names, is missing",
    }.items():
        with pytest.raises(DeepresError, match=says):
            open_data(tmp_path / name)


def test_a_copy_is_made_once_and_again_where_it_was_lost(tmp_path: Path) -> None:
    path = save(tmp_path / "train.parquet", rows(range(16), LABELS))
    copies = cache_folder() / "rows"
    first = find(path)
    blob = Path(first.splits[""][0].path)
    stamp = blob.stat().st_mtime_ns
    assert blob.parent == copies and find(path) == first and blob.stat().st_mtime_ns == stamp
    blob.write_bytes(b"short")
    assert find(path) == first and [item.read() for item in first.splits[""]] == [picture(i) for i in range(16)]
    blob.with_suffix(".npy").write_bytes(b"")  # as after a loss of power
    assert find(path) == first
    save(path, rows(range(1, 17), LABELS))
    assert find(path).splits[""][0].read() == picture(1)


def test_rows_are_packed_into_shards(tmp_path: Path) -> None:
    table = rows(range(16), LABELS).set_column(
        0, "image", pa.array([picture(i) for i in range(16)])
    )  # bytes alone, without a name
    pack(save(tmp_path / "train.parquet", table), tmp_path / "shards")
    packed = open_data(tmp_path / "shards")
    everything = [packed.train, packed.val, packed.test]
    assert sorted(value for split in everything for value in greys(split)) == list(range(16))
    assert torch.cat([split.labels for split in everything]).bincount().tolist() == [8, 8]


def test_memory_is_bounded_by_a_few_rows(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()
    table = pa.table({"image": [noise] * 256, "label": ["a", "b"] * 128})
    for name in ("train.parquet", "train.arrow"):
        path = save(tmp_path / name, table, **({"use_dictionary": False} if name.endswith("parquet") else {}))
        before = pa.total_allocated_bytes()
        pool = pa.default_memory_pool()
        items = find(path).splits[""]
        assert len(items) == 256 and pool.bytes_allocated() <= before + (1 << 20)
        assert items[200].read() == noise
