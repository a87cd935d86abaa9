"""``deepres info``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from deepres.cli.common import say, table
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError, first_line, lacks_memory
from deepres.models.options import NetOptions

TOKENS = 1024  # of the text that is counted, at most


@dataclass(frozen=True, kw_only=True)
class Info(BuilderOption, NetOptions):
    """Describe a network: stages, blocks, parameters, multiply-adds, memory. Without a network: this machine and its versions."""

    # a name from `deepres nets`, a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    # [no network: the versions and devices of this machine]
    net: Positional[str | None] = None
    size: int | None = None  # side of the images in pixels, or tokens of a text [the network's usual size]
    batch: int = 128  # images or texts of the training step whose memory is estimated
    width: float = 1.0  # multiplies the network's channels; of a Transformer, their number
    num_classes: int | None = None  # number of classes [the network's usual number]
    in_channels: int | None = None  # channels of the images [the network's usual number]

    def run(self) -> int:
        from rich.console import Console

        from deepres import nn
        from deepres.adapters import sites, spec_of

        if self.net is None:
            return environment()
        model = self._built(self.net)
        config = model.config if isinstance(model, nn.ResNet) else None
        spec = spec_of(model)
        text = spec.inputs == "tokens"
        size = self.size if self.size is not None else min(spec.longest or TOKENS, TOKENS) if text else spec.image_size
        if size < 1 or self.batch < 1:
            raise DeepresError(
                f"size is the side of the input in pixels, or tokens of a text, and at least 1, as batch is, not {size} and {self.batch}"
            )
        try:
            cost = nn.cost(model, (size,) if text else (spec.channels or 3, size, size))
        except (
            AssertionError,
            RuntimeError,
            ValueError,
        ) as error:  # of its layers, at an input of a size that they do not take
            if lacks_memory(error):
                raise
            raise DeepresError(f"{self.net}: an input of size {size} does not pass through it ({first_line(error)})") from error
        console = Console()
        if config is not None:
            kind = "plain" if config.is_plain else f"residual, shortcut option {config.shortcut}"
            order = "pre-activation" if config.preact else "post-activation"
            stride = f", stride in the {config.stride_in}" if config.branch == "bottleneck" else ""
            say(f"{self.net}: {config.depth} layers, {kind}, {config.branch} blocks{stride}, {order}")
            rows = [
                [str(i), str(config.blocks[i]), str(config.channels[i]), f"{nn.parameters(stage):,}"]
                for i, stage in enumerate(model.stages.children())
            ]
            console.print(table(["stage", "blocks", "channels", "parameters"], rows))
        else:
            found = sites(model)
            fixed = sum(site.reshapes for site in found)
            say(
                f"{self.net}: {type(model).__name__} with {len(found)} residual sites, {fixed} of them changing the signal's shape"
            )
        gib = cost.training_bytes(self.batch) / 2**30
        one, many = (f"a text of {size} tokens", "texts") if text else (f"an image of {size}x{size}", "images")
        say(
            f"{cost.params:,} parameters ({cost.param_bytes / 2**20:.1f} MiB in float32)\n"
            f"{cost.macs / 1e9:.3f} G multiply-adds for {one}\n"
            f"{gib:.2f} GiB for a training step of {self.batch} {many} in float32, all activations kept"
        )
        return 0

    def _built(self, net: str) -> Any:
        """The network to describe. Raises ``DeepresError`` for options that it cannot take."""
        from deepres import models, nn
        from deepres.models.pretrained import PACKAGED

        shape = {key: value for key in ("num_classes", "in_channels") if (value := getattr(self, key)) is not None}
        options = self.changes() | ({"width": self.width} if self.width != 1 else {})
        saved = Path(net).exists() or net.startswith("hf:")
        if not (saved or ":" in net or net in PACKAGED):
            return nn.create(net, **options, **shape)
        if idle := [*options, *(shape if saved else ())]:
            named = ", ".join(f"--{key.replace('_', '-')}" for key in idle)
            raise DeepresError(
                f"{net}: {named} shape a network of ours that is given by its name; this one is described as it is"
            )
        opened = models.open_model(net, classes=self.num_classes, channels=self.in_channels, weights=None if saved else "none")
        models.need_layers(opened.model, net)
        return opened.model


def environment() -> int:
    """Print the versions and the devices that a report of a fault needs."""
    import importlib.metadata
    import os
    import platform

    import psutil
    import torch

    from deepres import __version__, kernels

    say(f"deepres {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("torch", "torchvision", "timm", "transformers", "fastapi"):
        try:
            say(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            say(f"{name} is not installed")
    memory = psutil.virtual_memory().total / 2**30
    say(f"CPU: {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {memory:.1f} GiB of memory")
    say(f"training kernels: {kernels.status()}")
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        say(f"GPU {i}: {found.name}, {found.total_memory / 2**30:.1f} GiB of memory")
    if not torch.cuda.is_available():
        say("GPU: none that torch can use")
    return 0
