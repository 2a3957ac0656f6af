"""The sentences a reader of the results meets, in one place: comments of the SR, legend of the heat map."""

from collections.abc import Sequence

from service.core.population import Described, Population, sentence
from service.core.results import Finding, ModelIdentity, Result
from service.core.states import Assessment

RESEARCH_USE_ONLY = "Research use only, not for diagnosis."
NOT_FOR_PRIMARY_DIAGNOSIS = "AI result, not for primary diagnosis. Research use only."
NOT_ASSESSED = (
    "The AI did not assess this study. This does not mean that it is normal: nothing is said about pneumonia."
)
UNVERIFIED = "Preliminary: no physician has verified it."
COLOUR = "Colour: class activation relative to this film's own maximum, half transparent"
RULE = "The study is what its most suspicious image is (present before indeterminate before absent)."

_LINES_SHOWN = 5


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


def comments(result: Result, revision: int = 1, *, beside: bool = False) -> list[str]:
    """Return what is said of one result, a sentence or two a line: viewers cut long lines off.

    First which revision it is and the verdict, then what it may be used for, the pattern and each limit.
    """
    lines = [f"{_numbered(revision, beside)}{verdict(result)}.", RESEARCH_USE_ONLY]
    if result.pattern:
        lines.append(f"Pattern: {pattern(result.pattern)}")
    return [*lines, *map(limit, result.flags)]


def conclusion(result: Result, analysed: int, total: int, revision: int = 1, *, beside: bool = False) -> str:
    """Return the study's conclusion: its first two comments, how many images it rests on, the rule."""
    rule = f" {RULE}" if analysed > 1 else ""
    said = " ".join(comments(result, revision, beside=beside)[:2])
    return f"{said} {images_analysed(analysed, total)}{rule}"


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


def label(lines: Sequence[str], several: str) -> list[str]:
    """Return the comments of one image in as many lines as viewers write over it, nothing left out.

    OHIF 3.12 writes the first five of a group's comments and numbers, and drops what comes after them.

    Parameters
    ----------
    lines
        From `comments`.
    several
        From `of_several`.
    """
    verdict, use, *others = lines
    shown = [verdict, f"{use} {several}".rstrip(), *others]
    if len(shown) <= _LINES_SHOWN:
        return shown
    return [*shown[: _LINES_SHOWN - 1], " ".join(shown[_LINES_SHOWN - 1 :])]


def of_several(number: int, total: int, analysed: int) -> str:
    """Return which of several images a result is of, and how many have one; empty for the only image.

    A viewer may show one group of a report and nothing else of it (OHIF 3.12): without this an image that
    was not analysed would look as if it had been.
    """
    return f"{image(number, total, '')}; {images_analysed(analysed, total)}" if total > 1 else ""


def limit(flag: str) -> str:
    """Return one stated limit as a sentence."""
    return f"Limit: {flag}."


def limits(flags: Sequence[str]) -> str:
    """Return all stated limits as one sentence, empty without any."""
    return f"Limits: {'; '.join(flags)}." if flags else ""


def population(number: int, total: int, film: Described, validated: Population) -> str:
    """Return who and what is on an analysed image, beside those that the network was validated on."""
    called = f"{image(number, total, '')}: " if total > 1 else ""
    return called + sentence(film, validated)


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


def revision(number: int, *, beside: bool = False) -> str:
    """Return which revision it is, and what becomes of the one before: replaced, or left `beside` it."""
    if number == 1:
        return "Revision 1"
    if beside:
        return f"Revision {number}, of later images only, beside revision {number - 1}"
    return f"Revision {number}, replaces revision {number - 1}"


def later_only(number: int) -> str:
    """Return the limit of a revision that stands beside an earlier one."""
    return (
        f"speaks of images that came later only; revision {number - 1} stands, whose images are not kept any "
        "more"
    )


def feedback(url: str) -> list[str]:
    """Return where to say what one thinks of the result, nothing where there is no such page."""
    return [f"Feedback on this result: {url}"] if url else []


def assessment(
    model: ModelIdentity,
    result: Result,
    revision: int,
    reader: str,
    assessment: Assessment,
    own_finding: Finding | None,
    note: str,
) -> list[str]:
    """Return what a reader says of a result of this revision, and the note if there is one."""
    said = {
        Assessment.AGREE: "agrees with",
        Assessment.DISAGREE: "disagrees with",
        Assessment.UNSURE: "is unsure about",
        Assessment.NOT_USABLE: "finds not usable",
    }[assessment]
    own = "" if own_finding is None else f" Own finding: pneumonia {own_finding}."
    about = f"revision {revision} by {model.name} {model.version}: {verdict(result)}"
    lines = [f"{reader} {said} the AI result of {about}.{own} {RESEARCH_USE_ONLY}"]
    return [*lines, f"Note by {reader}: {note}"] if note else lines


def _numbered(number: int, beside: bool) -> str:
    return f"{revision(number, beside=beside)}. " if number > 1 else ""
