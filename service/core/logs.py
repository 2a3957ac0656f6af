"""Logs: one line an event, JSON where a machine reads it, with the ids of the work in hand.

Ids are bound once by `structlog.contextvars`. No line holds a patient's name, id or birth date; data sets
are never logged.
"""

import logging
import sys
import warnings

import structlog


def configure(role: str) -> None:
    """Send every log line of this process, ours and the libraries', to stderr."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    on_terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "celery.worker.strategy", "celery.app.trace", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    structlog.contextvars.bind_contextvars(role=role)


def protect_patients() -> None:
    """Drop what the DICOM libraries say, at any level and as warnings: they repeat values of attributes.

    Tracebacks are plain from the first line on: a rich one prints local variables, whole data sets too.
    """
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )
    for name in ("pynetdicom", "pydicom", "highdicom"):
        # Not by level: pydicom sets its own again when it is imported.
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        warnings.filterwarnings("ignore", module=name)
