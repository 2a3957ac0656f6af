"""The sentences a reader of the results meets, in one place: comments of the SR, legend of the heat map."""

from collections.abc import Sequence

from service.core.results import Finding, ModelIdentity, Result

RESEARCH_USE_ONLY = "Research use only, not for diagnosis."
NOT_FOR_PRIMARY_DIAGNOSIS = "AI result, not for primary diagnosis. Research use only."
NOT_ASSESSED = (
    "The AI did not assess this study. This does not mean that it is normal: nothing is said about pneumonia."
)
UNVERIFIED = "Preliminary: no physician has verified it."
COLOUR = "Colour: class activation relative to this film's own maximum, half transparent"
RULE = "The study is what its most suspicious image is (present before indeterminate before absent)."


def percent(result: Result) -> str:
    """Return the probability in percent, never rounded across the threshold that decided the finding.

    One decimal as a rule: 0.4996 with a threshold of 0.5 reads "49.96 %", since "50.0 %, absent" would
    contradict itself.
    """
    probability = result.probability or 0.0
    decided = result.threshold is not None and result.finding in (Finding.PRESENT, Finding.ABSENT)
    for decimals in range(1, 7):
        shown = f"{probability * 100:.{decimals}f}"
        if not decided or (float(shown) >= (result.threshold or 0.0) * 100) is (
            result.finding is Finding.PRESENT
        ):
            break
    return f"{shown} %"


def threshold_percent(result: Result) -> str:
    """Return the operating point in percent, without needless zeros."""
    return f"{(result.threshold or 0.0) * 100:.6g} %"


def verdict(result: Result) -> str:
    """Return the finding with its number in one phrase: "AI: pneumonia ABSENT (score 7.2 %, threshold 50 %)".

    Without a full stop. For a result without a number the reason stands in its place.
    """
    if result.finding is Finding.NOT_ANALYSED:
        return f"AI: NOT ANALYSED ({result.reason or 'no reason given'})"
    threshold = "" if result.threshold is None else f", threshold {threshold_percent(result)}"
    return f"AI: pneumonia {result.finding.upper()} (score {percent(result)}{threshold})"


def comments(result: Result, revision: int = 1) -> list[str]:
    """Return what is said of one result, a sentence or two a line: viewers cut long lines off.

    First what it replaces and the verdict, then what it may be used for, the pattern and each stated limit.
    """
    lines = [f"{_replaces(revision)}{verdict(result)}.", RESEARCH_USE_ONLY]
    if result.pattern:
        lines.append(f"Pattern: {pattern(result.pattern)}")
    return [*lines, *map(limit, result.flags)]


def conclusion(result: Result, analysed: int, total: int, revision: int = 1) -> str:
    """Return the study's conclusion: its first two comments, how many images it rests on, the rule."""
    rule = f" {RULE}" if analysed > 1 else ""
    return f"{' '.join(comments(result, revision)[:2])} {images_analysed(analysed, total)}{rule}"


def images_analysed(analysed: int, total: int) -> str:
    """Return on how many images a conclusion rests."""
    return f"{analysed} of {total} image{'s' if total > 1 else ''} analysed."


def not_shown(number: int) -> str:
    """Return how many images a page has no room or no picture for."""
    return f"{number} more image{' is' if number == 1 else 's are'} not shown here."


def pattern(name: str) -> str:
    """Return the pattern of a positive, and what it rests on."""
    return f"{name}, from the film alone (no microbiology)."


def image(number: int, total: int, place: str) -> str:
    """Return how a text calls an image: "Image 1 of 2 (series 1, image 1)"."""
    return f"Image {number} of {total}" + (f" ({place})" if place else "")


def limit(flag: str) -> str:
    """Return one stated limit as a sentence."""
    return f"Limit: {flag}."


def limits(flags: Sequence[str]) -> str:
    """Return all stated limits as one sentence, empty without any."""
    return f"Limits: {'; '.join(flags)}." if flags else ""


def not_analysed(number: int, total: int, place: str, reason: str | None) -> str:
    """Return what is said of an image without a number.

    Parameters
    ----------
    number, total
        Counted from 1, in the order of the report's image library.
    place
        Where a viewer shows it, e.g. "series 1, image 2"; may be empty.
    reason
        Why it was not analysed.
    """
    return f"{image(number, total, place)} not analysed: {reason or 'no reason given'}."


def network(model: ModelIdentity) -> str:
    """Return which network it was: name, version, and the hash that is its only identity."""
    return f"Network: {model.name} {model.version} (weights SHA-256 {model.sha256})."


def region(number: int) -> list[str]:
    """Return what a heat-map contour is not, and what it is."""
    return [
        f"AI heatmap region {number}, not the outline of a lesion.",
        "Class activation at least half of its maximum.",
    ]


def superseded(revision: int) -> str:
    """Return why result objects are rejected."""
    return f"AI result superseded by revision {revision}. Use the newest revision only."


def revision(number: int) -> str:
    """Return which revision it is, and which one it replaces."""
    return f"Revision {number}" + (f", replaces revision {number - 1}" if number > 1 else "")


def _replaces(number: int) -> str:
    return f"{revision(number)}. " if number > 1 else ""
