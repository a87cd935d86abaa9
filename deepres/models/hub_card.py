"""The model card of a folder for the Hub: what was measured, from the files of the run, and what was not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepres import __version__
from deepres.models.opening import OpenedModel


def model_card(
    opened: OpenedModel, source: str | None, name: str, library: str, license: str | None, remarks: tuple[str, ...] = ()
) -> str:
    """Text of ``README.md``: YAML for the Hub, then sentences. ``source``: the run or file that the network was opened from."""
    run, result, shrunk = (_read(source, file) for file in ("run.json", "result.json", "shrink.json"))
    test = result.get("test") or shrunk.get("result", {}).get("test") or {}
    data = _data_name(run)
    front = _front_matter(opened, name, library, license, test, data)
    parts = [
        "---",
        *front,
        "---",
        "",
        f"# {name}",
        "",
        *_what(opened, run, shrunk, library, remarks),
        "",
        "## Measured",
        "",
        *_measured(test, run, result, data),
        "",
        "## Training",
        "",
        *_training(run, result),
        "",
        "## Use",
        "",
        *_use(opened, library),
    ]
    return "\n".join(parts) + "\n"


def _read(source: str | None, file: str) -> dict[str, Any]:
    """A JSON file of the run; empty where there is none. Weights of another epoch than the tested ones have none."""
    if source is None:
        return {}
    path = Path(source)
    folder = path.parent if path.name == "best.safetensors" else path
    try:
        found = json.loads((folder / file).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _data_name(run: Mapping[str, Any]) -> str | None:
    """The data's name, without the folders of the machine that it was on."""
    return Path(str(run["data"])).name if run.get("data") else None


def _front_matter(
    opened: OpenedModel, name: str, library: str, license: str | None, test: Mapping[str, Any], data: str | None
) -> list[str]:
    """Lines of YAML; texts are quoted as JSON, which is YAML too."""
    task = _task(opened)[1]
    lines = [f"license: {json.dumps(license)}"] if license else []
    lines += [f"library_name: {library}", f"pipeline_tag: {task}", "tags:", "- deepres", "- residual-network"]
    if not test:
        return lines
    bits = test.get("bits_per_byte")
    metric = "bits_per_byte" if bits is not None else "accuracy"
    value = bits if bits is not None else round(1 - test["top1"] / 100, 6)
    return [
        *lines,
        "metrics:",
        f"- {metric}",
        "model-index:",
        f"- name: {json.dumps(name)}",
        "  results:",
        f"  - task: {{type: {task}}}",
        f"    dataset: {{name: {json.dumps(data or 'unknown')}, type: {json.dumps(_slug(data or 'unknown'))}, split: test}}",
        f"    metrics: [{{type: {metric}, value: {value}}}]",
    ]


def _task(opened: OpenedModel) -> tuple[str, str]:
    """(kind of network with its article, its task as the Hub names it)."""
    if opened.spec.inputs == "images":
        return "An image classifier", "image-classification"
    return (
        ("A text classifier", "text-classification")
        if opened.spec.classifies_texts
        else ("A language model", "text-generation")
    )


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-").lower() or "data"


def _what(
    opened: OpenedModel, run: Mapping[str, Any], shrunk: Mapping[str, Any], library: str, remarks: tuple[str, ...]
) -> Iterator[str]:
    params = sum(p.numel() for p in opened.model.parameters())
    kind, task = _task(opened)
    outputs, what = opened.spec.classes, "tokens" if task == "text-generation" else "classes"
    known = f" for {outputs:,} {what}" if outputs is not None else ""
    net = f" ({run['net']})" if run.get("net") else ""
    opens = f", in the format of {library}" if library != "deepres" else ""
    yield f"{kind}{net} of {params:,} parameters{known}, written by deepres {__version__}{opens}."
    if shrunk.get("blocks"):
        before, after = shrunk["blocks"]
        yield f"Of its {before} residual blocks {before - after} were removed while it was trained; {after} are left."
    for remark in remarks:
        yield remark[0].upper() + remark[1:] + "."


