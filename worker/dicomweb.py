"""STOW-RS and QIDO-RS user agent (PS3.18 10.5, 10.6): one destination, over a connection that is kept.

Redirects are not followed: an object of a patient goes to the address that the site configured, and nowhere
else. What the destination says is bounded in size and time, and never repeated in a message.
"""

import os
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
from pydicom.uid import ExplicitVRLittleEndian

from service.core import tls
from service.core.destination import Destination
from service.core.errors import DeliveryError, HilumError, NotAccepted, PermanentDelivery, TransientDelivery
from worker.dicomweb_answers import (
    attributes,
    failure_in,
    matches,
    only_part,
    sop_instance_uids,
    status_in,
    store_response,
)
from worker.peer import Sendable, Sent

_JSON = "application/dicom+json"
_CHUNK = 64 * 1024
_LONGEST_ANSWER_BYTES = 1 << 20
_LONGEST_SECONDS = 600.0
_BUSY = {408, 425, 429, 502, 503, 504}
_STORED = {200, 202, 409}
_HINTS = {
    401: "it wants other credentials: look at credentials_file",
    403: "these credentials may not store there: look at credentials_file, and at the rights of its user",
    404: "nothing is there: look at the path of the URL",
    405: "it takes no STOW-RS there: look at the path of the URL",
    407: "a proxy wants credentials",
}


