"""The parts of the page of ``deepres look`` that only language models have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from deepres.lens.layer_predictions import LogitLens
from deepres.lens.measurements import LookResult, SiteFinding
from deepres.report import Page, charts
from deepres.report.page import Shade

COLUMNS = 16  # tokens in the table of predictions
PARTS = ("attention", "mlp")


def add_parts(page: Page, looks: Sequence[LookResult]) -> None:
    """Add a figure of attention and MLP side by side; nothing for networks whose sites are neither."""
    series: dict[str, list[charts.Series]] = {"ratio": [], "ablation": []}
    for found in looks:
        prefix = f"{found.name}: " if len(looks) > 1 else ""
        for part in PARTS:
            mine = [(layer, site) for layer, site in _layers(found.sites) if site.kind == part]
            if not mine:
                continue
            x = [layer for layer, _ in mine]
            series["ratio"].append(
                charts.Series(prefix + part, x, [site.signal.ratio for _, site in mine], mode="lines+markers")
            )
            changes = [site.ablation.change if site.ablation else None for _, site in mine]
            if any(change is not None for change in changes):
                series["ablation"].append(charts.Series(prefix + part, x, changes, mode="lines+markers"))
    if not series["ratio"]:
        return
    page.heading("Attention and MLP")
    panels = [charts.Panel(charts.Axis("layer"), charts.Axis("|f(x)| / |x|", log=True), series["ratio"], "size of the branch")]
    if series["ablation"]:
        panels.append(charts.Panel(charts.Axis("layer"), charts.Axis("points"), series["ablation"], "error without the branch"))
    page.figure(
        charts.lines(*panels),
        "The left panel shows how large the output of each attention and each MLP is against its shortcut: near 0, the part is nearly the "
        "identity. The right panel shows how the share of wrong next tokens changes when the part alone is left out.",
    )


def _layers(found: Sequence[SiteFinding]) -> list[tuple[int, SiteFinding]]:
    """Sites with the number of their layer: one begins with each attention, and behind an MLP."""
    numbered, layer = [], 1
    for before, site in pairwise([None, *found]):
        if before is not None and site is not None and (site.kind == "attention" or before.kind == site.kind):
            layer += 1
        if site is not None:
            numbered.append((layer, site))
    return numbered


def add_logit_lens(page: Page, lens: LogitLens) -> None:
    """Add the text coloured by the layer at which each answer is settled, and the predictions layer by layer."""
    depth = max(1, len(lens.layers) - 1)
    page.heading("Where the next token is settled")
    page.shaded(
        [
            (
                "",
                [
                    Shade(_visible(token), settled / depth, _hint(lens, i))
                    for i, (token, settled) in enumerate(zip(lens.text, lens.settled, strict=True))
                ],
            )
        ],
        "Each token is coloured by how much of the depth passes until the likeliest token behind it is the final one. Hovering shows "
        f"it. The average token needs {100 * lens.mean_depth:.0f} % of the sites.",
        "settled at the input",
        "settled at the last site",
        flow=True,
    )
    page.heading("Next-token predictions, layer by layer")
    first = max(0, min(len(lens.text) - COLUMNS, len(lens.text) // 2))
    columns = range(first, min(len(lens.text), first + COLUMNS))
    rows = [("text", [Shade(_visible(lens.text[i]), 0.0, "") for i in columns])]
    for number in reversed(range(len(lens.layers))):
        name = (
            lens.layers[number] if lens.kinds[number] in lens.layers[number] else f"{lens.layers[number]} {lens.kinds[number]}"
        )
        shown = [lens.predictions[number][i] for i in columns]
        rows.append((name, [Shade(_visible(one.token), one.probability, f"{one.probability:.0%}") for one in shown]))
    page.shaded(
        rows,
        "Each row reads the signal behind one site, the last one at the top, by the network's final norm and classifier: the token that "
        "it makes likeliest behind the text up to the column's token. The colour is the probability of that token.",
        "0 %",
        "100 %",
    )


def _visible(token: str) -> str:
    return token.replace("\n", "\u21b5").replace(" ", "\u2423") if token.strip() == "" else token.replace("\n", "\u21b5")


def _hint(lens: LogitLens, i: int) -> str:
    answer = lens.predictions[-1][i]
    where = lens.layers[lens.settled[i]]
    real = f"; the text goes on with {lens.next[i]!r}" if lens.next[i] else ""
    return f"likeliest next: {answer.token!r} ({answer.probability:.0%}), settled at {where}{real}"
