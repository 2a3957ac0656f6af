"""How the locator learns where the lungs lie, and how steady it is.

It is taught by `model.training.lungs`, the classical fit, on the training films alone: on windows of them of
any size and proportions, whose place in the film, and so the answer, is known exactly, which makes it
steadier than its teacher. It is taught by absolute differences, which a few wrong fits do not move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model.locate import SIDE, Boxes, Locator
from model.preprocess import framed, model_input
from model.training.augment import Collimate, Curve, Noise, Shading, Window
from model.training.lungs import lung_box

WINDOWS = ((0.0, 0.125, 1.0, 0.875), (0.125, 0.0, 0.875, 1.0), (0.1, 0.1, 0.9, 0.9), (-0.1, -0.1, 1.1, 1.1))
"""Parts of a film on which a locator's steadiness is measured."""

EPOCHS, BATCH, RATE, WEIGHT_DECAY = 16, 64, 2e-3, 0.01


def steadiness(locator: Locator, films: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Measure how well the frames of squashed films, (n, side, side), agree.

    Returns
    -------
    dict
        `n`, and as shares of the film's sides the median and the 95th percentile of the absolute difference
        of an edge: `classical`, against the box of `model.training.lungs`; `windows`, between the whole
        film and a window of it, `WINDOWS`, both measured on the whole film.
    """
    boxes = locator.boxes(films)
    moved = []
    for window in np.array(WINDOWS):
        extent, corner = np.tile(window[2:] - window[:2], 2), np.tile(window[:2], 2)
        moved.append(locator.boxes([framed(film, window) for film in films]) * extent + corner - boxes)
    classical = np.array([lung_box(film) for film in films])
    differences = {"classical": boxes - classical, "windows": np.concatenate(moved)}
    return {"n": len(films)} | {
        name: {"median": float(np.median(np.abs(each))), "p95": float(np.quantile(np.abs(each), 0.95))}
        for name, each in differences.items()
    }


def fit_locator(
    films: npt.NDArray[np.uint8], seed: int, on_progress: Callable[[int, int], None] | None = None
) -> Locator:
    """Train a locator on the processor.

    Parameters
    ----------
    films
        (n, side, side) uint8: training films, squashed.
    seed
        Of weights, order and windows.
    on_progress
        Called with (films done, films in all); a film is fitted once and then seen `EPOCHS` times.
    """
    tell = on_progress or (lambda done, total: None)
    total = len(films) * (EPOCHS + 1)
    boxes = np.empty((len(films), 4), np.float32)
    for index, film in enumerate(films):
        boxes[index] = lung_box(film)
        tell(index + 1, total)
    windows = _Windows(films, boxes)
    batches = -(-len(films) // BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        locator = Locator().train()
        optimiser = torch.optim.AdamW(locator.parameters(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * batches)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(films))
            for start in range(0, len(films), BATCH):
                chosen = [windows.draw(int(index)) for index in order[start : start + BATCH]]
                seen, truth = (torch.stack(each) for each in zip(*chosen, strict=True))
                loss = nn.functional.l1_loss(locator(seen), truth)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                tell(len(films) * (epoch + 1) + start + len(chosen), total)
    return locator.eval()


class _Windows:
    """Windows of films, partly beyond their edges, with the lungs' box as the window sees it."""

    def __init__(self, films: npt.NDArray[np.uint8], boxes: Boxes) -> None:
        self._films, self._boxes = films, boxes
        steps: tuple[tuple[nn.Module, float], ...] = (
            (Collimate(), 0.3), (Shading(), 0.3), (Curve(), 0.7), (Window(), 0.5), (Noise(), 0.3)
        )  # fmt: skip
        self._steps = steps

    def draw(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (1, SIDE, SIDE) and (4,), from torch's global generator."""
        chance = torch.rand(5)
        extent = 0.65 + 0.65 * chance[:2]
        corner = 0.5 - extent / 2.0 + 0.3 * (chance[2:4] - 0.5)
        film, box = self._films[index], torch.from_numpy(self._boxes[index])
        window = torch.cat([corner, corner + extent]).numpy()
        plane = torch.from_numpy(framed(film, window, 2 * SIDE))[None].float() / 255.0
        box = (box - corner.repeat(2)) / extent.repeat(2)
        if chance[4] < 0.5:
            plane, box = plane.flip(-1), torch.stack([1.0 - box[2], box[1], 1.0 - box[0], box[3]])
        for step, share in self._steps:
            if torch.rand(()) < share:
                plane = step(plane)
        return torch.from_numpy(model_input(plane[0].numpy(), SIDE))[None], box
