"""Measure what goes on inside a network. Read: sample -> signals, splits_gradient, lesions, probes, responses -> look -> summary -> page.

``monitor`` takes a glance while a network trains; ``gradients`` has the norms by layer that plain networks have too.
"""

from deepres.lens.backward import Gradient, Paths
from deepres.lens.gradients import LayerGradient, gradient_norms
from deepres.lens.lesions import Deletion, Lesion
from deepres.lens.look import Look, SiteFinding, look
from deepres.lens.monitor import Glance, Monitor, SiteSnapshot, read_snapshots
from deepres.lens.probes import Probes
from deepres.lens.responses import Response, responses
from deepres.lens.signals import Signal
from deepres.lens.summary import summary

__all__ = [
    "Deletion",
    "Glance",
    "Gradient",
    "LayerGradient",
    "Lesion",
    "Look",
    "Monitor",
    "Paths",
    "Probes",
    "Response",
    "Signal",
    "SiteFinding",
    "SiteSnapshot",
    "gradient_norms",
    "look",
    "read_snapshots",
    "responses",
    "summary",
]
