"""Templates into answers. Whatever a peer or a data set says is escaped by Jinja2, in every template."""

from collections.abc import Mapping
from datetime import datetime, tzinfo
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from service.api import schemas
from service.api.explain import KINDS
from service.api.roles import Act
from service.core.ledger import now
from service.core.removal import shown_bytes


def policy(**sources: str) -> str:
    """Return a Content-Security-Policy that allows nothing but these sources; dashes as underscores."""
    directives = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        **{name.replace("_", "-"): value for name, value in sources.items()},
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


_HEADERS = {
    "Content-Security-Policy": policy(
        script_src="'self'", style_src="'self'", img_src="'self'", connect_src="'self'", form_action="'self'"
    ),
    # With no-referrer a browser says "Origin: null" of our own forms. Other sites hear as little by this.
    "Referrer-Policy": "same-origin",
}
_environment = Environment(
    loader=PackageLoader("service.api.page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(
    template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Return a rendered page with the headers of pages and those given."""
    content = _environment.get_template(template).render(**values)
    return HTMLResponse(content, status, {**_HEADERS, **(headers or {})})


def document(template: str, **values: Any) -> str:
    """Return a page that needs nothing beside it: its style is within, and there is no script."""
    css = (files("service.api.page") / "assets/hilum.css").read_text(encoding="utf-8")
    return _environment.get_template(template).render(css=css, **values)


def fragment(template: str, **values: Any) -> HTMLResponse:
    """Return a rendered part of a page."""
    return HTMLResponse(_environment.get_template(template).render(**values))


def row(study: schemas.StudySummary, zone: tzinfo | None) -> str:
    """Return a study as a row of the list."""
    return _environment.get_template("row.html").render(study=study, zone=zone)


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


_environment.globals.update(Act=Act, KINDS=KINDS)
_environment.filters.update(
    local=_local, percent=_percent, age=_age, since=_since, moment=_moment, size=shown_bytes
)
