"""Write docs/results.md from benchmarks/results/*.json: every figure on the page comes from a recorded result."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.draw import Line, draw
from benchmarks.notes import METHODS, NOTES
from benchmarks.tell_ablation import ablation_text
from benchmarks.tell_detection import detectors_text, passes_text
from benchmarks.tell_engines import engine_tables
from benchmarks.tell_format import markdown, plain, seeds_of, speed_cells, spread_of
from benchmarks.tell_ghost import control_text, pretrained_text
from benchmarks.tell_language import language_text
from benchmarks.tell_levers import levers_text
from benchmarks.tell_serving import rivals_text, serving_text

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
PICTURES = PAGE.parent / "pictures"


def _on(result: dict[str, Any]) -> str:
    machine = result["machine"]
    bf16 = "AMX" if machine["amx"] else "AVX-512 bf16" if machine["bf16"] else "no bf16"
    cores = "1 core" if machine["threads"] == 1 else f"{machine['threads']} cores"
    where = machine["gpu"] or f"{cores} of {machine['cpu']} ({bf16})"
    return f"*{result['date']}, {where}, torch {machine['torch']}, torchvision {machine['torchvision']}.*"


def _speed(result: dict[str, Any]) -> str:
    rows = [
        [name, *speed_cells(one, "images")]
        for name, one in result.items()
        if isinstance(one, dict) and "images_per_second" in one
    ]
    n = next(one["n"] for one in result.values() if isinstance(one, dict) and "n" in one)
    best = next(
        name for name, one in result.items() if isinstance(one, dict) and one.get("ratio_lowest") == 1.0 == one["ratio"]
    )
    head = ["", "images/s, median", "range", f"against {best}"]
    text = f"{result['what']}; {n} turns each, alternating.\n\n{markdown(head, rows)}"
    return text


def _answers(result: dict[str, Any]) -> str:
    rows = []
    for name, one in result.items():
        if not isinstance(one, dict) or "same_top1_percent" not in one:
            continue
        errors = [
            f"{one[key]:.2f} %" if (key := f"error_{what}_percent") in one else ""
            for what in ("float32", "optimized", "unsettled")
        ]
        same = [f"{one[key]:.2f} %" for key in ("same_top1_percent", "same_top1_percent_unsettled", "computed_again_percent")]
        rows.append([name, *same, *errors])
    head = [
        "",
        "bf16 answers equal to float32's",
        "without recomputing",
        "recomputed in float32",
        "error, float32",
        "bf16",
        "bf16 without recomputing",
    ]
    return markdown(head, rows)


def _memory(result: dict[str, Any]) -> str:
    rows = []
    for mode, found in result.items():
        for which in ("unbounded", "bounded") if isinstance(found, dict) and "bounded" in found else ():
            one = found[which]
            seconds = f"{one['seconds']:.1f} ({one['fastest']:.1f} to {one['slowest']:.1f})"
            computing = f", {found['cpu_time_ratio']:.2f} x computing" if "cpu_time_ratio" in found else ""
            ratio = f"{found['time_ratio']:.2f} x{computing}" if which == "bounded" else ""
            limit = f" to {found['limit']}" if which == "bounded" else ""
            rows.append([f"{mode}, {which}{limit}", f"{one['peak_gib']:.2f} GiB", seconds, ratio, one["plan"]])
    head = ["", "peak of the process", "seconds per step, median and range", "time ratio", "plan"]
    return f"{result['what']}.\n\n{markdown(head, rows)}"


def _paper(result: dict[str, Any]) -> str:
    parts = [
        f"`deepres paper {result.get('only') or 'all'} --scale {result['scale']}`. Differences from the paper: "
        f"{result['differs']}; {result['seeds']} seeds."
    ]
    for outcome in result["outcomes"]:
        held = "holds" if outcome["holds"] else "**does not hold here**"
        parts.append(
            plain(f"### {outcome['title']}\n\n{outcome['source']}. {outcome['claim']} The claim {held}. {outcome['why']}")
        )
        rows = [[plain(row["label"]), row["text"], row["paper"]] for row in outcome["rows"]]
        parts.append(markdown(["", "ours", "the paper"], rows))
    return "\n\n".join(parts)


def _cifar(result: dict[str, Any]) -> str:
    parts = [
        f"`python -m benchmarks.cifar`: {result['differs']}; {result['seeds']} seeds. The images differ from the paper's, so the "
        "errors do too. The peer was trained on the same files."
    ]
    for outcome in result["outcomes"]:
        held = "holds" if outcome["holds"] else "**does not hold here**"
        parts.append(
            plain(f"**{outcome['title']}** ({outcome['source']}). {outcome['claim']} The claim {held}. {outcome['why']}")
        )
        parts.append(markdown(["", "ours"], [[row["label"], row["text"]] for row in outcome["rows"]]))
        for i, curves in enumerate(outcome["curves"]):
            lines = [Line(name, x, y) for name, x, y in curves["lines"]]
            name = f"{result['name']}-{outcome['name']}{i or ''}.svg"
            draw(PICTURES / name, lines, x=curves["x"], y=curves["y"], title=curves["caption"])
            parts.append(f"![{curves['caption']}](pictures/{name})")
    rows = [
        [
            net,
            f"{statistics.fmean(one['ours']):.2f} ± {statistics.stdev(one['ours']):.2f} %",
            f"{statistics.fmean(one['peer']):.2f} ± {statistics.stdev(one['peer']):.2f} %",
            f"{one['difference']:+.2f}",
        ]
        for net, one in result["peer"].items()
    ]
    parts.append("Test error, compared with the architecture and recipe of a widely used re-implementation:")
    parts.append(markdown(["", "ours, `paper-cifar`", "the peer", "difference, points"], rows))
    return "\n\n".join(parts)


def _shrink(result: dict[str, Any]) -> str:
    parts = [
        f"`python -m benchmarks.shrink`: {result['what']}, {seeds_of(result)}. The whole network has {spread_of(result['whole'])} test "
        "error. Time is that of a forward pass, as a share of the whole network's, measured in alternation. Methods that "
        "start from a trained network spend half of the epochs on training it."
    ]
    whole = result["whole"]
    frontiers: dict[str, dict[str, list[tuple[float, float, float]]]] = {"time": {}, "blocks": {}}
    for key, table in result.items():
        if not key.endswith(" blocks"):
            continue
        rows = []
        for recorded, one in sorted(table.items(), key=lambda pair: pair[1]["test_error"]):
            name = METHODS.get(recorded, recorded)
            shapes = sorted({"-".join(map(str, blocks)) for blocks in one["blocks"]})
            rows.append(
                [
                    name,
                    spread_of(one),
                    f"{one['above_whole']:+.2f}",
                    f"{100 * one['time']:.0f} %",
                    ", ".join(shapes),
                    f"{one['training_seconds']} s",
                ]
            )
            for what, x in (("time", 100 * one["time"]), ("blocks", float(key.split()[0]))):
                frontiers[what].setdefault(name, []).append((x, one["test_error"], one["spread"]))
        parts.append(f"To {key} of {sum(whole['blocks'][0])}:")
        parts.append(
            markdown(["", "test error", "above the whole, points", "time", "blocks by stage, for each seed", "training"], rows)
        )
    labels = {"time": "time of a forward pass, % of the whole network's", "blocks": "blocks that remain"}
    for what, full in (("time", 100.0), ("blocks", float(sum(whole["blocks"][0])))):
        lines = {**frontiers[what], "whole network": [(full, whole["test_error"], whole["spread"])]}
        drawn = [Line(name, *map(list, zip(*sorted(points), strict=True))) for name, points in lines.items()]  # type: ignore[arg-type]
        title = f"Test error against the {labels[what]}, mean and standard deviation over the seeds"
        picture = f"{result['name']}{'' if what == 'time' else '-blocks'}.svg"
        draw(PICTURES / picture, drawn, x=labels[what], y="test error, %", title=title)
        parts.append(f"![{title}](pictures/{picture})")
    return "\n\n".join(parts)


def _ghost(result: dict[str, Any]) -> str:
    batches, several = list(next(iter(result["ways"].values()))), result["seeds"] > 1
    rows = []
    for name, by_batch in sorted(result["ways"].items(), key=lambda pair: pair[1]["1"]["time"]):
        cells = [METHODS.get(name, name)]
        for one in by_batch.values():
            low, high = (100 * pick(one["times"]) for pick in (min, max))
            cells += [
                f"{100 * one['time']:.0f} %" + (f" ({low:.0f} to {high:.0f})" if several else ""),
                f"{one['rise']:+.2f}" + (f" ({min(one['rises']):+.2f} to {max(one['rises']):+.2f})" if several else ""),
            ]
        rows.append(cells)
    head = [text for batch in batches for text in (f"time at batch {batch}", "points above the whole")]
    return (
        f"`python -m benchmarks.ghost`: {result['what']}, {seeds_of(result)}. The whole network has "
        f"{result['whole']['test_error']:.2f} % test error. Settings are chosen on the validation split, for each batch "
        "size separately, with a rise of "
        f"at most {result['allowed']:g} points. Time is that of a call, as a share of the whole network's, measured in alternation and "
        f"everything included{'; means and ranges over the seeds' if several else ''}.\n\n"
        + markdown(["", *head], rows)
        + (_ghost_picture(result) if several else "")
        + (_budgets(result["budgets"], result["whole"]["errors"][0]) if "budgets" in result else "")
    )


def _ghost_picture(result: dict[str, Any]) -> str:
    x, y = "time of a call with one input, % of the whole network's", "test error above the whole network's, points"
    title = f"Points of {y[: y.index(',')]}, against the {x}; mean and standard deviation over the seeds"
    lines = [Line("whole network", [100.0], [0.0], joined=False)]
    for name, by_batch in sorted(result["ways"].items(), key=lambda pair: pair[1]["1"]["time"]):
        one = by_batch["1"]
        spread = [statistics.stdev(one["rises"])]
        lines.append(Line(METHODS.get(name, name), [100 * one["time"]], [one["rise"]], spread, joined=False))
    draw(PICTURES / f"{result['name']}.svg", lines, x=x, y=y, title=title)
    return f"\n\n![{title}](pictures/{result['name']}.svg)"


def _budgets(result: dict[str, Any], whole: float) -> str:
    """Table of time budgets for the first seed's network, whose error is ``whole``."""
    rows = []
    for budget in next(iter(result.values())):
        found = [by_budget[budget] for by_budget in result.values()]
        cells = [f"{100 * one['time']:.0f} %, {one['error'] - whole:+.2f}" if one else "refused" for one in found]
        rows.append([f"{float(budget):g}", *cells])
    head = ["budget", *(f"time, points above the whole at batch {batch}" for batch in result)]
    return (
        "\n\nTime budgets, with exits alone (first seed; chosen on the validation split, time and error reported on the test "
        "split):\n\n" + markdown(head, rows)
    )


