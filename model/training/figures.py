"""What a training run says of the weights it made, on films that it never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model.calibrate import probabilities
from model.measuring import metrics
from model.measuring.comparison import FIGURES, Scored, compared
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
    """Return the figures of both weights on the validation films of each population, and what changed.

    The films are new to `after`. To `before` those of the first population may not be, where another fold
    trained it: then what it seems to have forgotten is overstated.
    """
    found: Row = {}
    for name, chosen in (("first", ~held.extra), ("extra", held.extra)):
        indices = held.validation[chosen[held.validation]]
        if not len(indices):
            continue
        films, patients = held.films.at(indices), held.groups[indices]
        both = {"before": before, "after": after}
        asked = {when: predictor for when, predictor in both.items() if predictor is not None}
        scores = {when: each.score(list(films.planes)).probability for when, each in asked.items()}
        found[name] = {
            when: _row(each.info, scores[when], films.labels, patients) for when, each in asked.items()
        }
        if before is not None:
            called = [scores[when] >= each.info.threshold for when, each in asked.items()]
            scored = Scored(films.labels, patients, scores["before"], scores["after"], *called)
            found[name]["change"] = compared(scored)["change"]
    return found


def shown(row: Row) -> str:
    """Return a row of figures with its intervals, in words; of a change, with its sign."""
    is_change = "n" not in row
    names = FIGURES if is_change else ("auc", "sensitivity", "specificity", "accuracy")
    form = "+.3f" if is_change else ".3f"
    figures = (
        f"{name} {row[name]:{form}} ({row[f'{name}_ci'][0]:{form}} to {row[f'{name}_ci'][1]:{form}})"
        for name in names
    )
    return ("" if is_change else f"{row['n']} films: ") + ", ".join(figures)
