"""From logits to a probability that means what it says, and to an operating point that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

SENSITIVITY = 0.97
"""Share of the validation pneumonias that the operating point must call."""

NAMED_RIGHTLY = 0.9
"""Share of the named patterns that must be right on validation."""


@dataclass(frozen=True)
class Calibration:
    """Platt's map (Platt 1999) and the operating point on its scale.

    Attributes
    ----------
    slope, intercept
        probability = sigmoid(slope * logit + intercept).
    threshold
        Calibrated probability from which on a film is positive.
    indeterminate
        Open interval around the threshold without a finding, or None.
    """

    slope: float
    intercept: float
    threshold: float
    indeterminate: tuple[float, float] | None


def probabilities(logits: Values, slope: float, intercept: float) -> Values:
    """Apply Platt's map; float64 in, float64 out, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -(slope * np.asarray(logits, np.float64) + intercept))))


def balanced_weights(labels: Values) -> Values:
    """Weights of the films that give both classes the same total, 1 together."""
    positive = labels == 1
    return np.asarray(np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum()))


def platt(logits: Values, labels: Values) -> tuple[float, float]:
    """Fit slope and intercept by maximum likelihood, both classes counting the same."""
    # A second of every start, for what only training needs.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    model = LogisticRegression(C=1e6)
    model.fit(logits.reshape(-1, 1), labels, sample_weight=balanced_weights(labels) * len(labels))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def calibrate(logits: Values, labels: Values) -> Calibration:
    """Fit the map and choose the operating point on the validation films as they are.

    The map is fitted for a prevalence of one half: the share of pneumonia in the public set (74 %) is the
    share of films somebody collected, not that of a ward.

    The operating point is the highest whole percent at which `SENSITIVITY` of the pneumonias are still
    called. It is not the point of most right answers: on validation the classes are so well apart that a
    wide range of thresholds does nearly as well, and the one that happens to do best does not travel. What
    is known of this set's official test split, and of augmented films, is that normals of elsewhere score
    higher while pneumonias stay where they are; so of that range the upper end is taken, and sensitivity,
    which must be kept, says where it is.

    Parameters
    ----------
    logits, labels
        (n,) of the validation films.

    Returns
    -------
    Calibration
    """
    slope, intercept = platt(logits, labels)
    probability = probabilities(logits, slope, intercept)
    threshold = operating_point(probability[labels == 1])
    scores = slope * logits + intercept
    return Calibration(slope, intercept, threshold, indeterminate_band(scores, labels, threshold))


def operating_point(pneumonias: Values) -> float:
    """Highest whole percent at or above which lie `SENSITIVITY` of the probabilities of pneumonias.

    A whole percent: what a report prints is what decided. No set of films here knows it more exactly.
    """
    enough = [percent for percent in range(1, 100) if (pneumonias >= percent / 100.0).mean() >= SENSITIVITY]
    return max(enough, default=1) / 100.0


@dataclass(frozen=True)
class PatternCalibration:
    """Platt's map of the second head, and how sure it must be to be quoted.

    Attributes
    ----------
    slope, intercept
        Probability that a pneumonia is bacterial = sigmoid(slope * logit + intercept), both kinds alike.
    confidence
        Least probability of the likelier kind at which it is named; 1 where none is sure enough.
    """

    slope: float
    intercept: float
    confidence: float


def calibrate_pattern(logits: Values, bacterial: Values) -> PatternCalibration:
    """Fit the map on validation pneumonias of known kind (1 bacterial, 0 viral, -1 unknown).

    The confidence is the least whole percent from which on at least `NAMED_RIGHTLY` of the films named
    bacterial, and of those named viral, are so (both kinds counting the same).
    """
    known = bacterial >= 0
    truth = bacterial[known]
    if len(set(truth.tolist())) < 2:
        return PatternCalibration(1.0, 0.0, 1.0)
    slope, intercept = platt(logits[known], truth)
    probability = probabilities(logits[known], slope, intercept)
    weights = balanced_weights(truth)
    for percent in range(50, 100):
        confidence = percent / 100.0
        named = [probability >= confidence, probability <= 1.0 - confidence]
        right = [weights[each & (truth == kind)].sum() for each, kind in zip(named, (1, 0), strict=True)]
        if all(
            rightly >= NAMED_RIGHTLY * weights[each].sum() > 0.0
            for rightly, each in zip(right, named, strict=True)
        ):
            return PatternCalibration(slope, intercept, confidence)
    return PatternCalibration(slope, intercept, 1.0)


def indeterminate_band(
    scores: Values, labels: Values, threshold: float, share: float = 0.02
) -> tuple[float, float] | None:
    """Interval around the operating point that holds `share` of the films, evenly on the logit scale.

    `scores` are calibrated log-odds, (n,). Both classes count the same. The band says
    where the network is least sure; it never moves the threshold.
    """
    centre = float(np.log(threshold / (1.0 - threshold)))
    distance = np.abs(scores - centre)
    order = np.argsort(distance)
    reach = np.cumsum(balanced_weights(labels)[order])
    half = float(distance[order][np.searchsorted(reach, share)])
    if half == 0.0:
        return None
    low, high = probabilities(np.array([centre - half, centre + half]), 1.0, 0.0)
    return round(float(low), 3), round(float(high), 3)
