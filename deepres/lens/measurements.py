"""``look``: all measurements of the lens in one call, as plain dataclasses."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepres.adapters import Site, kept_modes, sites, uncompiled, unwrapped
from deepres.deprecation import renamed
from deepres.errors import DeepresError
from deepres.evaluation import branch_times
from deepres.lens.ablations import Ablation, Deletion, bypassed, deletions, pairs_to_try
from deepres.lens.gradient_split import Gradient, gradients, unfrozen
from deepres.lens.layers import Response, responses
from deepres.lens.options import LookOptions
from deepres.lens.paths import Paths, path_lengths
from deepres.lens.probes import Probes, probes
from deepres.lens.sample import Sample
from deepres.lens.signals import Signal, signals

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SiteFinding:
    """Measurements at one site."""

    index: int  # counted from 1
    name: str
    kind: str  # the block's class, or the part of it
    stage: int  # counted from 1; a site that reshapes the signal opens one
    reshapes: bool
    params: int  # in the branch
    time: float  # share of a forward pass that the branch takes
    signal: Signal
    gradient: Gradient | None
    ablation: Ablation | None  # None without ablations, and for a site that cannot be left out


@dataclass(frozen=True)
class LookResult:
    """Result of ``look``: the measurements of one network on a sample of examples."""

    name: str
    examples: int
    answers: int  # examples, or tokens of a language model
    classes: int  # that occur among the labels, or tokens
    against: str  # reference of the answers: "labels", or "itself" (an error is then the share of changed answers)
    error: float  # of the whole network on the sample, %
    sites: tuple[SiteFinding, ...]
    layers: tuple[Response, ...]
    pairs: tuple[Ablation, ...]
    deletions: tuple[Deletion, ...]
    paths: Paths | None
    probes: Probes | None
    seconds: float

    def frame(self) -> pandas.DataFrame:
        """One row a site. Raises ``DeepresError`` without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise DeepresError("LookResult.frame() needs pandas, which is not installed; install deepres[pandas]") from error
        rows = []
        for site in self.sites:
            row: dict[str, Any] = {k: v for k, v in vars(site).items() if k not in ("signal", "gradient", "ablation")}
            row |= {k: v for k, v in vars(site.signal).items() if k != "histogram"}
            row["spread_low"], row["spread_high"] = row.pop("spread")
            row |= {f"gradient_{k}": v for k, v in vars(site.gradient).items()} if site.gradient else {}
            row |= {f"ablation_{k}": v for k, v in vars(site.ablation).items() if k != "what"} if site.ablation else {}
            if self.probes:
                row["probe_error"] = self.probes.error[site.index - 1]
            rows.append(row)
        return pandas.DataFrame(rows).set_index("index") if rows else pandas.DataFrame()

    def to_dict(self) -> dict[str, Any]:
        """All measurements as values that JSON takes. Sites also have ``lesion``, the old name of ``ablation``."""
        plain = asdict(self)
        for site in plain["sites"]:
            site["lesion"] = site["ablation"]
        return plain


