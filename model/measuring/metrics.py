"""Figures of merit of a binary classifier, with their intervals. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

BINS = 10
RESAMPLES = 2000
PREVALENCES = (0.05, 0.20, 0.50)
_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
_CHUNK = 50  # resamples at a time: 2 MB for 5000 films, which a processor's cache holds


def auc(score: Values, labels: Values) -> float:
    """Area under the ROC curve: the share of (positive, normal) pairs in the right order, ties one half.

    NaN where a class is missing.
    """
    return float(aucs(score, labels, np.ones((1, len(labels))))[0])


def confusion(positive: Values, labels: Values) -> dict[str, int]:
    """Count {tn, fp, fn, tp} of decisions against labels."""
    truth, said = labels == 1, positive.astype(bool)
    return {
        "tn": int((~truth & ~said).sum()),
        "fp": int((~truth & said).sum()),
        "fn": int((truth & ~said).sum()),
        "tp": int((truth & said).sum()),
    }


def rates(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the usual rates from a confusion matrix; a rate without a denominator is 0.

    `counts` are numbers or arrays of one shape, and so are the rates.
    """
    tn, fp, fn, tp = (np.asarray(counts[name], np.float64) for name in ("tn", "fp", "fn", "tp"))
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


def wilson(successes: int, n: int) -> list[float] | None:
    """95 % score interval of a share (Wilson, JASA 1927); None for a share of nothing."""
    if n == 0:
        return None
    share, scale = successes / n, 1.0 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(share * (1.0 - share) / n + _Z**2 / (4 * n**2))
    return [centre - half if successes else 0.0, centre + half if successes < n else 1.0]


def share(name: str, successes: int, n: int) -> dict[str, Any]:
    """Return a share under its name and Wilson's interval under `<name>_ci`; None for a share of nothing."""
    return {name: successes / n if n else None, f"{name}_ci": wilson(successes, n)}


def predictive_values(sensitivity: float, specificity: float) -> list[dict[str, float]]:
    """Positive and negative predictive value by Bayes' rule, for several prevalences."""
    rows = []
    for prevalence in PREVALENCES:
        said_ill = sensitivity * prevalence + (1.0 - specificity) * (1.0 - prevalence)
        said_well = (1.0 - sensitivity) * prevalence + specificity * (1.0 - prevalence)
        rows.append(
            {
                "prevalence": prevalence,
                "ppv": float(_share(sensitivity * prevalence, said_ill)),
                "npv": float(_share(specificity * (1.0 - prevalence), said_well)),
            }
        )
    return rows


def calibration_bins(probability: Values, labels: Values) -> list[dict[str, float]]:
    """Mean probability and share of pneumonia in each of `BINS` equally wide bins that hold any film."""
    which = _bin(probability)
    return [
        {
            "n": int((which == index).sum()),
            "probability": float(probability[which == index].mean()),
            "share": float(labels[which == index].mean()),
        }
        for index in range(BINS)
        if (which == index).any()
    ]


def histogram(probability: Values, labels: Values, bins: int = 2 * BINS) -> dict[str, list[float]]:
    """Films of each class in equally wide bins of probability, whose edges (bins + 1) come with them."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    counts = [np.histogram(probability[labels == label], edges)[0].tolist() for label in (0, 1)]
    return {"edges": edges.tolist(), "normal": counts[0], "pneumonia": counts[1]}


def figures(probability: Values, labels: Values, threshold: float) -> dict[str, float]:
    """All single figures for one set of films: AUC, the rates, ECE and Brier score.

    The expected calibration error (Naeini et al., AAAI 2015) is over `BINS` equally wide bins. The AUC is NaN
    where a class is missing.
    """
    once = np.ones((1, len(labels)))
    return {name: float(each[0]) for name, each in _drawn(probability, labels, threshold, once).items()}


def intervals(
    probability: Values,
    labels: Values,
    threshold: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
    units: Values | None = None,
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals of `figures`.

    Parameters
    ----------
    probability, labels
        (n,) each.
    threshold
        A probability at or above it is a positive.
    seed, resamples
        Of the bootstrap.
    units
        (n,) int64, number of the patient of each film. Patients are drawn, each with all films, separately
        among those with normal films, with pneumonias and with both, so that no class is ever missing.
        Default: every film is drawn by itself, within its class.

    Returns
    -------
    dict
        [low, high] by the names of `figures`. A rate of exactly 0 or 1 never varies in a bootstrap: it gets
        Wilson's interval, in which each patient counts once.
    """
    units = np.arange(len(labels)) if units is None else units
    parts = [_drawn(probability, labels, threshold, times) for times in draws(labels, units, resamples, seed)]
    spread = {name: _edges([each[name] for each in parts]) for name in parts[0]}
    truth, said, found = labels == 1, probability >= threshold, figures(probability, labels, threshold)
    judged_on = {"sensitivity": truth, "recall": truth, "specificity": ~truth, "precision": said}
    for name, judged in {"accuracy": np.ones_like(truth), **judged_on}.items():
        if found[name] in (0.0, 1.0):
            among = len(np.unique(units[judged]))
            spread[name] = wilson(round(found[name]) * among, among) or [0.0, 1.0]
    return spread


