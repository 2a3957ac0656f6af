"""What the gateway says about an image and about a study; plain values that every role shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Finding(StrEnum):
    """The answer to "does this film show pneumonia?"."""

    PRESENT = "present"
    ABSENT = "absent"
    INDETERMINATE = "indeterminate"
    NOT_ANALYSED = "not_analysed"


@dataclass(frozen=True)
class ModelIdentity:
    """The network behind a result; `sha256` of the weights file is its only identity."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Result:
    """The answer for one image or one study.

    Attributes
    ----------
    finding
        See `Finding`.
    probability
        Calibrated probability of pneumonia in [0, 1]; None exactly when the finding is `not_analysed`.
    threshold
        Operating point in [0, 1] at and above which the finding is `present`.
    reason
        Why there is no number, for `not_analysed`; else None.
    pattern
        "bacterial" or "viral" when the model is confident about a positive; else None.
    flags
        Stated limits, e.g. "outside the validated population (64 years; validated for 1 to 5 years)".
    """

    finding: Finding
    probability: float | None = None
    threshold: float | None = None
    reason: str | None = None
    pattern: str | None = None
    flags: tuple[str, ...] = field(default=())


# A study is what its most suspicious film is: one positive film makes it positive, an open one keeps it open.
_RANK = {Finding.PRESENT: 3, Finding.INDETERMINATE: 2, Finding.ABSENT: 1, Finding.NOT_ANALYSED: 0}


def suspicion(result: Result) -> tuple[int, float]:
    """Return what orders results: the more suspicious one is the greater."""
    return _RANK[result.finding], result.probability or 0.0


def conclude(images: Sequence[Result]) -> Result:
    """Return the study's result from those of its images.

    The finding is the most suspicious one (present, indeterminate, absent); the probability is the highest
    among the images with that finding. When no image was analysed the study is not either, and its reasons
    are those of the images, each named once.

    Raises
    ------
    ValueError
        When there is no image at all.
    """
    if not images:
        raise ValueError("a study without images has no result")
    worst = max(images, key=suspicion)
    if worst.finding is Finding.NOT_ANALYSED:
        reasons = dict.fromkeys(image.reason for image in images if image.reason)
        return Result(Finding.NOT_ANALYSED, reason="; ".join(reasons) or "no image could be analysed")
    analysed = [image for image in images if image.finding is not Finding.NOT_ANALYSED]
    flags = tuple(dict.fromkeys(flag for image in analysed for flag in image.flags))
    return Result(worst.finding, worst.probability, worst.threshold, None, worst.pattern, flags)
