"""The settings of a training run, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass

Metrics = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run, beside the films.

    Attributes
    ----------
    sizes
        Input side in pixels for the first third of the epochs and for the rest (progressive resizing: the
        coarse third costs half as much). The last is the size the network serves at.
    smoothing
        Label smoothing; the network is not pushed to be surer than its labels.
    average
        Decay a step of the exponential moving average of the weights, which is the model that is kept.
    patience
        Epochs without a better validation loss after which training stops.
    """

    sizes: tuple[int, int] = (112, 160)
    film_side: int = 224
    epochs: int = 12
    batch: int = 32
    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.08
    smoothing: float = 0.1
    dropout: float = 0.2
    average: float = 0.995
    patience: int = 5
    folds: int = 7
    fold: int = 0
    seed: int = 1
    flip: bool = True

    def size(self, epoch: int) -> int:
        """Input side during an epoch (counted from 0)."""
        return self.sizes[0] if epoch < self.epochs // 3 else self.sizes[1]


@dataclass(frozen=True)
class Progress:
    """Where training stands, for whoever shows it."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    metrics: Metrics | None = None
