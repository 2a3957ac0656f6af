"""The card of the weights that a training run made, from what the run measured: `<stem>.card.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model.card import FILTERS, duration
from model.measuring.comparison import MARGIN, verdict
from model.weights import WeightsInfo


def run_card(info: WeightsInfo, report: dict[str, Any]) -> str:
    """Return the card.

    Parameters
    ----------
    info
        What the weights say of themselves.
    report
        What `<stem>.validation.json` holds.

    Raises
    ------
    jinja2.UndefinedError
        When a figure is missing.
    """
    environment = Environment(  # noqa: S701 - Markdown, of our own figures
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    populations: dict[str, Any] = report.get("populations", {})
    changes = [populations[name].get("change") for name in ("first", "extra") if name in populations]
    said = verdict(*changes) if len(changes) == 2 and None not in changes else ""
    return environment.get_template("run_card.md.j2").render(
        info=info, run=report, populations=populations, verdict=said, margin=MARGIN, duration=duration
    )
