"""The pixel gate: is this an upright frontal chest radiograph?

It reads the network's own features, at no cost beside the forward pass. Two measures are combined:

- a small head over the map of an early stage that knows the layout of a chest: it is trained, when the
  network is done, to tell chests from each kind of counterexample made of chests
  (`model.training.counterexamples`). Naming the kind is what makes it good: told only "chest or not", the
  same head lets three times as many of the more difficult counterexamples through;
- the Mahalanobis distance to the training chests with a shrunk covariance (Lee et al., NeurIPS 2018; Ledoit
  and Wolf 2004), which refuses what resembles neither.

The early stage, because layout is what the later features of a pneumonia network have forgotten: on its last
ones a rotated chest or a hip is as near as a chest. The gate separates chest from non-chest and knows nothing
of age: it is fitted on strongly augmented framing and exposure, so that the differences between children and
adults lie inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model.network import WIDTHS, Explained
from model.weights import Tensors

Rows = npt.NDArray[np.float32]

STAGE = 1
CELLS = 7
COARSE = 4
"""Cells along a side that the head reads, and of the Mahalanobis distance, which needs fewer values."""

DIRECTIONS = 200
PASSED = 0.998
"""Share of augmented validation chests that either measure lets through."""

THRESHOLD = 1.0
WIDTH, HIDDEN, DROPOUT = 32, 64, 0.4
EPOCHS, BATCH, RATE, WEIGHT_DECAY = 15, 64, 3e-3, 0.05
_PREFIX = "gate."
_HEAD = _PREFIX + "head."


@dataclass(frozen=True, eq=False)
class Gate:
    """Parameters of the gate, for features of f = channels * CELLS**2 values.

    Attributes
    ----------
    mean
        (channels * COARSE**2,) of the training chests.
    whitening
        (DIRECTIONS, channels * COARSE**2): the squared length of the whitened difference from the mean is
        the Mahalanobis distance.
    ranges
        (2, 2): for the head and the Mahalanobis distance, what a validation chest has in the middle (mapped
        to distance 0) and at the most (mapped to 1).
    head
        From (n, channels, CELLS, CELLS) to (n, 1 + kinds) log-odds: a chest, and each kind of counterexample.
    """

    mean: Rows
    whitening: Rows
    ranges: Rows
    head: nn.Sequential

    def distances(self, features: Rows) -> npt.NDArray[np.float64]:
        """Distance of each row of `features`, (n, f): about 0 for a usual chest; above 1 it is refused."""
        middle, most = self.ranges.astype(np.float64).T[:, :, None]
        scaled = (self._measures(features) - middle) / np.maximum(most - middle, 1e-6)
        return np.asarray(scaled.max(axis=0), np.float64)

    def _measures(self, features: Rows) -> npt.NDArray[Any]:
        with torch.inference_mode():
            logits = self.head(_maps(features)).double()
        strange = torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]
        centred = (_coarse(features) - self.mean).astype(np.float64)
        # The root keeps the scale of the distance close to the head's; it changes no decision.
        mahalanobis = np.linalg.norm(centred @ self.whitening.T.astype(np.float64), axis=1)
        return np.stack([strange.numpy(), mahalanobis])

    def tensors(self) -> Tensors:
        """Return the parameters by name, for the weights file."""
        own = {_PREFIX + name: getattr(self, name) for name in ("mean", "whitening", "ranges")}
        return own | {_HEAD + name: tensor.numpy() for name, tensor in self.head.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Gate:
        """Take the parameters out of a weights file's tensors.

        Raises
        ------
        KeyError, RuntimeError
            When one is missing, or of another shape.
        """
        mean, whitening, ranges = (
            tensors[_PREFIX + name].astype(np.float32) for name in ("mean", "whitening", "ranges")
        )
        state = {
            name.removeprefix(_HEAD): torch.from_numpy(tensor.astype(np.float32))
            for name, tensor in tensors.items()
            if name.startswith(_HEAD)
        }
        head = _head(len(state["9.bias"]))
        head.load_state_dict(state)
        return cls(mean, whitening, ranges, head.eval())


def gate_features(explained: Explained) -> Rows:
    """Return what the gate reads of a forward pass, (n, f) float32."""
    return pooled(explained.maps[STAGE])


def pooled(maps: torch.Tensor) -> Rows:
    """Pool maps of stage `STAGE` to `CELLS` x `CELLS` cells: (n, channels * CELLS**2) float32."""
    cells = nn.functional.adaptive_avg_pool2d(maps.float(), CELLS)
    return np.asarray(cells.flatten(1).cpu().numpy(), np.float32)


def fit_gate(
    chests: Rows,
    counterexamples: Rows,
    validation: Rows,
    seed: int,
    kinds: npt.NDArray[np.int64] | None = None,
) -> Gate:
    """Fit both measures and set the threshold.

    Parameters
    ----------
    chests
        (n, f) features of training films, plain and augmented.
    counterexamples
        (m, f) features of `model.training.counterexamples`.
    validation
        (k, f) features of validation films, plain and augmented: they set the ranges, and nothing else.
    seed
        For the head's first weights and batches and the truncated decomposition.
    kinds
        (m,) numbers from 0 without a gap: the kind of each counterexample. Default: all are of one kind.
    """
    coarse = _coarse(chests)
    # A second of every start, for what only training needs.
    from sklearn.covariance import LedoitWolf  # noqa: PLC0415
    from sklearn.decomposition import PCA  # noqa: PLC0415

    body = PCA(min(DIRECTIONS, len(coarse) - 1), svd_solver="randomized", random_state=seed).fit(coarse)
    spread = LedoitWolf().fit(body.transform(coarse))
    values, vectors = np.linalg.eigh(spread.covariance_)
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-12))).T @ body.components_
    kinds = np.zeros(len(counterexamples), np.int64) if kinds is None else kinds
    gate = Gate(
        coarse.mean(axis=0),
        whitening.astype(np.float32),
        np.array([[0.0, 1.0], [0.0, 1.0]], np.float32),
        _fit_head(chests, counterexamples, kinds, seed),
    )
    measures = gate._measures(validation)
    ranges = np.stack([np.median(measures, axis=1), np.quantile(measures, PASSED, axis=1)], axis=1)
    return Gate(gate.mean, gate.whitening, ranges.astype(np.float32), gate.head)


def _head(outputs: int) -> nn.Sequential:
    side = (CELLS + 1) // 2
    return nn.Sequential(
        nn.Conv2d(WIDTHS[STAGE], WIDTH, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH * side * side, HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, outputs),
    )


def _fit_head(chests: Rows, counterexamples: Rows, kinds: npt.NDArray[np.int64], seed: int) -> nn.Sequential:
    """Train the head on the processor by cross-entropy; chests have half of the loss."""
    maps = _maps(np.concatenate([chests, counterexamples]))
    targets = torch.from_numpy(np.concatenate([np.zeros(len(chests), np.int64), kinds + 1]))
    weights = torch.ones(int(targets.max()) + 1)
    weights[0] = len(counterexamples) / len(chests)
    spread, mean = torch.std_mean(maps, dim=(0, 2, 3), keepdim=True)
    spread = spread + 1e-3
    batches = -(-len(maps) // BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _head(len(weights)).train()
        optimiser = torch.optim.AdamW(head.parameters(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * batches)
        for _ in range(EPOCHS):
            order = torch.randperm(len(maps))
            for start in range(0, len(maps), BATCH):
                chosen = order[start : start + BATCH]
                truth = targets[chosen]
                logits = head((maps[chosen] - mean) / spread)
                each = nn.functional.cross_entropy(logits, truth, reduction="none") * weights[truth]
                optimiser.zero_grad()
                each.mean().backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    with torch.no_grad():
        # Folded into the first layer, the standardisation needs no parameters of its own.
        first = cast(nn.Conv2d, head[0])
        first.weight.div_(spread)
        cast(torch.Tensor, first.bias).sub_((first.weight * mean).sum(dim=(1, 2, 3)))
    return head.eval()


def _maps(features: Rows) -> torch.Tensor:
    return torch.from_numpy(features).reshape(len(features), -1, CELLS, CELLS)


def _coarse(features: Rows) -> Rows:
    coarse = nn.functional.adaptive_avg_pool2d(_maps(features), COARSE).flatten(1)
    return np.asarray(coarse.numpy(), np.float32)
