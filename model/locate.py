"""Where the lungs lie on a film, and with it the part of the film that the other network reads.

How much of neck, arms and belly a film shows, and how far it was squashed to a square, differ between
hospitals and years; in the public set they differ between the classes as well (the lungs of its pneumonias
take up 72 % of the film's height, those of its normals 63 %), and a network that reads whole films learns
that. A normal film of other proportions then scores like a pneumonia. Here each film is cut and stretched so
that its lungs fill one frame; what is left of framing is the error of this step.

How the locator, a small network, is taught stands in `model.training.locator`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from model.network import exact
from model.preprocess import framed, model_input, squashed
from model.weights import Tensors

Boxes = npt.NDArray[np.float32]

SIDE = 64
"""Side in pixels of the whole film that the locator reads."""

MARGINS = (0.1, 0.12)
"""What the frame shows beyond the lungs at either side and at either end, as a share of their extent."""

USUAL = (0.15, 0.15, 0.85, 0.85)
SMALLEST = 0.2
"""Least extent of a box in shares of the film, so that no film whatever is stretched beyond reason."""

_PREFIX = "locator."


class Locator(nn.Module):
    """From whole films (n, 1, SIDE, SIDE), as `model_input` makes them, to the boxes of their lungs.

    A box is (left, top, right, bottom) in shares of the film's sides, (n, 4); it may reach beyond the film.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIDE // 16) ** 2, 64), nn.ReLU())
        self.head = nn.Linear(64, 4)
        nn.init.normal_(self.head.weight, std=0.01)
        self.head.bias.data = torch.tensor(USUAL)

    def forward(self, films: torch.Tensor) -> torch.Tensor:
        boxes: torch.Tensor = self.head(self.body(films))
        return boxes

    def frames(self, squares: Iterable[npt.NDArray[Any]]) -> Boxes:
        """Return the frames about the lungs of n squashed films: (n, 4) float32, shares of their sides."""
        return _frames(self.boxes(squares))

    def boxes(self, squares: Iterable[npt.NDArray[Any]]) -> Boxes:
        """Return the boxes of the lungs themselves, as `forward` does, of n squashed films."""
        device = self.head.bias.device
        planes = torch.from_numpy(np.stack([model_input(square, SIDE) for square in squares]))[:, None]
        with torch.inference_mode(), exact():
            return np.asarray(self(planes.to(device)).float().cpu().numpy())

    def tensors(self) -> Tensors:
        """Return the parameters by name, for the weights file."""
        return {
            _PREFIX + name: tensor.detach().cpu().numpy()
            for name, tensor in self.state_dict().items()
            if tensor.is_floating_point()
        }

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Locator:
        """Take the parameters out of a weights file's tensors.

        Raises
        ------
        KeyError, RuntimeError
            When one is missing, or of another shape.
        """
        locator = cls()
        state = locator.state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = torch.from_numpy(tensors[_PREFIX + name].astype(np.float32))
        locator.load_state_dict(state)
        return locator.eval()


def network_input(
    locator: Locator, films: Iterable[npt.NDArray[Any]], size: int
) -> tuple[torch.Tensor, Boxes]:
    """Show of each film what lies about its lungs.

    Parameters
    ----------
    films
        n films, (rows, columns) each, of any real dtype, dark is low.
    size
        Side of the other network's input in pixels.

    Returns
    -------
    tuple
        (n, 1, size, size) float32 on the CPU, as `model_input` makes it, and the frames on the films, (n, 4),
        as `Locator.frames` says.
    """
    squares = [squashed(film) for film in films]
    frames = locator.frames(squares)
    planes = [model_input(framed(square, frame), size) for square, frame in zip(squares, frames, strict=True)]
    return torch.from_numpy(np.stack(planes))[:, None], frames


def in_frame(locator: Locator, films: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cut squashed films, (n, side, side), to the frames about their lungs; the same shape."""
    cut = np.empty_like(films)
    for start in range(0, len(films), 64):
        frames = locator.frames(films[start : start + 64])
        for offset, frame in enumerate(frames, start):
            cut[offset] = framed(films[offset], frame)
    return cut


def over_film(activation: npt.NDArray[np.float32], frame: Boxes, cells: int = 64) -> npt.NDArray[np.float32]:
    """Bring a map (h, w) of a frame over the whole film: (cells, cells) float32, 0 beyond the frame."""
    (rows, columns), (left, top, right, bottom) = activation.shape, frame.astype(np.float64)
    across, down = columns / (right - left), rows / (bottom - top)
    part = (-left * across, -top * down, (1.0 - left) * across, (1.0 - top) * down)
    image = Image.fromarray(np.ascontiguousarray(activation, np.float32))
    size, bilinear = (cells, cells), Image.Resampling.BILINEAR
    return np.asarray(image.transform(size, Image.Transform.EXTENT, part, bilinear), np.float32)


def _frames(boxes: Boxes) -> Boxes:
    """Add the margins to boxes, (n, 4), none of them too small or far outside."""
    low, high = np.clip(boxes[:, :2], -0.5, 1.5), np.clip(boxes[:, 2:], -0.5, 1.5)
    middle, half = (low + high) / 2.0, np.maximum(high - low, SMALLEST) / 2.0
    half = half * (1.0 + 2.0 * np.array(MARGINS, np.float32))
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)
