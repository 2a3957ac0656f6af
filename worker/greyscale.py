"""The grey-scale pipeline: from stored values to P-values, as one table over every value that can occur.

PS3.4 N.2 orders it: Modality LUT, VOI LUT, Presentation LUT. A radiograph has at most 16 bits, so the whole
pipeline is worked out once for each of at most 65536 stored values, in float64 and with every clip and curve
where the standard puts it, and then looked up for each pixel. The film is reduced after that: a window that
clips does not commute with a mean, and the lookup costs 4 ms for 5 megapixels.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from service.core.errors import Undecodable

Values = npt.NDArray[np.float64]

KEYWORDS = (
    "PixelRepresentation",  # decides the VR of the ones below
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PresentationLUTShape",
)
"""The attributes this module reads."""

WHITE = 65535
NO_WINDOW = "no window in the header: full range shown"


@dataclass(frozen=True)
class StoredRange:
    """The numbers a stored value can be, and the order in which a table lists them.

    Attributes
    ----------
    bits
        Bits Stored, 1 to 16.
    signed
        Pixel Representation is 1: two's complement.
    """

    bits: int
    signed: bool

    @property
    def first(self) -> int:
        """The lowest stored value, which has index 0."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def values(self) -> Values:
        """Every stored value in ascending order: (2 ** bits,) float64."""
        return np.arange(self.first, self.first + (1 << self.bits), dtype=np.float64)

    def index(self, header_value: int) -> int:
        """Index of a value from the header, whichever of the VRs US and SS it was written with."""
        if self.signed and header_value > 0x7FFF:
            header_value -= 0x10000
        if not self.signed and header_value < 0:
            header_value += 0x10000
        return header_value - self.first


def padding_range(dataset: Dataset, stored: StoredRange) -> tuple[int, int] | None:
    """Return lowest and highest table index of the padding pixels, both inside (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value in (None, ""):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted(stored.index(int(end)) for end in (value, value if limit in (None, "") else limit))
    low, high = max(ends[0], 0), min(ends[1], (1 << stored.bits) - 1)
    return (low, high) if low <= high else None


def display_table(
    dataset: Dataset, stored: StoredRange, occupied: tuple[int, int]
) -> tuple[npt.NDArray[np.uint16], tuple[str, ...]]:
    """Return the P-value of every stored value, padding aside.

    Parameters
    ----------
    dataset
        Holds `KEYWORDS` and Photometric Interpretation (MONOCHROME1 or MONOCHROME2).
    stored
        What the index of the table means.
    occupied
        Lowest and highest index among the film's pixels without padding, both inside.

    Returns
    -------
    table
        (2 ** bits,) uint16; 0 black, 65535 white.
    flags
        One sentence for each limit worth telling.

    Raises
    ------
    Undecodable
        When the Modality LUT makes no sense; a VOI LUT that makes none is passed over with a flag.
    """
    film = slice(occupied[0], occupied[1] + 1)
    modality = _modality(dataset, stored)
    display, flags = _voi(dataset, modality, film)
    inverted, contradiction = _inverted(dataset)
    if inverted:
        display = 1.0 - display
    return np.rint(display * WHITE).astype(np.uint16), flags + contradiction


def _modality(dataset: Dataset, stored: StoredRange) -> Values:
    """Modality LUT or rescale (PS3.3 C.11.1): stored values to what the modality means by them."""
    if dataset.get("ModalityLUTSequence"):
        try:
            entries, first, _ = lookup_table(dataset.ModalityLUTSequence[0], signed=stored.signed)
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            raise Undecodable("the Modality LUT is malformed") from None
        return _looked_up(stored.values, entries, first)
    slope, intercept = (_first_number(dataset, word) for word in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise Undecodable("Rescale Slope or Rescale Intercept is no usable number")
    return stored.values * slope + intercept


def _voi(dataset: Dataset, modality: Values, film: slice) -> tuple[Values, tuple[str, ...]]:
    """VOI LUT or window (PS3.3 C.11.2), the first one there is: to [0, 1] before any inversion."""
    flags: tuple[str, ...] = ()
    if dataset.get("VOILUTSequence"):
        try:
            entries, first, bits = lookup_table(dataset.VOILUTSequence[0], signed=bool(modality.min() < 0))
            display = _looked_up(modality, entries, first) / ((1 << bits) - 1)
            if np.ptp(display[film]) > 0:
                return display, flags
            flags += ("the header's VOI LUT shows nothing of the film: not used",)
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            flags += ("the header's VOI LUT is malformed: not used",)
    center, width = (_first_number(dataset, word) for word in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None:
        windowed = _windowed(modality, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
        if windowed is not None and np.ptp(windowed[film]) > 0:
            return windowed, flags
        why = "is unusable" if windowed is None else "shows nothing of the film"
        return _full_range(modality, film), (*flags, f"the header's window {why}: full range shown")
    return _full_range(modality, film), (*flags, NO_WINDOW)


def _windowed(modality: Values, center: float, width: float, function: str) -> Values | None:
    """The window as a curve (PS3.3 C.11.2.1.2 and C.11.2.1.3), or None when its numbers make none.

    LINEAR is defined down to a width of 1, which leaves a film of black and white: no radiograph was meant.
    """
    if not (math.isfinite(center) and math.isfinite(width)):
        return None
    if function == "SIGMOID" and width > 0:
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (modality - center) / width, -700.0, 700.0))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((modality - center) / width + 0.5, 0.0, 1.0)
    if function not in ("SIGMOID", "LINEAR_EXACT") and width > 1:
        return np.clip((modality - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)
    return None


def _full_range(modality: Values, film: slice) -> Values:
    """From the film's lowest to its highest modality value; a film of one value is black."""
    low, high = modality[film].min(), modality[film].max()
    return np.zeros_like(modality) if low == high else np.clip((modality - low) / (high - low), 0.0, 1.0)


