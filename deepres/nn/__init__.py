"""The networks. Read bottom up: shortcut -> branch -> residual -> resnet -> zoo; attention -> transformer -> transformer_zoo."""

from deepres.nn.branch import Branch, basic, bottleneck
from deepres.nn.count import Cost, cost, parameters
from deepres.nn.deepen import deepen
from deepres.nn.init import initialise
from deepres.nn.residual import Residual, plain
from deepres.nn.resnet import ResNet, ResNetConfig, Stage
from deepres.nn.shortcut import PadShortcut, shortcut
from deepres.nn.zoo import config, create, names

__all__ = [
    "Branch",
    "Cost",
    "PadShortcut",
    "ResNet",
    "ResNetConfig",
    "Residual",
    "Stage",
    "basic",
    "bottleneck",
    "config",
    "cost",
    "create",
    "deepen",
    "initialise",
    "names",
    "parameters",
    "plain",
    "shortcut",
]
