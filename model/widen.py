"""What a second population buys, and what it costs the first: `python -m model.widen --data DIR --extra DIR`.

Cross-validation by patient of a network that starts from weights and learns a second population beside the
first. Each film of the second population is scored once, by a network that saw no film of its patient. The
first population is measured on the films that the weights it starts from were never trained on, so that
before and after are compared on films new to both.

A network is trained on `folds` - 2 parts of the second population and a sample of the first; the next part
and most of the first's hold-out choose its epoch, its calibration and its operating point; the last part and
the rest of the hold-out are scored. Locator and gate stay those of the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.calibrate import calibrate, probabilities
from model.locate import in_frame
from model.measuring.comparison import FIGURES, Scored, compared, verdict
from model.predict import Predictor
from model.progress import Bar
from model.train import GENTLE_RATE, validation_metrics
from model.training.films import DataError, Films
from model.training.fit import ResumeError, fit, logits_of
from model.training.holdout import HoldOut, hold_out
from model.training.recipe import Progress, Recipe
from model.training.splits import grouped_fold
from model.weights import WeightsError, default_weights

GENTLE = replace(
    Recipe(), sizes=(160, 160, 160), epochs=5, settle=2, rate=GENTLE_RATE, average=0.98, patience=8
)
"""A tenth of a training: the network knows chests already, and 300 films are soon known by heart."""
REPLAYED = 2
"""Films of the first population for each of the second; without them the first is forgotten."""

Values = npt.NDArray[Any]


def cross_validated(
    data: Path,
    extra: Path,
    weights: Path,
    work: Path,
    *,
    recipe: Recipe = GENTLE,
    folds: int = 5,
    replayed: int = REPLAYED,
    device: str = "cpu",
    on_progress: Callable[[int, Progress], None] | None = None,
) -> dict[str, Any]:
    """Train `folds` networks and compare each with the weights it started from.

    Parameters
    ----------
    data, extra
        Folders of the two populations, as for `hilum train`.
    weights
        Where each network starts. Their hold-out is that of `Recipe()`, or of `recipe` where it says another
        part.
    work
        Checkpoints; an interrupted run goes on from them.
    on_progress
        Called with the fold and its progress.

    Returns
    -------
    dict
        `first` and `extra`, each as `model.measuring.comparison.compared` says, and what they were computed
        with.

    Raises
    ------
    DataError, ResumeError, WeightsError
        As `hilum train`.
    """
    start = Predictor.load(weights, device)
    recipe, chosen = replace(recipe, init=start.info.sha256), torch.device(device)
    held = hold_out(data, recipe, extra)
    films = replace(held.films, planes=in_frame(start.locator, held.films.planes))
    known = np.flatnonzero(~held.extra & np.isin(np.arange(len(films)), held.training))
    old, new = held.validation[~held.extra[held.validation]], np.flatnonzero(held.extra)
    before, after, called = (
        np.full(len(films), np.nan),
        np.full(len(films), np.nan),
        np.zeros(len(films), bool),
    )
    asked = np.concatenate([old, new])
    before[asked] = _calibrated(start, _logits(start.network, films.at(asked), recipe, chosen))
    thresholds = []
    work.mkdir(parents=True, exist_ok=True)
    for fold in range(folds):
        test = _part(held, new, folds, fold)
        settled_on = _part(held, new, folds, (fold + 1) % folds)
        taught = np.setdiff1d(new, np.concatenate([test, settled_on]))
        # A near-duplicate across the two populations is in one group: its other half is not trained on.
        free = known[~np.isin(held.groups[known], held.groups[np.concatenate([test, settled_on])])]
        rng = np.random.default_rng([recipe.seed, fold])
        sample = rng.choice(free, min(len(free), replayed * len(taught)), replace=False)
        old_test = _part(held, old, folds, fold)
        settled_on = np.concatenate([settled_on, np.setdiff1d(old, old_test)])
        network = fit(
            films.at(np.sort(np.concatenate([taught, sample]))),
            films.at(settled_on),
            recipe,
            checkpoint=work / f"{fold}.checkpoint.pt",
            log=work / f"{fold}.csv",
            measure=validation_metrics,
            on_progress=partial(on_progress, fold) if on_progress else None,
            device=chosen,
            start=start.network,
        )
        network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
        logits, truth = _logits(network, films.at(settled_on), recipe, chosen), films.labels[settled_on]
        calibration = calibrate(logits, truth)
        scored = np.concatenate([test, old_test])
        logits = _logits(network, films.at(scored), recipe, chosen)
        after[scored] = probabilities(logits, calibration.slope, calibration.intercept)
        called[scored] = after[scored] >= calibration.threshold
        thresholds.append(calibration.threshold)

    def of(indices: Values) -> Scored:
        said = before[indices] >= start.info.threshold
        return Scored(
            films.labels[indices],
            held.groups[indices],
            before[indices],
            after[indices],
            said,
            called[indices],
        )

    return {
        "weights": {"name": start.info.name, "version": start.info.version, "sha256": start.info.sha256},
        "folds": folds,
        "replayed": replayed,
        "recipe": asdict(recipe),
        "thresholds": {"before": start.info.threshold, "after": thresholds},
        "first": compared(of(old)),
        "extra": compared(of(new)),
    }


def _part(held: HoldOut, indices: Values, folds: int, fold: int) -> Values:
    """Some of the films' part number `fold`, grouped and stratified."""
    _, part = grouped_fold(held.films.labels[indices], held.groups[indices], folds, fold, seed=1)
    return np.asarray(indices[part])


