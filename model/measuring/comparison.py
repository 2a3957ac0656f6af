"""Two networks on the same films of one population: the figures of each, and what the second one changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.measuring import metrics

Values = npt.NDArray[Any]

FIGURES = ("auc", "sensitivity", "specificity", "brier")
MARGIN = 0.01
"""Of AUC: a population counts as kept when more than this was not lost, at 95 %."""


@dataclass(frozen=True)
class Scored:
    """Films of one population, scored before and after.

    Attributes
    ----------
    labels, patients
        (n,) int64.
    before, after
        (n,) calibrated probabilities.
    called_before, called_after
        (n,) bool: at or above the operating point of the network that scored the film.
    """

    labels: Values
    patients: Values
    before: Values
    after: Values
    called_before: Values
    called_after: Values


def compared(films: Scored, resamples: int = metrics.RESAMPLES) -> dict[str, Any]:
    """Return the figures before and after, and their differences on the same patients.

    Returns
    -------
    dict
        n, patients; `before`, `after` and `change`, each with `FIGURES` and their 95 % bootstrap intervals
        over patients under `<name>_ci`.
    """
    rows = {"before": (films.before, films.called_before), "after": (films.after, films.called_after)}
    draws = list(metrics.draws(films.labels, films.patients, resamples, seed=0))
    found: dict[str, Any] = {
        name: _figures(films.labels, *row, np.ones((1, len(films.labels)))) for name, row in rows.items()
    }
    spread = {
        name: {each: np.concatenate([drawn[each] for drawn in parts]) for each in FIGURES}
        for name, row in rows.items()
        for parts in [[_figures(films.labels, *row, times) for times in draws]]
    }
    found["change"] = {each: found["after"][each] - found["before"][each] for each in FIGURES}
    spread["change"] = {each: spread["after"][each] - spread["before"][each] for each in FIGURES}
    result: dict[str, Any] = {"n": len(films.labels), "patients": len(set(films.patients.tolist()))}
    for name, row in found.items():
        result[name] = {each: float(value[0]) for each, value in row.items()}
        result[name] |= {
            f"{each}_ci": np.percentile(values, (2.5, 97.5)).tolist() for each, values in spread[name].items()
        }
    return result


def is_kept(change: dict[str, Any]) -> bool:
    """Return whether a loss of more than `MARGIN` of AUC can be excluded."""
    return bool(change["auc_ci"][0] >= -MARGIN)


def is_better(change: dict[str, Any]) -> bool:
    """Return whether a gain of AUC is more than chance."""
    return bool(change["auc_ci"][0] > 0.0)


def verdict(first: dict[str, Any], extra: dict[str, Any]) -> str:
    """Return in words what the changes on both populations come to; each as `compared` gives it."""
    kept, better = is_kept(first), is_better(extra)
    lost = first["auc_ci"][1] < 0.0
    of_first = (
        f"a loss of more than {MARGIN:g} of AUC is excluded"
        if kept
        else "something was forgotten"
        if lost
        else f"a loss of more than {MARGIN:g} of AUC cannot be excluded"
    )
    of_extra = "it is better than before" if better else "no gain is shown beyond chance"
    return f"On the first population {of_first}; on the other one {of_extra}."


def _figures(labels: Values, probability: Values, called: Values, times: Values) -> dict[str, Values]:
    """Figures of k sets that hold the films as often as the rows of `times`, (k, n), say."""
    positive = labels == 1
    return {
        "auc": metrics.aucs(probability, labels, times),
        "sensitivity": (times @ (positive & called)) / (times @ positive),
        "specificity": (times @ (~positive & ~called)) / (times @ ~positive),
        "brier": (times @ (probability - labels) ** 2) / times.sum(axis=1),
    }
