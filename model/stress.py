"""What the answers depend on: `python -m model.stress --data DIR [--weights FILE] [--json FILE]`.

The films that training held out are changed in ways that must not matter, given the style of the other class,
or deprived of their lungs (`model.measuring.nuisances`), and scored again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.measuring import metrics
from model.measuring.contact_sheet import contact_sheet
from model.measuring.nuisances import PERTURBATIONS, PLAIN, Case, Perturbation
from model.measuring.shortcuts import STYLE, shortcut_scores, with_framing
from model.predict import Predictor, Scores
from model.progress import Bar
from model.training.films import CLASSES, DataError
from model.training.holdout import HoldOut, hold_out
from model.training.locator import steadiness
from model.training.lungs import activation_in_lungs, lung_mask
from model.training.recipe import Recipe
from model.weights import WeightsError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LIMIT = 0.02
"""Largest loss of AUC that a nuisance may cause."""

LOOKS_LIKE_THE_OTHER = 0.4
"""Share of each class, by style, that makes the films of `hard_style`."""


def stress(
    data: Path,
    weights: Path | None = None,
    recipe: Recipe | None = None,
    *,
    device: str | None = None,
    resamples: int = 1000,
    sheet: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure what the network's answers on held-out films depend on.

    Every film is scored as it lies, also those that the gate would refuse.

    Parameters
    ----------
    data
        The folder that the weights were trained on.
    weights
        Default: the weights that ship.
    recipe
        Its `film_side`, `folds`, `fold` and `seed` say which films were held out; default: `Recipe()`.
    device
        As for `Predictor.load`.
    resamples
        Bootstrap resamples; films are drawn within each class, the same ones for every row.
    sheet
        Write the first film of each class under every perturbation there, as PNG.
    on_progress
        Called with (rows done, rows in all).

    Returns
    -------
    dict
        Plain values, ready for JSON. All intervals (`…_ci`) are 95 % percentile bootstrap intervals.

        - `model`: {name, version, sha256}; `split`: {folds, fold, seed}; `n`, films; `threshold`.
        - `rows`: the first is `plain`, then one of each perturbation: {name, kind ("plain", "nuisance",
          "style" or "deprived"), stands_for, n, auc, auc_ci, change (of AUC, against plain), change_ci
          (paired), flipped (share of films on the other side of the threshold than plain), sensitivity,
          specificity, refused (share that the gate would refuse)}.
        - `nuisances`: {limit, worst (name of the nuisance that costs most), change, held (whether no nuisance
          costs more than the limit)}.
        - `shortcuts`: classifiers that see no lungs, on the same films: {name, n, auc, auc_ci}.
        - `activation_in_lungs`: of the plain films that are true positives, {mask (how the lungs were found),
          n, mass and mass_ci (mean share of the positive activation inside the lung fields), area (mean share
          of the film that they cover: the mass of a blind map), peak (share of the films whose strongest
          place lies inside), the same three with `_within_a_tenth` for fields wider by a tenth of the film,
          and with `_in_chest` for the fields and what lies between them}; the shares are None where n is 0.
        - `frames`: of the films as they are, as `model.locate.steadiness` says, and `with_network`: {auc,
          auc_ci} of the network's answer corrected by where the lungs lie on the film, which it does not see.
        - `hard_style`: the films of each class whose style looks most like the other: {share, normals,
          pneumonias, auc, auc_ci, style_auc (of the style alone on these), style_auc_all (on all)}.

    Raises
    ------
    DataError, WeightsError
        As `hold_out` and `Predictor.load`.
    """
    recipe = recipe or Recipe()
    predictor = Predictor.load(weights, device)
    split = hold_out(data, recipe)
    cases = cases_of(split, recipe.seed)
    if sheet is not None:
        contact_sheet(cases).save(sheet, "PNG")
    labels = split.films.labels[split.validation]
    draws = _draws(labels, resamples)
    rows: list[dict[str, Any]] = []
    plain: Scores | None = None
    for number, perturbation in enumerate((PLAIN, *PERTURBATIONS), 1):
        scores = predictor.score([perturbation.apply(case) for case in cases])
        plain = plain or scores
        rows.append(_row(perturbation, scores, plain, labels, draws, predictor))
        if on_progress is not None:
            on_progress(number, len(PERTURBATIONS) + 1)
    assert plain is not None
    info = predictor.info
    costs = {row["name"]: row["change"] for row in rows if row["kind"] == "nuisance"}
    worst = min(costs, key=lambda name: costs[name])
    boxes = predictor.locator.boxes(split.films.planes)
    shortcuts = shortcut_scores(split, boxes)
    knowing = with_framing(_log_odds(plain.probability), boxes[split.validation], labels)
    positive = np.flatnonzero((labels == 1) & (plain.probability >= info.threshold))
    return {
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
        "split": {"folds": recipe.folds, "fold": recipe.fold, "seed": recipe.seed},
        "n": len(labels),
        "threshold": info.threshold,
        "rows": rows,
        "nuisances": {
            "limit": LIMIT,
            "worst": worst,
            "change": costs[worst],
            "held": costs[worst] >= -LIMIT,
        },
        "shortcuts": [
            {"name": name, "n": len(labels), **_auc(scores, labels, draws)}
            for name, scores in shortcuts.items()
        ],
        "activation_in_lungs": activation_in_lungs(
            plain.activation[positive], [cases[index].lungs for index in positive], resamples
        ),
        "frames": steadiness(predictor.locator, split.films.planes[split.validation])
        | {"with_network": _auc(knowing, labels, draws)},
        "hard_style": _hard_style(plain.probability, shortcuts[STYLE], labels, resamples),
    }