def _engines(result: dict[str, Any]) -> str:
    turns = sorted({one["n"] for row in result["rows"].values() for one in row["candidates"].values()})
    counts = [str(turns[0]), *([str(turns[-1])] if len(turns) > 1 else [])]
    machines = {json.dumps({**row["machine"], "commit": ""}, sort_keys=True) for row in result["rows"].values()}
    mixed = " Rows were measured on different machines or versions, which the file names." if len(machines) > 1 else ""
    return "\n\n".join(
        [
            f"`python -m benchmarks.engines`: {result['what']}; {' to '.join(counts)} alternating turns a row.{mixed}",
            *(f"{sentence}\n\n{markdown(head, rows)}" for sentence, head, rows in engine_tables(result)),
        ]
    )


TIME_OF_FORWARD = "the time of a forward pass, % of the whole network's"


def _families(result: dict[str, Any]) -> str:
    rows = [
        [METHODS.get(name, name), spread_of(one), f"{one['above_whole']:+.2f}", f"{100 * one['time']:.0f} %"]
        for name, one in sorted(result["ways"].items(), key=lambda pair: pair[1]["test_error"])
    ]
    picture = ""
    if result["seeds"] > 1:
        title = f"Test error against {TIME_OF_FORWARD}, mean and standard deviation over the seeds"
        points = [
            Line(METHODS.get(name, name), [100 * one["time"]], [one["test_error"]], [one["spread"]], joined=False)
            for name, one in sorted(result["ways"].items(), key=lambda pair: pair[1]["test_error"])
        ]
        draw(PICTURES / f"{result['name']}.svg", points, x=TIME_OF_FORWARD, y="test error, %", title=title)
        picture = f"\n\n![{title}](pictures/{result['name']}.svg)"
    return (
        f"`python -m benchmarks.families`: {result['what']} in total for every method; {seeds_of(result)}. {result['blocks'][1]} of "
        f"{result['blocks'][0]} blocks remain. Time is that of a forward pass, as a share of the whole network's, "
        "measured in alternation.\n\n" + markdown(["", "test error", "above the whole, points", "time"], rows) + picture
    )


