"""What each choice of the recipe bought: `python -m model.ablation --data DIR --folder DIR [--json FILE]`.

One change at a time, each trained alike but shorter and coarser than the network that ships, and measured on
the films held out. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.calibrate import operating_point, platt, probabilities
from model.locate import in_frame
from model.measuring import metrics
from model.measuring.nuisances import PERTURBATIONS
from model.progress import Bar
from model.stress import cases_of
from model.train import fitted_locator, validation_metrics
from model.training.augment import augmented
from model.training.films import DataError
from model.training.fit import ResumeError, fit, logits_of
from model.training.holdout import HoldOut, hold_out
from model.training.recipe import Progress, Recipe

SHORT = Recipe(sizes=(96, 96, 96), epochs=5, settle=1, average=0.98)
WHOLE_FILMS = "whole films, not cut about the lungs"
CHANGES: dict[str, dict[str, Any]] = {
    "none (the recipe)": {},
    WHOLE_FILMS: {},
    "no borrowing from other films": {"histogram": 0.0, "spectrum": 0.0, "surround": 0.0},
    "spectra borrowed by 30 % of the films": {"spectrum": 0.3},
    "no augmentation": {"augmentation": 0.0},
    "no settling": {"epochs": 6, "settle": 0},
    "classes not balanced": {"balanced": False},
    "no averaging of weights": {"average": 0.0},
    "a coarser input (64 pixels)": {"sizes": (64, 64, 64)},
}


def ablate(
    held: HoldOut, name: str, folder: Path, on_progress: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """Train with one change and measure.

    Returns
    -------
    dict
        name, recipe (what was changed), and with 95 % bootstrap intervals the AUC on the held-out films
        (`auc`), on augmented copies of them (`stressed`), in the style of the other class (`style`), and with
        the proportions of a film cut to 4:3 (`framed`); at the operating point that the plain films give,
        the `specificity` on them and with those proportions (`framed_specificity`).
    """
    recipe = replace(SHORT, **CHANGES[name])
    training, validation = held.films.at(held.training), held.films.at(held.validation)
    locator = fitted_locator(training.planes, recipe.seed, folder / "locator.pt")

    def seen(films: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return films if name == WHOLE_FILMS else in_frame(locator, films)

    stem = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    network = fit(
        replace(training, planes=seen(training.planes)), replace(validation, planes=seen(validation.planes)),
        recipe, checkpoint=stem.with_suffix(".pt"), log=stem.with_suffix(".csv"),
        measure=validation_metrics, on_progress=on_progress,
    )  # fmt: skip
    changed = {each.name: each for each in PERTURBATIONS}
    cases = cases_of(held, recipe.seed)
    stacks = {
        "auc": validation.planes,
        "stressed": augmented(validation.planes, recipe.seed, 0, True),
        "style": np.stack([changed["all three"].apply(case) for case in cases]),
        "framed": np.stack([changed["aspect 4:3"].apply(case) for case in cases]),
    }
    row: dict[str, Any] = {"name": name, "recipe": CHANGES[name]}
    logits = {
        key: logits_of(network, seen(films), recipe.sizes[-1], torch.device("cpu"))[:, 0]
        for key, films in stacks.items()
    }
    for key, each in logits.items():
        row |= _auc(key, each, validation.labels)
    slope, intercept = platt(logits["auc"], validation.labels)
    threshold = operating_point(probabilities(logits["auc"], slope, intercept)[validation.labels == 1])
    for key, rate in (("auc", "specificity"), ("framed", "framed_specificity")):
        called = probabilities(logits[key], slope, intercept) >= threshold
        row[rate] = float(metrics.rates(metrics.confusion(called, validation.labels))["specificity"])
    return row


def _auc(key: str, logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, Any]:
    edges = metrics.intervals(probabilities(logits, 1.0, 0.0), labels, 0.5)["auc"]
    return {key: float(metrics.auc(logits, labels)), f"{key}_ci": [float(edge) for edge in edges]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when everything asked for was done."""
    parser = argparse.ArgumentParser(prog="python -m model.ablation", description="Ablation of the recipe.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="as for `hilum train`")
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="NAME", help="some of the changes")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="checkpoints go there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(argv)
    bar = Bar("ablation")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        held = hold_out(options.data, SHORT)
        rows = []
        for name in options.only or CHANGES:
            rows.append(
                ablate(held, name, options.folder, lambda now: bar.update(now.batch, now.batches, name))  # noqa: B023
            )
            row = rows[-1]
            bar.line(
                f"{name}: AUC {row['auc']:.4f}, stressed {row['stressed']:.4f}, style {row['style']:.4f}, "
                f"4:3 {row['framed']:.4f}; specificity {row['specificity']:.3f}, "
                f"4:3 {row['framed_specificity']:.3f}"
            )
            if options.json is not None:  # each time, for a run that is stopped
                report = {"n": len(held.validation), "recipe": asdict(SHORT), "rows": rows}
                options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (DataError, ResumeError, OSError) as fault:
        sys.stderr.write(f"ablation: {fault}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
