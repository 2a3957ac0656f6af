"""Feedback as a table for a spreadsheet or a statistician: one line an entry, no patient in any."""

import csv
import io
from collections.abc import Iterable, Iterator

from service.core.tables import Feedback

COLUMNS = (
    *("study_instance_uid", "received_at", "at", "revision", "model_name", "model_version", "model_sha256"),
    *("ai_finding", "ai_probability", "ai_threshold", "assessment", "own_finding", "reader", "user"),
    *("source", "review_share"),
)
# What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def lines(entries: Iterable[Feedback], *, notes: bool = False) -> Iterator[str]:
    """Yield the table line by line, its heading first; `notes` adds a last column of what readers wrote."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*COLUMNS, "note"] if notes else COLUMNS)
    yield _taken(buffer)
    for entry in entries:
        model = entry.model
        row = [
            entry.study.study_instance_uid,
            entry.study.received_at.isoformat(),
            entry.at.isoformat(),
            entry.revision,
            *((model.name, model.version, model.sha256) if model else ("", "", "")),
            entry.finding,
            entry.probability,
            entry.threshold,
            entry.assessment,
            entry.own_finding,
            _harmless(entry.reader),
            _harmless(entry.user),
            entry.source,
            entry.review_share,
        ]
        writer.writerow([*row, _harmless(entry.note or "")] if notes else row)
        yield _taken(buffer)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