def _ghosts(result: dict[str, Any]) -> str:
    rows = []
    for one in result["ghosts"]:
        times = [f"{100 * time:.0f} %" for time in one["times"].values()]
        shares = [f"{100 * one['blocks']:.0f} %", f"{100 * one['left']:.0f} %"]
        rows.append([f"{one['error']:.2f} %", f"{one['rise']:+.2f}", *shares, *times])
    head = ["test error of the whole network", "rise, points", "blocks that ran", "exited early"]
    on = (
        f"; settings were chosen on {result['chosen_on']:,} images and confirmed on {result['confirmed_on']:,}"
        if "chosen_on" in result
        else ""
    )
    return (
        f"`python -m benchmarks.families --part ghosts`: {result['what']}; {seeds_of(result)}, one row each. The rise was limited to "
        f"{result['allowed']:g} points on the validation split{on}. Time is that of a call, as a share of the whole network's, measured "
        "in alternation.\n\n" + markdown([*head, *(f"time at batch {batch}" for batch in result["ghosts"][0]["times"])], rows)
    )


def _monitor(result: dict[str, Any]) -> str:
    snapshot, step = (1000 * result[f"{what}_seconds"] for what in ("glance", "step"))
    return (
        f"{result['what'].replace('a glance at', 'a snapshot of').replace('against', 'compared with')}: {result['glance_in_steps']:.2f} "
        f"steps (medians of {result['n']} turns, {snapshot:.0f} ms and {step:.0f} ms). One snapshot per epoch of "
        f"CIFAR-10's 45,000 training images at batch 128 is {result['percent_of_an_epoch']:.2f} % of the epoch."
    )


