"""What makes networks fast without changing what they compute."""

from deepres.kernels.inference import Optimized, fold_norms, optimize, throughput

__all__ = ["Optimized", "fold_norms", "optimize", "throughput"]
