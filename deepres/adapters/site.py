"""The residual site: one place in a network where ``y = after(shortcut(x) + branch(x))``, and what can be done there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from deepres.adapters import bypassing, observing, surgery
from deepres.adapters.adapter import folds_rows, patterns_of, refuse
from deepres.adapters.calls import ZeroBranch, patched, per_row, signal_in, with_signal
from deepres.adapters.compiled import uncompiled, unwrapped
from deepres.adapters.observing import GradientSplit, Observation
from deepres.adapters.patterns import Layout, SitePattern
from deepres.errors import DeepresError


@dataclass(frozen=True, eq=False)
class Site:
    """One residual site of ``model``.

    The verbs that change something return contexts that always restore it; ``remove`` is for good. On a model that
    ``torch.compile`` compiled, calls inside such a context run as written, uncompiled: compiled code knows no hooks.
    """

    name: str  # the block's path, and the part's name where the block holds several sites
    path: str  # dotted path of the block in the model
    block: nn.Module
    model: nn.Module = dataclasses.field(repr=False)
    pattern: SitePattern = dataclasses.field(repr=False)  # for the modules of this package; all others ask the properties
    folds_rows: bool = False  # whether an example is several rows of the batch here: its patches, one after the other
    wrapper: nn.Module | None = dataclasses.field(default=None, repr=False)  # what torch.compile made of the model

    def need(self, part: str) -> nn.Module:
        """The module that plays ``part`` of the pattern. Raises ``DeepresError`` where the block has none."""
        module = self.pattern.find(self.block, part)
        if module is None:
            names = " or ".join(map(repr, getattr(self.pattern, part)))
            raise DeepresError(f"site {self.name!r}: {type(self.block).__name__} has no {names}")
        return module

    @property
    def is_inner(self) -> bool:
        """Return whether the block holds several sites, of which this is one, as a Transformer's attention or MLP."""
        return bool(self.pattern.part)

    @property
    def kind(self) -> str:
        """The part's name where the block holds several sites, ``"attention"`` or ``"mlp"`` of ours, else the block's class."""
        return patterns_of(self.block)[0].kind(self.block, self.pattern)

    @property
    def layout(self) -> Layout:
        """The signal's dimensions: "NCHW", "NHWC" or "NLC" (tokens)."""
        return patterns_of(self.block)[0].layout(self.block, self.pattern)

    @property
    def entry(self) -> nn.Module:
        """The module whose input is the site's: the branch's first module in a block of several sites, else the block."""
        return self.need("start") if self.is_inner else self.block

    @property
    def end(self) -> nn.Module:
        """The module whose output is the branch's."""
        return self.need("end")

    @property
    def activation(self) -> nn.Module | None:
        """The module behind the sum, an activation or a post-norm; None where the sum itself is the output."""
        after = self.pattern.find(self.block, "after")
        return None if after is None or isinstance(after, nn.Identity) else after

    @property
    def reshapes(self) -> bool:
        """Return whether the shortcut is more than the identity, as where a stage opens; such a block cannot be left out."""
        path = self.pattern.find(self.block, "shortcut")
        return path is not None and not isinstance(path, nn.Identity)

    @property
    def branch_modules(self) -> list[nn.Module]:
        """The modules whose weights are the branch's."""
        if self.is_inner:
            return [self.need(part) for part in ("start", "core")]
        path = self.pattern.find(self.block, "shortcut")
        return [child for child in self.block.children() if child is not path]

    def without_branch(self, x: Tensor) -> Tensor:
        """The site's output when its branch is zero: ``after(shortcut(x))``."""
        path, after = self.pattern.find(self.block, "shortcut"), self.activation
        out = x
        if path is not None and not isinstance(path, nn.Identity):
            shared = self.pattern.find(self.block, "shared")
            out = path(shared(x) if shared is not None else x)
        if after is None:
            return out
        return after(out.clone() if out is x else out)  # an in-place activation must not reach back into the input

    # ---- seeing

    def observe(self, see: Callable[[Observation], None]) -> AbstractContextManager[None]:
        """Call ``see`` with each pass through the site. The outputs stay the same to the bit."""
        return observing.observe(self, see)

    @property
    def splits_gradient(self) -> bool:
        """Return whether ``gradients`` can tell the two ways apart here."""
        return not (self.reshapes and self.pattern.shared)

    def gradients(
        self,
        see: Callable[[GradientSplit], None] | None = None,
        through: Literal["both", "shortcut", "branch"] | Callable[[], Literal["both", "shortcut", "branch"]] = "both",
    ) -> AbstractContextManager[None]:
        """Call ``see`` in the backward pass of forward passes inside, with the gradients that came by either way.

        ``through`` lets only one of the two ways carry the gradient on (the paths of Veit et al. 2016); as a function it is
        asked in each backward pass. The forward pass is the same to the bit.

        Raises ``DeepresError`` where both ways begin with the same layer (see ``splits_gradient``).
        """
        return observing.split_gradients(self, see, through)

    # ---- changing

    @contextmanager
    def scale(self, factor: float | Tensor) -> Iterator[None]:
        """Multiply the branch's output by ``factor``: a number, or one per example, shape (N,)."""

        def multiply(out: Any) -> Any:
            signal = signal_in(out)
            if not isinstance(factor, Tensor) or factor.ndim != 1:
                return with_signal(out, signal * factor)
            each = per_row(factor, len(signal)) if self.folds_rows else factor
            return with_signal(out, signal * each.to(signal).view(-1, *[1] * (signal.ndim - 1)))

        with uncompiled(self.model, self.wrapper), observing.at_end(self, multiply):
            yield

    def bypass(self, skip: Tensor | None = None) -> AbstractContextManager[None]:
        """Leave the branch out, for the whole batch or for the examples where ``skip`` (N,) is true.

        The branch is not computed for examples that skip it, so this saves its time. Where an example is several rows of
        the batch (``folds_rows``), all of its rows skip together.

        Raises ``DeepresError`` from the forward pass where ``skip`` does not have one truth value per example, and where
        part of a batch would skip a block that writes a cache of keys and values.
        """
        return bypassing.bypass(self, skip)

    def replace(self, forward: Callable[..., Any]) -> AbstractContextManager[None]:
        """While open, calls of the whole block go to ``forward``."""
        return patched(self.block, forward)

    def remove(self) -> None:
        """Take the branch out of the network for good: afterwards the model computes what ``bypass()`` made it compute.

        A block that becomes the identity without its branch is deleted, and the configuration follows. A block that would
        still apply its activation is replaced by that activation. One of several sites in a block leaves a module that adds
        nothing. What was removed is noted in the model, so that ``deepres.save`` and ``load`` bring it back. Sites found
        before are stale afterwards where blocks moved up: call ``sites`` again.

        Raises ``DeepresError`` where the shortcut is not the identity: without the block the shapes no longer fit.
        """
        surgery.remove_site(self)


def sites(model: nn.Module) -> list[Site]:
    """All residual sites of ``model``, in the order of its modules; an empty list where it has none.

    Finds them in networks of every family in the table of architectures (``python -m deepres.adapters.table``), also where
    such blocks stand in a network of your own, and in blocks named by ``register_site``.

    Raises ``DeepresError`` for a family that is refused there, with the reason.
    """
    given, model = model, unwrapped(model)
    wrapper = given if given is not model else None
    refuse(model)
    found: list[Site] = []
    folding: list[str] = []
    for path, block in model.named_modules():
        if folds_rows(block):
            folding.append(path + ".")
        for row in patterns_of(block)[1]:
            if not isinstance(row.find(block, "core"), ZeroBranch):
                name = f"{path}.{row.part}" if row.part else path
                found.append(Site(name, path, block, model, row, path.startswith(tuple(folding)), wrapper))
    return found
