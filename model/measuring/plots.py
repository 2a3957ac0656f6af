"""Figures of an evaluation, for files and for the report."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.measuring.metrics import wilson

NORMAL, PNEUMONIA, QUIET = "#2f6690", "#c2542d", "0.75"
_TITLES = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}


def plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a report of `model.measuring.evaluation.evaluate` as PNG files.

    Parameters
    ----------
    report
        As returned by `evaluate` (or read from its JSON).
    folder
        Made when it is missing.

    Returns
    -------
    list of Path
        roc.png, pr.png, calibration.png, histogram.png, confusion.png, and subgroups.png where there are any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in drawn(report).items():
        figure.supxlabel(
            f"{report['model']['name']} {report['model']['version']}, n = {report['n']}. Research use only.",
            fontsize=8,
            color="0.4",
            parse_math=False,
        )
        written.append(folder / f"{name}.png")
        _save(figure, written[-1], dpi=120)
    return written


def drawn(report: dict[str, Any]) -> dict[str, Figure]:
    """Draw a report's figures, by name."""
    drawers: dict[str, Callable[[Axes, dict[str, Any]], None]] = {
        "roc": _roc,
        "pr": _precision_recall,
        "calibration": _calibration,
        "histogram": _histogram,
        "confusion": _confusion,
    }
    figures = {}
    for name, draw in drawers.items():
        figures[name] = Figure(figsize=(5.0, 4.6), layout="constrained")
        draw(figures[name].add_subplot(), report)
    if report["subgroups"]:
        figures["subgroups"] = _forest(report)
    return figures


def svg(figure: Figure) -> bytes:
    """Return a figure as a file of SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "hilum"}):
        _save(figure, buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _save(figure: Figure, target: Path | io.BytesIO, **options: Any) -> None:
    with warnings.catch_warnings():
        # A subgroup's name may be of a script that matplotlib's font lacks; the table spells it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(target, **options)


def _roc(axes: Axes, report: dict[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    axes.plot(report["curve"]["false_positive_rate"], report["curve"]["true_positive_rate"], color=NORMAL)
    axes.plot(1.0 - report["specificity"], report["sensitivity"], "o", color=NORMAL, label="operating point")
    low, high = report["auc_ci"]
    axes.set(
        title=f"ROC, AUC {report['auc']:.3f} (95 % {low:.3f} to {high:.3f})",
        xlabel="1 - specificity",
        ylabel="sensitivity",
        aspect="equal",
    )
    axes.legend(frameon=False)


def _precision_recall(axes: Axes, report: dict[str, Any]) -> None:
    axes.axhline(report["prevalence"], color=QUIET, linewidth=1, label="calling every film pneumonia")
    axes.plot(report["curve"]["true_positive_rate"], report["curve"]["precision"], color=NORMAL)
    axes.plot(report["recall"], report["precision"], "o", color=NORMAL, label="operating point")
    axes.set(
        title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02)
    )
    axes.legend(frameon=False, loc="lower left")


def _calibration(axes: Axes, report: dict[str, Any]) -> None:
    bins = report["calibration_bins"]
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    for each in bins:
        at = (each["probability"], each["share"])
        edges = wilson(round(each["share"] * each["n"]), int(each["n"])) or []  # no bin is empty
        axes.plot([at[0]] * len(edges), edges, color=NORMAL, linewidth=1.5, alpha=0.5)
        axes.plot(*at, "o", color=NORMAL)
        axes.annotate(str(each["n"]), at, (5, -12), textcoords="offset points", fontsize=8, color="0.3")
    axes.set(
        title=f"Calibration, ECE {report['ece']:.3f}",
        xlabel="probability given (number: films)",
        ylabel="share with pneumonia",
        aspect="equal",
        xlim=(-0.03, 1.08),
        ylim=(-0.06, 1.05),
    )


def _histogram(axes: Axes, report: dict[str, Any]) -> None:
    edges = report["histogram"]["edges"]
    for name, colour, side in (("pneumonia", PNEUMONIA, 1), ("normal", NORMAL, -1)):
        counts = [side * count for count in report["histogram"][name]]
        axes.stairs(counts, edges, fill=True, color=colour, label=name)
    low, high = report["indeterminate"]["low"], report["indeterminate"]["high"]
    if low < high:
        axes.axvspan(low, high, color="0.5", alpha=0.25, linewidth=0, label="indeterminate")
    axes.axvline(report["threshold"], color="black", linewidth=1, linestyle="--", label="threshold")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda count, _: f"{abs(count):g}")
    axes.set(title="Probabilities by class", xlabel="probability of pneumonia", ylabel="films", xlim=(0, 1))
    axes.legend(frameon=False, fontsize=8)


def _confusion(axes: Axes, report: dict[str, Any]) -> None:
    counts = report["confusion"]
    cells = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
    axes.imshow(cells, cmap="Blues", vmin=0)
    darkest = max(max(row) for row in cells)
    for row in range(2):
        for column in range(2):
            colour = "white" if cells[row][column] > darkest / 2 else "black"
            axes.text(
                column, row, str(cells[row][column]), ha="center", va="center", color=colour, fontsize=16
            )
    axes.set(
        title=f"At threshold {report['threshold']:.3f}",
        xticks=[0, 1],
        xticklabels=["said normal", "said pneumonia"],
        yticks=[0, 1],
        yticklabels=["normal", "pneumonia"],
    )


def _forest(report: dict[str, Any]) -> Figure:
    """Each subgroup's figures with their intervals, a row each; the line is the figure of all films."""
    groups = report["subgroups"]
    figure = Figure(figsize=(10.0, 1.3 + 0.28 * len(groups)), layout="constrained")
    rows = range(len(groups))
    for axes, (name, title) in zip(
        figure.subplots(1, len(_TITLES), sharey=True), _TITLES.items(), strict=True
    ):
        axes.axvline(report[name], color=QUIET, linewidth=1)
        for row, group in zip(rows, groups, strict=True):
            if group[name] is not None:
                axes.plot(group[f"{name}_ci"], (row, row), color=NORMAL, linewidth=1.5)
                axes.plot(group[name], row, "s", color=NORMAL, markersize=5)
        axes.set(title=title, xlim=(-0.02, 1.02))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    labels = [f"{group['attribute']}: {group['value']} ({group['n']})"[:48] for group in groups]
    figure.axes[0].set_yticks(rows, labels, parse_math=False)
    figure.axes[0].set_ylim(len(groups) - 0.5, -0.5)
    return figure
