"""What a user would pick instead of deepres, written as its users write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CifarBlock(nn.Module):
    """A CIFAR residual block in the style of the common re-implementations, option A."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.pad = stride, (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        channels = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(count):
                blocks.append(CifarBlock(channels, width, stride if i == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class Step:
    """A training step as in PyTorch's own examples; the options add what is known to help."""

    def __init__(self, model: nn.Module, *, bf16: bool, last: bool, compile: bool) -> None:
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model = model.to(memory_format=self.layout).train()
        self.bf16 = bf16
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
        self.forward = torch.compile(self.model) if compile else self.model

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        device = next(self.model.parameters()).device
        images, labels = images.to(device, memory_format=self.layout), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.forward(images).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
