"""From logits to a probability that means what it says, and to an operating point that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

Values = npt.NDArray[Any]


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
    model = LogisticRegression(C=1e6)
    model.fit(logits.reshape(-1, 1), labels, sample_weight=balanced_weights(labels) * len(labels))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def calibrate(logits: Values, labels: Values, stressed: Values) -> Calibration:
    """Fit the map and choose the operating point on grouped validation.

    The map is fitted for a prevalence of one half: the share of pneumonia in the public set (74 %) is the
    share of films somebody collected, not that of a ward.

    The operating point is not the validation optimum. On validation nearly every threshold separates the
    classes, so the optimum sits wherever the last difficult film happens to fall, and it does not travel.
    It is the middle of the gap instead: half way, on the logit scale, between the normals' upper tail and the
    pneumonias' lower tail, over the validation films and several augmented copies of each, in which exposure,
    framing and image quality vary more than within one hospital.

    Parameters
    ----------
    logits, labels
        (n,) of the validation films as they are.
    stressed
        (k, n) logits of k augmented copies.

    Returns
    -------
    Calibration
    """
    everything = np.concatenate([logits[None], stressed])
    repeated = np.broadcast_to(labels, everything.shape)
    slope, intercept = platt(everything.ravel(), repeated.ravel())
    cut = equal_error_point(everything.ravel(), repeated.ravel())
    # A whole percent: what a report prints is what decided. No set of films here knows it more exactly.
    threshold = round(float(probabilities(np.array(cut), slope, intercept)), 2)
    threshold = min(max(threshold, 0.01), 0.99)
    return Calibration(
        slope, intercept, threshold, indeterminate_band(slope * logits + intercept, labels, threshold)
    )


def equal_error_point(logits: Values, labels: Values) -> float:
    """Logit at which the share of normals above equals the share of pneumonias below."""
    normals, positives = np.sort(logits[labels == 0]), np.sort(logits[labels == 1])
    cuts = np.unique(np.concatenate([normals, positives]))
    false_positive = 1.0 - np.searchsorted(normals, cuts, side="left") / len(normals)
    false_negative = np.searchsorted(positives, cuts, side="left") / len(positives)
    gap = false_positive - false_negative
    at = np.flatnonzero(gap <= 0)
    if len(at) == 0 or at[0] == 0:
        return float(cuts[0] if len(at) else cuts[-1])
    # Between the last cut with too many false positives and the first with too many misses.
    return float((cuts[at[0] - 1] + cuts[at[0]]) / 2.0)


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
