"""`hilum rules check` and `hilum rules test`: what the rules of the site say, before a router finds out."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

from service.commands.console import console
from service.commands.send import files_of
from service.core.eligibility import Eligibility, Verdict, assess
from service.core.errors import Refused
from service.core.file_meta import sending_ae_title
from service.core.header import Header, read_header
from service.core.rules import Decision, Failed, Rule, Span, decide, failed
from service.core.settings import Settings


def check(settings: Settings, as_json: bool) -> int:
    """Print the rules in their order; whoever gets here has read them without a fault."""
    if as_json:
        rules = [{**rule.decision.kept(), "when": _when(rule)} for rule in settings.rules]
        typer.echo(json.dumps({"rules": rules, "destinations": _names(settings)}, indent=2))
        return 0
    screen = console()
    for number, rule in enumerate(settings.rules, start=1):
        conditions = [f"{name} {' or '.join(map(_quoted, values))}" for name, values in _when(rule).items()]
        screen.print(f"{number}. {rule.decision}", markup=False)
        screen.print(f"   when {' and '.join(conditions) or 'anything comes'}", style="dim", markup=False)
    rest = "everything else" if settings.rules else "there are no rules: everything"
    to = ", ".join(_names(settings)) or "nobody, as no destination is configured"
    screen.print(f"{rest} is analysed, result to {to}", markup=False)
    return 0


def test(settings: Settings, paths: list[Path], calling_ae_title: str | None, as_json: bool) -> int:
    """Print for each file which rule speaks of it, and why those before it do not.

    Returns
    -------
    int
        0 when every file could be read.
    """
    answers: list[dict[str, Any]] = []
    files, code = list(files_of(paths)), 0
    for file in files:
        try:
            header = read_header(file)
            title = sending_ae_title(file) if calling_ae_title is None else calling_ae_title
        except (Refused, OSError) as fault:
            sys.stderr.write(f"hilum: {file}: {fault}\n")
            code = 1
            continue
        verdict = assess(header)
        passed_over = _passed_over(settings, header, title)
        ignored = verdict.eligibility is Eligibility.IGNORED
        decision = Decision() if ignored else decide(settings.rules, header, title)
        if as_json:
            answers.append(_as_json(file, title, verdict, decision, passed_over))
        else:
            _print(file, verdict, decision, {} if ignored else passed_over)
    if as_json:
        typer.echo(json.dumps(answers, indent=2))
    if not files:
        sys.stderr.write("hilum: no file to test\n")
    return code if files else 1


def _passed_over(settings: Settings, header: Header, title: str) -> dict[str, list[Failed]]:
    """Return the rules that do not speak of the image, by name, up to the one that does."""
    found = {}
    for rule in settings.rules:
        missed = failed(rule, header, title)
        if not missed:
            break
        found[rule.name] = missed
    return found


def _print(file: Path, verdict: Verdict, decision: Decision, passed_over: dict[str, list[Failed]]) -> None:
    screen = console()
    if verdict.eligibility is Eligibility.IGNORED:
        screen.print(f"{file}: ignored, whatever the rules say: {verdict.reason}", markup=False)
        return
    screen.print(f"{file}: {decision}", markup=False)
    if verdict.reason:
        screen.print(f"   not analysed all the same: {verdict.reason}", style="yellow", markup=False)
    for name, missed in passed_over.items():
        for item in missed:
            wanted = " or ".join(map(_quoted, item.wanted))
            line = f'   not "{name}": {item.condition} is {_quoted(item.found)}, not {wanted}'
            screen.print(line, style="dim", markup=False)


def _as_json(
    file: Path, title: str, verdict: Verdict, decision: Decision, passed_over: dict[str, list[Failed]]
) -> dict[str, Any]:
    return {
        "file": str(file),
        "calling_ae_title": title,
        **decision.kept(),
        "eligibility": verdict.eligibility,
        "reason": verdict.reason or (None if decision.analyse else decision.reason),
        "passed_over": [
            {"rule": name, "failed": [vars(item) for item in missed]} for name, missed in passed_over.items()
        ],
    }


def _when(rule: Rule) -> dict[str, list[str]]:
    return {
        name: [item.text if isinstance(item, Span) else item for item in wanted]
        for name, wanted in rule.when.named.items()
    }


def _names(settings: Settings) -> list[str]:
    return [destination.name for destination in settings.destinations]


def _quoted(value: str) -> str:
    """Return a value in quotes, without what a terminal would obey."""
    return f'"{"".join(sign if sign.isprintable() else "?" for sign in value)}"'
