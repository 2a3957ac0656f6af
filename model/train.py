"""Train and write weights: `python -m model.train --data DIR --out FILE [--init WEIGHTS] [--extra DIR]`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.calibrate import (
    Calibration,
    PatternCalibration,
    balanced_weights,
    calibrate,
    calibrate_pattern,
    platt,
)
from model.gate import STAGE, THRESHOLD, Gate, fit_gate, gate_features, pooled
from model.locate import Locator, in_frame, network_input
from model.measuring import metrics
from model.network import ARCHITECTURE, Network
from model.predict import Predictor
from model.progress import Bar
from model.training.augment import augmented
from model.training.counterexamples import KINDS, counterexample
from model.training.figures import by_population, shown, validated
from model.training.films import DataError, Films
from model.training.fit import ResumeError, Stack, fit
from model.training.holdout import HoldOut, hold_out
from model.training.locator import fit_locator
from model.training.recipe import Progress, Recipe
from model.training.run_card import run_card
from model.weights import WeightsError, WeightsInfo, save_weights

GENTLE_RATE = 4e-4
"""Learning rate of a network that has learnt before: a fifth of the recipe's."""
STRESSED_COPIES = 4
GATE_FILMS = 1000


class Population(NamedTuple):
    """What weights say of their data, in words, and on whom they were validated; empty: not recorded."""

    trained_on: str
    age_years: tuple[float, float]
    sexes: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    scanners: tuple[str, ...] = ()


POPULATION = Population(
    "Guangzhou Women and Children's Medical Center, paediatric AP chest films, 1 to 5 years "
    "(Kermany, Zhang, Goldbaum, Mendeley Data 2018, CC BY 4.0)",
    (1.0, 5.0),
    views=("AP",),
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
    init: Path | None = None,
    extra: Path | None = None,
    population: Population | None = None,
    device: str | None = None,
    loaders: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> WeightsInfo:
    """Train, calibrate, fit the gate and write one weights file.

    Beside `out` come `<stem>.locator.pt` and `<stem>.checkpoint.pt` (an interrupted run goes on from them),
    `<stem>.csv` (one row an epoch), `<stem>.films.csv` (the validation films, for `hilum evaluate --labels`),
    `<stem>.validation.json` (the split's sizes and the figures on grouped validation) and `<stem>.card.md`
    (the model card).

    Parameters
    ----------
    data
        `data/{train,val}/{NORMAL,PNEUMONIA}` or `data/{NORMAL,PNEUMONIA}`; a `test` folder is never read.
    out
        Weights to write, `<name>-<version>.safetensors`.
    recipe
        Default: `Recipe()`.
    init
        Weights to start from, and to be compared with afterwards; default: from scratch.
    extra
        Films of a second population, in a folder of the same layout. Calibration, threshold and gate are
        fitted on both; the figures are given for each, before and after.
    population
        What the weights shall say of their data; default: `POPULATION`.
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
    before = None if init is None else Predictor.load(init, "cpu")
    recipe = replace(recipe or Recipe(), init=before.info.sha256 if before else "")
    stage = on_stage or (lambda words: None)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    stage("reading the films")
    held = hold_out(data, recipe, extra)
    training, validation = held.films.at(held.training), held.films.at(held.validation)

    _write_labels(data, held, out.with_suffix(".films.csv"))

    if before is None:
        stage("learning where the lungs lie")
        locator = fitted_locator(training.planes, recipe.seed, out.with_suffix(".locator.pt"))
    else:
        locator = before.locator

    stage("training")
    network = fit(
        replace(training, planes=in_frame(locator, training.planes)),
        replace(validation, planes=in_frame(locator, validation.planes)),
        recipe,
        checkpoint=out.with_suffix(".checkpoint.pt"),
        log=out.with_suffix(".csv"),
        measure=validation_metrics,
        on_progress=on_progress,
        device=chosen,
        loaders=loaders,
        start=None if before is None else before.network,
    )
    # From here on everything is computed with the weights as they are stored, at half precision.
    values = {
        name: tensor.numpy() for name, tensor in network.state_dict().items() if tensor.is_floating_point()
    }
    stored = {name: _half(tensor) for name, tensor in values.items()}
    rounded = {name: torch.from_numpy(tensor).float() for name, tensor in stored.items()}
    network.load_state_dict(rounded, strict=False)
    network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    locator.to(chosen)

    stage("calibrating")
    size = recipe.sizes[-1]
    plain = _pass(locator, network, validation.planes, size, chosen)
    copies = (augmented(validation.planes, recipe.seed, copy, recipe.flip) for copy in range(STRESSED_COPIES))
    stressed = [_pass(locator, network, copy, size, chosen) for copy in copies]
    calibration = calibrate(plain.logits, validation.labels)
    pattern = calibrate_pattern(plain.patterns, validation.bacterial)

    stage("fitting the gate")
    chests = np.concatenate([each.features for each in (plain, *stressed)])
    gate = _gate(locator, network, training.planes, chests, recipe, chosen)

    stage("writing the weights")
    name, _, version = out.stem.rpartition("-")
    info = save_weights(
        out,
        stored | {name: _half(each) for name, each in (locator.tensors() | gate.tensors()).items()},
        _about(
            name or out.stem, version if name else "0", recipe, calibration, pattern, population or POPULATION
        ),
    )
    report = validated(info, plain.logits, [copy.logits for copy in stressed], validation)
    report |= {"films": len(held.films), "groups": len(set(held.groups.tolist()))}
    report |= {"training_films": len(training), "recipe": asdict(recipe)}
    if before is not None or extra is not None:
        stage("comparing before and after")
        report["populations"] = by_population(before, Predictor.load(out, "cpu"), held)
    with out.with_suffix(".csv").open(newline="") as stream:
        report["log"] = list(csv.DictReader(stream))
    report["device"] = chosen.type
    out.with_suffix(".validation.json").write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".card.md").write_text(run_card(info, report), encoding="utf-8")
    return info


def _write_labels(data: Path, held: HoldOut, path: Path) -> None:
    """List the validation films as `hilum evaluate --labels` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "kind", "patient"])
        for index in held.validation:
            film = held.listed[index]
            kind = {1: "bacterial", 0: "viral"}.get(film.bacterial, "")
            path = film.path if held.extra[index] else film.path.relative_to(data)
            writer.writerow([path, film.label, kind, held.groups[index]])


