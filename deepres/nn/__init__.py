"""The networks. Read bottom up: shortcut -> branch -> residual -> resnet -> zoo; weights and store put them on disk."""

from deepres.nn.branch import Branch, basic, bottleneck
from deepres.nn.count import Cost, cost, parameters
from deepres.nn.deepen import deepen
from deepres.nn.init import initialise
from deepres.nn.outputs import flat, logits_in, logits_of
from deepres.nn.reference import input_channels, input_size, open_model, output_classes
from deepres.nn.residual import Residual, plain
from deepres.nn.resnet import ResNet, ResNetConfig, Stage
from deepres.nn.shortcut import PadShortcut, shortcut
from deepres.nn.store import load, notes, read, save
from deepres.nn.surgery import can_delete, delete_blocks
from deepres.nn.weights import Matched, from_others, infer_config, load_weights, to_others
from deepres.nn.zoo import config, create, names

__all__ = [
    "Branch",
    "Cost",
    "Matched",
    "PadShortcut",
    "ResNet",
    "ResNetConfig",
    "Residual",
    "Stage",
    "basic",
    "bottleneck",
    "can_delete",
    "config",
    "cost",
    "create",
    "deepen",
    "delete_blocks",
    "flat",
    "from_others",
    "infer_config",
    "initialise",
    "input_channels",
    "input_size",
    "load",
    "load_weights",
    "logits_in",
    "logits_of",
    "names",
    "notes",
    "open_model",
    "output_classes",
    "parameters",
    "plain",
    "read",
    "save",
    "shortcut",
    "to_others",
]
