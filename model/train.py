"""Train from scratch and write weights: `python -m model.train --data DIR --out FILE`."""

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
from model.calibrate import Calibration, balanced_weights, calibrate, platt, probabilities
from model.counterexamples import counterexample
from model.films import DataError, find_films, load_films
from model.fit import ResumeError, Stack, fit
from model.gate import THRESHOLD, Gate, fit_gate, gate_features
from model.network import ARCHITECTURE, Network
from model.preprocess import model_input
from model.progress import Bar
from model.recipe import Progress, Recipe
from model.splits import fingerprints, group, grouped_fold, near_duplicates, patient_of
from model.weights import WeightsError, WeightsInfo, save_weights

STRESSED_COPIES = 4
GATE_FILMS = 1000
POPULATION_AGE_YEARS = (1.0, 5.0)
TRAINED_ON = (
    "Guangzhou Women and Children's Medical Center, paediatric AP chest films, 1 to 5 years "
    "(Kermany, Zhang, Goldbaum, Mendeley Data 2018, CC BY 4.0)"
)
CLASS_ACTIVATION = (
    "exact class activation map of global average pooling and a linear head (Zhou et al., CVPR 2016), "
    "positive part divided by its maximum, edge to edge"
)


def train(
    data: Path,
    out: Path,
    *,
    recipe: Recipe | None = None,
    device: str | None = None,
    loaders: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> WeightsInfo:
    """Train, calibrate, fit the gate and write one weights file.

    Beside `out` come `<stem>.checkpoint.pt` (an interrupted run goes on from it), `<stem>.csv` (one row an
    epoch) and `<stem>.validation.json` (the split's sizes and the figures on grouped validation).

    Parameters
    ----------
    data
        `data/{train,val}/{NORMAL,PNEUMONIA}` or `data/{NORMAL,PNEUMONIA}`; a `test` folder is never read.
    out
        Weights to write, `<name>-<version>.safetensors`.
    recipe
        Default: `Recipe()`.
    device
        "cpu" or "cuda"; default: CUDA when there is one.
    loaders
        Processes that augment (0: this one).
    on_progress, on_stage
        Called after every batch and epoch, and at the start of every stage with its name in words.

    Returns
    -------
    WeightsInfo
        Of the file written.

    Raises
    ------
    DataError
        When the data folder cannot be used.
    ResumeError
        When the checkpoint beside `out` belongs to another recipe.
    """
    recipe = recipe or Recipe()
    stage = on_stage or (lambda words: None)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    stage("reading the films")
    listed = find_films(data, ("train", "val"))
    films = load_films(listed, recipe.film_side)
    labels = np.array([film.label for film in listed], dtype=np.int64)
    groups = group([patient_of(film.path.stem) for film in listed], near_duplicates(fingerprints(films)))
    training, validation = grouped_fold(labels, groups, recipe.folds, recipe.fold, recipe.seed)
    for side, chosen_films in (("training", training), ("validation", validation)):
        if len(set(labels[chosen_films].tolist())) < 2:
            raise DataError(
                f"{data}: too few patients for {recipe.folds} folds, one class is missing in {side}"
            )

    stage("training")
    network = fit(
        (films[training], labels[training]),
        (films[validation], labels[validation]),
        recipe,
        checkpoint=out.with_suffix(".checkpoint.pt"),
        log=out.with_suffix(".csv"),
        measure=validation_metrics,
        on_progress=on_progress,
        device=chosen,
        loaders=loaders,
    )
    # From here on everything is computed with the weights as they are stored, at half precision.
    values = {
        name: tensor.numpy() for name, tensor in network.state_dict().items() if tensor.is_floating_point()
    }
    stored = {name: _half(tensor) for name, tensor in values.items()}
    rounded = {name: torch.from_numpy(tensor).float() for name, tensor in stored.items()}
    network.load_state_dict(rounded, strict=False)
    network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]

    stage("calibrating")
    size, held = recipe.sizes[1], films[validation]
    logits, plain = _pass(network, held, size, chosen)
    copies = (augmented(held, recipe.seed, copy, recipe.flip) for copy in range(STRESSED_COPIES))
    passes = [_pass(network, copy, size, chosen) for copy in copies]
    stressed = np.stack([scores for scores, _ in passes])
    calibration = calibrate(logits, labels[validation], stressed)

    stage("fitting the gate")
    held_out = np.concatenate([plain, *(features for _, features in passes)])
    gate = _gate(network, films[training], held_out, recipe, chosen)

    stage("writing the weights")
    name, _, version = out.stem.rpartition("-")
    info = save_weights(
        out,
        stored | {name: _half(tensor) for name, tensor in gate.tensors().items()},
        _about(name or out.stem, version if name else "0", recipe, calibration),
    )
    report = _report(info, logits, stressed, labels[validation], calibration)
    report |= {"films": len(listed), "groups": len(set(groups.tolist())), "training_films": len(training)}
    report |= {"recipe": asdict(recipe)}
    out.with_suffix(".validation.json").write_text(json.dumps(report, indent=2) + "\n")
    return info


