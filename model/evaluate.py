"""Score a labelled folder: `python -m model.evaluate --data DIR [--json FILE] [--plots DIR]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model import metrics
from model.films import CLASSES, DataError, find_films
from model.plots import plots
from model.predict import BATCH, Predictor
from model.preprocess import ImageError, read_image
from model.progress import Bar
from model.weights import WeightsError

__all__ = ["evaluate", "main", "plots"]


def evaluate(
    data: Path,
    weights: Path | None = None,
    *,
    split: str = "test",
    device: str | None = None,
    resamples: int = metrics.RESAMPLES,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate weights on labelled images.

    Every image counts. Those that the gate would refuse are scored like the others and counted in `gate`.

    Parameters
    ----------
    data
        `data/{train,test,val}/{NORMAL,PNEUMONIA}`, of which `split` is read, or `data/{NORMAL,PNEUMONIA}`.
    weights
        Default: the weights that ship.
    split
        Which split to read where there are several.
    device
        As for `Predictor.load`.
    resamples
        Bootstrap resamples for the intervals.
    on_progress
        Called with (images done, images in all).

    Returns
    -------
    dict
        Plain values, ready for JSON: n, prevalence, the figures of `model.metrics.figures` each with its
        95 % interval under `<name>_ci`, threshold, confusion, calibration_bins, predictive_values, curve,
        indeterminate, gate and model.

    Raises
    ------
    DataError
        When the folder is missing, has another layout, lacks a class or holds an image that cannot be read.
    WeightsError
        When the weights cannot be used.
    """
    films = find_films(data, (split,))
    predictor = Predictor.load(weights, device)
    info = predictor.info
    labels = np.array([film.label for film in films], dtype=np.int64)
    probability, distance = np.empty(len(films)), np.empty(len(films))
    for start in range(0, len(films), BATCH):
        part = slice(start, start + BATCH)
        try:
            images = [read_image(film.path) for film in films[part]]
        except ImageError as fault:
            raise DataError(str(fault)) from fault
        probability[part], distance[part] = predictor.score(images)
        if on_progress is not None:
            on_progress(min(start + BATCH, len(films)), len(films))

    found = metrics.figures(probability, labels, info.threshold)
    spread = metrics.intervals(probability, labels, info.threshold, resamples=resamples)
    refused = distance > info.gate_threshold
    low, high = info.indeterminate or (0.0, 0.0)
    return {
        "n": len(films),
        "prevalence": float(labels.mean()),
        **found,
        **{f"{name}_ci": interval for name, interval in spread.items()},
        "threshold": info.threshold,
        "confusion": metrics.confusion(probability >= info.threshold, labels),
        "calibration_bins": metrics.calibration_bins(probability, labels),
        "predictive_values": metrics.predictive_values(found["sensitivity"], found["specificity"]),
        "curve": metrics.curve(probability, labels),
        "indeterminate": {
            "low": low,
            "high": high,
            "n": int(((probability > low) & (probability < high)).sum()),
        },
        "gate": {
            "refused": int(refused.sum()),
            "refused_by_class": {
                name: int(refused[labels == label].sum()) for label, name in enumerate(CLASSES)
            },
            "note": "refused images are scored and counted above like the others",
        },
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
    }


def summary(report: dict[str, Any]) -> str:
    """Say a report in a few lines."""
    counts, model = report["confusion"], report["model"]
    shown = ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1", "ece", "brier")

    def with_interval(name: str) -> str:
        low, high = report[f"{name}_ci"]
        return f"{report[name]:.3f} (95 % {low:.3f} to {high:.3f})"

    return "\n".join(
        [
            f"{model['name']} {model['version']} (SHA-256 {model['sha256'][:12]}), "
            f"{report['n']} images, {report['prevalence']:.1%} pneumonia",
            *(f"{name:<18}{with_interval(name)}" for name in shown),
            f"{'threshold':<18}{report['threshold']:.3f}",
            f"{'confusion':<18}tn {counts['tn']}, fp {counts['fp']}, fn {counts['fn']}, tp {counts['tp']}",
            f"{'gate':<18}would refuse {report['gate']['refused']} of the images (all are counted above)",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when everything asked for was done."""
    parser = argparse.ArgumentParser(prog="hilum evaluate", description="Score labelled chest films.")
    folders = "DIR/{test,train,val}/{NORMAL,PNEUMONIA}/*.jpeg or DIR/{NORMAL,PNEUMONIA}/*.jpeg"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=folders)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: the weights that ship")
    parser.add_argument("--split", default="test", help="which split, where DIR has several (default: test)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write four PNGs there")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA when there is one)")
    options = parser.parse_args(argv)
    bar = Bar("evaluate")
    try:
        report = evaluate(
            options.data, options.weights, split=options.split, device=options.device, on_progress=bar.update
        )
        bar.close()
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
        if options.plots is not None:
            plots(report, options.plots)
    except (DataError, WeightsError, OSError) as fault:
        sys.stderr.write(f"hilum evaluate: {fault}\n")
        return 1
    sys.stdout.write(summary(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
