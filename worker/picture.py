"""A film as people look at it on the dashboard: a PNG, made where the film was decoded."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(array: NDArray[np.uint16] | NDArray[np.uint8]) -> bytes:
    """Return a PNG of a film (uint16 (h, w), written with 8 bits) or a picture (uint8 (h, w, 3))."""
    buffer = BytesIO()
    Image.fromarray(eight_bit(array)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def eight_bit(array: NDArray[np.uint16] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the upper 8 of 16 bits; what has 8 is left as it is."""
    return (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array.astype(np.uint8, copy=False)