def _measured(test: Mapping[str, Any], run: Mapping[str, Any], result: Mapping[str, Any], data: str | None) -> Iterator[str]:
    if not test:
        yield "Nothing: the network came without the result of a run of deepres."
        return
    if test.get("bits_per_byte") is not None:
        yield f"- {test['bits_per_byte']:.4f} bits per byte (loss {test['loss']:.4f} nats) on the {test['n']:,} tokens of the test split"
    else:
        yield f"- test error {test['top1']:.2f} % (top-5 {test['top5']:.2f} %) on the {test['n']:,} images of the test split"
        yield f"- expected calibration error {test['calibration']:.2f} %"
    yield f"- data: {data or 'not recorded'}; its test split was measured once, with the weights of the best epoch"
    if result.get("val_error") is not None:
        yield f"- validation error {result['val_error']:.2f} % after epoch {result.get('best_epoch', '?')}, which it chose"
    yield f"- one run, seed {run.get('seed', 'not recorded')}, so the spread over seeds is not known"
    yield "- not measured: speed, other data, other kinds of images, fairness between groups"


def _training(run: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    if not run:
        yield "Not recorded."
        return
    recipe = run.get("recipe") if isinstance(run.get("recipe"), Mapping) else {}
    assert isinstance(recipe, Mapping)
    length = {"epochs": "epochs", "iterations": "steps", "examples": "examples"}
    how_long = next((f"{recipe[key]:g} {word}" for key, word in length.items() if recipe.get(key)), "length not recorded")
    yield f"- recipe {recipe.get('name', run.get('recipe', 'not recorded'))}: {how_long}, batches of {recipe.get('batch', '?')}"
    yield f"- started from {_start(run)}"
    if result.get("seconds") is not None:
        yield f"- {result['seconds']:.0f} s of training, with --speed {result.get('speed', 'not recorded')}"
    machine = result.get("machine") if isinstance(result.get("machine"), Mapping) else {}
    assert isinstance(machine, Mapping)
    hardware = machine.get("gpu") or machine.get("cpu")
    yield f"- hardware: {hardware or 'not recorded'}"
    versions = {"deepres": machine.get("deepres"), "PyTorch": result.get("torch"), "Python": machine.get("python")}
    yield "- versions: " + (", ".join(f"{key} {value}" for key, value in versions.items() if value) or "not recorded")


def _start(run: Mapping[str, Any]) -> str:
    """The weights that a run started from, without the folders of the machine that it was on."""
    net, init = str(run.get("net")), run.get("init")
    if init == "pretrained":
        return f"the pretrained weights of {net}"
    if init not in (None, "none"):
        return f"the weights {init if ':' in str(init) else Path(str(init)).name}"
    if init is None and (net.startswith("hf:") or net.endswith((".safetensors", ".pth", ".pt"))):
        return f"the weights {net if net.startswith('hf:') else Path(net).name}"
    return "fresh weights"


def _use(opened: OpenedModel, library: str) -> Iterator[str]:
    yield from ("```python", "import deepres", "", 'model = deepres.from_pretrained("OWNER/NAME")  # or the folder', "```")
    commands = {
        "image-classification": "predict hf:OWNER/NAME *.jpg",
        "text-generation": 'generate hf:OWNER/NAME --prompt "..."',
    }
    if (task := _task(opened)[1]) in commands:  # no command classifies texts
        yield from ("", "```sh", f"deepres {commands[task]}", "```")
    if library == "timm":
        yield from (
            "",
            "```python",
            "import timm",
            "",
            'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True)',
            "```",
        )
    if library == "transformers":
        kind = type(opened.model).__name__
        yield from (
            "",
            "```python",
            f"from transformers import {kind}",
            "",
            f'model = {kind}.from_pretrained("OWNER/NAME")',
            "```",
        )
    if opened.prepare is not None and opened.spec.inputs == "images":
        yield from ("", f"Images are prepared as: {opened.prepare}.")