@renamed(lesions="ablations", watch="progress")
def look(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    name: str = "",
    ablations: bool = LookOptions.ablations,
    pairs: int = LookOptions.pairs,
    backward: int = LookOptions.backward,
    device: torch.device | str | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> LookResult:
    """Measure the effect of each part of the depth of ``model``.

    >>> found = lens.look(model, [(images, labels)])
    >>> found.frame().sort_values("ablation_change")[["name", "ratio", "ablation_change", "time"]]

    ``batches``: pairs (inputs, labels), or inputs alone, which are compared with the network's own answers. They are kept in
    memory and passed through the network many times; some hundreds to a few thousand examples are suitable. ``ablations``: also
    leave out each branch in turn, one pass over the sample each; ``pairs``: the number of pairs of branches to leave out; above
    0 several branches are also left out, and blocks exchanged, at random. ``backward``: the number of examples for the gradients
    and paths. ``progress`` is called with the measurement that begins and the share that is done.

    ``lesions`` and ``watch`` are the old names of ``ablations`` and ``progress``.

    The model is left unchanged. For one without sites only the layers' responses are measured. A compiled model is measured
    eagerly, since its compiled code ignores hooks.

    Raises ``DeepresError`` without examples, for labels that do not fit, and for outputs that are not logits.
    """
    if backward < 1:
        raise DeepresError(f"backward is the number of examples for the gradients and at least 1, not {backward}")
    began = time.perf_counter()
    model = unwrapped(model)
    if device is not None:
        model = model.to(device)
    home = next(model.parameters()).device
    with kept_modes(model), uncompiled(model), unfrozen(model):
        model.eval()
        sample = Sample.take(model, _moved(batches, home))
        found = sites(model)
        few = sample.first(backward)
        removable = [site for site in found if not site.reshapes]
        tries = pairs_to_try(len(removable), pairs) if ablations and pairs else []
        steps = _Steps(progress, 6 + (len(removable) if ablations else 0) + len(tries))
        whole = sample.right(model)
        findings = _site_findings(model, found, sample, few, steps)
        steps.next("paths")
        paths = path_lengths(model, found, few.first(16)) if found else None
        steps.next("responses")
        layers = responses(model, few)
        steps.next("probes")
        classes = 1 + max(int(y.max()) for y in sample.labels)
        probed = probes(model, found, sample, classes)
        single = _single_ablations(model, removable, sample, whole, steps) if ablations else {}
        double = []
        for a, b in tries:
            steps.next("ablation of pairs")
            double.append(bypassed(model, sample, whole, [removable[a], removable[b]]))
        steps.next("ablation of several")
        several = deletions(model, found, sample) if ablations and pairs else []
    return LookResult(
        name=name or type(model).__name__,
        examples=len(sample),
        answers=sample.answers,
        classes=classes,
        against=sample.against,
        error=100 * (1 - float(whole.float().mean())),
        sites=tuple(dataclasses.replace(finding, ablation=single.get(finding.name)) for finding in findings),
        layers=tuple(layers),
        pairs=tuple(double),
        deletions=tuple(several),
        paths=paths,
        probes=probed,
        seconds=time.perf_counter() - began,
    )


def _site_findings(model: nn.Module, found: list[Site], sample: Sample, few: Sample, steps: _Steps) -> list[SiteFinding]:
    """The signal over ``sample``, the gradient over ``few``, the time and the weights of each site; no ablations."""
    steps.next("signals")
    forward = signals(model, found, sample)
    times = branch_times(model, found, sample.inputs[0][:32]) if found else []
    steps.next("gradients")
    back = gradients(model, found, few) if found else []
    return [
        SiteFinding(
            index=i + 1,
            name=site.name,
            kind=site.kind,
            stage=stage,
            reshapes=site.reshapes,
            params=sum(p.numel() for module in site.branch_modules for p in module.parameters()),
            time=times[i],
            signal=forward[i],
            gradient=back[i],
            ablation=None,
        )
        for i, (site, stage) in enumerate(zip(found, _stages(found), strict=True))
    ]


def _single_ablations(
    model: nn.Module, removable: list[Site], sample: Sample, whole: Tensor, steps: _Steps
) -> dict[str, Ablation]:
    """Each site's ablation, by the site's name."""
    single = {}
    for site in removable:
        steps.next(f"ablation of {site.name}")
        single[site.name] = bypassed(model, sample, whole, [site])
    return single


class _Steps:
    """Calls ``progress`` at the beginning of each of ``total`` measurements."""

    def __init__(self, progress: Callable[[str, float], None], total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, what: str) -> None:
        self.progress(what, min(self.done / self.total, 1.0))
        self.done += 1


def _moved(batches: Iterable[Any], device: torch.device) -> Iterable[Any]:
    for batch in batches:
        if isinstance(batch, Tensor):
            yield batch.to(device)
        elif hasattr(batch, "images"):
            yield batch.images.to(device), batch.labels.to(device)
        else:
            yield tuple(part.to(device) for part in batch)


def _stages(found: list[Site]) -> list[int]:
    """A stage begins where a site reshapes the signal, and where the blocks' container changes."""
    stages, stage, container = [], 0, None
    for site in found:
        here = site.path.rpartition(".")[0]
        if here != container or site.reshapes:
            stage, container = stage + 1, here
        stages.append(stage)
    return stages
