"""The page that ``deepres look`` writes: one network, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deepres.lens import figures
from deepres.lens.language_page import add_logit_lens, add_parts
from deepres.lens.layer_predictions import LogitLens
from deepres.lens.measurements import LookResult, SiteFinding
from deepres.lens.monitor import Snapshot
from deepres.lens.probes import Probes
from deepres.lens.sentences import summary
from deepres.lens.signals import EDGES
from deepres.report import Page, Table, data_uri

_CLASSES_SHOWN = 40  # of the table of classes
EXAMPLES_SHOWN = 10  # images in a row

MEASURES: tuple[dict[str, Any], ...] = (
    {"key": "ratio", "label": "size of the branch, |f(x)| / |x|", "unit": "", "log": True},
    {"key": "ablation", "label": "change of error without the branch", "unit": " points", "log": False},
    {"key": "by_shortcut", "label": "gradient through the shortcut", "unit": " %", "log": False},
    {"key": "gradient", "label": "gradient norm", "unit": "", "log": True},
    {"key": "cosine", "label": "cosine between input and output", "unit": "", "log": False},
    {"key": "time", "label": "share of the time", "unit": " %", "log": False},
    {"key": "probe", "label": "error of a linear probe", "unit": " %", "log": False},
    {"key": "dead", "label": "dead channels", "unit": " %", "log": False},
)


def look_page(
    looks: Sequence[LookResult],
    *,
    data: str,
    footer: str = "",
    classes: Sequence[Sequence[str]] = (),
    pixels: Callable[[int], Any] | None = None,
    snapshots: Sequence[Snapshot] = (),
    logits: Sequence[LogitLens] = (),
) -> Page:
    """Build the page. ``classes``: for each network the names of its labels, which networks may have in different orders;
    ``pixels``: the bytes of the sample's i-th image; ``snapshots``: from training the first network; ``logits``: of language models, one
    a network."""
    names = " and ".join(found.name for found in looks)
    built = Page(f"What the depth of {names} does", f"Measured on {data}.", footer)
    for found in looks:
        if len(looks) > 1:
            built.heading(found.name)
        built.summary(summary(found))
        if found.sites:
            _chain(built, found)
    shown = [found for found in looks if found.sites]
    if any(site.ablation for found in shown for site in found.sites):
        _ablations(built, shown)
    if shown:
        _signals_and_gradients(built, shown)
    if logits:
        add_parts(built, shown)
    for lens in logits:
        add_logit_lens(built, lens)
    built.heading("Layer responses")
    built.figure(
        figures.layer_responses(looks),
        "The curve shows the standard deviation of each layer's output, behind its batch norm and before the activation "
        "(He et al. 2015, Fig. 7).",
    )
    named = zip(looks, classes or [()] * len(looks), strict=True)
    _depth(built, [(found, found.probes, names) for found, names in named if found.probes is not None], pixels)
    if snapshots:
        built.heading("Sites during training")
        built.figure(
            figures.over_training(snapshots),
            "The maps show each site at each snapshot: the size of its branch relative to its shortcut, and the norm of the loss's "
            "gradient at its input. The site nearest to the input is at the bottom.",
        )
    return built


def _ablations(built: Page, looks: Sequence[LookResult]) -> None:
    built.heading("Error without a branch")
    built.figure(
        figures.single_ablations(looks),
        "Each point shows how the error changes when one branch is left out and its shortcut stays. The bars are 95 % intervals "
        "from paired answers on the same examples. Sites that change the signal's shape cannot be left out.",
    )
    if any(found.deletions for found in looks):
        built.figure(
            figures.several_ablations(looks),
            "The left panel shows the error when several random branches are left out (bars: standard deviation over the draws), "
            "and when random pairs of blocks exchange places (Veit et al. 2016, Fig. 5). In the right panel each point is a pair of "
            "branches. Above the diagonal, leaving out both costs more than the sum: one makes up for the other's absence.",
        )


def _signals_and_gradients(built: Page, looks: Sequence[LookResult]) -> None:
    built.heading("Distance from the identity")
    built.figure(
        figures.by_site(looks, "|f(x)| / |x|", lambda _, site: site.signal.ratio, log=True),
        "The curve shows the size of each branch's output relative to its shortcut's, averaged over the examples. A site at 0 is "
        "the identity.",
    )
    if any(site.gradient for found in looks for site in found.sites):
        built.heading("Gradient through the shortcuts")
        built.figure(
            figures.by_site(looks, "share through the shortcut, %", lambda _, site: through_shortcut(site)),
            "The gradient at a site's input is the sum of a part that comes through the shortcut (the +1 in He et al. 2016, eq. 5) "
            "and a part that comes through the branch. The curve shows the shortcut's share of the two norms.",
        )
    if any(found.paths for found in looks):
        built.figure(
            figures.path_lengths_figure(looks),
            "A network of n sites has 2^n paths. The left panel shows the mean norm of the gradient that reaches the input by one "
            "path, against the number of branches on it. The right panel multiplies it by the number of such paths "
            "(Veit et al. 2016, Fig. 6).",
        )


def through_shortcut(site: SiteFinding) -> float | None:
    """The shortcut's share of the two parts' norms, %."""
    back = site.gradient
    parts = back.shortcut + back.branch if back else 0.0
    return 100 * back.shortcut / parts if back and parts else None


def _chain(built: Page, found: LookResult) -> None:
    values = [_values(found, site) for site in found.sites]
    measures = [measure for measure in MEASURES if any(row[measure["key"]] is not None for row in values)]
    sites = [
        {
            "index": site.index,
            "name": site.name,
            "kind": site.kind,
            "stage": site.stage,
            "opens": site.reshapes,
            "values": row,
            "details": _details(found, site),
            "histogram": list(site.signal.histogram),
            "ablation": {k: getattr(site.ablation, k) for k in ("change", "low", "high")} if site.ablation else None,
        }
        for site, row in zip(found.sites, values, strict=True)
    ]
    built.chain(found.name, measures, sites, EDGES)


def _values(found: LookResult, site: SiteFinding) -> dict[str, float | None]:
    return {
        "ratio": site.signal.ratio,
        "ablation": site.ablation.change if site.ablation else None,
        "by_shortcut": through_shortcut(site),
        "gradient": site.gradient.total if site.gradient else None,
        "cosine": site.signal.cosine,
        "time": 100 * site.time,
        "probe": found.probes.error[site.index - 1] if found.probes else None,
        "dead": 100 * site.signal.dead if site.signal.dead is not None else None,
    }


def _details(found: LookResult, site: SiteFinding) -> list[list[str]]:
    signal, back, ablation = site.signal, site.gradient, site.ablation
    rows = [
        ["|f(x)| / |x|", f"{signal.ratio:.3g} (80 % of examples: {signal.spread[0]:.3g} to {signal.spread[1]:.3g})"],
        ["cosine, input and output", f"{signal.cosine:.3f}" if signal.cosine is not None else "undefined: the shape changes"],
        ["output, mean and deviation", f"{signal.mean:.3g}, {signal.variance**0.5:.3g}"],
    ]
    if signal.inactive is not None and signal.dead is not None:
        rows.append(["values at zero, dead channels", f"{100 * signal.inactive:.1f} %, {100 * signal.dead:.1f} %"])
    if back:
        rows.append(["gradient norm", f"{back.total:.2g}"])
        rows.append(["through shortcut, through branch", f"{back.shortcut:.2g}, {back.branch:.2g}"])
    if ablation:
        rows.append(["error without the branch", f"{ablation.error:.2f} %"])
        rows.append(["change of error", f"{ablation.change:+.2f} points ({ablation.low:+.2f} to {ablation.high:+.2f})"])
    elif site.reshapes:
        rows.append(["error without the branch", "undefined: the shape changes"])
    if found.probes:
        rows.append(["error of a linear probe", f"{found.probes.error[site.index - 1]:.1f} %"])
    rows.append(["weights, share of the time", f"{site.params:,}, {100 * site.time:.1f} %"])
    return rows


def _depth(built: Page, looks: Sequence[tuple[LookResult, Probes, Sequence[str]]], pixels: Callable[[int], Any] | None) -> None:
    if not looks:
        return
    built.heading("Depth that examples need")
    built.figure(
        figures.by_site(
            [found for found, _, _ in looks],
            "error of the probe, %",
            lambda found, site: found.probes.error[site.index - 1] if found.probes is not None else None,
        ),
        "The curve shows the error of a linear probe on the pooled output of each site (Alain and Bengio 2016).",
    )
    for found, probes, classes in looks:
        whose = f" ({found.name})" if len(looks) > 1 else ""
        by_class = sorted(probes.by_class().items(), key=lambda pair: pair[1])
        if len(by_class) <= _CLASSES_SHOWN:
            rows = [[_class_name(classes, label), f"{site:.1f}"] for label, site in by_class]
            built.table(Table(f"Earliest site whose probe is right, mean by class{whose}", ["class", "site"], rows))
        if pixels is not None:
            _examples(built, probes, classes, pixels, whose)


def _examples(built: Page, probes: Probes, classes: Sequence[str], pixels: Callable[[int], Any], whose: str) -> None:
    label = dict(zip(probes.examples, probes.labels, strict=True))
    final = dict(zip(probes.examples, probes.final, strict=True))
    early, late = probes.extremes(EXAMPLES_SHOWN)
    for text, positions in (("are classified at the earliest sites", early), ("need the most depth", late)):
        built.text(f"These examples {text}{whose}: all probes from the given site on are right.")
        built.gallery(
            [
                (data_uri(pixels(i)), f"{_class_name(classes, label[i])}, " + (f"site {final[i]}" if final[i] else "none"))
                for i in positions
            ]
        )


def _class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)
