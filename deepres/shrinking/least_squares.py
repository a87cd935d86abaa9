"""Least squares of a signal on another one, from sums that are gathered batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.shrinking.options import Mend

FIT_RIDGE = 1e-4  # of the mean variance of a channel: what pulls the fit towards changing nothing


class LeastSquares:
    """Fit of ``r ~ D f + c``, for rows f and r of ``width`` channels each. ``D`` is diagonal where ``kind`` is "scale".

    Minimises ``|r - D f - c|^2 + ridge |D|^2`` over all rows (Hoerl & Kennard 1970); with ``intercept=False``, c is zero. Sums are in
    float64.
    """

    def __init__(self, kind: Mend, width: int, *, intercept: bool, device: torch.device, ridge: float = FIT_RIDGE) -> None:
        self.kind, self.intercept, self.ridge = kind, intercept, ridge
        exact = {"dtype": torch.float64, "device": device}
        self.rows, self.square = torch.zeros((), **exact), torch.zeros((), **exact)  # type: ignore[call-overload]
        self.f, self.r = torch.zeros(width, **exact), torch.zeros(width, **exact)  # type: ignore[call-overload]
        self.ff, self.fr = (torch.zeros(width, width, **exact) for _ in range(2))  # type: ignore[call-overload]

    @property
    def sums(self) -> list[Tensor]:
        """All sums, for adding up those of several processes in place."""
        return [self.rows, self.square, self.f, self.r, self.ff, self.fr]

    def add(self, f: Tensor, r: Tensor) -> None:
        """Count further rows: ``f`` and ``r`` of shape (rows, width)."""
        f, r = f.double(), r.double()
        self.rows += len(f)
        self.square += r.square().sum()
        self.f += f.sum(0)
        self.r += r.sum(0)
        self.ff += f.T @ f
        self.fr += f.T @ r

    @property
    def mean(self) -> Tensor:
        """Mean of f, (width,)."""
        return self.f / self.rows

    @property
    def covariance(self) -> Tensor:
        """Covariance of f, (width, width)."""
        return self.ff / self.rows - self.mean.outer(self.mean)

    def solve(self) -> tuple[Tensor, Tensor]:
        """(D, c) of shapes (width, width) and (width,)."""
        mean_r = self.r / self.rows
        if self.intercept:
            left, right = self.covariance, self.fr / self.rows - self.mean.outer(mean_r)
        else:
            left, right = self.ff / self.rows, self.fr / self.rows
        ridge = self.ridge * left.diagonal().mean().clamp(min=1e-30)
        if self.kind == "scale":
            change = (right.diagonal() / (left.diagonal() + ridge)).diag()
        else:
            change = torch.linalg.solve(left + ridge * torch.eye(len(left), dtype=left.dtype, device=left.device), right).T
        shift = mean_r - change @ self.mean
        return change, shift if self.intercept else torch.zeros_like(shift)

    def error(self, change: Tensor | None = None, shift: Tensor | None = None) -> float:
        """Sum over the rows of ``|r - D f - c|^2``; without arguments, of ``|r|^2``."""
        if change is None or shift is None:
            return float(self.square)
        fitted = (change @ self.ff * change).sum() + 2 * shift @ (change @ self.f) + self.rows * shift @ shift
        return float(self.square - 2 * ((change.T * self.fr).sum() + shift @ self.r) + fitted)
