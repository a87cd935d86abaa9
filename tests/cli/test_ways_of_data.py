"""The ways in which people keep image data sets, each through ``train``, ``evaluate``, ``look`` and ``predict``.

The pictures of one class are dark and of the other light, so that it is known what a network that tells them apart has to answer.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepres.cli.main import main

SIDE = 8
EACH = 20  # pictures of a class in the training part; the other parts hold a fifth
NAMES = ("dark", "light")
Examples = list[tuple[int, np.ndarray]]  # (0 or 1, pixels)


@cache
def examples(part: str) -> Examples:
    random = np.random.default_rng(len(part))
    count = EACH if part == "train" else EACH // 5
    greys = [(k, random.integers(190, 250) if k else random.integers(5, 60)) for _ in range(count) for k in (0, 1)]
    return [(k, np.clip(grey + random.normal(0, 4, (SIDE, SIDE)), 0, 255).astype(np.uint8)) for k, grey in greys]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def files(root: Path, part: str, name: Callable[[int, int], str]) -> list[tuple[str, str]]:
    """Write the pictures of a part as ``name(class, number)``; (name, class) of each."""
    written = []
    for i, (k, pixels) in enumerate(examples(part)):
        put(root / name(k, i), png(pixels))
        written.append((name(k, i), NAMES[k]))
    return written


def image_folder(root: Path) -> Path:
    for part, folder in (("train", "Training"), ("val", "VALID"), ("test", "Testing")):
        files(root, part, lambda k, i, folder=folder: f"{folder}/{NAMES[k]}/{i}.png")
    put(root / "Training/dark/.ipynb_checkpoints/0-checkpoint.png", png(examples("train")[0][1]))
    return root


def kaggle_zip(root: Path) -> Path:
    rows = files(root / "loose", "train", lambda k, i: f"train/{i:04x}.png")
    files(root / "loose", "test", lambda k, i: f"test/{i:04x}.png")
    put(root / "loose/train.csv", "id,label\n" + "".join(f"{Path(name).stem},{label}\n" for name, label in rows))
    put(root / "loose/sample_submission.csv", "id,label\n0000,dark\n")
    with zipfile.ZipFile(root / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((root / "loose").rglob("*.*")):
            archive.write(path, path.relative_to(root / "loose"))
    return root / "set.zip"


def roboflow(root: Path) -> Path:
    for part, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        rows = files(root, part, lambda k, i, folder=folder: f"{folder}/{i}_jpg.rf.{i:08x}.png")
        body = "".join(f"{Path(name).name}, {int(label == 'dark')}, {int(label == 'light')}\n" for name, label in rows)
        put(root / folder / "_classes.csv", "filename, dark, light\n" + body)
    put(root / "README.dataset.txt", "made by hand")
    return root


def hub_images(root: Path) -> Path:
    for part, kind in (("train", "jsonl"), ("test", "csv")):
        rows = files(root, part, lambda k, i, part=part: f"{part}/{i}.png")
        lines = [json.dumps({"file_name": Path(name).name, "label": label}) for name, label in rows]
        if kind == "csv":
            lines = ["file_name,label", *(f"{Path(name).name},{label}" for name, label in rows)]
        put(root / part / f"metadata.{kind}", "\n".join(lines))
    return root


FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES[::-1]), "_type": "ClassLabel"}}  # light is 0


def arrow_table(part: str) -> pa.Table:
    images = [{"bytes": png(pixels), "path": f"{i}.png"} for i, (_, pixels) in enumerate(examples(part))]
    table = pa.table({"image": images, "label": [1 - k for k, _ in examples(part)]})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def parquet(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for part, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        pq.write_table(arrow_table(part), root / f"data/{name}-00000-of-00001.parquet", row_group_size=7)
    return root


def saved_to_disk(root: Path) -> Path:
    put(root / "dataset_dict.json", '{"splits": ["train", "test"]}')
    for part in ("train", "test"):
        put(
            root / part / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": part})
        )
        with pa.ipc.new_stream(root / part / "data-00000-of-00001.arrow", (table := arrow_table(part)).schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return root


def imagenet_validation(root: Path) -> Path:
    rows = files(root, "test", lambda k, i: f"val/ILSVRC2012_val_{i + 1:08d}.JPEG")
    put(root / "val.txt", "".join(f"{Path(name).name} {NAMES.index(label)}\n" for name, label in rows))
    return root


def csv_list(root: Path) -> Path:
    lines = ["path;label;split"]
    for part in ("train", "val", "test"):
        lines += [
            f"{name};{label};{part}" for name, label in files(root, part, lambda k, i, part=part: f"pictures/{part}{i}.png")
        ]
    put(root / "list.csv", "\n".join(lines))
    return root / "list.csv"


def webdataset(root: Path) -> Path:
    root.mkdir()
    for part in ("train", "test"):
        with tarfile.open(root / f"pictures-{part}-000000.tar", "w") as tar:
            for i, (k, pixels) in enumerate(examples(part)):
                for suffix, content in (("png", png(pixels)), ("cls", str(k).encode())):
                    info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def mnist(root: Path) -> Path:
    for part, name in (("train", "train"), ("test", "t10k")):
        pixels = b"".join(pixels.tobytes() for _, pixels in examples(part))
        count = len(examples(part))
        put(root / f"{name}-images-idx3-ubyte", struct.pack(">IIII", 0x803, count, SIDE, SIDE) + pixels)
        put(root / f"{name}-labels-idx1-ubyte", struct.pack(">II", 0x801, count) + bytes(k for k, _ in examples(part)))
    return root


def cifar(root: Path) -> Path:
    for part, name in (("train", "data_batch_1"), ("test", "test_batch")):
        pixels = np.stack(
            [np.broadcast_to(np.kron(p, np.ones((4, 4), np.uint8)), (3, 32, 32)).ravel() for _, p in examples(part)]
        )
        put(root / name, pickle.dumps({"data": pixels, "labels": [k for k, _ in examples(part)]}, protocol=2))
    put(root / "batches.meta", pickle.dumps({"label_names": list(NAMES)}, protocol=2))
    return root


def npz(root: Path) -> Path:
    root.mkdir()
    pairs = {
        f"{kind}_{part}": [pair[i] for pair in examples(part)] for part in ("train", "test") for i, kind in enumerate("yx")
    }
    np.savez(root / "set.npz", **{name: np.array(values) for name, values in pairs.items()})
    return root / "set.npz"


def flat_names(root: Path) -> Path:
    files(root, "train", lambda k, i: f"train/{NAMES[k]}.{i}.png")
    for i, (_, pixels) in enumerate(examples("test")):
        put(root / f"test1/{i}.png", png(pixels))
    return root


def listed_splits(root: Path) -> Path:
    """Food-101: class folders, and the splits in lists."""
    for part in ("train", "test"):
        rows = files(root, part, lambda k, i, part=part: f"images/{NAMES[k]}/{part}{i}.png")
        put(root / f"meta/{part}.txt", "".join(f"{name.removeprefix('images/').removesuffix('.png')}\n" for name, _ in rows))
    return root


WORDS, NUMBERS = NAMES, ("0", "1")
WAYS: dict[
    str, tuple[Callable[[Path], Path], tuple[str, ...], int]
] = {  # how it is made, its classes in order, labelled pictures in all
    "image folder": (image_folder, WORDS, 7 * EACH // 5 * 2),
    "Kaggle's zip and CSV": (kaggle_zip, WORDS, EACH * 2),
    "Roboflow's export": (roboflow, WORDS, 7 * EACH // 5 * 2),
    "images and metadata of the hub": (hub_images, WORDS, 6 * EACH // 5 * 2),
    "Parquet of the hub": (parquet, WORDS[::-1], 7 * EACH // 5 * 2),
    "save_to_disk": (saved_to_disk, WORDS[::-1], 6 * EACH // 5 * 2),
    "ImageNet's validation images and a list": (imagenet_validation, NUMBERS, EACH // 5 * 2),
    "a CSV of path and label": (csv_list, WORDS, 7 * EACH // 5 * 2),
    "webdataset": (webdataset, NUMBERS, 6 * EACH // 5 * 2),
    "MNIST's files": (mnist, NUMBERS, 6 * EACH // 5 * 2),
    "CIFAR's files": (cifar, WORDS, 6 * EACH // 5 * 2),
    "a NumPy archive": (npz, NUMBERS, 6 * EACH // 5 * 2),
    "class folders and lists of splits": (listed_splits, WORDS, 6 * EACH // 5 * 2),
    "labels in file names": (flat_names, WORDS, EACH * 2),
}
TRAIN = (
    "--net",
    "resnet8-cifar",
    "--width",
    "0.5",
    "--recipe",
    "digits",
    "--speed",
    "float32",
    "--batch",
    "16",
    "--size",
    str(SIDE),
)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """A network that tells the classes apart, under either names."""
    root = tmp_path_factory.mktemp("ready")
    runs = {}
    for names, make in ((WORDS, image_folder), (NUMBERS, mnist)):
        runs[names] = root / f"run-{names[0]}"
        data = make(root / f"data-{names[0]}")
        assert main(["train", *TRAIN, "--data", str(data), "--epochs", "4", "--out", str(runs[names])]) == 0
    return runs


@pytest.mark.parametrize("way", WAYS)
def test_a_way_through_the_commands(
    way: str, ready: dict[tuple[str, ...], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, classes, count = WAYS[way]
    data = str(make(tmp_path / "data"))
    run = str(ready.get(classes, ready[WORDS]))
    capsys.readouterr()
    if make is imagenet_validation:
        assert main(["train", *TRAIN, "--data", data, "--epochs", "1", "--out", str(tmp_path / "run")]) == 2
        assert "no training images" in capsys.readouterr().err
        parts = {"test": count}
    else:
        assert main(["train", *TRAIN, "--data", data, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
        report = json.loads((tmp_path / "run/result.json").read_text())["data"]
        assert report["train"] + report["val"] + report["test"] == count and report["classes"] == 2
        parts = {part: report[part] for part in ("train", "test")}
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "run"), "--data", data, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == list(classes)  # in the data's own order
    for part, expected in parts.items():
        assert main(["evaluate", run, "--data", data, "--split", part, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["n"] == expected and found["top1"] == 0 and sorted(found["per_class"]) == sorted(classes)
    options = ("--split", "test", "--examples", "6", "--pairs", "0", "--no-lesions", "--out", str(tmp_path / "look"))
    assert main(["look", run, "--data", data, *options]) == 0
    assert "compared with the labels: error 0.00 %" in capsys.readouterr().out and (tmp_path / "look/report.html").is_file()
    loose = [path for path in sorted((tmp_path / "data").rglob("*")) if path.suffix in (".png", ".JPEG")]
    if loose:
        assert main(["predict", run, *map(str, loose), "--format", "json", "--top", "1"]) == 0
        for answer in json.loads(capsys.readouterr().out):
            bright = np.asarray(Image.open(answer["file"])).mean() > 128
            assert answer["classes"][0]["name"] == (NUMBERS if classes == NUMBERS else WORDS)[int(bright)], answer["file"]
