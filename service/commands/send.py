"""`hilum send`: push DICOM files by C-STORE, as a router would."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError
from pydicom.uid import UID
from rich.console import Console
from rich.progress import Progress

from service.core.destination import Destination
from service.core.errors import ConfigurationError, DeliveryError, NotAccepted, Refused
from service.core.header import read_header
from service.core.settings import Settings
from worker.peer import Answer, Sendable, Sent, answer_to, reason_for
from worker.scu import DimsePeer

_BATCH = 100


def send(settings: Settings, paths: list[Path], to: str | None, calling: str | None = None) -> int:
    """Send every DICOM file of `paths`, as the AE title `calling`, else as ours.

    Returns 0 only when each was accepted.
    """
    calling = calling or settings.ae_title
    target = gateway_of(settings, to)
    files = list(files_of(paths))
    objects, faults = [], 0
    for file in files:
        try:
            header = read_header(file)
        except (Refused, OSError) as fault:
            sys.stderr.write(f"hilum: {file}: {fault}\n")
            faults += 1
            continue
        objects.append((file, Sendable(file, header.sop_class_uid, header.transfer_syntax_uid)))
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"sending to {target.ae_title}", total=len(objects))
        # One association proposes at most 128 contexts (PS3.8 9.3.2.2), so a long list goes in batches.
        for start in range(0, len(objects), _BATCH):
            batch = objects[start : start + _BATCH]
            for (file, item), sent in zip(batch, _sent(batch, calling, target), strict=True):
                faults += _report(file, item, sent)
                progress.advance(task)
    if not files:
        sys.stderr.write("hilum: no file to send\n")
        return 1
    accepted = f"{len(files) - faults} of {len(files)} file(s) accepted"
    sys.stdout.write(f"{accepted} by {target.ae_title} at {target.host}:{target.port}\n")
    return 1 if faults else 0


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Return each file, and every file of each folder, in order.

    Raises
    ------
    ConfigurationError
        When a path is not there.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(item for item in path.rglob("*") if item.is_file() and item.name[0] != ".")
        elif path.is_file():
            yield path
        else:
            raise ConfigurationError(f"{path}: no such file or folder")


def _sent(batch: list[tuple[Path, Sendable]], calling: str, target: Destination) -> Iterator[Sent]:
    answered = 0
    objects = [item for _, item in batch]
    try:
        with DimsePeer(target, calling, objects, asks=False) as peer:
            for item in objects:
                sent = peer.store(item)
                answered += 1
                yield sent
    except DeliveryError as fault:
        yield from (Sent(None, fault) for _ in batch[answered:])


def gateway_of(settings: Settings, to: str | None) -> Destination:
    """Return whom to send to: this gateway unless told otherwise.

    Raises
    ------
    ConfigurationError
        When `to` is no address.
    """
    if to is None:
        at = f"{settings.ae_title}@{settings.dimse_host}"
        plain = settings.dimse_port is not None
        to = f"dicom://{at}:{settings.dimse_port}" if plain else f"dicoms://{at}:{settings.dimse_tls_port}"
    try:
        return Destination(name="to", url=to).with_our(settings.tls_files)
    except ValidationError:
        raise ConfigurationError("--to is dicom://AET@host:port, or dicoms://… for TLS") from None


def _report(file: Path, item: Sendable, sent: Sent) -> int:
    if sent.status is not None and answer_to(sent.status) is Answer.ACCEPTED:
        return 0
    if isinstance(sent.fault, NotAccepted):
        what, syntax = UID(item.sop_class_uid).name, UID(item.transfer_syntax_uid).name
        sys.stderr.write(f"hilum: {file}: the receiver does not take {what} in {syntax}\n")
        return 1
    sys.stderr.write(f"hilum: {file}: {sent.fault or reason_for(sent.status or 0)}\n")
    return 1