def validation_metrics(both: npt.NDArray[Any], films: Films) -> dict[str, float]:
    """Balanced log loss after calibration (which decides the epoch), AUC, and rates at a logit of 0.

    The loss is taken after Platt's map because the weights are calibrated anyway: label smoothing and class
    weights shift and shrink the logits, which says nothing about the epoch. `both` are the logits (n, 2) of
    the two heads.
    """
    logits, labels = both[:, 0], films.labels
    slope, intercept = platt(logits, labels)
    signed = np.where(labels == 1, -1.0, 1.0) * (slope * logits + intercept)
    losses = np.logaddexp(0.0, signed)
    rates = metrics.rates(metrics.confusion(logits >= 0.0, labels))
    return {
        "loss": float((losses * balanced_weights(labels)).sum()),
        "auc": metrics.auc(logits, labels),
        "sens": float(rates["sensitivity"]),
        "spec": float(rates["specificity"]),
        "pattern_auc": _pattern_auc(both[:, 1], films.bacterial),
    }


def _pattern_auc(patterns: npt.NDArray[Any], bacterial: npt.NDArray[np.int64]) -> float:
    known = bacterial >= 0
    if len(set(bacterial[known].tolist())) < 2:
        return 0.5
    return metrics.auc(patterns[known], bacterial[known])


