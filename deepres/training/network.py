"""The network of a run: freshly initialised, or from weights that the run names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from deepres.data import Data
from deepres.errors import DeepresError
from deepres.models import load_weights, open_model, output_classes, read
from deepres.models.store import locate
from deepres.nn import create
from deepres.training.run import Run


def training_model(run: Run, data: Data, device: torch.device) -> nn.Module:
    """Build the network that ``run.net`` names for ``data``, initialised from ``run.seed`` or from the weights ``run.init``.

    Raises ``DeepresError`` where network, data and weights do not fit together.
    """
    torch.manual_seed(run.seed)
    if ":" in run.net or Path(run.net).exists():
        other, _ = open_model(run.net, weights=run.init, classes=len(data.classes), channels=data.prepare.channels or None)
        if output_classes(other) not in (None, len(data.classes)):
            raise DeepresError(f"{run.net}: has {output_classes(other)} classes and {data.name} has {len(data.classes)}")
        longest = getattr(getattr(other, "config", None), "max_position_embeddings", None)
        if data.is_text and longest is not None and longest < data.prepare.size:
            raise DeepresError(f"{run.net}: reads at most {longest} characters at a time; give --size {longest} or less")
        return other.to(device)
    if data.is_text:
        raise DeepresError(f"{run.net}: takes images and {data.name} is a text; give a language model, such as hf:FOLDER")
    options = {"in_channels": data.prepare.channels, "num_classes": len(data.classes), **run.options}
    model = create(run.net, width=run.width, **options)
    if run.init:
        tensors, _ = read(locate(run.init))
        report = load_weights(model, tensors, strict=False)
        body = [name for name in (*report.missing, *(s.split(":")[0] for s in report.shapes)) if not name.startswith("head.")]
        if body:
            raise DeepresError(f"{run.init}: does not hold the weights of a {run.net}: {report}")
    return model.to(device)
