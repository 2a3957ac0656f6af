"""Whom Hilum tells of what: the channels, `[notices.NAME]` of the file that HILUM_CONFIG names."""

import binascii
import re
from base64 import b64decode
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from service.core.destination import duration, line_in, scheme
from service.core.states import NoticeKind
from service.core.tls import TLSFiles, client_context

_PORTS = {"http": 80, "https": 443, "smtp": 587, "smtps": 465}
_MAIL = {"smtp", "smtps"}
_ADDRESS = re.compile(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+")
_SECRET_PREFIX = "whsec_"  # noqa: S105
_SHORTEST_SECRET = 24  # bytes, as the specification asks for
_TROUBLE = tuple(kind for kind in NoticeKind if kind not in (NoticeKind.POSITIVE, NoticeKind.TEST))
Duration = Annotated[timedelta, BeforeValidator(duration)]


class Channel(BaseModel):
    """One receiver of notices: a webhook, or somebody's mail.

    Attributes
    ----------
    url
        ``https://…`` gets each notice as JSON by POST; ``smtp://host:port`` (STARTTLS, always) or
        ``smtps://host:port`` (TLS from the first byte) sends mails.
    events
        What it is told of; without it everything that asks for a person, and no positive findings.
    secret_file
        Of a webhook: a file with the secret that signs (Standard Webhooks: ``whsec_`` and base64).
    sender, to
        Of mails (`from` in the file).
    user, password_file
        With which to log in to the mail server.
    ca_file
        The CAs that vouch for the server; without it those of this machine.
    silence_after
        Working time (HILUM_WORKING_HOURS) without a study that is called silence.
    destination_down_after
        How long a destination is away before that is told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str
    events: tuple[NoticeKind, ...] = _TROUBLE
    secret_file: Path | None = None
    sender: str | None = Field(None, alias="from")
    to: tuple[str, ...] = ()
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    silence_after: Duration = timedelta(hours=4)
    destination_down_after: Duration = timedelta(minutes=30)

    @field_validator("url")
    @classmethod
    def _is_known(cls, url: str) -> str:
        parts = urlsplit(url) if scheme(url) in _PORTS else urlsplit("")
        if not parts.hostname:
            raise ValueError("a channel is https://…, smtp://host:port or smtps://host:port")
        if parts.username is not None or parts.password is not None:
            raise ValueError("user and password do not belong into a URL: use user and password_file")
        if parts.scheme in _MAIL and (parts.path.strip("/") or parts.query or parts.fragment):
            raise ValueError(f"a mail server is {parts.scheme}://host:port and nothing behind it")
        return url

    @field_validator("to", "sender")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for address in (value,) if isinstance(value, str) else value or ():
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address} is no mail address")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        faults = []
        if self.is_mail and not (self.sender and self.to):
            faults.append("a mail needs from and to")
        if not self.is_mail and (self.sender or self.to or self.user or self.password_file):
            faults.append("from, to, user and password_file are for mails")
        if (self.user is None) is not (self.password_file is None):
            faults.append("user and password_file go together")
        if self.is_mail and self.secret_file is not None:
            faults.append("secret_file signs webhooks, not mails")
        if NoticeKind.TEST in self.events:
            faults.append("test is no event")
        for read in (self.secret, self.password, self.check_ca):
            try:
                read()
            except ValueError as fault:
                faults.append(str(fault))
        if faults:
            raise ValueError("; ".join(f"notices {self.name}: {fault}" for fault in faults))
        return self

    @property
    def is_mail(self) -> bool:
        """Whether it is reached by SMTP, not by HTTP."""
        return urlsplit(self.url).scheme in _MAIL

    @property
    def is_encrypted(self) -> bool:
        """Whether nobody in between can read what is sent."""
        return urlsplit(self.url).scheme != "http"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    def secret(self) -> bytes | None:
        """Return the key that signs, read anew so that a changed one counts; None without a file.

        Raises
        ------
        ValueError
            When the file can't be read or holds something else; the message repeats none of it.
        """
        if self.secret_file is None:
            return None
        line = line_in(self.secret_file, "secret_file")
        try:
            key = b64decode(line.removeprefix(_SECRET_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not line.startswith(_SECRET_PREFIX) or len(key) < _SHORTEST_SECRET:
            raise ValueError(
                f"secret_file {self.secret_file} must hold one line, whsec_ and at least {_SHORTEST_SECRET} "
                'bytes in base64: echo "whsec_$(openssl rand -base64 32)"'
            )
        return key

    def password(self) -> str | None:
        """Return the password of the mail server, read anew; None without a file.

        Raises
        ------
        ValueError
            When the file can't be read or is empty.
        """
        if self.password_file is None:
            return None
        if line := line_in(self.password_file, "password_file"):
            return line
        raise ValueError(f"password_file {self.password_file} is empty")

    def check_ca(self) -> None:
        """Look whether `ca_file` can be used.

        Raises
        ------
        ValueError
            When it can't.
        """
        client_context(TLSFiles(ca_file=self.ca_file))
