"""Exported files: their metadata, their checksum, and running them as a module, by ONNX Runtime, OpenVINO or PyTorch."""

from __future__ import annotations

import hashlib
import importlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import ModelSpec
from deepres.errors import DeepresError, first_line

PLACEHOLDER = "sha256:" + "0" * 64  # stands in for the checksum while it is computed; of the same length
_MEMBER = "extra/deepres.json"  # of a .pt2 archive
RUNNER = "runner.json"  # of a folder of segments, see models.segmented
Header = dict[str, str]


@dataclass(frozen=True)
class LoadedFile:
    """An exported file in its engine: ``call`` takes and gives as many tensors as its graph does."""

    engine: str  # with its version
    header: Header  # metadata
    call: Callable[[Sequence[Tensor]], list[Tensor]]
    outputs: int | None  # classes, where the graph says


class ExportedModel(nn.Module):
    """The network in an exported file, called like the original: inputs (N, ...) on the CPU -> logits (N, K).

    Made by ``open_exported``. It has no parameters, so it can be used and measured, but neither trained nor looked into.
    """

    def __init__(self, path: Path, files: Sequence[LoadedFile], header: Mapping[str, str]) -> None:
        super().__init__()
        self.path, self.engine, self.header = path, files[0].engine, dict(header)
        self.files = tuple(files)
        self.model_spec = _spec(header, files[-1].outputs)
        named, outputs = self.model_spec.classes, files[-1].outputs
        if outputs not in (None, named):
            raise DeepresError(
                f"{path}: its list of labels has {named} names, and its graph {outputs} outputs; export it again"
            )
        self.eval()

    @property
    def notes(self) -> dict[str, Any]:
        """The names of the classes and the preparation of images, as ``models.annotate`` takes them."""
        found = {"classes": json.loads(self.header.get("labels", "null"))}
        found["prepare"] = json.loads(self.header.get("preprocessing", "null"))
        return {key: value for key, value in found.items() if value is not None}

    def forward(self, inputs: Tensor) -> Tensor:
        self.check_input(inputs)
        return self.files[0].call([inputs])[0]

    def check_input(self, inputs: Tensor) -> None:
        """Raise ``DeepresError`` for inputs of another size than the graph was captured with."""
        size = self.model_spec.size
        if size is not None and inputs.shape[-1] != size:
            what = "tokens" if self.model_spec.inputs == "tokens" else "pixels a side"
            raise DeepresError(
                f"{self.path}: takes inputs of {size} {what}, not of {inputs.shape[-1]}; leave --size out, or export the network again "
                "with this --size"
            )

    def train(self, mode: bool = True) -> ExportedModel:
        """Stay in eval mode: an exported network cannot be trained."""
        return super().train(False)


def need_layers(model: nn.Module, name: str) -> None:
    """Raise ``DeepresError`` where ``model``, which is called ``name``, is an exported file: it runs, and no layer of it is at hand."""
    if isinstance(model, ExportedModel):
        raise DeepresError(
            f"{name}: is an exported file, which can be neither trained nor looked into; give the network that it was made of"
        )


def _spec(header: Mapping[str, str], outputs: int | None) -> ModelSpec:
    prepare = json.loads(header.get("preprocessing", "null")) or {}
    labels = json.loads(header.get("labels", "null"))
    tokens = header.get("inputs") == "tokens"
    return ModelSpec(
        inputs="tokens" if tokens else "images",
        size=prepare.get("size"),
        channels=None if tokens else prepare.get("channels", 3),
        classes=len(labels) if labels else outputs,
        labels=tuple(labels) if labels else None,
    )


def is_exported(path: str | Path) -> bool:
    """Return whether a path is that of an exported network: ``.onnx``, OpenVINO's ``.xml``, ``.pt2``, or a folder of segments."""
    return Path(path).suffix in (".onnx", ".xml", ".pt2") or (Path(path) / RUNNER).is_file()


