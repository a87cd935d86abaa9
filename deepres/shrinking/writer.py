"""The affine layers that end a branch, and the exact folding of a linear map of the branch's output into their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepres.adapters.families._huggingface import is_transposed


@dataclass(frozen=True)
class Writer:
    """The last layers of a branch: a convolution or linear layer, a batch norm, or a batch norm behind one of these."""

    linear: nn.Module | None  # nn.Conv2d without groups, nn.Linear, or a linear layer of GPT-2, whose weight is transposed
    norm: _BatchNorm | None

    @classmethod
    def find(cls, branch: Sequence[nn.Module]) -> Writer | None:
        """The writer of a branch that consists of the modules ``branch``; None if its last layer with weights is no such layer."""
        layers = [
            layer
            for module in branch
            for layer in module.modules()
            if any(True for _ in layer.parameters(recurse=False))  # in the order in which they were built
        ]
        if not layers:
            return None
        last = layers[-1]
        if not isinstance(last, _BatchNorm):
            return cls(last, None) if _is_linear(last) else None
        if not last.affine or last.running_mean is None:
            return None
        before = layers[-2] if len(layers) > 1 else None
        fits = before is not None and _is_linear(before) and _width(before) == last.num_features
        return cls(before if fits else None, last)

    @property
    def width(self) -> int:
        """Number of channels that it writes."""
        return self.norm.num_features if self.norm is not None else _width(self.linear)  # type: ignore[arg-type]

    @property
    def shifts(self) -> bool:
        """Return whether it has a bias that can take up a shift."""
        return self.norm is not None or getattr(self.linear, "bias", None) is not None

    @property
    def maps(self) -> bool:
        """Return whether it has a weight that can take up a linear map of all channels."""
        return self.linear is not None

    @torch.no_grad()
    def fold(self, matrix: Tensor, shift: Tensor, mean: Tensor, covariance: Tensor) -> Callable[[], None]:
        """Change the weights so that the output f becomes ``matrix @ f + shift``; call what is returned to undo it.

        ``matrix`` (C, C) with C the ``width``, ``shift`` (C,), zero where the writer has no bias. ``mean`` and ``covariance`` of f
        become the batch norm's statistics, so that estimating them again changes little.
        """
        undo = self._saved()
        diagonal = bool(torch.equal(matrix, matrix.diagonal().diag()))
        norm, linear = self.norm, self.linear
        if norm is not None and diagonal:
            norm.weight.copy_(norm.weight * matrix.diagonal())
            norm.bias.copy_(norm.bias * matrix.diagonal() + shift)
        elif norm is not None:
            assert linear is not None and norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = _bias(linear)
            offset = scale * ((0 if bias is None else bias.double()) - norm.running_mean.double()) + norm.bias.double()
            _write(linear, matrix * scale @ _matrix(linear))  # what it gives now is matrix @ (f - offset)
            if bias is not None:
                bias.zero_()
            norm.running_mean.copy_(matrix @ (mean - offset))
            norm.running_var.copy_((matrix @ covariance * matrix).sum(1).clamp(min=0))
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(matrix @ mean + shift)
        else:
            assert linear is not None
            _write(linear, matrix @ _matrix(linear))
            if (bias := _bias(linear)) is not None:
                bias.copy_(matrix @ bias.double() + shift)
        return undo

    def _saved(self) -> Callable[[], None]:
        kept = [(t, t.clone()) for layer in (self.linear, self.norm) if layer is not None for t in layer.state_dict().values()]

        def undo() -> None:
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)

        return undo


def _is_linear(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1
    return isinstance(layer, nn.Linear) or is_transposed(layer)


def _bias(layer: nn.Module) -> Tensor | None:
    bias: Tensor | None = getattr(layer, "bias", None)
    return bias


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def _matrix(layer: nn.Module) -> Tensor:
    """The weight as a matrix (channels out, all else), float64."""
    weight = _weight(layer).detach().double()
    return weight.T if is_transposed(layer) else weight.flatten(1)


def _width(layer: nn.Module) -> int:
    return _weight(layer).shape[1 if is_transposed(layer) else 0]


def _write(layer: nn.Module, matrix: Tensor) -> None:
    weight = _weight(layer)
    weight.copy_(matrix.T if is_transposed(layer) else matrix.reshape(weight.shape))
