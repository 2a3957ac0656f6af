"""`hilum analyse`: file in, result out, without a server; the same code as the gateway's."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from model.predict import Predictor
from model.preprocess import ImageError, read_image
from model.weights import WeightsError, WeightsInfo, default_weights
from service.commands.console import console
from service.commands.send import files_of
from service.commands.status import shown_probability
from service.core.eligibility import population_limit
from service.core.errors import ConfigurationError, Refused
from service.core.header import described, read_header
from service.core.population import Described, sentence
from service.core.results import Finding, Result
from service.core.settings import Settings
from worker.context import population_of
from worker.prepare import prepare

PICTURES = {".jpeg", ".jpg", ".png"}


@dataclass(frozen=True)
class Answered:
    """One file and what is said of it; `error` when it could not be read at all.

    `validated` is how a DICOM film that was analysed lies to the films that the weights were validated on.
    """

    file: Path
    result: Result | None
    error: str | None = None
    validated: str = ""


def analyse(settings: Settings, paths: list[Path], as_json: bool) -> int:
    """Print the result of every file; return 0 only when each could be read."""
    predictor = load_predictor(settings)
    answers = [analyse_file(file, predictor, settings) for file in files_of(paths)]
    if as_json:
        typer.echo(json.dumps([_as_json(answer, predictor.info) for answer in answers], indent=2))
    else:
        console().print(_table(answers, predictor.info))
    if not answers:
        sys.stderr.write("hilum: no file to analyse\n")
    for answer in answers:
        if answer.error:
            sys.stderr.write(f"hilum: {answer.file}: {answer.error}\n")
    return 1 if not answers or any(answer.error for answer in answers) else 0


def load_predictor(settings: Settings) -> Predictor:
    """Return the network, or say in one line what is wrong with the weights."""
    try:
        return Predictor.load(settings.weights or default_weights())
    except WeightsError as fault:
        raise ConfigurationError(str(fault)) from None


def analyse_file(file: Path, predictor: Predictor, settings: Settings) -> Answered:
    """Return what is said of one DICOM file, JPEG or PNG."""
    ages = predictor.info.population_age_years
    flags: tuple[str, ...]
    film: Described | None = None
    pixels: npt.NDArray[Any]
    try:
        if file.suffix.lower() in PICTURES:
            limit = population_limit(None, ages)
            if limit and settings.population == "refuse":
                return Answered(file, Result(Finding.NOT_ANALYSED, reason=limit))
            pixels, flags = np.asarray(read_image(file)), (limit,) if limit else ()
        else:
            prepared = prepare(file, settings.population, ages)
            if prepared.film is None:
                return Answered(file, Result(Finding.NOT_ANALYSED, reason=prepared.reason))
            pixels, flags, film = prepared.film.pixels, prepared.flags, described(read_header(file))
    except (Refused, ImageError, OSError) as fault:
        return Answered(file, None, str(fault))
    prediction = predictor.predict([pixels])[0]
    finding = Finding(prediction.finding)
    analysed = finding is not Finding.NOT_ANALYSED
    return Answered(
        file,
        Result(
            finding,
            prediction.probability,
            predictor.info.threshold if analysed else None,
            prediction.reason,
            prediction.pattern,
            (*flags, *prediction.flags) if analysed else (),
        ),
        validated=sentence(film, population_of(predictor.info)) if analysed and film is not None else "",
    )


def _as_json(answer: Answered, info: WeightsInfo) -> dict[str, Any]:
    result = answer.result
    return {
        "file": str(answer.file),
        "finding": result.finding if result else None,
        "probability": result.probability if result else None,
        "threshold": result.threshold if result else None,
        "reason": result.reason if result else None,
        "pattern": result.pattern if result else None,
        "flags": list(result.flags) if result else [],
        "validated": answer.validated or None,
        "error": answer.error,
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
    }


def _table(answers: list[Answered], info: WeightsInfo) -> Table:
    table = Table(title=f"{info.name} {info.version}. Research use only, not for diagnosis.")
    for heading in ("file", "finding", "probability", "remarks"):
        table.add_column(heading, overflow="fold")
    for answer in answers:
        result = answer.result
        if result is None:
            table.add_row(str(answer.file), "error", "", answer.error)
            continue
        pattern = f"{result.pattern} pattern" if result.pattern else None
        remarks = "; ".join(filter(None, (result.reason, pattern, *result.flags, answer.validated)))
        table.add_row(
            str(answer.file), result.finding.replace("_", " "), shown_probability(result.probability), remarks
        )
    return table
