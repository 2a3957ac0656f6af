"""The audit trail's way to a syslog server: TLS (RFC 5425), the messages of IHE ITI-20 in RFC 5424.

The trail is the outbox, and a place in it tells what was sent. Syslog itself answers nothing: so each batch
goes over a connection of its own, and a server that closes its end in answer to ours says by that that it
has read up to there. What is in doubt is sent again, under the same `sequenceId` (RFC 5424 7.3.1).
"""

import re
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress

import structlog

from service.core import tls
from service.core.audit import trail_folder
from service.core.audit_trail import Place, Record, Trail, locked
from service.core.settings import Settings

_BATCH = 500
_SECONDS = 10.0
_REFUSAL_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
# RFC 5424 6.2.1: facility 10, security and authorization; severity 5, notice, and 4, warning.
_FACILITY, _NOTICE, _WARNING = 10, 5, 4
_AT = re.compile(rb'EventDateTime="([^"]+)"')
_SUCCEEDED = b'EventOutcomeIndicator="0"'
_HIGHEST_SEQUENCE = 2**31 - 1
_log = structlog.get_logger()


class Sender:
    """Sends what the trail holds until `stop`; of several on one data folder one sends at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = trail_folder(settings)
        self._trail = Trail(self._folder)
        self._stopped = threading.Event()
        self._away = False

    def run(self) -> None:
        """Look for new records every second; a server that is away is waited for."""
        pause = _LOOK_SECONDS
        while self._settings.audit_syslog is not None and not self._stopped.wait(pause):
            try:
                self.send()
            except (OSError, ValueError) as fault:
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                if not self._away:
                    _log.warning(
                        "audit.syslog_away", server=str(self._settings.audit_syslog), reason=_why(fault)
                    )
                self._away = True
            except Exception:
                _log.exception("audit.syslog_failed")
                pause = _LONGEST_PAUSE_SECONDS
            else:
                pause = _LOOK_SECONDS
                if self._away:
                    _log.info("audit.syslog_back", server=str(self._settings.audit_syslog))
                self._away = False

    def stop(self) -> None:
        """Let `run` return after what it does now."""
        self._stopped.set()

    def send(self) -> int:
        """Send what waits; return how many records that were.

        Raises
        ------
        OSError
            When the server can't be reached, or did not take them all for sure.
        ValueError
            When a file of our TLS can't be used.
        """
        if not self._folder.exists():
            return 0
        total = 0
        with locked(self._folder / "sending") as held:
            while held and (batch := self._next()):
                self._deliver(batch)
                last = batch[-1]
                self._trail.note("sent", Place(last.number, last.sha256, last.file, last.end))
                total += len(batch)
        return total

    def waiting(self) -> int:
        """Return how many records were not sent yet."""
        head, sent = self._trail.place("head") or Place(), self._trail.place("sent") or Place()
        return max(0, head.number - sent.number)

    def _next(self) -> list[Record]:
        batch = []
        for record in self._trail.after(self._trail.place("sent") or Place()):
            batch.append(record)
            if len(batch) == _BATCH or self._stopped.is_set():
                break
        return batch

    def _deliver(self, batch: Sequence[Record]) -> None:
        server = self._settings.audit_syslog
        assert server is not None
        context = tls.client_context(self._settings.tls_files)
        with (
            socket.create_connection((server.host, server.port), timeout=_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=server.host) as secured,
        ):
            for record in batch:
                secured.sendall(framed(record))
            _end(secured)


def framed(record: Record) -> bytes:
    """Return a record as a syslog message with its length before it (RFC 5425 4.3)."""
    moment = _AT.search(record.message)
    severity = _NOTICE if _SUCCEEDED in record.message else _WARNING
    head = (
        f"<{8 * _FACILITY + severity}>1 {moment[1].decode() if moment else '-'} {socket.gethostname()} hilum "
        f'- DICOM+RFC3881 [meta sequenceId="{(record.number - 1) % _HIGHEST_SEQUENCE + 1}"] '
    )
    content = head.encode() + b"\xef\xbb\xbf" + record.message
    return b"%d %s" % (len(content), content)


def _end(secured: ssl.SSLSocket) -> None:
    """Say that there is no more, and return when the server has closed in its turn, with everything read.

    rsyslog ends its stream without the close_notify of RFC 5425 4.4, and so it does, at once, with who shows
    a certificate that it does not know. So an end counts only when it is the answer to ours.

    Raises
    ------
    OSError
        When it ends before, with a reset (something is unread), or not at all.
    """
    secured.settimeout(_REFUSAL_SECONDS)
    with suppress(TimeoutError):
        if not secured.recv(1):
            raise ConnectionAbortedError("it closed the connection: does it know our certificate?")
    secured.settimeout(_SECONDS)
    with suppress(ssl.SSLEOFError):
        secured.unwrap().close()


def _why(fault: Exception) -> str:
    if isinstance(fault, ssl.SSLError):
        return tls.reason(fault)
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
