"""The settings of a training run, and how far it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

Metrics = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run, beside the films.

    Attributes
    ----------
    sizes
        Input side in pixels for the first third of the epochs, for the rest (progressive resizing: the coarse
        third costs half as much) and for settling. The last is the size the network serves at.
    epochs, settle
        Epochs of the schedule, and of settling after it: at `settle_rate` of the learning rate, with only
        `settle_augmentation` of the films augmented, so that statistics and head meet films as they are
        served.
    smoothing
        Label smoothing; the network is not pushed to be surer than its labels.
    average
        Decay a step of the exponential moving average of the weights, which is the model that is kept.
    patience
        Epochs without a better validation loss after which training goes on to settle.
    flip
        Mirror half of the films.
    augmentation
        Chance that a film is augmented at all.
    balanced
        Whether both classes have half of the loss, whatever their numbers.
    histogram, spectrum, surround
        Chance that a film borrows each of the three from another one (`model.training.augment.Borrow`).
    pattern
        Weight of the second head's loss (bacterial or viral) beside the first's.
    init
        SHA-256 of the weights that training starts from; empty: from scratch.
    half
        Train in mixed precision (bfloat16) on the CPU too; on CUDA it always is.
    """

    sizes: tuple[int, int, int] = (112, 160, 160)
    film_side: int = 224
    epochs: int = 40
    settle: int = 14
    settle_rate: float = 0.15
    settle_augmentation: float = 0.5
    batch: int = 32
    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.08
    smoothing: float = 0.05
    dropout: float = 0.1
    average: float = 0.995
    patience: int = 8
    folds: int = 7
    fold: int = 0
    seed: int = 1
    flip: bool = True
    augmentation: float = 1.0
    balanced: bool = True
    histogram: float = 0.3
    spectrum: float = 0.5
    surround: float = 0.25
    pattern: float = 0.3
    init: str = ""
    half: bool = True

    def size(self, epoch: int) -> int:
        """Input side during an epoch (counted from 0)."""
        if epoch >= self.epochs:
            return self.sizes[2]
        return self.sizes[0] if epoch < self.epochs // 3 else self.sizes[1]

    def learning_rate(self, at: float) -> float:
        """Learning rate after `at` epochs: linear warm-up, half a cosine; settling, half a cosine more."""
        if at >= self.epochs:
            return self.rate * self.settle_rate * _half_cosine((at - self.epochs) / self.settle)
        share = at / self.epochs
        if share < self.warmup:
            return self.rate * max(share / self.warmup, 0.01)
        return self.rate * _half_cosine((share - self.warmup) / (1.0 - self.warmup))

    def augmented(self, epoch: int) -> float:
        """Chance that a film is augmented during an epoch."""
        return self.augmentation * (self.settle_augmentation if epoch >= self.epochs else 1.0)


def _half_cosine(share: float) -> float:
    """From 1 down to a hundredth."""
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Progress:
    """Where training stands, for whoever shows it."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    metrics: Metrics | None = None
