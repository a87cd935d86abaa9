"""Run a trained network as fast as this machine can, without changing what it computes."""

from deepres.engines.torch_compiled import Optimized, fold_norms, optimize, throughput

__all__ = ["Optimized", "fold_norms", "optimize", "throughput"]
