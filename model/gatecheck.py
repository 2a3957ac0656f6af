"""Measure the gate: what passes, what is put right, what is refused: `python -m model.gatecheck --data DIR`.

Everything goes through `Predictor.predict`, as in service: a film is analysed as it lies ("passed"), or in
another hanging ("put right"), or not at all ("refused"). For research use only, not for diagnosis.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_sample_images

from model.hanging import HANGINGS
from model.measuring.metrics import share
from model.predict import Predictor
from model.preprocess import ImageError, read_image, reduce
from model.progress import Bar
from model.training.counterexamples import KINDS, counterexample
from model.training.films import CLASSES, SUFFIXES, DataError
from model.training.holdout import hold_out
from model.training.recipe import Recipe
from model.weights import WeightsError

Film = npt.NDArray[Any]
Row = dict[str, Any]

PARTS = 60
"""Random parts of photographs."""

WRONG: dict[str, Callable[[Film], Film]] = {
    "head to the left": lambda film: np.rot90(film, 1),
    "head to the right": lambda film: np.rot90(film, -1),
    "upside down": lambda film: np.rot90(film, 2),
    "black and white exchanged": lambda film: film.max() - film.astype(np.float64),
}
"""What `HANGINGS`, in the same order, puts right."""


class _Seen(NamedTuple):
    """A film's probability (None: refused), and the flag of the hanging in which it was put right, if any."""

    probability: float | None
    flag: str | None


class Check:
    """The measurements of one gate, row by row.

    Parameters
    ----------
    predictor
        The weights to measure.
    seed
        Of what is left to chance.
    on_row
        Called with the name of every row when it is done.
    """

    def __init__(
        self, predictor: Predictor, seed: int = 0, on_row: Callable[[str], None] = lambda name: None
    ) -> None:
        self._predictor = predictor
        self._seed = seed
        self._on_row = on_row

    def frontal(self, films: Sequence[Film]) -> dict[str, Row]:
        """Measure frontal films as they are, mirrored, and in each wrong hanging.

        Returns
        -------
        dict
            By name: n and the shares passed, put_right and refused, each with `<name>_ci` (Wilson). Wrong
            hangings have put_right_wrongly (in another hanging than theirs) too, and, where any was put
            right, difference: n, median and max of the absolute change in probability against the same film
            hanging right.
        """
        upright = self._seen(films)
        rows = {"as they are": self._row("as they are", upright)}
        rows["mirrored"] = self._row("mirrored", self._seen([film[:, ::-1] for film in films]))
        for (name, hang), hanging in zip(WRONG.items(), HANGINGS, strict=True):
            seen = self._seen([hang(film) for film in films])
            rows[name] = self._row(name, seen, hanging.flag)
            changes = [
                abs(now.probability - before.probability)
                for before, now in zip(upright, seen, strict=True)
                if now.flag == hanging.flag and now.probability is not None
                if before.flag is None and before.probability is not None
            ]
            if changes:
                spread = {"median": float(np.median(changes)), "max": max(changes)}
                rows[name]["difference"] = {"n": len(changes), **spread}
        return rows

    def others(self, films: Sequence[Film]) -> dict[str, Row]:
        """Measure every kind of counterexample made of `films`, empty and plain images, and photographs."""
        rng = np.random.default_rng(self._seed)
        images = {
            **{kind: [counterexample(kind, film, rng) for film in films] for kind in KINDS},
            "noise": [rng.random((300, 300)) for _ in range(10)]
            + [rng.integers(0, 4096, (200, 300)).astype(np.uint16) for _ in range(10)],
            "blank": [np.full((200, 150), grey, np.uint16) for grey in (0, 2048, 4095)],
            "gradient": [np.rot90(np.tile(np.linspace(0.0, 1.0, 200), (300, 1)), turn) for turn in range(4)],
            "photographs": _photographs(),
            "parts of photographs": [_part(_photographs()[number % 2], rng) for number in range(PARTS)],
        }
        return {name: self.images(name, made) for name, made in images.items()}

    def images(self, name: str, images: Sequence[Film]) -> Row:
        """Measure images of which none is a frontal chest."""
        return self._row(name, self._seen(images))

    def _seen(self, films: Sequence[Film]) -> list[_Seen]:
        ways = {hanging.flag for hanging in HANGINGS}
        return [
            _Seen(found.probability, next((flag for flag in found.flags if flag in ways), None))
            for found in self._predictor.predict(films)
        ]

    def _row(self, name: str, seen: Sequence[_Seen], right: str | None = None) -> Row:
        n = len(seen)
        refused = sum(each.probability is None for each in seen)
        put_right = sum(each.flag is not None for each in seen)
        row: Row = {"n": n, **share("passed", n - refused - put_right, n)}
        if right is not None:
            wrongly = sum(each.flag not in (None, right) for each in seen)
            row |= share("put_right_wrongly", wrongly, n)
            put_right -= wrongly
        self._on_row(name)
        return row | share("put_right", put_right, n) | share("refused", refused, n)


