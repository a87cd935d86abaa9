"""Kinds of files that are given as weights. They are told apart by their content, as names are often wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from deepres.errors import DeepresError

# first bytes of files that are no weights of PyTorch -> what they are, and what to do
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the weights themselves; fetch them with `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; only weights of PyTorch are read"),
    (b"GGUF", "a GGUF file of llama.cpp; give the folder of the model that it was made of"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
)
_BY_SUFFIX = {
    ".onnx": "an ONNX file, which is a network by itself; give it in the network's place, without --weights",
    ".msgpack": "weights of Flax; only weights of PyTorch are read",
    ".tflite": "a network of TensorFlow Lite; only weights of PyTorch are read",
    ".pb": "a network of TensorFlow; only weights of PyTorch are read",
}


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors rather than a pickle, whatever its suffix.

    Raises ``DeepresError`` that names what a file is, where it is neither.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(512)
    except OSError as error:
        raise DeepresError(f"{path}: cannot be read ({error.strerror})") from error
    if not first:
        raise DeepresError(f"{path}: is empty; copy or download it again")
    what = next((text for start, text in _OTHERS if first.startswith(start)), _BY_SUFFIX.get(path.suffix.lower()))
    text = first.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "a web page, as a download that failed leaves it; download the file again"
    elif text.startswith(b"{") and path.suffix.lower() == ".json":
        what = "JSON, not weights"
    elif first.startswith(b"PK\x03\x04"):
        what = _zipped(path)
    if what:
        raise DeepresError(f"{path}: is {what}")
    size = int.from_bytes(first[:8], "little")  # of a safetensors file: the length of its header, which is JSON
    return first[8:9] == b"{" and 1 < size < path.stat().st_size + (path.suffix == ".safetensors") * (1 << 40)


def _zipped(path: Path) -> str:
    """What a zip is that PyTorch did not save as a checkpoint; empty for one that it did, and for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return ""
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript archive, which holds code; save the state_dict() of its network, best as safetensors"
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if any(name.endswith(".weights.h5") for name in names):
        return "a network of Keras; only weights of PyTorch are read"
    if all(name.endswith(".npy") for name in names):
        return "a NumPy archive; save its arrays as tensors, best as safetensors"
    return "a zip that holds no weights of PyTorch as it is; unpack it first"


def describe_folder(folder: Path) -> str:
    """A sentence on a folder that is no run of ours: what it is, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return "holds an adapter (LoRA), not a whole network; merge it into its base model (merge_and_unload of peft) and save that"
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        return (
            "is a checkpoint of torch.distributed in parts; join them with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`"
        )
    if (folder / "zero_to_fp32.py").is_file() or any(folder.glob("global_step*")):
        return "is a checkpoint of DeepSpeed; join its parts with its zero_to_fp32.py"
    if (folder / "saved_model.pb").is_file() or (folder / "tf_model.h5").is_file():
        return "holds a network of TensorFlow; only weights of PyTorch are read"
    return "holds no best.safetensors or last.safetensors, so no finished run"


def shards_of(index: Path) -> list[Path]:
    """The files that an index such as ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json`` names.

    Raises ``DeepresError`` for another JSON file, and where one of the files is missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeepresError(f"{index}: is JSON, not weights, nor an index of files of weights") from error
    if any(Path(name).name != name for name in names):
        raise DeepresError(f"{index}: names files outside its folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise DeepresError(f"{index}: of its {len(names)} files {', '.join(missing[:3])} is missing; download it again")
    return [index.parent / name for name in names]
