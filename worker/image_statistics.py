"""What of a film's grey values is kept, so that drift of the images shows before that of the results.

All of it is told from a histogram of every fourth pixel of every eighth row of the film as it is shown, of
which the network's own input is made too: 0.1 ms. A mean that moves is another exposure or window, a
deviation or entropy that moves other processing, a clipped share that grows a lost range or a black surround.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS, _COLUMNS = 8, 4
_LEVELS = 256
_GREYS = np.arange(_LEVELS, dtype=np.float64) / (_LEVELS - 1)


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of one film.

    Attributes
    ----------
    mean, deviation
        Of the grey value, 0 black to 1 white.
    entropy
        Of the histogram of 256 levels, in bits a pixel divided by 8: 0 for a film of one grey, 1 at most.
    clipped
        Share of pixels in the darkest or the brightest level.
    """

    mean: float
    deviation: float
    entropy: float
    clipped: float


def image_statistics(film: npt.NDArray[np.uint16]) -> ImageStatistics:
    """Return the statistics of a film (h, w) uint16, 0 black to 65535 white."""
    levels: npt.NDArray[Any] = film[::_ROWS, ::_COLUMNS] >> 8
    share = np.bincount(levels.ravel(), minlength=_LEVELS) / levels.size
    mean = float(share @ _GREYS)
    deviation = float(np.sqrt(max(0.0, float(share @ _GREYS**2) - mean**2)))
    held = share[share > 0]
    entropy = float(-(held * np.log2(held)).sum()) / 8 + 0.0
    return ImageStatistics(mean, deviation, entropy, float(share[0] + share[-1]))
