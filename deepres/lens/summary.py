"""The verdict: what a look came to, in plain summary with figures, and never more than was measured."""

from __future__ import annotations

import itertools

from deepres.lens.look import Look, SiteFinding

POINT = 0.1  # change of error, in points, up to which a branch counts as doing nothing measurable
FAR = 3.0  # a gradient counts as healthy while the weakest is within a factor of 10 to the FAR of the strongest


def idle(found: Look, limit: float = POINT) -> list[SiteFinding]:
    """Sites whose lesion changes the error by less than ``limit`` points, by the whole of its 95 % interval if that is that
    narrow, and else by its middle."""
    return [site for site in found.sites if site.lesion is not None and site.lesion.change < limit]


def _ranges(sites: list[SiteFinding]) -> str:
    """``"blocks 3, 14-17"``."""
    runs = []
    for _, group in itertools.groupby(enumerate(s.index for s in sites), lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        runs.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ("site " if len(sites) == 1 else "sites ") + ", ".join(runs)


def summary(found: Look) -> list[str]:
    """One sentence a finding, most useful first. Each says its threshold and how sure it is."""
    said = []
    counted = f"{found.answers:,} answers" if found.answers != found.examples else f"{found.examples:,} examples"
    held = "the labels" if found.against == "labels" else "the network's own answers, so an error is a share of changed answers"
    said.append(f"Measured on {counted}, held to {held}: error {found.error:.2f} %.")
    if not found.sites:
        said.append(
            "No residual sites were found, so this is a plain chain of layers (or its blocks are not known: see "
            "register_site); only its layers' responses are shown."
        )
        return said
    if found.against == "labels" and found.error > 90 * (1 - 1 / max(found.classes, 2)):
        said.append(
            f"That is hardly better than guessing among {found.classes}, so what lesions change says nothing about what training "
            "would make of these blocks."
        )
    said += _lesions(found) + _identity(found) + _gradient(found) + _dead(found) + _depth(found)
    return said


def _lesions(found: Look) -> list[str]:
    cut = [site for site in found.sites if site.lesion is not None]
    if not cut:
        return []
    nothing = idle(found)
    sure = [site for site in nothing if site.lesion is not None and site.lesion.high < POINT + 0.5]
    said = []
    if nothing:
        time = 100 * sum(site.time for site in nothing)
        widest, many = max(site.lesion.high for site in nothing if site.lesion), len(nothing) > 1
        said.append(
            f"{_ranges(nothing).capitalize()}: {'each alone ' if many else ''}changes the error by less than {POINT:g} points when left "
            f"out (95 % interval{'s reach' if many else ' reaches'} up to {widest:+.2f} points with this many examples"
            + (f"; {len(sure)} of {len(nothing)} stay below {POINT + 0.5:g}" if many and len(sure) < len(nothing) else "")
            + f"). {'Their branches take' if many else 'Its branch takes'} about {time:.0f} % of the time. "
            "Leaving out several together can cost more than the sum: "
            "`deepres shrink` takes them out for good and lets the network recover, `deepres ghost` passes through them by input."
        )
    else:
        least = min(cut, key=lambda site: site.lesion.change if site.lesion else 0)
        assert least.lesion is not None
        said.append(
            f"No branch can be left out for less than {POINT:g} points: the least needed, site {least.index}, costs "
            f"{least.lesion.change:+.2f} points (95 % interval {least.lesion.low:+.2f} to {least.lesion.high:+.2f})."
        )
    worst = max(cut, key=lambda site: site.lesion.change if site.lesion else 0)
    assert worst.lesion is not None
    if worst.lesion.low > POINT:
        said.append(
            f"The most needed branch that can be left out is site {worst.index} ({worst.name}): without it the error rises by "
            f"{worst.lesion.change:.2f} points (95 % interval {worst.lesion.low:.2f} to {worst.lesion.high:.2f})."
        )
    opening = [site for site in found.sites if site.reshapes]
    if opening:
        said.append(
            f"{_ranges(opening).capitalize()} change the signal's shape and cannot be left out, so they have no lesion."
        )
    return said


def _identity(found: Look) -> list[str]:
    near = min((s for s in found.sites if not s.reshapes), key=lambda s: s.signal.ratio, default=None)
    far = max((s for s in found.sites if not s.reshapes), key=lambda s: s.signal.ratio, default=None)
    if near is None or far is None:
        return []
    return [
        f"Nearest to the identity is site {near.index}, whose branch adds {near.signal.ratio:.2f} times the size of its "
        f"shortcut; farthest is site {far.index} with {far.signal.ratio:.2f} times."
    ]


def _gradient(found: Look) -> list[str]:
    back = [(site, site.gradient) for site in found.sites if site.gradient is not None and site.gradient.total > 0]
    if not back:
        return []
    weakest, strongest = (pick(gradient.total for _, gradient in back) for pick in (min, max))
    healthy = strongest / weakest < 10**FAR
    parts = [gradient.shortcut / (gradient.shortcut + gradient.branch) for _, gradient in back]
    said = [
        f"The gradient {'reaches every site' if healthy else 'does not reach every site evenly'}: the weakest is "
        f"{weakest / strongest:.2g} of the strongest (called healthy above {10**-FAR:g}). On average "
        f"{100 * sum(parts) / len(parts):.0f} % of its size comes by the shortcuts and the rest through the branches."
    ]
    if found.paths is not None:
        low, high = found.paths.effective
        said.append(
            f"90 % of the gradient comes by paths through {low} to {high} of the {found.paths.sites} branches "
            f"({found.paths.mean:.1f} on average), sampled with {found.paths.repeats} paths a length."
        )
    return said


def _dead(found: Look) -> list[str]:
    dead = [site for site in found.sites if site.signal.dead]
    if not dead:
        return []
    worst = max(dead, key=lambda site: site.signal.dead or 0)
    return [
        f"{_ranges(dead).capitalize()} have channels that are zero for every example of the sample, at most "
        f"{100 * (worst.signal.dead or 0):.0f} % of them (site {worst.index})."
    ]


def _depth(found: Look) -> list[str]:
    if found.probes is None:
        return []
    reached = [first for first in found.probes.first if first]
    if not reached:
        return []
    half = sorted(reached)[len(reached) // 2]
    return [
        f"A linear probe gets half of the examples that any probe gets right by site {half} of {len(found.sites)}; "
        f"{100 * (1 - len(reached) / len(found.probes.first)):.1f} % are right at none. Probes were fitted to "
        f"{found.probes.fitted} examples and asked about {len(found.probes.first)} others."
    ]
