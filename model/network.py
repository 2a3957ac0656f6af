"""The residual network: one grey channel in, two logits and an exact class activation map out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import nn

ARCHITECTURE = "resnet18-stride16-pattern-framed"
WIDTHS = (64, 128, 256, 256)


def exact() -> AbstractContextManager[None]:
    """Let a GPU's convolutions be as exact as the processor's (no TF32), and the same at every start.

    torch's own default of this context turns cuDNN off, which costs most of the speed.
    """
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class Explained(NamedTuple):
    """What one forward pass gives for a batch of n films.

    Attributes
    ----------
    logits
        (n,) log-odds of pneumonia before calibration.
    pattern
        (n,) log-odds that a pneumonia is bacterial rather than viral, before calibration; of no meaning where
        there is none.
    activation
        (n, h, w) contribution of each cell to the logit; its sum plus the head's bias is the logit.
    maps
        Feature map of every stage, (n, channels, rows, columns), for `model.gate`.
    """

    logits: torch.Tensor
    pattern: torch.Tensor
    activation: torch.Tensor
    maps: tuple[torch.Tensor, ...]


class Network(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) for single-channel film, with a finer last map.

    Two things differ from the original. The stem has one input channel. The last stage keeps stride 16 and
    256 channels instead of stride 32 and 512: the same cost, a third of the parameters, and an activation map
    of 8 x 8 instead of 4 x 4 cells at 128 pixels.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        channels = 64
        for width, stride in zip(WIDTHS, (1, 2, 2, 1), strict=True):
            self.stages.append(nn.Sequential(Block(channels, width, stride), Block(width, width, 1)))
            channels = width
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block):
                # Each block starts as the identity (Goyal et al. 2017), which lets a scratch run start fast.
                nn.init.zeros_(module.bn2.weight)

    def stage_maps(self, films: torch.Tensor) -> list[torch.Tensor]:
        """Run the body on (n, 1, size, size) and keep the map of every stage."""
        maps = [self.stem(films)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        """Return the (n, 2) logits of (n, 1, size, size) films: of pneumonia, and of its being bacterial."""
        pooled = self.stage_maps(films)[-1].mean(dim=(2, 3))
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits

    def explain(self, films: torch.Tensor) -> Explained:
        """Return both logits, class activation map and stage maps of (n, 1, size, size) films in one pass.

        With global average pooling and a linear head the map is exact (Zhou et al., CVPR 2016): each cell's
        weighted features, divided by the number of cells, are its share of the logit.
        """
        return self.explained(self.stage_maps(films))

    def explained(self, maps: Sequence[torch.Tensor]) -> Explained:
        """Return what `explain` does, from the map of every stage."""
        last = maps[-1]
        cells = last.shape[2] * last.shape[3]
        activation = torch.einsum("nchw,c->nhw", last, self.head.weight[0]) / cells
        logits = activation.sum(dim=(1, 2)) + self.head.bias[0]
        pattern = last.mean(dim=(2, 3)) @ self.head.weight[1] + self.head.bias[1]
        return Explained(logits, pattern, activation, tuple(maps))


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., figure 2), with torchvision's parameter names.

    Not torchvision's own, whose import takes two seconds of every start.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, width, rows / stride, columns / stride) of (n, channels, rows, columns)."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        out = self.relu(self.bn1(self.conv1(maps)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        found: torch.Tensor = self.relu(out)
        return found
