"""All figures of a labelled set of films, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model.measuring import metrics
from model.measuring.cases import KIND_NAMES, Case, Read, patients, read_picture, subgroups
from model.measuring.scoring import Scored, score
from model.predict import Predictor
from model.prediction import Finding, finding_for, pattern_for
from model.training.films import CLASSES, DataError
from model.weights import WeightsInfo


def evaluate(
    cases: Sequence[Case],
    predictor: Predictor,
    read: Read = read_picture,
    *,
    resamples: int = metrics.RESAMPLES,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a network on labelled films.

    Every film that can be read is scored and counted. Those that the gate would refuse are too; they are
    counted in `gate`, where the figures without them stand as well.

    Parameters
    ----------
    cases
        From `model.measuring.cases`.
    read
        Opens one file; the default knows JPEG and PNG.
    resamples
        Bootstrap resamples for the intervals.
    on_progress
        Called with (films done, films in all).

    Returns
    -------
    dict
        Plain values, ready for JSON; a figure that cannot be had is None. All intervals hold 95 %: those of
        `model.measuring.metrics.figures` are bootstrap intervals (patients drawn where they are known, see
        `resampled`), those of single shares in subgroups are Wilson's.

    Raises
    ------
    DataError
        When the films that could be scored are none, or of one class only.
    """
    scored, info = score(cases, predictor, read, on_progress), predictor.info
    probability, labels, threshold = scored.probability, scored.labels, info.threshold
    for label, name in enumerate(CLASSES):
        if not (labels == label).any():
            why = f"; the first: {scored.left[0][0].file}: {scored.left[0][1].reason}" if scored.left else ""
            raise DataError(f"none of the films labelled {name} could be scored{why}")
    known = patients(scored.cases)
    units = np.arange(len(labels)) if known is None else known
    found = metrics.figures(probability, labels, threshold)
    spread = metrics.intervals(probability, labels, threshold, resamples=resamples, units=units)
    low, high = info.indeterminate or (0.0, 0.0)
    findings = _findings(scored, info)
    report = {
        "n": len(labels),
        "prevalence": labels.mean(),
        **found,
        **{f"{name}_ci": interval for name, interval in spread.items()},
        "threshold": threshold,
        "confusion": metrics.confusion(probability >= threshold, labels),
        "resampled": "films" if known is None else "patients",
        "patients": None if known is None else len(set(known.tolist())),
        "calibration_bins": metrics.calibration_bins(probability, labels),
        "histogram": metrics.histogram(probability, labels),
        "predictive_values": metrics.predictive_values(found["sensitivity"], found["specificity"]),
        "curve": metrics.curve(probability, labels),
        "indeterminate": {
            "low": low,
            "high": high,
            "n": int(((probability > low) & (probability < high)).sum()),
        },
        "subgroups": [
            {
                "attribute": attribute,
                "value": value,
                **metrics.within(probability[films], labels[films], threshold, units[films], resamples),
            }
            for attribute, value, films in subgroups(_beside(scored.cases, info.population_age_years))
        ],
        "pattern": _pattern(scored, findings, info, units, resamples),
        "gate": _gate(scored, info, units, resamples),
        "as_reported": {
            name: {
                str(each): sum(
                    found is each for found, own in zip(findings, labels, strict=True) if own == label
                )
                for each in Finding
            }
            for label, name in enumerate(CLASSES)
        },
        "population": _population(scored.cases, info.population_age_years),
        "not_analysed": {
            "n": len(scored.left),
            "unreadable": sum(left.unreadable for _, left in scored.left),
            "films": [
                {"file": case.file, "label": CLASSES[case.label], **vars(left)} for case, left in scored.left
            ],
        },
        "errors": _errors(scored, threshold),
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
    }
    plain: dict[str, Any] = _plain(report)
    return plain


