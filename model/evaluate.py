"""Score labelled films: `python -m model.evaluate --data DIR [--labels FILE.csv] [--report FILE.html]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.measuring.cases import Read, cases_in_folders, cases_in_table, read_picture
from model.measuring.evaluation import evaluate
from model.measuring.html_report import MOST_PICTURES, html_report, pictures
from model.measuring.plots import plots
from model.predict import Predictor
from model.progress import Bar
from model.training.films import DataError
from model.weights import WeightsError

__all__ = ["evaluate", "main", "summary"]


def summary(report: dict[str, Any]) -> str:
    """Say a report in a few lines."""
    counts, model, left, passed = (
        report["confusion"], report["model"], report["not_analysed"], report["gate"]["passed"]
    )  # fmt: skip
    shown = ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1", "ece", "brier")

    def with_interval(part: dict[str, Any], name: str) -> str:
        if part[name] is None:
            return "none (a class is missing)"
        low, high = part[f"{name}_ci"]
        return f"{part[name]:.3f} (95 % {low:.3f} to {high:.3f})"

    lines = [
        f"{model['name']} {model['version']} (SHA-256 {model['sha256'][:12]}), "
        f"{report['n']} images, {report['prevalence']:.1%} pneumonia; intervals by {report['resampled']}",
        *(f"{name:<20}{with_interval(report, name)}" for name in shown),
        f"{'threshold':<20}{report['threshold']:.3f}",
        f"{'confusion':<20}tn {counts['tn']}, fp {counts['fp']}, fn {counts['fn']}, tp {counts['tp']}",
    ]
    if report["pattern"] is not None:
        named = report["pattern"]["named"]
        rightly = f", accuracy {with_interval(named, 'accuracy')}" if named["n"] else ""
        lines.append(f"{'bacterial or viral':<20}auc {with_interval(report['pattern'], 'auc')}")
        lines.append(f"{'':<20}named {named['n']} of {report['pattern']['n']}{rightly}")
    lines += [
        f"{'gate':<20}would refuse {report['gate']['refused']} of the images (all are counted above); "
        f"without them auc {with_interval(passed, 'auc')}",
        f"{'not analysed':<20}{left['n']} images, {left['unreadable']} of them unreadable",
        f"{'population':<20}{report['population']['outside']} images of patients outside the validated ages, "
        f"{report['population']['unknown']} of unknown age",
        *_subgroups(report),
        "Research use only, not for diagnosis.",
    ]
    return "\n".join(lines)


def _subgroups(report: dict[str, Any]) -> list[str]:
    """Say each subgroup's figures in a line; where intervals overlap widely, a difference shows nothing."""

    def said(group: dict[str, Any], name: str) -> str:
        if group[name] is None:
            return f"{name} –"
        low, high = group[f"{name}_ci"]
        return f"{name} {group[name]:.3f} ({low:.3f} to {high:.3f})"

    return [
        f"{group['attribute']}: {group['value']}, {group['n']} images: "
        + ", ".join(said(group, name) for name in ("auc", "sensitivity", "specificity", "precision", "brier"))
        for group in report["subgroups"]
    ]


def main(argv: Sequence[str] | None = None, read: Read = read_picture, weights: Path | None = None) -> int:
    """Run the command line; 0 when everything asked for was done.

    Parameters
    ----------
    argv
        Default: the process's own arguments.
    read
        Opens one film; the default knows JPEG and PNG.
    weights
        What `--weights` stands at when it is not given; default: the weights that ship.
    """
    options = _options(argv, weights)
    bar = Bar("evaluate")
    try:
        for file in (options.json, options.report):
            if file is not None:  # before the films are read, not after
                file.parent.mkdir(parents=True, exist_ok=True)
        if options.labels is None:
            cases = cases_in_folders(options.data, options.split)
        else:
            cases = cases_in_table(options.data, options.labels)
        predictor = Predictor.load(options.weights, options.device)
        report = evaluate(cases, predictor, read, on_progress=bar.update)
        bar.close()
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        if options.plots is not None:
            plots(report, options.plots)
        if options.report is not None:
            worst = pictures(report["errors"][:MOST_PICTURES], cases, predictor, read)
            options.report.write_text(html_report(report, predictor.info, worst), encoding="utf-8")
    except (DataError, WeightsError, OSError) as fault:
        bar.close()
        sys.stderr.write(f"hilum evaluate: {fault}\n")
        return 1
    sys.stdout.write(summary(report) + "\n")
    unreadable = [film for film in report["not_analysed"]["films"] if film["unreadable"]]
    if unreadable:
        sys.stderr.write(
            f"hilum evaluate: {len(unreadable)} of {len(cases)} films could not be read and are not in the "
            f"figures; the first: {unreadable[0]['file']}: {unreadable[0]['reason']}\n"
        )
    return 1 if unreadable else 0


def _options(argv: Sequence[str] | None, weights: Path | None) -> argparse.Namespace:
    folders = "DIR/{test,train,val}/{NORMAL,PNEUMONIA}, DIR/{NORMAL,PNEUMONIA}, or any folder with --labels"
    columns = (
        "CSV with the columns file (relative to DIR) and label (0 or 1, normal or pneumonia); optional: kind "
        "(bacterial or viral), patient, age, and others that divide the films into subgroups"
    )
    parser = argparse.ArgumentParser(
        prog="hilum evaluate", description="Score labelled chest films. Research use only, not for diagnosis."
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=folders)
    parser.add_argument("--labels", type=Path, metavar="FILE", help=columns)
    parser.add_argument(
        "--weights", type=Path, default=weights, metavar="FILE", help="default: the weights that ship"
    )
    parser.add_argument("--split", default="test", help="which split, where DIR has several (default: test)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the figures there as PNG")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page for readers there, HTML")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA when there is one)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
