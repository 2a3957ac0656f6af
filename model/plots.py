"""Pictures of an evaluation: ROC, precision-recall, calibration and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f4e79"


def plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a report of `model.evaluate.evaluate` as four PNG files.

    Parameters
    ----------
    report
        As returned by `evaluate` (or read from its JSON).
    folder
        Made when it is missing.

    Returns
    -------
    list of Path
        roc.png, pr.png, calibration.png and confusion.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawers: dict[str, Callable[[Axes, dict[str, Any]], None]] = {
        "roc": _roc,
        "pr": _precision_recall,
        "calibration": _calibration,
        "confusion": _confusion,
    }
    written = []
    for name, draw in drawers.items():
        figure = Figure(figsize=(5.0, 4.6), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, report)
        figure.supxlabel(
            f"{report['model']['name']} {report['model']['version']}, n = {report['n']}. Research use only.",
            fontsize=8,
            color="0.4",
        )
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1])
    return written


def _roc(axes: Axes, report: dict[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot(report["curve"]["false_positive_rate"], report["curve"]["true_positive_rate"], color=INK)
    axes.plot(1.0 - report["specificity"], report["sensitivity"], "o", color=INK, label="operating point")
    low, high = report["auc_ci"]
    axes.set(
        title=f"ROC, AUC {report['auc']:.3f} (95 % {low:.3f} to {high:.3f})",
        xlabel="1 - specificity",
        ylabel="sensitivity",
        aspect="equal",
    )
    axes.legend(frameon=False)


def _precision_recall(axes: Axes, report: dict[str, Any]) -> None:
    axes.plot(report["curve"]["true_positive_rate"], report["curve"]["precision"], color=INK)
    axes.plot(report["recall"], report["precision"], "o", color=INK, label="operating point")
    axes.set(
        title="Precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02)
    )
    axes.legend(frameon=False)


def _calibration(axes: Axes, report: dict[str, Any]) -> None:
    bins = report["calibration_bins"]
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot([each["probability"] for each in bins], [each["share"] for each in bins], "o-", color=INK)
    for each in bins:
        at = (each["probability"], each["share"])
        axes.annotate(str(each["n"]), at, (4, -10), textcoords="offset points")
    axes.set(
        title=f"Calibration, ECE {report['ece']:.3f}",
        xlabel="probability given (number: films)",
        ylabel="share with pneumonia",
        aspect="equal",
    )


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
