"""One A4 page as PDF, written by matplotlib's backend: text that can be searched and copied, films as JPEG.

Its fonts, DejaVu, are within. They have Latin, Greek and Cyrillic letters, no East Asian ones, and nothing
here can set a line from right to left: a text that cannot be drawn says so instead of becoming boxes.
"""

# mypy: disallow-untyped-calls=False
# (matplotlib's PDF backend has no annotations)

import unicodedata
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_pdf import Name, PdfFile, RendererPdf, pdfRepr
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from PIL import Image

NOT_PRINTABLE = "(not printable with this font)"
JPEG_QUALITY = 85

WIDTH, HEIGHT, MARGIN = 595.0, 842.0, 42.0  # A4, in points of 1/72 inch
LEADING = 1.35
BLACK, WHITE, GREY, _RULE = (0.1, 0.1, 0.12), (1.0, 1.0, 1.0), (0.4, 0.4, 0.44), (0.75, 0.75, 0.78)
_DOTS_PER_POINT = 200 / 72
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

Colour = tuple[float, float, float]


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    return frozenset(get_font(_FONTS / "DejaVuSans.ttf").get_charmap())


def printable(text: str) -> bool:
    """Return whether the font has each letter, and each stands for itself from left to right."""
    return all(
        ord(letter) in _letters()
        and unicodedata.bidirectional(letter) not in ("R", "AL")
        and not unicodedata.combining(letter)
        for letter in unicodedata.normalize("NFC", text)
    )


class _JpegPdfFile(PdfFile):
    """matplotlib's PDF with its pictures as JPEG, a fifth of the size of the lossless ones it writes."""

    def _writeImg(self, data: NDArray[np.uint8], id: int, smask: object = None) -> None:  # noqa: N802
        height, width, colours = data.shape
        jpeg = BytesIO()
        Image.fromarray(data.squeeze()).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        dictionary = {
            "Type": Name("XObject"),
            "Subtype": Name("Image"),
            "Width": width,
            "Height": height,
            "ColorSpace": Name("DeviceGray" if colours == 1 else "DeviceRGB"),
            "BitsPerComponent": 8,
            "Filter": Name("DCTDecode"),
            "Length": jpeg.tell(),
        }
        self.recordXref(id)
        self.write(b"%d 0 obj\n%s\nstream\n" % (id, pdfRepr(dictionary)))
        self.write(jpeg.getvalue())
        self.write(b"\nendstream\nendobj\n")


class Page:
    """One A4 page; lengths in points, from its lower left corner."""

    def __init__(self, title: str, creator: str, at: datetime) -> None:
        self._buffer = BytesIO()
        metadata = {"Title": title, "Creator": creator, "CreationDate": at}
        self._file = _JpegPdfFile(self._buffer, metadata)
        self._file.newPage(WIDTH / 72, HEIGHT / 72)
        self._renderer = RendererPdf(self._file, 72, HEIGHT / 72, WIDTH / 72)

    def text(
        self,
        left: float,
        baseline: float,
        text: str,
        size: float,
        colour: Colour = BLACK,
        *,
        bold: bool = False,
        right: bool = False,
        url: str = "",
    ) -> None:
        """Write one line; `left` is its right end when `right`. A click on it opens `url`."""
        line = _drawable(text)
        if right:
            left -= self._width(line, size, bold)
        gc = self._gc(colour)
        if url:
            gc.set_url(url)
        self._renderer.draw_text(gc, left, baseline, line, _font(size, bold), 0)

    def wrapped(self, text: str, size: float, width: float, *, most: int, bold: bool = False) -> list[str]:
        """Return the text as lines that fit, at most so many; an ellipsis says that some is left out."""
        lines: list[str] = []
        for word in _pieces(_drawable(text)):
            if lines and self._width(f"{lines[-1]} {word}", size, bold) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"]

    def shortened(self, text: str, size: float, width: float) -> str:
        """Return the text, cut off with an ellipsis where it does not fit on one line."""
        line = _drawable(text)
        if self._width(line, size, True) <= width:
            return line
        while line and self._width(f"{line}…", size, True) > width:
            line = line[:-1]
        return f"{line}…"

    def rectangle(self, left: float, bottom: float, width: float, height: float, colour: Colour) -> None:
        """Fill a rectangle."""
        box = Affine2D().scale(width, height).translate(left, bottom)
        gc = self._gc(colour)
        gc.set_linewidth(0)
        self._renderer.draw_path(gc, Outline.unit_rectangle(), box, colour)

    def rule(self, height: float) -> None:
        """Draw a thin line across the page."""
        self.rectangle(MARGIN, height, WIDTH - 2 * MARGIN, 0.6, _RULE)

    def picture(
        self, left: float, top: float, width: float, height: float, pixels: NDArray[np.uint8]
    ) -> tuple[float, float]:
        """Draw a picture as large as fits, centred, in its own aspect ratio; return its lower left corner."""
        rows, columns = pixels.shape[:2]
        scale = max(min(width / columns, height / rows), 0.01)
        left += (width - columns * scale) / 2
        width, height = columns * scale, rows * scale
        size = (
            max(round(min(columns, width * _DOTS_PER_POINT)), 1),
            max(round(min(rows, height * _DOTS_PER_POINT)), 1),
        )
        shrunk = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        shrunk = shrunk if shrunk.ndim == 3 else shrunk[..., None]
        box = Affine2D().scale(width, height)
        # matplotlib has the first row at the bottom.
        self._renderer.draw_image(self._gc(BLACK), left, top - height, shrunk[::-1], box)
        return left, top - height

    def finished(self) -> bytes:
        """Return the PDF."""
        self._renderer.finalize()
        self._file.finalize()
        self._file.close()
        return self._buffer.getvalue()

    def _width(self, text: str, size: float, bold: bool) -> float:
        return float(self._renderer.get_text_width_height_descent(text, _font(size, bold), False)[0])

    def _gc(self, colour: Colour) -> Any:
        gc = self._renderer.new_gc()
        gc.set_foreground(colour, isRGBA=False)
        return gc


def _drawable(text: str) -> str:
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    return line if printable(line) else NOT_PRINTABLE


def _pieces(text: str) -> Iterator[str]:
    """Yield the words, the longest cut into pieces that fit on a line."""
    for word in text.split():
        yield from (word[start : start + 80] for start in range(0, len(word), 80))


@lru_cache
def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(fname=_FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size=size)
