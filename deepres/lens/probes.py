"""Linear probes: the site from which on an example is classified correctly (Alain and Bengio 2016).

A probe is a ridge regression of the one-hot classes on the pooled output of a site. Its normal equations are summed during the
forward pass, so no features are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import Observation, Site, logits_of, spec_of
from deepres.adapters.spec import Layout
from deepres.lens.sample import Sample
from deepres.lens.signals import channel_axis

FEATURES = 256  # wider outputs are projected at random to this many, which bounds the memory and the time
RIDGE = 1e-3  # of the mean variance of a feature


@dataclass(frozen=True)
class Probes:
    """Results of the probes. Sites are counted from 1; 0 stands for an example that no probe gets right."""

    error: tuple[float, ...]  # of each site's probe on the examples that it was not fitted to, %
    first: tuple[int, ...]  # for each of those examples, the earliest site whose probe is right
    final: tuple[int, ...]  # the earliest site from which on all probes are right
    labels: tuple[int, ...]
    examples: tuple[int, ...]  # their positions in the sample
    fitted: int  # examples that the probes were fitted to

    def by_class(self) -> dict[int, float]:
        """Mean of ``first`` over the examples of a class that some probe gets right."""
        sums: dict[int, list[int]] = {}
        for label, site in zip(self.labels, self.first, strict=True):
            if site:
                sums.setdefault(label, []).append(site)
        return {label: sum(values) / len(values) for label, values in sorted(sums.items())}

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Positions in the sample of the ``count`` examples with the smallest and with the largest ``final``; 0 is the largest."""
        late = [s or len(self.error) + 1 for s in self.final]
        order = sorted(range(len(late)), key=lambda i: (late[i], self.first[i]))
        return [self.examples[i] for i in order[:count]], [self.examples[i] for i in reversed(order[-count:])]


def _pooled(out: Tensor, layout: Layout, project: Tensor | None) -> Tensor:
    """(N, C, H, W), (N, H, W, C), (N, L, C) or (N, C) -> (N, C), the mean over places; then (N, features) by projection."""
    features = out.detach().float().movedim(channel_axis(out, layout), 1)
    features = features.flatten(2).mean(2) if features.ndim > 2 else features
    return features if project is None else features @ project


class _Probe:
    """Normal equations of one site's ridge regression."""

    def __init__(self, classes: int, layout: Layout) -> None:
        self.classes, self.layout = classes, layout
        self.project: Tensor | None = None
        self.gram: Tensor | None = None
        self.weights: Tensor | None = None

    def fit(self, out: Tensor, labels: Tensor) -> None:
        if self.gram is None:
            width = _pooled(out[:1], self.layout, None).shape[1]
            if width > FEATURES:
                generator = torch.Generator().manual_seed(0)
                self.project = (torch.randn(width, FEATURES, generator=generator) / math.sqrt(width)).to(out.device)
            size = min(width, FEATURES) + 1
            self.gram = torch.zeros(size, size, dtype=torch.float64, device=out.device)
            self.target = torch.zeros(size, self.classes, dtype=torch.float64, device=out.device)
        x = _pooled(out, self.layout, self.project).double()
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.gram += x.T @ x
        self.target.index_add_(1, labels, x.T)

    def solve(self) -> None:
        assert self.gram is not None
        gram, n = self.gram.clone(), self.gram[-1, -1]
        features = gram.diagonal()[:-1]
        features += RIDGE * features.mean().clamp(min=1e-12) + 1e-9 * n
        self.weights = torch.linalg.solve(gram, self.target)

    def answer(self, out: Tensor) -> Tensor:
        assert self.weights is not None
        x = _pooled(out, self.layout, self.project).double()
        return (x @ self.weights[:-1] + self.weights[-1]).argmax(1)


@torch.no_grad()
def probes(model: nn.Module, sites: Sequence[Site], sample: Sample, classes: int) -> Probes | None:
    """Fit a probe behind each site on every other example, and ask it about the rest. Two passes over the sample.

    None for language models and where there are fewer than two examples a class to fit to.
    """
    fitted = (len(sample) + 1) // 2
    if not sites or any(y.ndim != 1 for y in sample.labels) or fitted < 2 * classes:
        return None
    layout = spec_of(model).layout
    ready = [_Probe(classes, layout) for _ in sites]
    labels, first = sample.labels[0], 0  # of the batch under way, and its first example that the probes are fitted to, 0 or 1
    right: list[list[Tensor]] = [[] for _ in sites]

    def fit(i: int, seen: Observation) -> None:
        ready[i].fit(seen.out[first::2], labels[first::2])

    def ask(i: int, seen: Observation) -> None:
        right[i].append((ready[i].answer(seen.out[1 - first :: 2]) == labels[1 - first :: 2]).cpu())

    for see in (fit, ask):
        with ExitStack() as stack:
            for i, site in enumerate(sites):
                stack.enter_context(site.observe(lambda seen, i=i, see=see: see(i, seen)))  # type: ignore[misc]
            first = 0
            for x, y in sample.pairs():
                labels = y
                logits_of(model, x)
                first = (first + len(x)) % 2
        if see is fit:
            for probe in ready:
                probe.solve()
    table = torch.stack([torch.cat(rows) for rows in right])  # (sites, examples)
    wrong_after = (~table).flip(0).cumsum(0).flip(0)  # wrong answers from a site on
    earliest = torch.where(table.any(0), table.int().argmax(0) + 1, 0)
    final = torch.where(table[-1], (wrong_after == 0).int().argmax(0) + 1, 0)
    return Probes(
        tuple((100 * (1 - table.float().mean(1))).tolist()),
        tuple(earliest.tolist()),
        tuple(final.tolist()),
        tuple(torch.cat(sample.labels)[1::2].tolist()),
        tuple(range(1, len(sample), 2)),
        fitted=fitted,
    )
