"""A notice to a webhook: JSON by POST, signed as Standard Webhooks 1.0 says."""

import base64
import hashlib
import hmac
import http.client
import json
import time
from urllib.parse import urlsplit

from service.core.notices import Channel
from service.core.tls import TLSFiles, client_context
from service.scheduler.message import Message, NotDelivered

_SECONDS = 10.0


def post(channel: Channel, message: Message) -> None:
    """Give one notice to a webhook; redirects are not followed, and no proxy is asked.

    Raises
    ------
    OSError, NotDelivered
        When it was not taken.
    """
    parts = urlsplit(channel.url)
    connection: http.client.HTTPConnection
    if channel.is_encrypted:
        context = client_context(TLSFiles(ca_file=channel.ca_file))
        connection = http.client.HTTPSConnection(
            channel.host, channel.port, timeout=_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(channel.host, channel.port, timeout=_SECONDS)
    body = json.dumps(message.as_json(), ensure_ascii=False).encode()
    try:
        path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        connection.request("POST", path, body, headers(channel.secret(), message.message_id, body))
        status = connection.getresponse().status
    except http.client.HTTPException as fault:
        raise NotDelivered(f"it does not speak HTTP there ({type(fault).__name__})") from fault
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise NotDelivered(f"it answered {status}")


def headers(secret: bytes | None, message_id: str, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook: its id, its time, and with a secret its signature."""
    moment = str(int(time.time()))
    found = {
        "Content-Type": "application/json",
        "User-Agent": "hilum",
        "webhook-id": message_id,
        "webhook-timestamp": moment,
    }
    if secret is not None:
        signed = hmac.digest(secret, f"{message_id}.{moment}.".encode() + body, hashlib.sha256)
        found["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
    return found
