"""The class activation in colour over a film, the same in the heat map and on the dashboard."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from worker.contour import resampled
from worker.picture import eight_bit

OPACITY = 0.55
"""Of the colour where the activation is 1; the film stays readable through it."""
# A network of so few places has nothing to say between them, and a browser that enlarges it is as smooth.
_OVERLAY_LONG_SIDE = 256


def overlay(film: NDArray[np.uint16], activation: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the film with the activation in colour over it.

    Parameters
    ----------
    film
        uint16 (h, w), 0 black to 65535 white.
    activation
        float32 of any size in [0, 1], covering the film edge to edge.

    Returns
    -------
    uint8 (h, w, 3)
        RGB; where the activation is 0 the film is unchanged.
    """
    return blend(eight_bit(film), activation)


def overlay_png(activation: NDArray[np.float32], rows: int, columns: int) -> bytes:
    """Return the activation alone as a PNG to be laid over a film of `rows` x `columns`.

    Its alpha is the activation: laid over with `OPACITY` it looks as in the heat map.
    """
    scale = _OVERLAY_LONG_SIDE / max(rows, columns, 1)
    size = max(round(rows * scale), 1), max(round(columns * scale), 1)
    image = Image.fromarray((resampled(activation, *size) * 255).astype(np.uint8), "P")
    image.putpalette(_palette())
    buffer = BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(256)), compress_level=1)
    return buffer.getvalue()


def blend(grey: NDArray[np.uint8], activation: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return `overlay` of a film of 8 bits."""
    step = Image.fromarray((resampled(activation, *grey.shape) * 255).astype(np.uint8))
    alpha = step.point([round(255 * OPACITY * value / 255) for value in range(256)])
    step.putpalette(_palette())
    film = Image.fromarray(grey).convert("RGB")
    return np.asarray(Image.composite(step.convert("RGB"), film, alpha))


@lru_cache(maxsize=1)
def _palette() -> bytes:
    """Return the colour of 256 steps of activation: the map without its two dark ends."""
    colours = colormaps["turbo"](0.05 + 0.85 * np.linspace(0, 1, 256))[:, :3] * 255
    return bytes(colours.round().astype(np.uint8).tobytes())
