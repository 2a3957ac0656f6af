"""The pixel gate: is this an upright frontal chest radiograph?

It reads the network's own features, at no cost beside the forward pass. Two measures are combined:

- a linear discriminant between chests and counterexamples made of chests (`model.counterexamples`), which
  knows the layout of a chest;
- the Mahalanobis distance to the training chests with a shrunk covariance (Lee et al., NeurIPS 2018; Ledoit
  and Wolf 2004), which refuses what neither resembles.

Both read the third stage's map pooled to 4 x 4 cells, because layout is what the globally pooled features of
a pneumonia network have forgotten: on those alone, a rotated chest or a hip is as near as a chest. The gate
separates chest from non-chest and knows nothing of age: it is fitted on strongly augmented framing and
exposure, so that the differences between children and adults lie inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from model.network import Explained
from model.weights import Tensors

Rows = npt.NDArray[np.float32]

STAGE = 2
CELLS = 4
DIRECTIONS = 200
PASSED = 0.998
"""Share of augmented validation chests that either measure lets through."""

THRESHOLD = 1.0
_PREFIX = "gate."


@dataclass(frozen=True)
class Gate:
    """Parameters of the gate, for features of f = channels * CELLS**2 values.

    Attributes
    ----------
    mean
        (f,) of the training chests.
    whitening
        (DIRECTIONS, f): the squared length of the whitened difference from the mean is the Mahalanobis
        distance.
    direction, offset
        (f,) and (1,): the discriminant, positive for counterexamples.
    ranges
        (2, 2): for the discriminant and the Mahalanobis distance, what a validation chest has in the middle
        (mapped to distance 0) and at the most (mapped to 1).
    """

    mean: Rows
    whitening: Rows
    direction: Rows
    offset: Rows
    ranges: Rows

    def distances(self, features: Rows) -> npt.NDArray[np.float64]:
        """Distance of each row of `features`, (n, f): about 0 for a usual chest; above 1 it is refused."""
        return np.asarray(_scaled(self._measures(features), self.ranges).max(axis=0), np.float64)

    def _measures(self, features: Rows) -> npt.NDArray[Any]:
        centred = (features - self.mean).astype(np.float64)
        discriminant = centred @ self.direction.astype(np.float64) + float(self.offset[0])
        # The root keeps the scale of the distance close to the discriminant's; it changes no decision.
        mahalanobis = np.linalg.norm(centred @ self.whitening.T.astype(np.float64), axis=1)
        return np.stack([discriminant, mahalanobis])

    def tensors(self) -> Tensors:
        """Return the parameters by name, for the weights file."""
        return {_PREFIX + name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Gate:
        """Take the parameters out of a weights file's tensors."""
        return cls(**{name: tensors[_PREFIX + name].astype(np.float32) for name in cls.__dataclass_fields__})


def gate_features(explained: Explained) -> Rows:
    """Pool the map of stage `STAGE` to `CELLS` x `CELLS` cells: (n, channels * CELLS**2) float32."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(explained.maps[STAGE].float(), CELLS)
    return np.asarray(pooled.flatten(1).cpu().numpy(), np.float32)


def fit_gate(chests: Rows, counterexamples: Rows, validation: Rows, seed: int) -> Gate:
    """Fit both measures and set the threshold.

    Parameters
    ----------
    chests
        (n, f) features of training films, plain and augmented.
    counterexamples
        (m, f) features of `model.counterexamples`.
    validation
        (k, f) features of validation films, plain and augmented: they set the ranges, and nothing else.
    seed
        For the truncated decomposition.
    """
    mean = chests.mean(axis=0)
    kept = min(DIRECTIONS, len(chests) - 1, chests.shape[1])
    body = PCA(kept, svd_solver="randomized", random_state=seed).fit(chests)
    spread = LedoitWolf().fit(body.transform(chests))
    values, vectors = np.linalg.eigh(spread.covariance_)
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-12))).T @ body.components_

    both = np.concatenate([chests, counterexamples])
    kept = min(2 * DIRECTIONS, len(both) - 1, both.shape[1])
    joint = PCA(kept, whiten=True, svd_solver="randomized", random_state=seed).fit(both)
    labels = np.repeat([0, 1], [len(chests), len(counterexamples)])
    line = LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced").fit(
        joint.transform(both), labels
    )  # Folding the decomposition into the line leaves one weight a feature to store.
    direction = (line.coef_[0] / np.sqrt(joint.explained_variance_)) @ joint.components_
    offset = line.intercept_[0] + (mean - joint.mean_) @ direction

    gate = Gate(
        mean=mean.astype(np.float32),
        whitening=whitening.astype(np.float32),
        direction=direction.astype(np.float32),
        offset=np.array([offset], np.float32),
        ranges=np.array([[0.0, 1.0], [0.0, 1.0]], np.float32),
    )
    measures = gate._measures(validation)
    ranges = np.stack([np.median(measures, axis=1), np.quantile(measures, PASSED, axis=1)], axis=1)
    return Gate(gate.mean, gate.whitening, gate.direction, gate.offset, ranges.astype(np.float32))


def _scaled(measures: npt.NDArray[Any], ranges: Rows) -> npt.NDArray[Any]:
    middle, most = ranges[:, :1].astype(np.float64), ranges[:, 1:].astype(np.float64)
    return (measures - middle) / np.maximum(most - middle, 1e-6)