def _pattern(
    scored: Scored, findings: list[Finding], info: WeightsInfo, units: metrics.Values, resamples: int
) -> dict[str, Any] | None:
    """Bacterial against viral among the pneumonias of known kind: by the number, and as reports name it."""
    known = scored.kinds >= 0
    if not known.any():
        return None
    truth, bacterial = scored.kinds[known], scored.bacterial[known]
    figures = metrics.figures(bacterial, truth, 0.5)
    spread = metrics.intervals(bacterial, truth, 0.5, resamples=resamples, units=units[known])
    said = np.array(
        [
            pattern_for(finding, each, info.pattern_confidence) or ""
            for finding, each in zip(findings, scored.bacterial, strict=True)
        ]
    )[known]
    named, right = said != "", said == np.where(truth == 1, "bacterial", "viral")
    return {
        "n": len(truth),
        **{name: figures[name] for name in ("auc", "accuracy", "ece", "brier")},
        **{f"{name}_ci": spread[name] for name in ("auc", "accuracy", "ece", "brier")},
        "named": {
            "confidence": info.pattern_confidence,
            "n": int(named.sum()),
            **metrics.share("share", int(named.sum()), len(named)),
            **metrics.share("accuracy", int(right.sum()), int(named.sum())),
        },
        "kinds": [
            {
                "kind": name,
                "n": int((truth == kind).sum()),
                "named_bacterial": int((said[truth == kind] == "bacterial").sum()),
                "named_viral": int((said[truth == kind] == "viral").sum()),
                **metrics.share("accuracy", int(right[truth == kind].sum()), int(named[truth == kind].sum())),
            }
            for kind, name in KIND_NAMES.items()
        ],
    }


def _gate(scored: Scored, info: WeightsInfo, units: metrics.Values, resamples: int) -> dict[str, Any]:
    passed = scored.gate_distance <= info.gate_threshold
    return {
        "refused": int((~passed).sum()),
        "refused_by_class": {
            name: int((~passed)[scored.labels == label].sum()) for label, name in enumerate(CLASSES)
        },
        "note": "refused images are scored and counted above like the others",
        "passed": metrics.within(
            scored.probability[passed], scored.labels[passed], info.threshold, units[passed], resamples
        ),
    }


def _findings(scored: Scored, info: WeightsInfo) -> list[Finding]:
    """Return what the gateway would report of each film as it lies."""
    return [
        finding_for(probability, info.threshold, info.indeterminate)
        if distance <= info.gate_threshold
        else Finding.NOT_ANALYSED
        for probability, distance in zip(scored.probability, scored.gate_distance, strict=True)
    ]


def _beside(cases: Sequence[Case], ages: tuple[float, float]) -> list[Case]:
    """Let the films be divided, before all else, by whether the patient's age is a validated one."""
    return [
        replace(case, attributes={"validated ages": _lies(case.age_years, ages), **case.attributes})
        for case in cases
    ]


def _lies(age_years: float | None, ages: tuple[float, float]) -> str:
    if age_years is None:
        return "age unknown"
    return "inside" if ages[0] <= age_years < ages[1] + 1 else "outside"  # ages are completed years


def _population(cases: Sequence[Case], ages: tuple[float, float]) -> dict[str, Any]:
    found = Counter(_lies(case.age_years, ages) for case in cases)
    return {
        "age_years": list(ages),
        "inside": found["inside"],
        "outside": found["outside"],
        "unknown": found["age unknown"],
    }


def _errors(scored: Scored, threshold: float) -> list[dict[str, Any]]:
    """List the films on the wrong side of the threshold, the most wrong first."""
    wrong = np.flatnonzero((scored.probability >= threshold) != (scored.labels == 1))
    wrong = wrong[np.argsort(-np.abs(scored.probability - scored.labels)[wrong], kind="stable")]
    return [
        {
            "file": scored.cases[index].file,
            "label": CLASSES[scored.labels[index]],
            "probability": scored.probability[index],
        }
        for index in wrong
    ]


def _plain(value: Any) -> Any:
    """Return what JSON can hold: numbers of Python, and None for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return None if np.isnan(value) else float(value)
    return value
