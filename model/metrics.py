"""Figures of merit of a binary classifier, with bootstrap intervals. Numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

BINS = 10
RESAMPLES = 2000
PREVALENCES = (0.05, 0.20, 0.50)


def auc(probability: Values, labels: Values) -> float:
    """Area under the ROC curve: the share of (positive, normal) pairs in the right order, ties one half."""
    normals, positives = np.sort(probability[labels == 0]), probability[labels == 1]
    below = np.searchsorted(normals, positives, side="left")
    below_or_tied = np.searchsorted(normals, positives, side="right")
    return float((below + below_or_tied).sum() / (2.0 * len(normals) * len(positives)))


def confusion(positive: Values, labels: Values) -> dict[str, int]:
    """Count {tn, fp, fn, tp} of decisions against labels."""
    truth, said = labels == 1, positive.astype(bool)
    return {
        "tn": int((~truth & ~said).sum()),
        "fp": int((~truth & said).sum()),
        "fn": int((truth & ~said).sum()),
        "tp": int((truth & said).sum()),
    }


def rates(counts: dict[str, int]) -> dict[str, float]:
    """Derive the usual rates from a confusion matrix; a rate without a denominator is 0."""
    tn, fp, fn, tp = counts["tn"], counts["fp"], counts["fn"], counts["tp"]
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    return {
        "accuracy": _share(tn + tp, tn + fp + fn + tp),
        "balanced_accuracy": (sensitivity + specificity) / 2.0,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _share(tp, tp + fp),
        "recall": sensitivity,
        "f1": _share(2 * tp, 2 * tp + fp + fn),
    }


def predictive_values(sensitivity: float, specificity: float) -> list[dict[str, float]]:
    """Positive and negative predictive value by Bayes' rule, for several prevalences."""
    rows = []
    for prevalence in PREVALENCES:
        said_ill = sensitivity * prevalence + (1.0 - specificity) * (1.0 - prevalence)
        said_well = (1.0 - sensitivity) * prevalence + specificity * (1.0 - prevalence)
        rows.append(
            {
                "prevalence": prevalence,
                "ppv": _share(sensitivity * prevalence, said_ill),
                "npv": _share(specificity * (1.0 - prevalence), said_well),
            }
        )
    return rows


def calibration_bins(probability: Values, labels: Values) -> list[dict[str, float]]:
    """Mean probability and share of pneumonia in each of `BINS` equally wide bins that hold any film."""
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        {
            "n": int((which == index).sum()),
            "probability": float(probability[which == index].mean()),
            "share": float(labels[which == index].mean()),
        }
        for index in range(BINS)
        if (which == index).any()
    ]


def ece(probability: Values, labels: Values) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) over equally wide bins."""
    bins = calibration_bins(probability, labels)
    return float(sum(each["n"] * abs(each["probability"] - each["share"]) for each in bins) / len(labels))


def brier(probability: Values, labels: Values) -> float:
    """Mean squared difference of probability and label."""
    return float(np.mean((probability - labels) ** 2))


def figures(probability: Values, labels: Values, threshold: float) -> dict[str, float]:
    """All single figures for one set of films."""
    counts = confusion(probability >= threshold, labels)
    return {
        "auc": auc(probability, labels),
        **rates(counts),
        "ece": ece(probability, labels),
        "brier": brier(probability, labels),
    }


def intervals(
    probability: Values, labels: Values, threshold: float, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals of `figures`, films drawn within each class."""
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)]
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = np.concatenate([rng.choice(side, len(side)) for side in sides])
        for name, value in figures(probability[chosen], labels[chosen], threshold).items():
            drawn.setdefault(name, []).append(value)
    return {
        name: [float(edge) for edge in np.percentile(values, (2.5, 97.5))] for name, values in drawn.items()
    }


def curve(probability: Values, labels: Values) -> dict[str, list[float]]:
    """Points of the ROC and precision-recall curves, from the strictest threshold to the most lenient."""
    order = np.argsort(-probability, kind="stable")
    hits, alarms = np.cumsum(labels[order] == 1), np.cumsum(labels[order] == 0)
    # Films of one score are one step.
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    hits, alarms = hits[last], alarms[last]
    return {
        "false_positive_rate": [0.0, *(alarms / max(int(alarms[-1]), 1)).tolist()],
        "true_positive_rate": [0.0, *(hits / max(int(hits[-1]), 1)).tolist()],
        "precision": [1.0, *(hits / (hits + alarms)).tolist()],
    }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
