"""Renderings (PS3.18 10.4.1.1.3): the pictures that are kept. Nothing is decoded, windowed or scaled here.

A film has the PNG that the decode queue made of it, a heat map is a JPEG within its object, a document a PDF.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import HTTPException

from service.api.dicomweb.contents import Item
from service.api.dicomweb.negotiation import JPEG, PDF, PNG
from service.api.dicomweb.stored import CHUNK, open_stored
from service.core.spool import Spool
from service.core.states import Kind

PARAMETERS = ("annotation", "quality", "viewport", "window", "iccprofile")
"""What a rendering could be asked to be like (8.3.5)."""
_NOT_YET = "no picture of this image is kept: it has not been decoded yet, or cannot be"


@dataclass(frozen=True)
class Rendering:
    """One picture or page."""

    media_type: str
    content: Iterator[bytes]


def rendering(spool: Spool, item: Item) -> Rendering:
    """Return what shows an object.

    Raises
    ------
    HTTPException
        404 when its picture is not kept, 406 when there never is one.
    OSError
        When its file is gone.
    """
    if item.kind is None:
        path = spool.absolute(item.picture_path) if item.picture_path else None
        if path is None or not path.is_file():
            raise HTTPException(404, _NOT_YET)

        def read() -> Iterator[bytes]:
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk

        return Rendering(PNG, read())
    if item.kind is Kind.HEATMAP:
        return Rendering(JPEG, open_stored(spool.absolute(item.path)).frame(1))
    if item.kind is Kind.PDF:
        document = open_stored(spool.absolute(item.path)).dataset
        content = bytes(document.EncapsulatedDocument)
        return Rendering(
            PDF, iter([content[: int(document.get("EncapsulatedDocumentLength") or len(content))]])
        )
    raise HTTPException(406, "there is no picture of such an object: retrieve the object itself")


def is_film(item: Item) -> bool:
    """Return whether an object can stand for its series or study as a picture."""
    return item.picture_path is not None or item.kind is Kind.HEATMAP
