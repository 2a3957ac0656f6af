"""Templates into text. Whatever a peer or a data set says is escaped by Jinja2, in every template.

What a command writes is made here too, so nothing here needs what only the API's image holds.
"""

from datetime import datetime, tzinfo
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from service.core.ledger import now
from service.core.removal import shown_bytes

environment = Environment(
    loader=PackageLoader("service.api.page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def document(template: str, **values: Any) -> str:
    """Return a page that needs nothing beside it: its style is within, and there is no script."""
    css = (files("service.api.page") / "assets/hilum.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(css=css, **values)


def _age(seconds: float) -> str:
    """Write a duration for people, to one unit: a list is not a stopwatch."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _since(moment: datetime) -> str:
    return _age((now() - moment).total_seconds())


def _local(moment: datetime | None, zone: tzinfo | None) -> str:
    """Write a moment for people, in this zone; None is the machine's own."""
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _percent(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.1%}".replace("%", " %")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


environment.filters.update(
    local=_local, percent=_percent, age=_age, since=_since, moment=_moment, size=shown_bytes
)
