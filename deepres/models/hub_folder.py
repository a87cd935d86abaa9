"""``save_pretrained`` and ``from_pretrained``: a network as a folder for the Hugging Face Hub, and back.

transformers opens the folder of one of its networks, and timm that of one of its own; any other network is described in deepres's
own terms.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepres import __version__
from deepres.adapters import logits_of, on_cpu
from deepres.data import BytePairs, Prepare, Tokens
from deepres.errors import DeepresError
from deepres.models.builders import Origin, need_library, origin
from deepres.models.checkpoint import read_checkpoint
from deepres.models.exported import ExportedModel, is_exported
from deepres.models.hub_card import model_card
from deepres.models.hub_reading import CONFIG, LIBRARY, OURS, WEIGHTS, is_hub_folder, open_hub_folder
from deepres.models.opening import OpenedModel, at_home, open_model, open_trained
from deepres.models.store import description, write_network
from deepres.paths import user_path

CARD, PROCESSOR, TOKENIZER = "README.md", "preprocessor_config.json", "tokenizer.json"
_GHOST = "ghost.json"  # of a ghost's folder


@dataclass(frozen=True)
class HubFolder:
    """Result of ``save_pretrained``: the folder, and who opens it."""

    folder: Path
    library: str  # "deepres", "timm" or "transformers"
    files: tuple[str, ...]
    remarks: tuple[str, ...] = ()  # sentences that the user should see

    def lines(self) -> list[str]:
        """Sentences for the user."""
        how = {
            "timm": f"timm.create_model('local-dir:{self.folder}', pretrained=True), and deepres",
            "transformers": "from_pretrained of transformers, and deepres",
        }
        opens = how.get(self.library, f"deepres: deepres.from_pretrained('{self.folder}')")
        return [f"{self.folder}: {', '.join(self.files)}", f"opened by {opens}", *self.remarks]


def save_pretrained(
    model: nn.Module | str | Path,
    folder: str | Path,
    *,
    weights: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
) -> HubFolder:
    """Write a trained network as a folder for the Hugging Face Hub: configuration, weights, preparation of images, and a model card.

    >>> deepres.save_pretrained("runs/photos", "hub/photos").files
    ('README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json')

    ``model``, ``weights``: as in ``open_model``. ``name``: the network's, in the card; by default the folder's. ``license``: of the
    weights, as the Hub names it, such as ``"apache-2.0"``. The card tells what ``result.json`` of the run says, and no other figure.

    The folder is opened again, and gives the same outputs to the bit, before it is put in its place; it appears whole, or not at all.

    Raises ``DeepresError`` for a folder that is not empty, for a network that nobody could build again (a ghost, a detector, an exported
    file, a module whose builder is not known), and for one without weights.
    """
    out = user_path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DeepresError(f"{out}: exists already; choose another folder, or delete it first")
    if not isinstance(model, nn.Module):
        model = at_home(model)
    source = None if isinstance(model, nn.Module) else at_home(weights or model)
    opened = _open(model, weights)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise DeepresError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        temporary.chmod(0o755)
        with on_cpu(opened.model):
            library, remarks = _write(opened, temporary)
            _compare(opened, temporary)
        card = model_card(opened, source, name or out.resolve().name, library, license, remarks)
        (temporary / CARD).write_text(card, encoding="utf-8")
        files = tuple(sorted(path.name for path in temporary.iterdir()))
        os.replace(temporary, out)
    except OSError as error:
        raise DeepresError(f"{out}: could not be written ({error.strerror or error}); nothing is left of it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return HubFolder(out, library, files, remarks)


def from_pretrained(reference: str | Path) -> Any:
    """The network in a folder that ``save_pretrained`` wrote, or in a repository of the Hub, ``OWNER/NAME``; in eval mode.

    Labels and preparation of images come along, so that ``deepres.predict`` and ``deepres.evaluate`` use them. Folders of timm and of
    transformers are opened as well.

    Raises ``DeepresError`` for a folder that is missing or damaged, or whose network is not one that may be built.
    """
    text = at_home(reference)
    if not Path(text).is_dir() and not text.startswith("hf:"):
        text = f"hf:{text}"
    return open_model(text).model


def _open(model: nn.Module | str | Path, weights: str | Path | None) -> OpenedModel:
    """The network to write. Raises ``DeepresError`` for one that no configuration describes."""
    if not isinstance(model, nn.Module):
        if (Path(model) / _GHOST).exists():
            raise DeepresError(
                f"{model}: holds a ghost, whose gates and exits no configuration of the Hub describes; push the network that it was made "
                f"from, {Path(model) / 'net.safetensors'}, or export a ghost that skips the same blocks for every input"
            )
        if is_exported(model):
            raise DeepresError(f"{model}: is an exported file; push the network that it was made from")
    opened = open_trained(model, weights=weights)
    if isinstance(opened.model, ExportedModel) or not (description(opened.model) or _timm_name(opened.model)):
        raise DeepresError(
            f"{opened.name}: how it is built is not known, so nobody could open the folder; give a run, a file, or the name of a network "
            "with its --weights"
        )
    return opened


def _timm_name(model: nn.Module) -> str | None:
    """The name by which timm builds ``model`` as it is; None for any other network, and for one with blocks removed."""
    found = origin(model)
    about = getattr(model, "pretrained_cfg", None)
    if found is not None:
        return found.reference.removeprefix("timm:") if found.reference.startswith("timm:") and not found.removed else None
    named = about.get("architecture") if isinstance(about, Mapping) else None
    return named if isinstance(named, str) else None


def _write(opened: OpenedModel, folder: Path) -> tuple[str, tuple[str, ...]]:
    """(library that opens the folder, remarks)."""
    model = opened.model
    prepare = opened.prepare if opened.spec.inputs == "tokens" else opened.preparation()
    notes: dict[str, Any] = {}
    if opened.classes is not None:
        notes["classes"] = list(opened.classes)
    if prepare is not None:
        notes["prepare"] = prepare.to_notes()
    found = origin(model)
    remarks: tuple[str, ...] = ()
    if found is not None and found.reference.startswith("transformers:"):
        library, remarks = "transformers", _write_transformers(model, folder, notes)
    elif (timm_name := _timm_name(model)) is not None and not _is_per_pixel(prepare):
        library = "timm"
        _write_timm(model, timm_name, folder, notes)
    else:
        library = LIBRARY
        write_network(folder / WEIGHTS, model, notes, checksum=True)
        _write_json(folder / CONFIG, _configuration(model, notes, opened.spec.inputs == "images", opened.spec.classes))
        if found is not None and found.reference.startswith("timm:"):
            remarks = ("its removed blocks have no place in timm's configuration, so timm does not open the folder",)
    if isinstance(prepare, Tokens) and isinstance(prepare.vocabulary, BytePairs):
        (folder / TOKENIZER).write_text(prepare.vocabulary.to_notes()["tokenizer"], encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    elif prepare is not None and not isinstance(prepare, Tokens) and not _is_per_pixel(prepare):
        _write_json(folder / PROCESSOR, _processor(prepare))
    return library, remarks


def _configuration(model: nn.Module, notes: Mapping[str, Any], images: bool, outputs: int | None) -> dict[str, Any]:
    """``config.json`` in deepres's own terms."""
    described = description(model)
    named = next((name for name, (key, _) in OURS.items() if key in described), None)
    given = dict(described[OURS[named][0]] if named is not None else described["origin"])
    config = {
        "library_name": LIBRARY,
        "deepres_version": __version__,
        "architecture": named or given.pop("reference"),
        "model_args": given,
        "num_classes": outputs,
    }
    if images and notes.get("classes"):
        config |= _label_maps(notes["classes"])
    return {**config, "preprocessing": notes.get("prepare")}


