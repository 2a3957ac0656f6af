"""Which of its representations an object is answered in (PS3.18 8.7): what is asked for, and what is there.

Pixels are never decoded or encoded anew here, so a transfer syntax is chosen by what is stored: `*` and no
`transfer-syntax` at all take that; another one is refused with 406.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import HTTPException, Request
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from service.api.multipart import media_type

DICOM, JSON, XML = "application/dicom", "application/dicom+json", "application/dicom+xml"
OCTETS, PNG, JPEG, PDF = "application/octet-stream", "image/png", "image/jpeg", "application/pdf"
FRAME_TYPES: dict[UID, str] = {
    ExplicitVRLittleEndian: OCTETS,
    # The same bytes: only what stands before them differs.
    ImplicitVRLittleEndian: OCTETS,
    JPEGBaseline8Bit: JPEG,
    JPEGLossless: JPEG,
    JPEGLosslessSV1: JPEG,
    RLELossless: "image/dicom-rle",
    JPEGLSLossless: "image/jls",
    JPEGLSNearLossless: "image/jls",
    JPEG2000Lossless: "image/jp2",
    JPEG2000: "image/jp2",
    HTJ2KLossless: "image/jphc",
    HTJ2KLosslessRPCL: "image/jphc",
    HTJ2K: "image/jphc",
}
"""Media type of one frame by the transfer syntax it is stored in (tables 8.7.3-2 and 8.7.3-5)."""
_MOST_RANGES = 64
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')


@dataclass(frozen=True)
class Range:
    """One media range of Accept: `multipart`, what is within it, and in which transfer syntax."""

    multipart: bool
    single: bool
    media_type: str
    transfer_syntax_uid: str | None
    quality: float

    def takes(self, media_type: str, *transfer_syntaxes: str) -> bool:
        """Return whether this media type is asked for, and in one of these transfer syntaxes if in any."""
        if self.media_type not in ("*", "*/*", media_type, f"{media_type.partition('/')[0]}/*"):
            return False
        if not transfer_syntaxes or self.transfer_syntax_uid == "*":
            return True
        if self.transfer_syntax_uid is None:
            # Octets of no named syntax are pixels (8.7.3): who gets a compressed stream has to expect it.
            return media_type != OCTETS or str(ExplicitVRLittleEndian) in transfer_syntaxes
        return self.transfer_syntax_uid in transfer_syntaxes


@dataclass(frozen=True)
class Choice:
    """What is answered: a media type, alone or as the parts of a multipart, in a transfer syntax."""

    media_type: str
    multipart: bool
    transfer_syntax_uid: str = ""

    @property
    def content_type(self) -> str:
        """Of one part, or of the body that is no multipart."""
        syntax = f"; transfer-syntax={self.transfer_syntax_uid}" if self.transfer_syntax_uid else ""
        return self.media_type + syntax


def accepted(request: Request) -> list[Range]:
    """Return what a request accepts, what it prefers first (8.7.5); nothing said is everything.

    Raises
    ------
    HTTPException
        400 when it is more than anybody means.
    """
    # The query parameter is for who cannot set a header (8.3.3.1).
    text = ",".join(request.query_params.getlist("accept")) or ",".join(request.headers.getlist("accept"))
    items = _COMMA.split(text) if text.count('"') < 4 * _MOST_RANGES else [text] * (_MOST_RANGES + 1)
    if len(items) > _MOST_RANGES:
        raise HTTPException(400, f"more than {_MOST_RANGES} media types are asked for")
    ranges = [found for item in items if (found := _range(item)) is not None]
    if not text.strip():
        ranges = [Range(True, True, "*", None, 1.0)]
    return sorted(ranges, key=lambda item: -item.quality)


def choose(ranges: Sequence[Range], choices: Iterable[Choice]) -> Choice | None:
    """Return the choice that is preferred, None when none is accepted.

    Among what is accepted equally the order of `choices` decides.
    """
    choices = list(choices)
    for item in ranges:
        for choice in choices:
            fits = item.multipart if choice.multipart else item.single
            if fits and item.takes(choice.media_type, *_named(choice)):
                return choice
    return None


def object_choices(transfer_syntax_uid: str, *, alone: bool) -> list[Choice]:
    """Return how an object as it is stored can be answered; `alone`: one was asked for."""
    whole = [Choice(DICOM, True, transfer_syntax_uid)]
    return [*whole, Choice(DICOM, False, transfer_syntax_uid)] if alone else whole


def frame_choices(transfer_syntax_uid: str, *, alone: bool) -> list[Choice]:
    """Return how frames as they are stored can be answered; nothing where their bytes are in another order.

    Beside the media type of the standard's tables compressed frames go as octets to who names their transfer
    syntax, or any: viewers ask so.
    """
    stored = UID(transfer_syntax_uid)
    found = FRAME_TYPES.get(stored)
    if found is None:
        return []
    named = str(ExplicitVRLittleEndian) if found == OCTETS else transfer_syntax_uid
    types = [found] if found == OCTETS else [found, OCTETS]
    return [
        Choice(name, multipart, named)
        for multipart in ((True, False) if alone else (True,))
        for name in types
    ]


def _named(choice: Choice) -> tuple[str, ...]:
    return (choice.transfer_syntax_uid,) if choice.transfer_syntax_uid else ()


def _range(item: str) -> Range | None:
    name, parameters = media_type(item)
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        return None
    if not name or not quality > 0:
        return None
    syntax = parameters.get("transfer-syntax")
    if name in ("multipart/related", "multipart/*"):
        return Range(True, False, parameters.get("type", "*").lower(), syntax, quality)
    if name == "*/*":
        return Range(True, True, "*", syntax, quality)
    return Range(False, True, name, syntax, quality)