def check(
    data: Path,
    weights: Path | None = None,
    *,
    frontal: Sequence[Path] = (),
    others: Sequence[Path] = (),
    films: int | None = None,
    device: str | None = None,
    on_row: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure the gate of a weights file.

    Parameters
    ----------
    data
        The folder the weights were trained on: its validation side, as the standard recipe splits it, is
        measured.
    weights
        Default: the weights that ship.
    frontal
        Folders of other frontal films, each a population of its own; {NORMAL,PNEUMONIA} inside are read too.
    others
        Folders of images of which none is a frontal chest.
    films
        At most so many films of each population, and of each kind of counterexample (default: all).
    device
        "cpu" or "cuda"; default: CUDA when there is one.
    on_row
        Called with the name of every row when it is done.

    Returns
    -------
    dict
        frontal: `Check.frontal` by population; others: rows by kind; model.

    Raises
    ------
    DataError
        When a folder cannot be used.
    WeightsError
        When the weights cannot be.
    """
    predictor = Predictor.load(weights, device)
    recipe = Recipe()
    held = hold_out(data, recipe)
    chosen = np.random.default_rng(recipe.seed).permutation(held.validation)[:films]
    validation = list(held.films.planes[chosen])
    populations = {"validation": validation, **{folder.name: _read(folder, films) for folder in frontal}}
    folders = {folder.name: _read(folder, films) for folder in others}
    measured, info = Check(predictor, recipe.seed, on_row), predictor.info
    return {
        "model": {"name": info.name, "version": info.version, "sha256": info.sha256},
        "frontal": {name: measured.frontal(each) for name, each in populations.items()},
        "others": measured.others(validation)
        | {name: measured.images(name, each) for name, each in folders.items()},
    }


def table(report: dict[str, Any]) -> str:
    """Say a report in a line a row: counts of n, and the change in probability of what was put right."""
    model = report["model"]
    columns = ("n", "passed", "put right", "wrongly", "refused", "change of probability: median, most")
    lines = [
        f"{model['name']} {model['version']} (SHA-256 {model['sha256'][:12]}); research use only",
        "{:<28}{:>7}{:>9}{:>11}{:>9}{:>9}  {}".format("", *columns),
    ]
    for name, rows in (*report["frontal"].items(), ("no frontal chests", report["others"])):
        lines.append(f"{name}:")
        lines += [_line(kind, row) for kind, row in rows.items()]
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    counts = [
        round(row[key] * row["n"]) if row.get(key) is not None else "-"
        for key in ("passed", "put_right", "put_right_wrongly", "refused")
    ]
    change = row.get("difference")
    tail = f"  {change['median']:.4f}, {change['max']:.4f}" if change else ""
    return "  {:<26}{:>7}{:>9}{:>11}{:>9}{:>9}".format(name[-26:], row["n"], *counts) + tail


def _read(folder: Path, most: int | None) -> list[Film]:
    found = sorted(path for path in _images(folder) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no JPEG or PNG images there")
    chosen = np.random.default_rng(0).permutation(len(found))[:most]
    try:
        return [reduce(read_image(found[index])) for index in chosen]
    except ImageError as fault:
        raise DataError(str(fault)) from fault


def _images(folder: Path) -> Iterator[Path]:
    for each in (folder, *(folder / name for name in CLASSES)):
        yield from each.glob("*")


def _photographs() -> list[Film]:
    return [photograph.mean(axis=2) for photograph in load_sample_images().images]


def _part(photograph: Film, rng: np.random.Generator) -> Film:
    side = int(rng.integers(60, min(photograph.shape)))
    top, left = (int(rng.integers(0, whole - side + 1)) for whole in photograph.shape)
    return photograph[top : top + side, left : left + side]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when everything asked for was done."""
    parser = argparse.ArgumentParser(
        prog="python -m model.gatecheck", description="Measure what the gate passes, puts right and refuses."
    )
    folders = "DIR/{train,val}/{NORMAL,PNEUMONIA}/*.jpeg, of which the validation side is measured"
    frontal, others = "other frontal films; may be repeated", "images that are none; may be repeated"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=folders)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: the weights that ship")
    parser.add_argument("--frontal", type=Path, nargs="+", default=[], metavar="DIR", help=frontal)
    parser.add_argument("--others", type=Path, nargs="+", default=[], metavar="DIR", help=others)
    parser.add_argument("--films", type=int, metavar="N", help="at most N films of each kind (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA when there is one)")
    options = parser.parse_args(argv)
    bar = Bar("gatecheck")
    try:
        report = check(
            options.data, options.weights, frontal=options.frontal, others=options.others,
            films=options.films, device=options.device, on_row=bar.line,
        )  # fmt: skip
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (DataError, WeightsError, OSError) as fault:
        sys.stderr.write(f"gatecheck: {fault}\n")
        return 1
    sys.stdout.write(table(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
