"""Per-region heads of the C4 form, and the last layers of both forms, whose results are float32 under autocast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead


class StageHead(nn.Module):
    """The last level of a network on each region's features: (R, C, 14, 14) -> (R, C'), the mean over its output's pixels.

    He et al. 2015, appendix A: all layers of conv5 and the pooling behind play the part of VGG-16's fully connected layers.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._layers = tuple(layers)  # a tuple does not register them: they belong to the network, which keeps their names

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            x = layer(x)
        return x.mean((2, 3))


class LinearHead(nn.Module):
    """Two fully connected layers with dropout between, (R, C, 7, 7) -> (R, width): VGG-16's fc6 and fc7 (Ren et al. 2015)."""

    def __init__(self, channels: int, width: int, layers: Sequence[nn.Linear] = ()) -> None:
        super().__init__()
        first, second = layers or (nn.Linear(channels * 49, width), nn.Linear(width, width))
        self.fc6, self.fc7 = first, second
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.fc6(x.flatten(1))))
        return self.drop(torch.relu(self.fc7(x)))


class ContextHead(nn.Module):
    """A head that also runs on the features of the whole image, which are joined to those of each of its regions.

    The features of R regions and N images and the image of each region (R,) -> (R, 2 * width). Global context in He et al. 2015,
    appendix B.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        features, image = x
        out = self.head(features)
        regions, wholes = out[: len(image)], out[len(image) :]
        return torch.cat((regions, wholes[image]), 1)


class FloatRPNHead(RPNHead):
    """torchvision's head of the region proposal network, with results in float32: boxes need more than 8 bits."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


class FloatPredictor(FastRCNNPredictor):
    """torchvision's last layers of a region's class and box, with results in float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()
