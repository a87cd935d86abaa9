"""``deepres info``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepres.cli.common import say, table
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.models.options import NetOptions


@dataclass(frozen=True, kw_only=True)
class Info(BuilderOption, NetOptions):
    """Describe a network: stages, blocks, parameters, multiply-adds, memory. Without a network: this machine and its versions."""

    # a name from `deepres nets`, a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    # [no network: the versions and devices of this machine]
    net: Positional[str | None] = None
    size: int | None = None  # side of the images in pixels [the network's usual size]
    batch: int = 128  # images of the training step whose memory is estimated
    width: float = 1.0  # multiplies the network's channels
    num_classes: int | None = None  # number of classes [the network's usual number]
    in_channels: int | None = None  # channels of the images [the network's usual number]

    def run(self) -> int:
        from rich.console import Console

        from deepres import models, nn
        from deepres.adapters import sites, spec_of

        if self.net is None:
            return environment()
        shape = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        options = self.changes() | {key: value for key, value in shape.items() if value is not None}
        if ":" in self.net or Path(self.net).exists():
            model = models.open_model(self.net, classes=self.num_classes, channels=self.in_channels).model
        else:
            model = nn.create(self.net, width=self.width, **options)
        config = model.config if isinstance(model, nn.ResNet) else None
        spec = spec_of(model)
        size = self.size if self.size is not None else spec.image_size
        if size < 1:
            raise DeepresError(f"size is the side of the input in pixels and at least 1, not {size}")
        cost = nn.cost(model, (spec.channels or 3, size, size))
        console = Console()
        if config is not None:
            kind = "plain" if config.is_plain else f"residual, shortcut option {config.shortcut}"
            order = "pre-activation" if config.preact else "post-activation"
            stride = f", stride in the {config.stride_in}" if config.branch == "bottleneck" else ""
            say(f"{self.net}: {config.depth} layers, {kind}, {config.branch} blocks{stride}, {order}")
            rows = [
                [str(i), str(config.blocks[i]), str(config.channels[i]), f"{nn.parameters(stage):,}"]
                for i, stage in enumerate(model.stages.children())  # type: ignore[union-attr]
            ]
            console.print(table(["stage", "blocks", "channels", "parameters"], rows))
        else:
            found = sites(model)
            fixed = sum(site.reshapes for site in found)
            say(
                f"{self.net}: {type(model).__name__} with {len(found)} residual sites, {fixed} of them changing the signal's shape"
            )
        gib = cost.training_bytes(self.batch) / 2**30
        say(
            f"{cost.params:,} parameters ({cost.param_bytes / 2**20:.1f} MiB in float32)\n"
            f"{cost.macs / 1e9:.3f} G multiply-adds for an image of {size}x{size}\n"
            f"{gib:.2f} GiB for a training step of {self.batch} images in float32, all activations kept"
        )
        return 0


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