def cases_of(split: HoldOut, seed: int) -> list[Case]:
    """Make a case of every validation film, in order, with partners drawn from the other class."""
    rng = np.random.default_rng(seed)
    films = split.films.at(split.validation)
    others = [np.flatnonzero(films.labels != label) for label in range(len(CLASSES))]
    return [
        Case(film, lung_mask(film), int(label), films.planes[rng.choice(others[label])], number)
        for number, (film, label) in enumerate(zip(films.planes, films.labels, strict=True))
    ]


def _row(
    perturbation: Perturbation,
    scores: Scores,
    plain: Scores,
    labels: Indices,
    draws: Indices,
    predictor: Predictor,
) -> dict[str, Any]:
    threshold = predictor.info.threshold
    said, said_plain = scores.probability >= threshold, plain.probability >= threshold
    rates = metrics.rates(metrics.confusion(said, labels))
    changes = [
        metrics.auc(scores.probability[drawn], labels[drawn])
        - metrics.auc(plain.probability[drawn], labels[drawn])
        for drawn in draws
    ]
    found = _auc(scores.probability, labels, draws)
    return {
        "name": perturbation.name,
        "kind": perturbation.kind,
        "stands_for": perturbation.stands_for,
        "n": len(labels),
        **found,
        "change": found["auc"] - metrics.auc(plain.probability, labels),
        "change_ci": _interval(changes),
        "flipped": float((said != said_plain).mean()),
        "sensitivity": rates["sensitivity"],
        "specificity": rates["specificity"],
        "refused": float((~(scores.gate_distance <= predictor.info.gate_threshold)).mean()),
    }


def _log_odds(probability: Floats) -> Floats:
    kept = np.clip(probability, 1e-9, 1.0 - 1e-9)
    return np.asarray(np.log(kept / (1.0 - kept)))


def _hard_style(probability: Floats, style: Floats, labels: Indices, resamples: int) -> dict[str, Any]:
    """AUC on the normals that look most like pneumonia by style, and the pneumonias that look least so."""
    normals, pneumonias = style[labels == 0], style[labels == 1]
    hard = np.where(
        labels == 0,
        style >= np.quantile(normals, 1.0 - LOOKS_LIKE_THE_OTHER),
        style <= np.quantile(pneumonias, LOOKS_LIKE_THE_OTHER),
    )
    chosen = labels[hard]
    return {
        "share": LOOKS_LIKE_THE_OTHER,
        "normals": int((chosen == 0).sum()),
        "pneumonias": int((chosen == 1).sum()),
        **_auc(probability[hard], chosen, _draws(chosen, resamples)),
        "style_auc": metrics.auc(style[hard], chosen),
        "style_auc_all": metrics.auc(style, labels),
    }


def _draws(labels: Indices, resamples: int) -> Indices:
    """Draw films within each class, (resamples, n) indices."""
    rng = np.random.default_rng(0)
    sides = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
    return np.concatenate([rng.choice(side, (resamples, len(side))) for side in sides], axis=1)