def _logits(network: torch.nn.Module, films: Films, recipe: Recipe, device: torch.device) -> Values:
    return np.asarray(logits_of(network, films.planes, recipe.sizes[-1], device)[:, 0])


def _calibrated(predictor: Predictor, logits: Values) -> Values:
    return probabilities(logits, *predictor.info.calibration)


def shown(report: dict[str, Any]) -> str:
    """Return the table of a report, for a terminal."""
    lines = []
    for population in ("first", "extra"):
        of = report[population]
        lines.append(f"{population}: {of['n']} films of {of['patients']} patients")
        for when in ("before", "after", "change"):
            row = of[when]
            figures = ", ".join(
                f"{name} {row[name]:+.3f} ({row[f'{name}_ci'][0]:+.3f} to {row[f'{name}_ci'][1]:+.3f})"
                for name in FIGURES
            )
            lines.append(f"  {when:<7} {figures}")
    lines.append(verdict(report["first"]["change"], report["extra"]["change"]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when the report is written."""
    parser = argparse.ArgumentParser(prog="python -m model.widen", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the first population")
    parser.add_argument("--extra", type=Path, required=True, metavar="DIR", help="the second")
    parser.add_argument("--init", type=Path, metavar="WEIGHTS", help="default: the weights that ship")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="checkpoints")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="report")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=GENTLE.epochs)
    parser.add_argument("--settle", type=int, default=GENTLE.settle)
    parser.add_argument("--sizes", type=int, nargs=3, default=GENTLE.sizes, metavar="PIXELS")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    recipe = replace(GENTLE, epochs=options.epochs, settle=options.settle, sizes=tuple(options.sizes))
    bar = Bar("widen")

    def show(fold: int, now: Progress) -> None:
        if now.metrics is None:
            words = f"part {fold + 1}/{options.folds}, epoch {now.epoch}/{now.epochs} loss {now.loss:.3f}"
            bar.update(now.batch, now.batches, words)
        else:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in now.metrics.items())
            bar.line(f"part {fold + 1}/{options.folds}, epoch {now.epoch}/{now.epochs}: {figures}")

    try:
        report = cross_validated(
            options.data, options.extra, options.init or default_weights(), options.work,
            recipe=recipe, folds=options.folds, device=options.device, on_progress=show,
        )  # fmt: skip
    except (DataError, ResumeError, WeightsError, OSError) as fault:
        sys.stderr.write(f"python -m model.widen: {fault}\n")
        return 1
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(shown(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