def fitted_locator(films: Stack, seed: int, path: Path) -> Locator:
    """Fit a locator at the precision at which it is stored, or take the one that an earlier run wrote there.

    Raises
    ------
    ResumeError
        When the file cannot be read.
    """
    if not path.exists():
        fitted = fit_locator(films, seed).tensors()
        half_written = path.with_suffix(".tmp")
        torch.save({name: torch.from_numpy(_half(tensor)) for name, tensor in fitted.items()}, half_written)
        half_written.replace(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return Locator.from_tensors({name: tensor.numpy() for name, tensor in found.items()})
    except (OSError, RuntimeError, KeyError, UnpicklingError) as fault:
        raise ResumeError(f"{path} is no readable locator; delete it to start anew") from fault


def _gate(
    locator: Locator,
    network: Network,
    training: Stack,
    held_out: npt.NDArray[np.float32],
    recipe: Recipe,
    device: torch.device,
) -> Gate:
    """Fit the gate on some training films, plain and augmented, and on counterexamples made of them."""
    rng = np.random.default_rng(recipe.seed)
    films = training[rng.permutation(len(training))[:GATE_FILMS]]
    copies = (augmented(films, recipe.seed, 100 + copy, recipe.flip) for copy in range(2))
    chests = np.concatenate([films, *copies])
    # Counterexamples come from augmented films too, so that augmentation never tells the two apart.
    kinds = np.arange(2 * len(chests)) % len(KINDS)
    names = list(KINDS)
    others = [
        counterexample(names[kind], chests[index % len(chests)], rng) for index, kind in enumerate(kinds)
    ]
    # Only the stages that the gate reads, which cost half of a forward pass.
    body = torch.nn.Sequential(network.stem, *network.stages[: STAGE + 1]).eval()

    def features(films: Stack | list[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        parts = []
        for start in range(0, len(films), 64):
            planes, _ = network_input(locator, films[start : start + 64], recipe.sizes[-1])
            tensor = planes.to(device, memory_format=torch.channels_last)
            with torch.inference_mode():
                parts.append(pooled(body(tensor)))
        return np.concatenate(parts)

    return fit_gate(features(chests), features(others), held_out, recipe.seed, kinds)


class _Passed(NamedTuple):
    """Logits of both heads, (n,) each, and gate features (n, f)."""

    logits: npt.NDArray[np.float64]
    patterns: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32]


def _pass(
    locator: Locator,
    network: Network,
    films: Stack | list[npt.NDArray[Any]],
    size: int,
    device: torch.device,
) -> _Passed:
    """All that calibration and gate need of films, in one forward pass."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(films), 64):
            planes, _ = network_input(locator, films[start : start + 64], size)
            tensor = planes.to(device, memory_format=torch.channels_last)
            explained = network.explain(tensor)
            logits, patterns = (each.double().cpu().numpy() for each in (explained.logits, explained.pattern))
            parts.append(_Passed(logits, patterns, gate_features(explained)))
    return _Passed(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _half(tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Matrices at half precision; thresholds and normalisation values, few and of any size, in full."""
    return tensor.astype(np.float16) if tensor.ndim > 1 and tensor.size > 64 * 64 else tensor


def _about(
    name: str,
    version: str,
    recipe: Recipe,
    calibration: Calibration,
    pattern: PatternCalibration,
    population: Population,
) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "architecture": ARCHITECTURE,
        "input_size": recipe.sizes[-1],
        "threshold": calibration.threshold,
        "indeterminate": calibration.indeterminate,
        "calibration": (calibration.slope, calibration.intercept),
        "prevalence": 0.5,
        "pattern_calibration": (pattern.slope, pattern.intercept),
        "pattern_confidence": pattern.confidence,
        "population_age_years": population.age_years,
        "population_sexes": population.sexes,
        "population_views": population.views,
        "population_scanners": population.scanners,
        "gate_threshold": THRESHOLD,
        "trained_on": population.trained_on,
        "class_activation": CLASS_ACTIVATION,
    }


def _setting(text: str) -> tuple[str, float | int | bool]:
    """Read NAME=VALUE for a recipe's field, with the type it has there."""
    name, _, value = text.partition("=")
    standard = asdict(Recipe()).get(name)
    if not isinstance(standard, int | float):
        raise ValueError(f"--set {text}: the recipe has no number of this name")
    try:
        return name, type(standard)(float(value))
    except ValueError:
        raise ValueError(f"--set {text}: {value!r} is no number") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when the weights are written."""
    standard = Recipe()
    settings = "another value of the recipe, such as surround=0 (model/training/recipe.py); may be repeated"
    parser = argparse.ArgumentParser(prog="hilum train", description="Train the network from scratch.")
    folders = "DIR/{train,val}/{NORMAL,PNEUMONIA}/*.jpeg or DIR/{NORMAL,PNEUMONIA}/*.jpeg; test is never read"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=folders)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="NAME-VERSION.safetensors")
    parser.add_argument("--sizes", type=int, nargs=3, default=standard.sizes, metavar="PIXELS")
    for name in ("epochs", "batch", "folds", "fold", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(standard, name))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=settings)
    parser.add_argument("--init", type=Path, metavar="WEIGHTS", help="start from these weights, gently")
    parser.add_argument(
        "--extra", type=Path, metavar="DIR", help="films of another population too, in folders like --data's"
    )
    parser.add_argument(
        "--ages",
        type=float,
        nargs=2,
        metavar="YEARS",
        help="ages for which the weights shall count as validated",
    )
    parser.add_argument("--trained-on", metavar="WORDS", help="what the weights shall say of their data")
    for name, values in (("sexes", "F, M, O"), ("views", "AP, PA"), ("scanners", "manufacturer with model")):
        words = f"those of the validation films ({values}), for whoever reads a result"
        parser.add_argument(f"--{name}", nargs="+", metavar="VALUE", help=words)
    parser.add_argument("--device", help="cpu or cuda (default: CUDA when there is one)")
    parser.add_argument("--loaders", type=int, default=0, help="processes that augment (default: none)")
    options = parser.parse_args(argv)
    names = ("epochs", "batch", "folds", "fold", "seed")
    try:
        others = dict(_setting(each) for each in options.set)
    except ValueError as fault:
        parser.error(str(fault))
    chosen = {name: getattr(options, name) for name in names} | others
    gentle = {} if options.init is None else {"rate": GENTLE_RATE}
    recipe = replace(standard, sizes=tuple(options.sizes), **(gentle | chosen))
    population = Population(
        options.trained_on or POPULATION.trained_on,
        tuple(options.ages) if options.ages else POPULATION.age_years,
        # Of films that somebody else brings nothing is known but what they say.
        *(tuple(getattr(options, name) or ()) for name in ("sexes", "views", "scanners")),
    )
    if options.views is None and options.extra is None:
        population = population._replace(views=POPULATION.views)
    if options.extra is not None and not options.trained_on:
        parser.error("--extra widens the model: say by --trained-on what its weights have seen then")
    bar = Bar("train")

    def show(now: Progress) -> None:
        if now.metrics is None:
            bar.update(now.batch, now.batches, f"epoch {now.epoch}/{now.epochs} loss {now.loss:.3f}")
        else:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in now.metrics.items())
            bar.line(f"epoch {now.epoch}/{now.epochs}: training loss {now.loss:.3f}; validation {figures}")

    try:
        info = train(
            options.data, options.out, recipe=recipe, init=options.init, extra=options.extra,
            population=population, device=options.device, loaders=options.loaders,
            on_progress=show, on_stage=lambda words: bar.line(f"{words} …"),
        )  # fmt: skip
    except (DataError, ResumeError, WeightsError, OSError) as fault:
        sys.stderr.write(f"hilum train: {fault}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("hilum train: stopped; the same command goes on from the last finished epoch\n")
        return 130
    sys.stdout.write(f"{options.out}: {info.name} {info.version}, SHA-256 {info.sha256}\n")
    report = json.loads(options.out.with_suffix(".validation.json").read_text())
    for population_name, rows in report.get("populations", {}).items():
        for when, row in rows.items():
            sys.stdout.write(f"{population_name:<6} {when:<7} {shown(row)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