KINDS = {"avx2": "AVX2", "avx512": "AVX-512", "avx512-bf16": "AVX-512 and bf16", "amx": "AMX", "gpu": "a GPU"}  # of machines
SECTIONS = (
    ("inference-resnet50", "Inference: ResNet-50", _speed),
    ("inference-resnet50-float32", "Inference: ResNet-50, without bf16", _speed),
    ("inference-answers", "Inference: answers that bf16 changes", _answers),
    *((f"engines-{kind}", f"Inference engines side by side, with {words}", _engines) for kind, words in KINDS.items()),
    ("levers", "Shrinking, a ghost and int8 together", levers_text),
    ("training-resnet20-cifar", "Training: CIFAR ResNet-20", _speed),
    ("training-resnet50", "Training: ResNet-50", _speed),
    *(
        (f"training-{net}-{kind}", f"Training end to end with {words}: {title}", _speed)
        for net, title in (
            ("resnet20-cifar", "CIFAR ResNet-20"),
            ("resnet56-cifar", "CIFAR ResNet-56"),
            ("resnet50", "ResNet-50"),
        )
        for kind, words in KINDS.items()
    ),
    ("ablation", "Recipes for few epochs, one ingredient changed at a time", ablation_text),
    ("memory-resnet1202", "Memory: ResNet-1202", _memory),
    ("paper-cifar10-jpeg", "Table 6 and degradation on CIFAR-10 as JPEG", _cifar),
    ("shrink-resnet56-16px", "Inverse Curriculum Training", _shrink),
    ("shrink-resnet56-16px-float32", "Inverse Curriculum Training, the same seeds in float32", _shrink),
    ("shrink-resnet56-8px", "Inverse Curriculum Training, on smaller images", _shrink),
    ("shrink-resnet110-16px", "Inverse Curriculum Training of ResNet-110", _shrink),
    ("shrink-resnet56-32px", "Inverse Curriculum Training on all images, at their own size", _shrink),
    ("shrink-resnet56-32px-gpu", "Inverse Curriculum Training on a GPU", _shrink),
    ("ghost-resnet56-16px", "Ghost Inference", _ghost),
    ("ghost-resnet56-16px-amx", "Ghost Inference, on a CPU with AMX", _ghost),
    ("ghost-resnet56-32px", "Ghost Inference on all images, at their own size", _ghost),
    ("ghost-resnet56-32px-gpu", "Ghost Inference on a GPU", _ghost),
    ("ghost-lite0-96px", "Ghosts of a pretrained network, fine-tuned", pretrained_text),
    ("control", "Ghost Inference: a control whose answer is known", control_text),
    ("families-resnet34", "Inverse Curriculum Training of torchvision's ResNet-34", _families),
    ("families-vit", "Inverse Curriculum Training of a vision Transformer of timm's", _families),
    ("families-gpt2", "Inverse Curriculum Training of a GPT-2 of Hugging Face's", _families),
    ("detection-training", "Training: a detector", _speed),
    ("detection-prediction", "Prediction: a detector", _speed),
    ("detection-bccd", "Detectors in the same training time", detectors_text),
    ("detection-passes", "Detectors that see an image more than once", passes_text),
    ("ghosts-resnet34", "Ghosts of torchvision's ResNet-34", _ghosts),
    ("ghosts-vit", "Ghosts of a vision Transformer of timm's", _ghosts),
    ("language-training", "Language models: a character model of four layers", language_text),
    ("language-throughput", "Language models: throughput of training", language_text),
    ("language-generation", "Language models: generation with a cache", language_text),
    ("language-generation-gpt2", "Language models: generation with a cache, GPT-2", language_text),
    ("language-speculation", "Language models: self-speculative decoding", language_text),
    ("language-shrink", "Language models: a quarter of the parts removed", language_text),
    ("serving", "Serving under load, with and without a ghost", serving_text),
    ("serving-rivals", "Serving, beside LitServe and BentoML", rivals_text),
    ("serving-rivals-efficientnet-lite0", "Serving a small network, beside LitServe and BentoML", rivals_text),
    ("monitor-resnet56", "What `--lens every=1epoch` costs", _monitor),
    ("paper-quick", "The paper's claims, at the quick scale", _paper),
    ("paper-quick-transformer-degradation", "Degradation in Transformers, at the quick scale", _paper),
)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    parts = [
        "# Results",
        "Written by `python -m benchmarks.tell` from the JSON files in [benchmarks/results](../benchmarks/results), which hold more "
        "detail. Ratios are taken turn by turn, so that other load on the machine affects both sides. [speed.md](speed.md) explains "
        "the figures of speed; [log.md](log.md) lists what did not work.",
    ]
    for name, title, tell in SECTIONS:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            parts += [
                f"## {title}",
                tell(result),
                *([note] if (note := NOTES.get(name, result.get("note"))) else []),
                _on(result),
            ]
    PAGE.write_text("\n\n".join(parts) + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
