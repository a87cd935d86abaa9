"""Measure what goes on inside a network. Read: sample -> signals, flows, lesions, probes, responses -> look -> words -> page.

``monitor`` takes a glance while a network trains; ``gradients`` has the norms by layer that plain networks have too.
"""

from deepres.lens.flows import Gradient, Paths
from deepres.lens.gradients import LayerGradient, gradient_norms
from deepres.lens.lesions import Deletion, Lesion
from deepres.lens.look import Look, SiteFinding, look
from deepres.lens.monitor import Glance, Monitor, SiteGlance, read_glances
from deepres.lens.probes import Probes
from deepres.lens.responses import Response, responses
from deepres.lens.signals import Signal
from deepres.lens.words import words

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
    "SiteGlance",
    "gradient_norms",
    "look",
    "read_glances",
    "responses",
    "words",
]