def validation_metrics(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Balanced log loss after calibration (which decides the epoch), AUC, and rates at a logit of 0.

    The loss is taken after Platt's map because the weights are calibrated anyway: label smoothing and class
    weights shift and shrink the logits, which says nothing about the epoch.
    """
    slope, intercept = platt(logits, labels)
    signed = np.where(labels == 1, -1.0, 1.0) * (slope * logits + intercept)
    losses = np.logaddexp(0.0, signed)
    rates = metrics.rates(metrics.confusion(logits >= 0.0, labels))
    return {
        "loss": float((losses * balanced_weights(labels)).sum()),
        "auc": metrics.auc(logits, labels),
        "sens": rates["sensitivity"],
        "spec": rates["specificity"],
    }


def _gate(
    network: Network,
    training: Stack,
    held_out: npt.NDArray[np.float32],
    recipe: Recipe,
    device: torch.device,
) -> Gate:
    """Fit the gate on some training films, plain and augmented, and on counterexamples made of them."""
    rng = np.random.default_rng(recipe.seed)
    films = training[rng.permutation(len(training))[:GATE_FILMS]]
    stacks = [films, *(augmented(films, recipe.seed, 100 + copy, recipe.flip) for copy in range(2))]
    # Counterexamples come from augmented films too, so that augmentation never tells the two apart.
    others = [counterexample(film, rng) for stack in stacks[:2] for film in stack]
    chests = np.concatenate([_pass(network, stack, recipe.sizes[1], device)[1] for stack in stacks])
    return fit_gate(chests, _pass(network, others, recipe.sizes[1], device)[1], held_out, recipe.seed)


def _pass(
    network: Network, films: Stack | list[npt.NDArray[Any]], size: int, device: torch.device
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Logits (n,) and gate features (n, f) of films, in one forward pass."""
    logits, features = [], []
    with torch.inference_mode():
        for start in range(0, len(films), 64):
            planes = np.stack([model_input(film, size) for film in films[start : start + 64]])
            tensor = torch.from_numpy(planes)[:, None].to(device, memory_format=torch.channels_last)
            explained = network.explain(tensor)
            logits.append(explained.logits.double().cpu().numpy())
            features.append(gate_features(explained))
    return np.concatenate(logits), np.concatenate(features)


def _half(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Matrices at half precision; thresholds and normalisation values, few and of any size, in full."""
    return tensor.astype(np.float16) if tensor.ndim > 1 and tensor.size > 64 * 64 else tensor


def _about(name: str, version: str, recipe: Recipe, calibration: Calibration) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "architecture": ARCHITECTURE,
        "input_size": recipe.sizes[1],
        "threshold": calibration.threshold,
        "indeterminate": calibration.indeterminate,
        "calibration": (calibration.slope, calibration.intercept),
        "prevalence": 0.5,
        "population_age_years": POPULATION_AGE_YEARS,
        "gate_threshold": THRESHOLD,
        "trained_on": TRAINED_ON,
        "class_activation": CLASS_ACTIVATION,
    }


def _report(
    info: WeightsInfo,
    logits: npt.NDArray[Any],
    stressed: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    calibration: Calibration,
) -> dict[str, Any]:
    def row(values: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[str, Any]:
        probability = probabilities(values, calibration.slope, calibration.intercept)
        found = metrics.figures(probability, truth, info.threshold)
        spread = metrics.intervals(probability, truth, info.threshold)
        return {"n": len(truth), **found, **{f"{name}_ci": edges for name, edges in spread.items()}}

    return {
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
        "threshold": info.threshold,
        "indeterminate": info.indeterminate,
        "validation": row(logits, labels),
        "validation_stressed": row(stressed.ravel(), np.tile(labels, len(stressed))),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when the weights are written."""
    standard = Recipe()
    parser = argparse.ArgumentParser(prog="hilum train", description="Train the network from scratch.")
    folders = "DIR/{train,val}/{NORMAL,PNEUMONIA}/*.jpeg or DIR/{NORMAL,PNEUMONIA}/*.jpeg; test is never read"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=folders)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="NAME-VERSION.safetensors")
    parser.add_argument("--sizes", type=int, nargs=2, default=standard.sizes, metavar=("FIRST", "LAST"))
    for name in ("epochs", "batch", "folds", "fold", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(standard, name))
    parser.add_argument("--device", help="cpu or cuda (default: CUDA when there is one)")
    parser.add_argument("--loaders", type=int, default=0, help="processes that augment (default: none)")
    options = parser.parse_args(argv)
    names = ("epochs", "batch", "folds", "fold", "seed")
    recipe = replace(standard, sizes=tuple(options.sizes), **{name: getattr(options, name) for name in names})
    bar = Bar("train")

    def show(now: Progress) -> None:
        if now.metrics is None:
            bar.update(now.batch, now.batches, f"epoch {now.epoch}/{now.epochs} loss {now.loss:.3f}")
        else:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in now.metrics.items())
            bar.line(f"epoch {now.epoch}/{now.epochs}: training loss {now.loss:.3f}; validation {figures}")

    try:
        info = train(
            options.data, options.out, recipe=recipe, device=options.device, loaders=options.loaders,
            on_progress=show, on_stage=lambda words: bar.line(f"{words} …"),
        )  # fmt: skip
    except (DataError, ResumeError, WeightsError, OSError) as fault:
        sys.stderr.write(f"hilum train: {fault}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("hilum train: stopped; the same command goes on from the last finished epoch\n")
        return 130
    sys.stdout.write(f"{options.out}: {info.name} {info.version}, SHA-256 {info.sha256}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
