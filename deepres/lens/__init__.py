"""Measure what goes on inside a network."""

from deepres.lens.gradients import LayerGradient, gradient_norms

__all__ = ["LayerGradient", "gradient_norms"]
