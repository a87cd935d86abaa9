"""The papers' claims, each as a run."""

from deepres.paper.degrade import Curve, Findings, degrade

__all__ = ["Curve", "Findings", "degrade"]
