"""Templates into answers. Whatever a peer or a data set says is escaped by Jinja2, in every template."""

from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined


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
    "Content-Security-Policy": policy(style_src="'self'", img_src="'self'", form_action="'self'"),
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


def _local(moment: datetime | None, zone: tzinfo | None) -> str:
    """Write a moment for people, in this zone; None is the machine's own."""
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _percent(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.1%}".replace("%", " %")


_environment.filters.update(local=_local, percent=_percent)
