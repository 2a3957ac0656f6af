"""What a training run says of the weights it made, on films that it never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model.calibrate import probabilities
from model.measuring import metrics
from model.predict import Predictor
from model.training.films import Films
from model.training.holdout import HoldOut
from model.weights import WeightsInfo

Row = dict[str, Any]


def validated(
    info: WeightsInfo, plain: npt.NDArray[Any], stressed: list[npt.NDArray[Any]], films: Films
) -> Row:
    """Return the figures on grouped validation, plain and augmented, from logits (n,) each."""

    def row(logits: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Row:
        return _row(info, probabilities(logits, *info.calibration), truth)

    copies = np.concatenate(stressed)
    return {
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
        "threshold": info.threshold,
        "indeterminate": info.indeterminate,
        "validation": row(plain, films.labels),
        "validation_stressed": row(copies, np.tile(films.labels, len(stressed))),
    }


def _row(
    info: WeightsInfo,
    probability: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    patients: npt.NDArray[np.int64] | None = None,
) -> Row:
    found = metrics.figures(probability, truth, info.threshold)
    spread = metrics.intervals(probability, truth, info.threshold, units=patients)
    edges = {f"{name}_ci": interval for name, interval in spread.items()}
    return {"n": len(truth), "threshold": info.threshold, **found, **edges}


def by_population(before: Predictor | None, after: Predictor, held: HoldOut) -> Row:
    """Return the figures of both weights on the validation films of each population.

    The films are new to `after`. To `before` those of the first population may not be, where another fold
    trained it: then what it seems to have forgotten is overstated.
    """
    found: Row = {}
    for name, chosen in (("first", ~held.extra), ("extra", held.extra)):
        indices = held.validation[chosen[held.validation]]
        if not len(indices):
            continue
        films = held.films.at(indices)
        both = {"before": before, "after": after}
        found[name] = {
            when: _row(
                predictor.info,
                predictor.score(list(films.planes)).probability,
                films.labels,
                held.groups[indices],
            )
            for when, predictor in both.items()
            if predictor is not None
        }
    return found


def shown(row: Row) -> str:
    """Return a row of figures with its intervals, in words."""
    names = ("auc", "sensitivity", "specificity", "accuracy")
    figures = (
        f"{name} {row[name]:.3f} ({row[f'{name}_ci'][0]:.3f} to {row[f'{name}_ci'][1]:.3f})" for name in names
    )
    return f"{row['n']} films: " + ", ".join(figures)