def _auc(scores: Floats, labels: Indices, draws: Indices) -> dict[str, Any]:
    drawn = [metrics.auc(scores[films], labels[films]) for films in draws]
    return {"auc": metrics.auc(scores, labels), "auc_ci": _interval(drawn)}


def _interval(values: Any) -> list[float]:
    return [float(edge) for edge in np.percentile(values, (2.5, 97.5))]


def summary(report: dict[str, Any]) -> str:
    """Say a report as text, a row a line."""
    model, split, activation = report["model"], report["split"], report["activation_in_lungs"]
    hard, nuisances = report["hard_style"], report["nuisances"]

    def line(row: dict[str, Any]) -> str:
        low, high = row["change_ci"]
        return (
            f"{row['kind']:<10}{row['name']:<20}{row['auc']:.3f}  {row['change']:+.3f} "
            f"({low:+.3f} to {high:+.3f})  {row['flipped']:6.1%}  {row['sensitivity']:.3f}  "
            f"{row['specificity']:.3f}  {row['refused']:6.1%}"
            + ("  !" if row["kind"] == "nuisance" and row["change"] < -nuisances["limit"] else "")
        )

    lines = [
        f"{model['name']} {model['version']} (SHA-256 {model['sha256'][:12]}), {report['n']} held-out films "
        f"(fold {split['fold']} of {split['folds']}, seed {split['seed']}). "
        "Research use only, not for diagnosis.",
        "",
        f"{'kind':<10}{'films':<20}AUC    change (95 %)             flipped  sens.  spec.  refused",
        *(line(row) for row in report["rows"]),
        "",
        f"nuisances: the worst is {nuisances['worst']} with {nuisances['change']:+.3f}, "
        f"{'within' if nuisances['held'] else 'beyond'} the limit of {nuisances['limit']}",
        "",
        "what classifiers reach that see no lungs",
        *(
            f"{row['name']:<20}AUC {row['auc']:.3f} ({row['auc_ci'][0]:.3f} to {row['auc_ci'][1]:.3f})"
            for row in report["shortcuts"]
        ),
        f"films whose style looks most like the other class ({hard['normals']} normals, {hard['pneumonias']} "
        f"pneumonias): AUC {hard['auc']:.3f} ({hard['auc_ci'][0]:.3f} to {hard['auc_ci'][1]:.3f}), "
        f"by their style alone {hard['style_auc']:.3f}",
    ]
    frames = report["frames"]
    lines.append(
        "edges of the frame about the lungs, median and 95th percentile: "
        f"{frames['windows']['median']:.3f} and {frames['windows']['p95']:.3f} of the film's side from those "
        f"found in a part of the film, {frames['classical']['median']:.3f} and "
        f"{frames['classical']['p95']:.3f} from the classical fit; with the framing that it does not see the "
        f"network would score AUC {frames['with_network']['auc']:.3f}"
    )
    if activation["n"]:
        low, high = activation["mass_ci"]
        lines.append(
            f"activation of {activation['n']} true positives inside the lungs: {activation['mass']:.1%} "
            f"({low:.1%} to {high:.1%}) of its mass on {activation['area']:.1%} of the film, peak "
            f"{activation['peak']:.1%}; within a tenth of the film of them "
            f"{activation['mass_within_a_tenth']:.1%} on {activation['area_within_a_tenth']:.1%}, peak "
            f"{activation['peak_within_a_tenth']:.1%}; with heart and mediastinum "
            f"{activation['mass_in_chest']:.1%} on {activation['area_in_chest']:.1%}, peak "
            f"{activation['peak_in_chest']:.1%}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when everything asked for was done."""
    usual = Recipe()
    parser = argparse.ArgumentParser(prog="python -m model.stress", description="Look for shortcuts.")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="what the weights learnt from"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: the weights that ship")
    for name in ("folds", "fold", "seed"):
        default = getattr(usual, name)
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"as in training (default: {default})"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw two films under every change there")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA when there is one)")
    options = parser.parse_args(argv)
    recipe = replace(usual, folds=options.folds, fold=options.fold, seed=options.seed)
    bar = Bar("stress")
    try:
        report = stress(
            options.data,
            options.weights,
            recipe,
            device=options.device,
            sheet=options.sheet,
            on_progress=bar.update,
        )
        bar.close()
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (DataError, WeightsError, OSError) as fault:
        sys.stderr.write(f"stress: {fault}\n")
        return 1
    sys.stdout.write(summary(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
