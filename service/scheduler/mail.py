"""Notices by mail: several in one, over TLS and never without."""

import smtplib
import socket
from collections.abc import Sequence
from datetime import tzinfo
from email.message import EmailMessage
from email.utils import format_datetime

import structlog

from service.core.ledger import now
from service.core.notices import Channel
from service.core.tls import TLSFiles, client_context
from service.scheduler.message import WORDS, Message, NotDelivered

_SECONDS = 10.0
_FOOT = (
    "Sent by Hilum, which names no patient here: look the study up by its UID, on the dashboard or by\n"
    "`hilum status STUDY_UID`. Research use only, not for diagnosis."
)
_log = structlog.get_logger()


def send(channel: Channel, messages: Sequence[Message], zone: tzinfo | None) -> None:
    """Send one mail with these notices.

    Raises
    ------
    OSError, NotDelivered
        When the server did not take it for anybody.
    """
    mail = compose(channel, messages, zone)
    context = client_context(TLSFiles(ca_file=channel.ca_file))
    ours = socket.gethostname()
    try:
        if channel.url.startswith("smtps://"):
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                channel.host, channel.port, ours, timeout=_SECONDS, context=context
            )
        else:
            server = smtplib.SMTP(channel.host, channel.port, ours, timeout=_SECONDS)
        with server:
            if not channel.url.startswith("smtps://"):
                server.starttls(context=context)
            if channel.user is not None:
                server.login(channel.user, channel.password() or "")
            if refused := server.send_message(mail):
                _log.warning("notice.some_refused", channel=channel.name, recipients=len(refused))
    except smtplib.SMTPException as fault:
        raise NotDelivered(_why(fault)) from fault


def compose(channel: Channel, messages: Sequence[Message], zone: tzinfo | None) -> EmailMessage:
    """Return the mail; its Message-ID is that of its first notice."""
    first = messages[0]
    words = list(dict.fromkeys(WORDS[message.kind] for message in messages))
    mail = EmailMessage()
    mail["From"], mail["To"] = channel.sender, ", ".join(channel.to)
    count = "" if len(messages) == 1 else f"{len(messages)} notices: "
    mail["Subject"] = f"Hilum: {count}{'; '.join(words)}"
    mail["Date"] = format_datetime(now())
    mail["Message-ID"] = f"<{first.message_id}@{(channel.sender or '').rpartition('@')[2]}>"
    # So that nobody's absence note comes back (RFC 3834).
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n\n".join([*(message.as_text(zone) for message in messages), _FOOT]) + "\n")
    return mail


def _why(fault: smtplib.SMTPException) -> str:
    if isinstance(fault, smtplib.SMTPAuthenticationError):
        return f"the mail server refuses user or password ({fault.smtp_code})"
    if isinstance(fault, smtplib.SMTPNotSupportedError):
        return "the mail server offers no STARTTLS, or no login"
    if isinstance(fault, smtplib.SMTPRecipientsRefused):
        return "the mail server refuses every recipient"
    if isinstance(fault, smtplib.SMTPResponseException):
        return f"the mail server answered {fault.smtp_code}"
    return f"the mail server broke off ({type(fault).__name__})"