def _label_maps(classes: list[str]) -> dict[str, Any]:
    return {"id2label": {str(i): name for i, name in enumerate(classes)}, "label2id": {n: i for i, n in enumerate(classes)}}


def _write_timm(model: nn.Module, named: str, folder: Path, notes: Mapping[str, Any]) -> None:
    """Write as timm's own ``save_for_hf`` does, so that ``timm.create_model("hf-hub:OWNER/NAME", pretrained=True)`` opens it."""
    hub = need_library("timm.models._hub", "timm")
    prepare = Prepare.from_notes(json.loads(json.dumps(notes["prepare"])))
    about = {
        "input_size": (prepare.channels, prepare.size, prepare.size),
        "mean": prepare.mean,
        "std": prepare.std,
        "interpolation": prepare.interpolation,
        "crop_pct": prepare.size / (prepare.resize or prepare.size),
        **({"crop_mode": "squash"} if prepare.squash else {}),
    }
    labels = {"label_names": notes["classes"]} if notes.get("classes") else {}
    hub.save_config_for_hf(model, str(folder / CONFIG), model_config=labels, data_config=about)
    written = json.loads((folder / CONFIG).read_text())
    for key in ("tag", "license", "origin_url", "paper_ids"):  # of timm's weights, which these are not
        written["pretrained_cfg"].pop(key, None)
    _write_json(folder / CONFIG, {**written, "architecture": named})
    if origin(model) is None:
        from deepres.adapters.surgery import NOTE

        setattr(model, NOTE, Origin(f"timm:{named}", written["num_classes"], prepare.channels))
    write_network(folder / WEIGHTS, model, notes, checksum=True)


