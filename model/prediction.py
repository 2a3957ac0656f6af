"""What the model says about one film. No torch here: decode, report and status read it without."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt


class Finding(StrEnum):
    """The answer to "does this film show pneumonia?"."""

    PRESENT = "present"
    ABSENT = "absent"
    INDETERMINATE = "indeterminate"
    NOT_ANALYSED = "not_analysed"


NOT_A_CHEST = "not a frontal chest radiograph"
NEAR_THRESHOLD = "probability too close to the operating point"


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result for one film.

    Attributes
    ----------
    probability
        Calibrated probability of pneumonia in [0, 1]; None when the film was not analysed.
    finding
        A `Finding`, compared with `threshold` and the indeterminate band of the weights.
    reason
        Why there is no clear finding, in words; None when there is one.
    activation
        (h, w) float32 in [0, 1]: positive part of the exact class activation map, divided by its maximum.
        It covers the whole film edge to edge: cell (i, j) lies over the film's rows i/h to (i+1)/h and
        columns j/w to (j+1)/w. None when the film was not analysed.
    pattern
        "bacterial" or "viral" when the finding is present and the weights are confident; else None.
    flags
        Short words for whatever else a reader should know.
    gate_distance
        How far the film lies from frontal chest radiographs; above the weights' gate threshold it is refused.
    """

    probability: float | None
    finding: str
    reason: str | None
    activation: npt.NDArray[np.float32] | None
    pattern: str | None
    flags: tuple[str, ...]
    gate_distance: float


def pattern_for(finding: Finding, bacterial: float, confidence: float) -> str | None:
    """Name the pattern of a positive, or None when neither is at least as probable as `confidence`.

    Parameters
    ----------
    bacterial
        Calibrated probability in [0, 1] that the pneumonia is bacterial rather than viral.
    """
    if finding is not Finding.PRESENT or max(bacterial, 1.0 - bacterial) < confidence:
        return None
    return "bacterial" if bacterial >= 0.5 else "viral"


def finding_for(probability: float, threshold: float, band: tuple[float, float] | None) -> Finding:
    """Compare a probability with the operating point.

    Parameters
    ----------
    probability, threshold
        Both in [0, 1]; a probability at the threshold is a positive.
    band
        Open interval around the threshold inside which the finding is indeterminate, or None.
    """
    if band is not None and band[0] < probability < band[1]:
        return Finding.INDETERMINATE
    return Finding.PRESENT if probability >= threshold else Finding.ABSENT
