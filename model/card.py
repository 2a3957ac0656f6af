"""The model card, written from what the commands measured: `python -m model.card`.

`model/evidence/` holds the JSON files of the commands that the card names, without curves and file names
(`--add NAME=FILE` puts one there); no figure in the card is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model.measuring.comparison import MARGIN, verdict

HERE = Path(__file__).parent
EVIDENCE = HERE / "evidence"
CARD = HERE / "card.md"
LEFT_OUT = {"curve", "histogram", "calibration_bins", "errors", "films"}
"""Keys of a report's objects and lists that no card quotes: long, or naming single films."""


def render(evidence: Path = EVIDENCE) -> str:
    """Return the card.

    Parameters
    ----------
    evidence
        Folder of JSON files; each is known to the template by its stem.

    Raises
    ------
    jinja2.UndefinedError
        When a file or a figure is missing.
    """
    environment = Environment(  # noqa: S701 - Markdown, of our own figures
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    measured = {path.stem: json.loads(path.read_text()) for path in sorted(evidence.glob("*.json"))}
    return environment.get_template("card.md.j2").render(
        **measured, duration=duration, verdict=verdict, margin=MARGIN
    )


def add(name: str, report: Path, evidence: Path = EVIDENCE) -> None:
    """Keep a command's report as evidence under a name."""
    content = json.loads(report.read_text())
    (evidence / f"{name}.json").write_text(json.dumps(_short(content), indent=1) + "\n")


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _short(each)
            for name, each in value.items()
            if name not in LEFT_OUT or not isinstance(each, dict | list)
        }
    return [_short(each) for each in value] if isinstance(value, list) else value


def interval(report: dict[str, Any], name: str) -> str:
    """Say a figure with its interval: "0.997 (0.995 to 0.999)"."""
    if report[name] is None:
        return "not known"
    edges = report.get(f"{name}_ci")
    return f"{report[name]:.3f}" + (f" ({edges[0]:.3f} to {edges[1]:.3f})" if edges else "")


def percent(share: float | None, digits: int = 1) -> str:
    """Say a share: "12.3 %"."""
    return "not known" if share is None else f"{share * 100:.{digits}f} %"


def signed(change: float) -> str:
    """Say a change with its sign: "+0.001"."""
    return f"{change:+.3f}"


def change(report: dict[str, Any], name: str) -> str:
    """Say a change with its sign and its interval: "+0.012 (-0.004 to +0.030)"."""
    low, high = report[f"{name}_ci"]
    return f"{signed(report[name])} ({signed(low)} to {signed(high)})"


FILTERS = {"interval": interval, "percent": percent, "signed": signed, "change": change}


def duration(report: dict[str, Any]) -> str:
    """Say how long the epochs of a training report took."""
    minutes = sum(float(epoch["seconds"]) for epoch in report["log"]) / 60.0
    return f"{minutes:.0f} minutes for {len(report['log'])} epochs"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card; with `--check`, say whether it is what the evidence gives."""
    parser = argparse.ArgumentParser(prog="python -m model.card", description="Write the model card.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the card is another one")
    parser.add_argument("--add", action="append", default=[], metavar="NAME=FILE", help="keep a report first")
    options = parser.parse_args(argv)
    for each in options.add:
        name, _, report = each.partition("=")
        add(name, Path(report))
    card = render()
    if not options.check:
        CARD.write_text(card)
    elif CARD.read_text() != card:
        sys.stderr.write(f"{CARD} is not what {EVIDENCE} gives; run `python -m model.card`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