def within(
    probability: Values, labels: Values, threshold: float, units: Values, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Figures of some of the films, of which a class may be missing.

    Returns
    -------
    dict
        n, positives, auc and brier (bootstrap intervals, as `intervals`), sensitivity, specificity, and
        precision and npv at the share of pneumonias that these films have (Wilson's intervals), each with
        `<name>_ci`; None where there is nothing to tell it from.
    """
    counts = confusion(probability >= threshold, labels)
    positives, normals = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    area: dict[str, Any] = dict.fromkeys(("auc", "auc_ci", "brier", "brier_ci"))
    if len(labels):
        drawn = list(draws(labels, units, resamples, seed=0))
        squared = (probability - labels) ** 2
        area |= {
            "brier": float(squared.mean()),
            "brier_ci": _edges([times @ squared / times.sum(axis=1) for times in drawn]),
        }
    if positives and normals:
        area |= {
            "auc": auc(probability, labels),
            "auc_ci": _edges([aucs(probability, labels, times) for times in drawn]),
        }
    return {
        "n": len(labels),
        "positives": positives,
        **area,
        **share("sensitivity", counts["tp"], positives),
        **share("specificity", counts["tn"], normals),
        **share("precision", counts["tp"], counts["tp"] + counts["fp"]),
        **share("npv", counts["tn"], counts["tn"] + counts["fn"]),
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


def draws(labels: Values, units: Values, resamples: int, seed: int) -> Iterator[Values]:
    """Yield (k, n) float64, how often each film is in each of k resamples, until there were `resamples`."""
    rng = np.random.default_rng(seed)
    _, unit = np.unique(units, return_inverse=True)
    count = int(unit.max()) + 1
    normal, positive = (np.bincount(unit, labels == label) > 0 for label in (0, 1))
    kind = normal + 2 * positive
    strata = [np.flatnonzero(kind == each) for each in (1, 2, 3)]
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        chosen = [
            members[rng.integers(0, len(members), (rows, len(members)))] for members in strata if len(members)
        ]
        cells = np.concatenate(chosen, axis=1) + np.arange(rows)[:, None] * count
        times = np.bincount(cells.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, unit].astype(np.float64)


def _drawn(probability: Values, labels: Values, threshold: float, times: Values) -> dict[str, Values]:
    """`figures` of each of k sets in which the films count as often as the rows of `times`, (k, n), say."""
    truth, said = labels == 1, probability >= threshold
    bins = _bin(probability)[:, None] == np.arange(BINS)
    excess = bins * (probability - labels)[:, None]
    squared = (probability - labels) ** 2
    sums = times @ np.column_stack(
        [~truth & ~said, ~truth & said, truth & ~said, truth & said, excess, squared]
    )
    n = times.sum(axis=1)
    return {
        "auc": aucs(probability, labels, times),
        **rates(dict(zip(("tn", "fp", "fn", "tp"), sums[:, :4].T, strict=True))),
        "ece": np.abs(sums[:, 4:-1]).sum(axis=1) / n,
        "brier": sums[:, -1] / n,
    }


def aucs(score: Values, labels: Values, times: Values) -> Values:
    """Return `auc` of each of k sets that hold the films as often as the rows of `times`, (k, n), say."""
    order = np.argsort(score, kind="stable")
    drawn = times[:, order]
    normals = drawn * (labels[order] == 0)
    positives = drawn - normals
    # Films of one score are one step.
    first = np.flatnonzero(np.append(True, np.diff(score[order])))
    if len(first) < len(order):
        normals, positives = (np.add.reduceat(each, first, axis=1) for each in (normals, positives))
    ordered = (positives * (np.cumsum(normals, axis=1) - normals / 2.0)).sum(axis=1)
    pairs = normals.sum(axis=1) * positives.sum(axis=1)
    areas: Values = np.divide(ordered, pairs, out=np.full(len(times), np.nan), where=pairs > 0)
    return areas


def _bin(probability: Values) -> Values:
    return np.asarray(np.minimum((probability * BINS).astype(int), BINS - 1))


def _edges(drawn: list[Values]) -> list[float]:
    return [float(edge) for edge in np.percentile(np.concatenate(drawn), (2.5, 97.5))]


def _share(part: Any, whole: Any) -> Any:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)[()]
