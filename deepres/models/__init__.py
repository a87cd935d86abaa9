"""One way in and out for networks: by name, run, file or reference. Read: build -> weights -> store -> opening."""

from deepres.models.build import Origin, build, origin, to_json
from deepres.models.opening import input_channels, input_size, open_model, output_classes
from deepres.models.store import load, locate, notes, read, save
from deepres.models.weights import Matched, from_others, infer_config, load_weights, to_others

__all__ = [
    "Matched",
    "Origin",
    "build",
    "from_others",
    "infer_config",
    "input_channels",
    "input_size",
    "load",
    "load_weights",
    "locate",
    "notes",
    "open_model",
    "origin",
    "output_classes",
    "read",
    "save",
    "to_json",
    "to_others",
]