def open_file(path: str | Path, *, trust: bool = False) -> LoadedFile:
    """Load an ONNX file, an OpenVINO ``.xml`` or a ``.pt2`` archive into its engine, in float32 on the CPU.

    ``trust``: a ``.pt2`` archive may run any code when it is loaded (AOTInductor's is machine code), so it has to be asked for.

    Raises ``DeepresError`` for a file that is missing, damaged or changed since deepres exported it, for an engine that is not
    installed, and for an archive that is not trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise DeepresError(f"{path}: no such file")
    opener = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_archive}.get(path.suffix)
    if opener is None:
        raise DeepresError(f"{path}: not an exported network; those end in .onnx, .xml or .pt2")
    if opener is _open_archive and not trust:
        raise DeepresError(
            f"{path}: a .pt2 archive can run code when it is loaded; if you trust it, open it from Python with "
            "deepres.models.open_exported(path, trust=True)"
        )
    try:
        return opener(path)
    except DeepresError:
        raise
    except Exception as error:  # each engine has its own kinds
        raise DeepresError(
            f"{path}: cannot be opened, so it is damaged or of another version ({first_line(error, 160)})"
        ) from error


def _open_onnx(path: Path) -> LoadedFile:
    runtime = _engine("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    header = session.get_modelmeta().custom_metadata_map
    _check_bytes(path, header)
    names = [one.name for one in session.get_inputs()]
    last = session.get_outputs()[0].shape[-1]

    def call(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: value.detach().contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, given)]

    return LoadedFile(f"ONNX Runtime {runtime.__version__}", header, call, last if isinstance(last, int) else None)


def _open_openvino(path: Path) -> LoadedFile:
    openvino = _engine("openvino")
    core = openvino.Core()
    model = core.read_model(str(path))
    keys = ("deepres", "format", "name", "inputs", "labels", "preprocessing", "sha256")
    header = {key: str(model.get_rt_info(["deepres", key]).astype(str)) for key in keys if model.has_rt_info(["deepres", key])}
    _check_bytes(path, header)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    last = compiled.output(0).get_partial_shape()[-1]

    def call(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = compiled([value.detach().contiguous().numpy() for value in inputs])
        return [torch.from_numpy(found[i].copy()) for i in range(len(compiled.outputs))]

    engine = f"OpenVINO {openvino.__version__.split('-')[0]}"
    return LoadedFile(engine, header, call, last.get_length() if last.is_static else None)


def _open_archive(path: Path) -> LoadedFile:
    header = _check_archive(path)
    network: Any
    if header["format"] == "aoti":
        network, engine = torch._inductor.aoti_load_package(str(path)), f"AOTInductor of PyTorch {torch.__version__}"
    else:
        network, engine = torch.export.load(path).module(), f"torch.export of PyTorch {torch.__version__}"

    def call(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            found = network(*inputs)
        return [found] if isinstance(found, Tensor) else list(found)

    return LoadedFile(engine, header, call, None)


def _engine(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DeepresError(f"{name} is not installed; run: pip install 'deepres[export]'") from error


# ---- checksums: of a plain file over its bytes, with the placeholder where the checksum stands; of an archive over its members


def stamp_bytes(path: Path) -> None:
    """Write the checksum into a file that holds the placeholder once."""
    data, mark = path.read_bytes(), PLACEHOLDER.encode()
    if data.count(mark) != 1:
        raise DeepresError(f"{path}: its engine did not keep the metadata that it was given")
    path.write_bytes(data.replace(mark, _digest(path, data).encode()))


def weights_beside(path: Path) -> Path:
    """The file with the weights of the exported file ``path``, if it does not hold them itself."""
    return path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(f"{path.name}.data")


def _digest(path: Path, data: bytes) -> str:
    total = hashlib.sha256(data)
    if weights_beside(path).is_file():
        with open(weights_beside(path), "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def _check_bytes(path: Path, header: Mapping[str, str]) -> None:
    """Raises ``DeepresError`` where a file of ours is not what its checksum says."""
    if "deepres" not in header:
        return  # another exporter's, which has no checksum
    noted = header.get("sha256", "")
    if noted != _digest(path, path.read_bytes().replace(noted.encode(), PLACEHOLDER.encode()) if noted else b""):
        raise DeepresError(f"{path}: was changed after it was exported (its checksum differs); export it again")


def stamp_archive(path: Path, metadata: Mapping[str, str]) -> None:
    """Add metadata and checksum to a ``.pt2`` archive, as its member ``extra/deepres.json``."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/{_MEMBER}", json.dumps({**metadata, "sha256": _members_digest(archive)}))


def _members_digest(archive: zipfile.ZipFile) -> str:
    total = hashlib.sha256()
    for name in sorted(archive.namelist()):
        if not name.endswith(_MEMBER):
            total.update(name.encode() + b"\0")
            with archive.open(name) as file:
                while part := file.read(1 << 20):
                    total.update(part)
    return f"sha256:{total.hexdigest()}"


def _check_archive(path: Path) -> Header:
    changed = f"{path}: was changed after it was exported (its checksum differs); export it again"
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(_MEMBER)), None)
            if name is None:
                raise DeepresError(f"{path}: not an archive that deepres exported")
            header: Header = json.loads(archive.read(name))
            if header["sha256"] != _members_digest(archive):
                raise DeepresError(changed)
            return header
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise DeepresError(changed) from error