def _inverted(dataset: Dataset) -> tuple[bool, tuple[str, ...]]:
    """Whether the lowest value is white.

    Presentation LUT Shape says the same as Photometric Interpretation (PS3.3 C.8.11.3.1.2) and is applied
    once. Where they contradict each other the shape decides, being what makes P-values; dcmtk and dcm4che
    show such a film the same way.
    """
    monochrome1 = dataset.PhotometricInterpretation == "MONOCHROME1"
    shape = str(dataset.get("PresentationLUTShape") or "")
    if shape not in ("IDENTITY", "INVERSE") or (shape == "INVERSE") == monochrome1:
        return monochrome1, ()
    return not monochrome1, ("Presentation LUT Shape and Photometric Interpretation contradict each other",)


def lookup_table(item: Dataset, *, signed: bool) -> tuple[Values, int, int]:
    """Entries, first value mapped and bits per entry of a LUT (PS3.3 C.11.1.1, C.11.2.1.1).

    `signed` says whether the values that go in can be negative, which decides how the second number of LUT
    Descriptor is read whatever VR it came with.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count & 0xFFFF or 0x10000
    first = (first & 0xFFFF) - (0x10000 if signed and first & 0x8000 else 0)
    data = item.LUTData
    if not isinstance(data, bytes):  # US: pydicom has made numbers of it
        data = np.asarray(data, dtype="<u2").tobytes()
        order = "<"
    else:
        order = "<" if item.original_encoding[1] is not False else ">"
    # Entries of 8 bits come one to a word or, in older files, two to a word.
    entries = np.frombuffer(data, dtype=order + "u2" if len(data) >= 2 * count else "u1", count=count)
    # Some writers declare fewer bits than they use.
    return entries.astype(np.float64), first, max(bits, int(entries.max()).bit_length(), 1)


def _looked_up(values: Values, entries: Values, first: int) -> Values:
    """Values below the table get its first entry, values above its last."""
    return entries[np.clip(np.rint(values - first), 0, len(entries) - 1).astype(np.intp)]


def _first_number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a decimal string: None when absent, NaN when it is no number."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return None
        return float(value if isinstance(value, str | int | float) else value[0])
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return math.nan