class DICOMwebPeer:
    """A STOW-RS and QIDO-RS server, for one thread at a time.

    Parameters
    ----------
    destination
        One of ``http://`` or ``https://``. Its certificate is held against the CAs of its `tls`, else
        against the machine's own.
    longest_seconds
        Bound of one exchange, however busy.
    longest_answer_bytes
        Bound of one answer.

    Raises
    ------
    TransientDelivery
        When its credentials or a file of its TLS can't be read.
    """

    def __init__(
        self,
        destination: Destination,
        longest_seconds: float = _LONGEST_SECONDS,
        longest_answer_bytes: int = _LONGEST_ANSWER_BYTES,
    ) -> None:
        self._url = destination.url.rstrip("/")
        self._address = f"{destination.name} at {destination.host}:{destination.port}"
        self._longest_seconds = longest_seconds
        self._longest_answer_bytes = longest_answer_bytes
        self._takes_parameter = True
        self._overdue = False
        self._connection: socket.socket | None = None
        # iter_raw below undoes no compression, so none is asked for.
        headers = {"Accept": _JSON, "Accept-Encoding": "identity", "User-Agent": "Hilum"}
        try:
            if authorization := destination.authorization():
                headers["Authorization"] = authorization
            self._context = tls.client_context(destination.tls or tls.TLSFiles())
        except ValueError as fault:
            raise TransientDelivery(f"destination {destination.name}: {fault}") from None
        self._client = httpx.Client(
            headers=headers,
            # The environment's proxies and .netrc are not what the site configured here.
            trust_env=False,
            verify=self._context,
            timeout=httpx.Timeout(60, connect=10),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def proves(self) -> bool:
        """Whether it answers QIDO-RS shows when it is asked."""
        return True

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
        self._forget_connection()

    def store(self, item: Sendable) -> Sent:
        """Send one object's file as it is; return its status, or the fault that kept it from getting one.

        The status is 0000, the Warning Reason (0008,1196) or the Failure Reason (0008,1197) of the answer;
        0110 when the answer says of no object that it is stored, whatever its HTTP status.
        """
        # The media type alone stands for Explicit VR Little Endian (PS3.18 8.7.3).
        media_type = "application/dicom"
        if item.transfer_syntax_uid != ExplicitVRLittleEndian and self._takes_parameter:
            media_type += f"; transfer-syntax={item.transfer_syntax_uid}"
        try:
            status = self._post(item.path, media_type)
            if status is None and ";" in media_type:
                # Orthanc's plugin 1.7 drops such a part and answers 200.
                self._takes_parameter = False
                status = self._post(item.path, "application/dicom")
            return Sent(HilumError.dimse_status if status is None else status)
        except DeliveryError as fault:
            return Sent(None, fault)
        except OSError as fault:
            return Sent(None, PermanentDelivery(f"the object cannot be sent ({type(fault).__name__})"))

    def study(self, study_instance_uid: str) -> dict[str, str] | None:
        """Return what the destination says of a study's patient and order, by keyword, without what is empty.

        None when it does not hold the study or can't say.

        Raises
        ------
        TransientDelivery
            When it can't be reached.
        """
        wanted = {"StudyInstanceUID": study_instance_uid, "includefield": "IssuerOfPatientID"}
        return attributes(self.search("/studies", wanted) or [], study_instance_uid)

    def holds(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> bool | None:
        """Return whether the destination holds an instance; None when it can't say.

        Raises
        ------
        TransientDelivery
            When it can't be reached.
        """
        series = f"/studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        found = self.search(series, {"SOPInstanceUID": sop_instance_uid})
        return None if found is None else sop_instance_uid in sop_instance_uids(found)

    def retrieve(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
    ) -> bytes | None:
        """Return an instance's file by WADO-RS (PS3.18 10.4), or None when it gives none.

        Raises
        ------
        TransientDelivery
            When it can't be reached, or answers at too great a length.
        """
        path = f"/studies/{study_instance_uid}/series/{series_instance_uid}/instances/{sop_instance_uid}"
        wanted = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        code, media_type, content = self._exchange("GET", path, headers={"Accept": wanted})
        if code != 200:
            return None
        return only_part(media_type, content)

    def search(self, path: str, query: Mapping[str, str]) -> list[Any] | None:
        """Return the matches of a search by QIDO-RS, None when it is not answered.

        Raises
        ------
        TransientDelivery
            When it can't be reached.
        """
        code, media_type, content = self._exchange("GET", path, params=query)
        if code in _BUSY:
            raise TransientDelivery(f"{self._address} answered HTTP {code}")
        return matches(code, media_type, content)

    def _post(self, path: Path, media_type: str) -> int | None:
        """Send one file and return its status; None when the answer names no object at all."""
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode("ascii")
        tail = f"\r\n--{boundary}--\r\n".encode("ascii")
        return self._status(
            *self._exchange(
                "POST",
                "/studies",
                content=_body(head, path, tail),
                headers={
                    "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                    "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
                },
            )
        )

    def _status(self, code: int, media_type: str, content: bytes) -> int | None:
        if code in _STORED:
            response = store_response(media_type, content)
            if code == 409:
                return failure_in(response or {}) or HilumError.dimse_status
            if response is None:
                raise TransientDelivery(
                    f"what answers at {self._address} is no STOW-RS server: look at the URL"
                )
            return status_in(response)
        answered = f"{self._address} answered HTTP {code}"
        if code == 415:
            raise NotAccepted(f"{answered}: it does not accept this object in our transfer syntax")
        if 300 <= code < 400:
            raise TransientDelivery(f"{answered}: it wants another URL, and redirects are not followed")
        if code in _HINTS:
            raise TransientDelivery(f"{answered}: {_HINTS[code]}")
        if code in _BUSY or code >= 500:
            raise TransientDelivery(answered)
        raise PermanentDelivery(f"{answered}: it refuses the object itself")

    def _exchange(self, method: str, path: str, **options: Any) -> tuple[int, str, bytes]:
        """Return status, media type and content of the answer.

        Raises
        ------
        TransientDelivery
            When there is none in time, or it is too long.
        """
        self._context.fault = None
        try:
            with (
                self._in_time(),
                self._client.stream(
                    method, f"{self._url}{path}", extensions={"trace": self._on_event}, **options
                ) as answer,
            ):
                content = bytearray()
                for chunk in answer.iter_raw(_CHUNK):
                    content += chunk
                    if len(content) > self._longest_answer_bytes:
                        raise TransientDelivery(f"{self._address} answered at too great a length")
                return answer.status_code, answer.headers.get("content-type", ""), bytes(content)
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            raise TransientDelivery(self._why(fault)) from None

    def _why(self, fault: Exception) -> str:
        """Return in words what ended an exchange."""
        if isinstance(self._context.fault, ssl.SSLError):
            return f"{self._address}: {tls.reason(self._context.fault)}"
        if isinstance(fault, httpx.TimeoutException):
            return f"{self._address} did not answer in time"
        if isinstance(fault, httpx.ConnectError):
            return f"{self._address} cannot be reached (no connection)"
        why = "took too long" if self._overdue else f"broke off ({type(fault).__name__})"
        return f"{self._address}: the exchange {why}"

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """End the exchange when it takes too long: each wait has a bound of its own, their sum has none."""
        self._overdue = False
        timer = threading.Timer(self._longest_seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        self._overdue = True
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _on_event(self, name: str, info: Mapping[str, Any]) -> None:
        """Keep a descriptor of the connection, so that another thread can end it."""
        if name == "connection.connect_tcp.complete":
            self._forget_connection()
            connected: socket.socket = info["return_value"].get_extra_info("socket")
            self._connection = socket.socket(fileno=os.dup(connected.fileno()))

    def _forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _body(head: bytes, path: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
    yield tail
