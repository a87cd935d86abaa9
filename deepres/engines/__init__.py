"""Inference engines: run a trained network as fast as this machine can, with the same predictions."""

from deepres.engines.torch_compiled import Optimized, fold_norms, optimize, throughput

__all__ = ["Optimized", "fold_norms", "optimize", "throughput"]
