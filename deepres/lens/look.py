"""``look``: everything that the lens measures, in one call, as plain dataclasses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepres.adapters import Site, sites
from deepres.errors import DeepresError
from deepres.evaluation import branch_times
from deepres.lens.backward import Gradient, Paths, gradients, path_lengths
from deepres.lens.lesions import Deletion, Lesion, bypassed, deletions, pairs_to_try
from deepres.lens.probes import Probes, probes
from deepres.lens.responses import Response, responses
from deepres.lens.sample import Sample
from deepres.lens.signals import Signal, signals

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SiteFinding:
    """What was measured at one site."""

    index: int  # counted from 1
    name: str
    kind: str  # the block's class, or the part of it
    stage: int  # counted from 1; a site that reshapes the signal opens one
    reshapes: bool
    params: int  # in the branch
    time: float  # share of a forward pass that the branch takes
    signal: Signal
    gradient: Gradient | None
    lesion: Lesion | None  # None if it was not asked for, or for a site that cannot be left out


@dataclass(frozen=True)
class Look:
    """What a network's depth does, on a sample of examples."""

    name: str
    examples: int
    answers: int  # examples, or tokens of a language model
    classes: int  # that occur among the labels, or tokens
    against: str  # what the answers are held to: "labels", or "itself" (then an error is a share of changed answers)
    error: float  # of the whole network on the sample, %
    sites: tuple[SiteFinding, ...]
    layers: tuple[Response, ...]
    pairs: tuple[Lesion, ...]
    deletions: tuple[Deletion, ...]
    paths: Paths | None
    probes: Probes | None
    seconds: float

    def frame(self) -> pandas.DataFrame:
        """One row a site. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise DeepresError("Look.frame() needs pandas, which is not installed; install deepres[pandas]") from error
        rows = []
        for site in self.sites:
            row: dict[str, Any] = {k: v for k, v in vars(site).items() if k not in ("signal", "gradient", "lesion")}
            row |= {k: v for k, v in vars(site.signal).items() if k != "histogram"}
            row["spread_low"], row["spread_high"] = row.pop("spread")
            row |= {f"gradient_{k}": v for k, v in vars(site.gradient).items()} if site.gradient else {}
            row |= {f"lesion_{k}": v for k, v in vars(site.lesion).items() if k != "what"} if site.lesion else {}
            if self.probes:
                row["probe_error"] = self.probes.error[site.index - 1]
            rows.append(row)
        return pandas.DataFrame(rows).set_index("index") if rows else pandas.DataFrame()

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values that JSON takes."""
        return asdict(self)


@contextmanager
def _at_rest(model: nn.Module) -> Any:
    """Eval mode, and every weight's gradient as it was."""
    was = [(module, module.training) for module in model.modules()]
    wants = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training
        for parameter, want in wants:
            parameter.requires_grad_(want)


def look(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    name: str = "",
    lesions: bool = True,
    pairs: int = 60,
    backward: int = 64,
    device: torch.device | str | None = None,
    watch: Callable[[str, float], None] = lambda what, share: None,
) -> Look:
    """Measure what the depth of ``model`` does.

    >>> found = lens.look(model, [(images, labels)])
    >>> found.frame().sort_values("lesion_change")[["name", "ratio", "lesion_change", "time"]]

    ``batches``: pairs (inputs, labels), or inputs alone, whose answers are then held to the network's own. They are kept and
    gone through many times, so some hundreds to a few thousand examples are right. ``lesions``: also leave out each branch
    in turn, which takes a pass over the sample each; ``pairs``: how many pairs of branches, and on the same terms deletions
    and exchanges. ``backward``: examples for the gradients and paths. ``watch``: told what is measured and how much is done.

    The model is left as it was. One without sites gives no site findings, and its layers' responses all the same.

    Raises ``DeepresError`` for no examples, labels that do not fit, and outputs that are not logits.
    """
    began = time.perf_counter()
    if device is not None:
        model = model.to(device)
    home = next(model.parameters()).device
    with _at_rest(model):
        sample = Sample.take(model, _moved(batches, home))
        found = sites(model)
        few = sample.first(backward)
        removable = [i for i, site in enumerate(found) if not site.reshapes]
        tries = pairs_to_try(len(removable), pairs) if lesions and pairs else []
        steps = _Steps(watch, 6 + (len(removable) if lesions else 0) + len(tries))
        whole = sample.right(model)
        steps.next("signals")
        forward = signals(model, found, sample)
        shares = branch_times(model, found, sample.inputs[0][:32]) if found else []
        steps.next("responses")
        voices = responses(model, few)
        steps.next("gradients")
        back = gradients(model, found, few) if found else []
        steps.next("paths")
        paths = path_lengths(model, found, few.first(16)) if found else None
        steps.next("probes")
        classes = 1 + max(int(y.max()) for y in sample.labels)
        probed = probes(model, found, sample, classes)
        single: dict[int, Lesion] = {}
        double, several = [], []
        if lesions:
            for i in removable:
                steps.next(f"lesion of {found[i].name}")
                single[i] = bypassed(model, sample, whole, [found[i]])
            for a, b in tries:
                steps.next("lesions of pairs")
                double.append(bypassed(model, sample, whole, [found[removable[a]], found[removable[b]]]))
            if pairs:
                steps.next("deletions and exchanges")
                several = deletions(model, found, sample)
    return Look(
        name=name or type(model).__name__,
        examples=len(sample),
        answers=sample.answers,
        classes=classes,
        against=sample.against,
        error=100 * (1 - float(whole.float().mean())),
        sites=tuple(
            SiteFinding(
                index=i + 1,
                name=site.name,
                kind=site.kind,
                stage=stage,
                reshapes=site.reshapes,
                params=sum(p.numel() for module in site.branch_modules for p in module.parameters()),
                time=shares[i],
                signal=forward[i],
                gradient=back[i],
                lesion=single.get(i),
            )
            for i, (site, stage) in enumerate(zip(found, _stages(found), strict=True))
        ),
        layers=tuple(voices),
        pairs=tuple(double),
        deletions=tuple(several),
        paths=paths,
        probes=probed,
        seconds=time.perf_counter() - began,
    )


class _Steps:
    def __init__(self, watch: Callable[[str, float], None], total: int) -> None:
        self.watch, self.total, self.done = watch, total, 0

    def next(self, what: str) -> None:
        self.watch(what, min(self.done / self.total, 1.0))
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
    """A stage begins where the signal is reshaped, or where the blocks' container changes."""
    stages, stage, container = [], 0, None
    for site in found:
        here = site.path.rpartition(".")[0]
        if here != container:
            stage, container = stage + 1, here
        stages.append(stage)
    return stages