def _write_transformers(model: Any, folder: Path, notes: Mapping[str, Any]) -> tuple[str, ...]:
    """Write by the model's own ``save_pretrained``; its weights once more in our file, which transformers reads too. Gives remarks."""
    model.save_pretrained(folder, max_shard_size="10TB")
    theirs: dict[str, Tensor] = read_checkpoint(folder / WEIGHTS)[0]
    zeros = {name: tensor for name, tensor in theirs.items() if name not in model.state_dict() and not tensor.any()}
    write_network(folder / WEIGHTS, model, notes, zeros=zeros, checksum=True)
    written = json.loads((folder / CONFIG).read_text())
    classes = notes.get("classes")
    if classes and written.get("vocab_size") != len(classes):  # a language model's outputs are tokens
        written |= _label_maps(classes)
    _write_json(folder / CONFIG, written)
    if zeros:
        return (
            f"transformers, which builds every layer whole, opens it with zeros for the {len(zeros)} weights of removed branches",
        )
    return ()


def _processor(prepare: Prepare) -> dict[str, Any]:
    """``preprocessor_config.json``, as transformers' image processors with a short side and a centre crop have it."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": prepare.channels == 3,
        "do_resize": True,
        "size": dict.fromkeys(("height", "width") if prepare.squash else ("shortest_edge",), prepare.resize or prepare.size),
        "resample": int(prepare.resampling),
        "do_center_crop": True,
        "crop_size": {"height": prepare.size, "width": prepare.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepare.mean),
        "image_std": list(prepare.std),
    }


def _is_per_pixel(prepare: Prepare | None) -> bool:
    """Whether the mean has a value for each pixel, which only our own configuration has a place for."""
    return prepare is not None and bool(prepare.mean) and not isinstance(prepare.mean[0], int | float)


@torch.no_grad()
def _compare(opened: OpenedModel, folder: Path) -> None:
    """Raises ``DeepresError`` where the folder gives other outputs than the network."""
    if not is_hub_folder(folder):
        raise DeepresError(f"{opened.name}: not written, as the folder could not be opened again")
    again, _, _ = open_hub_folder(folder)
    prepare = opened.prepare if opened.spec.inputs == "tokens" else opened.preparation()
    if prepare is not None:
        example = prepare.example(2, torch.Generator().manual_seed(0))
        if example.is_floating_point():  # a network may be given in half precision; the folder's is opened in float32
            precision = next((p.dtype for p in opened.model.parameters() if p.is_floating_point()), example.dtype)
            example, again = example.to(precision), again.to(precision)
        if not torch.equal(logits_of(opened.model, example), logits_of(again, example)):
            raise DeepresError(f"{opened.name}: not written, as the network in the folder gives other outputs")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
