"""Files that people give as weights: recognised by their content, and named where they are something else."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import pickle
import shutil
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.models.opening import load, open_model


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return deepres.create("resnet8-cifar", width=0.5).eval()


@pytest.fixture(scope="module")
def state(net: nn.Module) -> dict[str, Tensor]:
    return net.state_dict()


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def zipped(path: Path, **files: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lfs.pth": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 9\n"),
        "pointer of Git LFS",
    ),
    "lfs.safetensors": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
    "page.pth": (lambda p: p.write_text("\n<!DOCTYPE html><html>"), "a web page"),
    "keras.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "HDF5 file, as Keras"),
    "net.keras": (lambda p: zipped(p, model__weights__h5=b"x"), "a network of Keras"),
    "net.onnx": (lambda p: p.write_bytes(b"\x08\x07"), "an ONNX file"),
    "net.gguf": (lambda p: p.write_bytes(b"GGUF\x03" + bytes(50)), "GGUF file"),
    "flax.msgpack": (lambda p: p.write_bytes(b"\x81\xa1"), "weights of Flax"),
    "w.npz": (lambda p: np.savez(p, a=np.zeros(3)), "a NumPy archive"),
    "w.zip": (lambda p: zipped(p, w__pth=b"x"), "unpack it first"),
    "w.pth.gz": (lambda p: p.write_bytes(gzip.compress(b"x")), "unpack it first"),
    "config.json": (lambda p: p.write_text("{}"), "JSON, not weights"),
    "w.index.json": (lambda p: p.write_text("{}"), "nor an index"),
    "empty.pth": (lambda p: p.touch(), "is empty"),
    "script.pt": (lambda p: zipped(p, a__constants__pkl=b"x", data__pkl=b"x"), "TorchScript archive"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(name: str, tmp_path: Path) -> None:
    make, says = OTHERS[name]
    make(tmp_path / name)
    with pytest.raises(DeepresError, match=f"{name}: .*{says}"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("adapter_config.json", "adapter .LoRA."),
        (".metadata", "dcp_to_torch"),
        ("zero_to_fp32.py", "zero_to_fp32.py"),
        ("tf_model.h5", "network of TensorFlow"),
        ("x.txt", "no finished run"),
    ],
)
def test_other_folders_are_named(file: str, says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(DeepresError, match=says):
        load(tmp_path)


def test_a_pickle_that_is_refused_names_its_class(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net, tmp_path / "whole.pth")
    with pytest.raises(DeepresError, match=r"more than tensors \(deepres\.nn\.resnet\.ResNet\)"):
        load(tmp_path / "whole.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": np.zeros(3)}))
    with pytest.raises(DeepresError, match=r"plain\.pkl"):
        load(tmp_path / "plain.pkl")


def test_names_of_files_do_not_matter(tmp_path: Path, state: dict[str, Tensor]) -> None:
    for name in ("w.safetensors", "w.bin", "w", "my weights (1).pth"):
        torch.save(state, tmp_path / name)
        assert same(load(tmp_path / name), state)
    save_file(state, str(tmp_path / "really-safetensors.pth"))
    assert same(load(tmp_path / "really-safetensors.pth"), state)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files(kind: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    files = [f"model-0000{i}-of-00002.{kind}" for i in (1, 2)]
    for i, file in enumerate(files):
        part = {name: tensor for k, (name, tensor) in enumerate(state.items()) if k % 2 == i}
        save_file(part, str(tmp_path / file)) if kind == "safetensors" else torch.save(part, tmp_path / file)
    index = tmp_path / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": {name: files[k % 2] for k, name in enumerate(state)}}))
    assert same(load(index), state) and same(load(tmp_path), state)
    (tmp_path / files[1]).unlink()
    with pytest.raises(DeepresError, match=f"of its 2 files {files[1]} is missing"):
        load(tmp_path)


def test_tensors_of_other_kinds(tmp_path: Path, state: dict[str, Tensor]) -> None:
    def saved(**changed: Any) -> Path:
        torch.save({**state, **changed}, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    head = state["head.fc.weight"]
    assert same(load(saved(**{"head.fc.weight": head.to_sparse()})), state)
    assert same(load(saved(**{name: tensor.numpy() for name, tensor in state.items()})), state)
    with pytest.raises(DeepresError, match="no values"):
        load(saved(**{"head.fc.weight": head.to("meta")}))
    broken = open_model(saved(**{"head.fc.weight": head * float("nan")}))
    assert any("not finite" in remark and "head.fc.weight" in remark for remark in broken.remarks)


def test_harmless_company(tmp_path: Path, state: dict[str, Tensor]) -> None:
    beside = {
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "took": datetime.timedelta(1),
        "cfg": types.SimpleNamespace(lr=0.1),
        "more": (range(3), frozenset({1}), 1j, slice(3), torch.float16, torch.Size([1])),
        "numpy": np.random.default_rng(0).bit_generator.state,
    }
    torch.save({"state_dict": state, **beside}, tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), state)


def test_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path, net: nn.Module) -> None:
    before = os.umask(0o027)
    try:
        deepres.save(net, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_damaged_folders_of_hugging_face(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)).save_pretrained(
        tmp_path / "m", max_shard_size="8KB"
    )
    assert open_model(f"hf:{tmp_path / 'm'}").spec.classes == 3
    shards = sorted((tmp_path / "m").glob("*-of-*"))
    assert len(shards) > 1
    shutil.copytree(tmp_path / "m", tmp_path / "cut")
    (tmp_path / "cut" / shards[1].name).write_bytes(shards[1].read_bytes()[:50])
    shards[1].unlink()
    for folder in ("m", "cut"):
        with pytest.raises(DeepresError, match="missing or truncated"):
            open_model(f"hf:{tmp_path / folder}")
