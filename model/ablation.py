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

from model import metrics
from model.augment import augmented
from model.films import DataError
from model.fit import ResumeError, fit, logits_of
from model.holdout import HoldOut, hold_out
from model.nuisances import PERTURBATIONS
from model.progress import Bar
from model.recipe import Progress, Recipe
from model.stress import cases_of
from model.train import validation_metrics

SHORT = Recipe(sizes=(96, 96, 96), epochs=5, settle=1, average=0.98)
CHANGES: dict[str, dict[str, Any]] = {
    "none (the recipe)": {},
    "no borrowing from other films": {"histogram": 0.0, "spectrum": 0.0, "surround": 0.0},
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
        (`auc`), on augmented copies of them (`stressed`), and in the style of the other class (`style`).
    """
    recipe = replace(SHORT, **CHANGES[name])
    validation = held.films.at(held.validation)
    stem = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    network = fit(
        held.films.at(held.training), validation, recipe,
        checkpoint=stem.with_suffix(".pt"), log=stem.with_suffix(".csv"), measure=validation_metrics,
        on_progress=on_progress,
    )  # fmt: skip
    (exchanged,) = (each for each in PERTURBATIONS if each.name == "all three")
    stacks = {
        "auc": validation.planes,
        "stressed": augmented(validation.planes, recipe.seed, 0, True),
        "style": np.stack([exchanged.apply(case) for case in cases_of(held, recipe.seed)]),
    }
    row: dict[str, Any] = {"name": name, "recipe": CHANGES[name]}
    for key, planes in stacks.items():
        row |= _auc(key, network, planes, validation.labels, recipe.sizes[-1])
    return row


def _auc(
    key: str, network: torch.nn.Module, planes: npt.NDArray[np.uint8], labels: npt.NDArray[Any], size: int
) -> dict[str, Any]:
    logits = logits_of(network, planes, size, torch.device("cpu"))[:, 0]
    probability = 1.0 / (1.0 + np.exp(-logits))
    edges = metrics.intervals(probability, labels, 0.5)["auc"]
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
                f"{name}: AUC {row['auc']:.4f}, stressed {row['stressed']:.4f}, style {row['style']:.4f}"
            )
    except (DataError, ResumeError, OSError) as fault:
        sys.stderr.write(f"ablation: {fault}\n")
        return 1
    report = {"n": len(held.validation), "recipe": asdict(SHORT), "rows": rows}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
