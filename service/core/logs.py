"""Logs: one line an event, JSON where a machine reads it, with the ids of the work in hand.

Ids are bound once by `structlog.contextvars`. No line holds a patient's name, id or birth date; data sets
are never logged. What libraries say in exceptions and warnings may repeat values of attributes, so their
words are left out: a traceback ends with the kind of the exception, a warning is its kind and its place, and
of a library's line about an exception its first line stays, without what was filled in.
"""

import logging
import resource
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog

from service.core.errors import HilumError

_log = structlog.get_logger()


def configure(role: str, form: Literal["auto", "json", "text"] = "auto") -> None:
    """Send every log line of this process, ours and the libraries', to stderr; `form` is HILUM_LOG_FORMAT."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    for_people = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _without_what_was_filled_in],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_words,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "celery.worker.strategy", "celery.app.trace", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    structlog.contextvars.bind_contextvars(role=role)


def protect_patients() -> None:
    """Drop what libraries say that repeat values of attributes or rows, at any level and as warnings.

    Tracebacks are plain from the first line on, and hold no words but our own: a rich one prints local
    variables, whole data sets too. A process that crashes leaves no core: films and names are in its memory.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            _without_words,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    sys.excepthook = _ended
    threading.excepthook = lambda told: _ended(told.exc_type, told.exc_value, told.exc_traceback)
    sys.unraisablehook = lambda told: _ended(told.exc_type, told.exc_value, told.exc_traceback)
    warnings.showwarning = _warned
    for name in ("pynetdicom", "pydicom", "highdicom", "sqlalchemy.engine", "httpcore"):
        # Not by level: pydicom sets its own again when it is imported.
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        warnings.filterwarnings("ignore", module=name)


def _without_what_was_filled_in(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Shorten a library's line about an exception: asyncio and Celery write the exception's words into it."""
    record: logging.LogRecord = event["_record"]
    if event.get("exc_info"):
        event["event"] = str(record.msg).partition("\n")[0]
        event.pop("data", None)  # Celery's: exception, traceback and arguments as text
    return event


def _without_words(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Write the exception of an event as where it happened and of what kind it is."""
    told = event.pop("exc_info", None)
    fault = sys.exc_info()[1] if told is True else told[1] if isinstance(told, tuple) else told
    if isinstance(fault, BaseException):
        event["exception"] = outline(fault)
    return event


def outline(fault: BaseException) -> str:
    """Return a traceback without what the exceptions say, but for our own and the system's errors."""
    lines: list[str] = []
    seen: set[int] = set()
    found: BaseException | None = fault
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        if isinstance(found, HilumError):
            kind += f": {found}"
        elif isinstance(found, OSError) and found.strerror:
            kind += f": {found.strerror}"
        lines[:0] = [*traceback.format_tb(found.__traceback__), f"{kind}\n"]
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return "".join(lines).rstrip()


def _ended(kind: type[BaseException], fault: BaseException | None, _where: TracebackType | None) -> None:
    if fault is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        _log.error("uncaught", exc_info=fault)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del message, file, line  # what it says may be a value
    _log.warning("warning", kind=category.__name__, at=f"{filename}:{lineno}")
