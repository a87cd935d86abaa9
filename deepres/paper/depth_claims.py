"""Claims about depth, and about too much depth (He et al. 2015, Table 6; Huang et al. 2016)."""

from __future__ import annotations

import statistics

from deepres.paper.experiment import MARGIN, Experiment, claim, clearly_less, error_row, train_all
from deepres.paper.lab import Lab, Outcome, Row


@claim("table6", "Deeper residual networks are better", "He et al. 2015, Table 6", 9.0, "cifar")
def table6_claim(lab: Lab, me: Experiment) -> Outcome:
    published: dict[int, float | str] = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: "6.43 (6.61 ± 0.16)", 1202: 7.93}
    rows, errors = [], {}
    for depth in lab.scale.table:
        runs = train_all(lab, f"resnet{depth}-cifar")
        errors[depth] = [run.test_error for run in runs]
        rows.append(error_row(f"resnet-{depth}, test error", runs, published.get(depth)))
    for depth in (d for d in lab.scale.table if d <= 110):
        rows.append(
            error_row(
                f"plain-{depth}, test error", train_all(lab, f"plain{depth}-cifar"), "above 60 %" if depth == 110 else None
            )
        )
    first, deepest = lab.scale.table[0], max(d for d in lab.scale.table if d <= 110)
    holds = clearly_less(errors[deepest], errors[first])
    if holds:
        reason = ""
    elif clearly_less(errors[first], errors[deepest]):
        reason = " The schedule is too short for the deeper network to converge."
    else:
        reason = (
            " The difference is within the spread of the seeds: on easy data and with a short schedule, depth improves little."
        )
    before, after = (statistics.fmean(errors[depth]) for depth in (first, deepest))
    return me.outcome(
        lab,
        "Residual networks get better with depth, up to 110 layers.",
        holds,
        f"From {first} to {deepest} layers the test error goes from {before:.2f} to {after:.2f} %.{reason}",
        rows,
    )


@claim(
    "overdepth", "Too much depth overfits, and regularisation helps", "He et al. 2015, Table 6; Huang et al. 2016", 9.0, "cifar"
)
def overdepth_claim(lab: Lab, me: Experiment) -> Outcome:
    deep, deeper = lab.scale.deepest
    ways: dict[str, tuple[int, dict[str, float]]] = {
        f"resnet-{deep}": (deep, {}),
        f"resnet-{deeper}": (deeper, {}),
        f"resnet-{deeper}, dropout 0.5": (deeper, {"dropout": 0.5}),
        f"resnet-{deeper}, stochastic depth 0.5": (deeper, {"survival": 0.5}),
    }
    published: dict[tuple[int, str], float | str] = {
        (1202, ""): 7.93,
        (1202, "survival"): "4.91 (Huang et al.)",
        (110, ""): "6.43 (6.61 ± 0.16)",
    }
    rows, errors = [], {}
    for name, (depth, options) in ways.items():
        runs = train_all(lab, f"resnet{depth}-cifar", label="".join(options), **options)
        train, test = ([lab.error(run.model, split) for run in runs] for split in ("train", "test"))
        errors[name] = (train, test)
        rows += [
            Row(f"{name}, training error at the end", tuple(train)),
            Row(f"{name}, test error at the end", tuple(test), paper=published.get((depth, "".join(options)))),
        ]
    low = {name: statistics.fmean(left) for name, (left, _) in errors.items()}
    high = {name: statistics.fmean(right) for name, (_, right) in errors.items()}
    gap = {name: high[name] - low[name] for name in ways}
    shallow, bare, dropped, stochastic = ways
    answered = min(high[dropped], high[stochastic]) < high[bare]
    return me.outcome(
        lab,
        f"{deeper} layers train as well as {deep} and generalise worse; dropout or stochastic depth narrows the gap.",
        low[bare] <= low[shallow] + MARGIN and gap[bare] > gap[shallow] and answered,
        f"Gap between test and training error: {gap[shallow]:.2f} points at {deep} layers, {gap[bare]:.2f} at {deeper}, "
        f"{gap[dropped]:.2f} with dropout and {gap[stochastic]:.2f} with stochastic depth; test errors {high[shallow]:.2f}, "
        f"{high[bare]:.2f}, {high[dropped]:.2f} and {high[stochastic]:.2f} %.",
        rows,
        likely="In a short run the deeper network has not reached the shallower one's training error, so there is no overfitting to "
        "reduce, and dropping features or blocks slows its training further.",
    )
