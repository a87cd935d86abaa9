"""The summary of a ``LookResult`` in sentences. Each gives its figures and claims no more than was measured."""

from __future__ import annotations

import itertools

from deepres.lens.measurements import LookResult, SiteFinding

IDLE_POINTS = 0.1  # change of the error, in points, below which a branch counts as idle
HEALTHY_DECADES = 3.0  # the gradient counts as healthy while strongest / weakest is below 10 to this power


def idle(found: LookResult, limit: float = IDLE_POINTS) -> list[SiteFinding]:
    """Sites whose ablation changes the error by less than ``limit`` points."""
    return [site for site in found.sites if site.ablation is not None and site.ablation.change < limit]


def _ranges(sites: list[SiteFinding]) -> str:
    """``"blocks 3, 14-17"``."""
    runs = []
    for _, group in itertools.groupby(enumerate(s.index for s in sites), lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        runs.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ("site " if len(sites) == 1 else "sites ") + ", ".join(runs)


def summary(found: LookResult) -> list[str]:
    """One sentence or two for each finding, the most useful first, with its threshold and interval."""
    lines = []
    counted = f"{found.answers:,} answers" if found.answers != found.examples else f"{found.examples:,} examples"
    reference = (
        "the labels"
        if found.against == "labels"
        else "the network's own answers, so that an error is the share of changed answers"
    )
    lines.append(f"Measured on {counted}, compared with {reference}: error {found.error:.2f} %.")
    if not found.sites:
        lines.append(
            "No residual sites were found: the network is a plain chain of layers, or its blocks are not known (see register_site). "
            "Only the layers' responses were measured."
        )
        return lines
    if found.against == "labels" and found.error > 90 * (1 - 1 / max(found.classes, 2)):
        lines.append(
            f"This is hardly better than guessing among {found.classes} classes, so the ablations say nothing about the blocks of a "
            "trained network."
        )
    lines += _ablations(found) + _identity(found) + _gradient(found) + _dead(found) + _depth(found)
    return lines


def _ablations(found: LookResult) -> list[str]:
    cut = [site for site in found.sites if site.ablation is not None]
    if not cut:
        return []
    nothing = idle(found)
    sure = [site for site in nothing if site.ablation is not None and site.ablation.high < IDLE_POINTS + 0.5]
    lines = []
    if nothing:
        time = 100 * sum(site.time for site in nothing)
        widest, many = max(site.ablation.high for site in nothing if site.ablation), len(nothing) > 1
        lines.append(
            f"{_ranges(nothing).capitalize()}: {'each alone ' if many else ''}changes the error by less than {IDLE_POINTS:g} points when "
            f"left out (95 % interval{'s reach' if many else ' reaches'} up to {widest:+.2f} points with this many examples"
            + (f"; {len(sure)} of {len(nothing)} stay below {IDLE_POINTS + 0.5:g}" if many and len(sure) < len(nothing) else "")
            + f"). {'Their branches take' if many else 'Its branch takes'} about {time:.0f} % of the time. "
            "Leaving out several of them together can cost more than the sum. "
            "`deepres shrink` removes blocks and lets the network recover; `deepres ghost` skips them where an input does not need them."
        )
    else:
        least = min(cut, key=lambda site: site.ablation.change if site.ablation else 0)
        assert least.ablation is not None
        lines.append(
            f"No branch can be left out for less than {IDLE_POINTS:g} points: leaving out the least needed, site {least.index}, costs "
            f"{least.ablation.change:+.2f} points (95 % interval {least.ablation.low:+.2f} to {least.ablation.high:+.2f})."
        )
    worst = max(cut, key=lambda site: site.ablation.change if site.ablation else 0)
    assert worst.ablation is not None
    if worst.ablation.low > IDLE_POINTS:
        lines.append(
            f"The most needed branch that can be left out is site {worst.index} ({worst.name}): without it the error rises by "
            f"{worst.ablation.change:.2f} points (95 % interval {worst.ablation.low:.2f} to {worst.ablation.high:.2f})."
        )
    opening = [site for site in found.sites if site.reshapes]
    if opening:
        verb = "changes" if len(opening) == 1 else "change"
        lines.append(f"{_ranges(opening).capitalize()} {verb} the signal's shape and cannot be left out.")
    return lines


def _identity(found: LookResult) -> list[str]:
    near = min((s for s in found.sites if not s.reshapes), key=lambda s: s.signal.ratio, default=None)
    far = max((s for s in found.sites if not s.reshapes), key=lambda s: s.signal.ratio, default=None)
    if near is None or far is None:
        return []
    return [
        f"Site {near.index} is nearest to the identity: its branch's output has {near.signal.ratio:.2f} times the norm of its "
        f"shortcut's. Site {far.index} is farthest from it, with {far.signal.ratio:.2f} times."
    ]


def _gradient(found: LookResult) -> list[str]:
    back = [(site, site.gradient) for site in found.sites if site.gradient is not None and site.gradient.total > 0]
    if not back:
        return []
    weakest, strongest = (pick(gradient.total for _, gradient in back) for pick in (min, max))
    healthy = strongest / weakest < 10**HEALTHY_DECADES
    parts = [gradient.shortcut / (gradient.shortcut + gradient.branch) for _, gradient in back]
    lines = [
        f"The gradient {'reaches every site' if healthy else 'does not reach every site evenly'}: the smallest norm is "
        f"{weakest / strongest:.2g} of the largest (above {10**-HEALTHY_DECADES:g} counts as healthy). On average the shortcuts carry "
        f"{100 * sum(parts) / len(parts):.0f} % of it and the branches the rest."
    ]
    if found.paths is not None:
        low, high = found.paths.effective
        lines.append(
            f"Paths through {low} to {high} of the {found.paths.sites} branches carry 90 % of the gradient "
            f"({found.paths.mean:.1f} on average), estimated from {found.paths.repeats} paths of each length."
        )
    return lines


def _dead(found: LookResult) -> list[str]:
    dead = [site for site in found.sites if site.signal.dead]
    if not dead:
        return []
    worst, verb = max(dead, key=lambda site: site.signal.dead or 0), "has" if len(dead) == 1 else "have"
    return [
        f"{_ranges(dead).capitalize()} {verb} channels that are zero for every example of the sample, at most "
        f"{100 * (worst.signal.dead or 0):.0f} % of them (site {worst.index})."
    ]


def _depth(found: LookResult) -> list[str]:
    if found.probes is None:
        return []
    reached = [first for first in found.probes.first if first]
    if not reached:
        return []
    half = sorted(reached)[len(reached) // 2]
    return [
        f"Half of the examples that any linear probe classifies correctly are classified correctly at site {half} of "
        f"{len(found.sites)} or before; "
        f"{100 * (1 - len(reached) / len(found.probes.first)):.1f} % are classified correctly at no site. The probes were fitted to "
        f"{found.probes.fitted} examples and tested on {len(found.probes.first)} others."
    ]
