"""Measurements inside a network.

Read: sample -> signals, gradient_split, paths, ablations, probes, responses -> look -> summary -> figures -> page. ``monitor``
takes snapshots during training; ``gradients`` has the gradient norms by layer, which plain networks have too.
"""

from deepres.lens.ablations import Ablation, Deletion
from deepres.lens.gradient_split import Gradient
from deepres.lens.gradients import LayerGradient, gradient_norms
from deepres.lens.look import LookResult, SiteFinding, look
from deepres.lens.monitor import Monitor, SiteSnapshot, Snapshot, read_snapshots
from deepres.lens.paths import Paths
from deepres.lens.probes import Probes
from deepres.lens.responses import Response, responses
from deepres.lens.signals import Signal
from deepres.lens.summary import summary

__all__ = [
    "Ablation",
    "Deletion",
    "Gradient",
    "LayerGradient",
    "LookResult",
    "Monitor",
    "Paths",
    "Probes",
    "Response",
    "Signal",
    "SiteFinding",
    "SiteSnapshot",
    "Snapshot",
    "gradient_norms",
    "look",
    "read_snapshots",
    "responses",
    "summary",
]
