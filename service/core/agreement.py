"""Figures of merit from what readers said, in plain numbers: the API's image holds no numerical library.

Readers look again at what the network calls positive, and at a drawn share of the negatives
(`service.core.review`), so their answers are no sample of all studies. PPV comes from the positives that they
spoke of, NPV from the drawn negatives that they spoke of, each weighing 1 / share. With the numbers of
positives and negatives of all studies these give sensitivity and specificity (Begg and Greenes 1983,
Biometrics 39:207-215), on the assumption that within each of the two whom readers speak of is chance.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.core.results import Finding

BINS = 10
_OPPOSITE = {Finding.PRESENT.value: Finding.ABSENT.value, Finding.ABSENT.value: Finding.PRESENT.value}
_TRUTH = {Finding.PRESENT.value: True, Finding.ABSENT.value: False}
_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] with its 95 % interval, and how many answers it rests on."""

    value: float
    low: float
    high: float
    answers: int


@dataclass(frozen=True)
class Answer:
    """What the network and readers say of one study.

    Attributes
    ----------
    group
        What it is counted under.
    positive
        Whether the network calls pneumonia present.
    probability
        In [0, 1], as the network said it.
    truth
        Whether readers do, most of them where there are several.
    share
        Of a negative that was drawn for review: the share of negatives that were; else None.
    """

    group: str
    positive: bool
    probability: float | None
    truth: bool
    share: float | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether it may be extrapolated: any positive, of the negatives those that were drawn."""
        return self.positive or self.share is not None

    @property
    def weight(self) -> float:
        """How many studies of its kind it stands for, up to a common factor."""
        return 1.0 if self.positive or not self.share else 1.0 / self.share


@dataclass(frozen=True)
class Bin:
    """One tenth of the probabilities: studies in it (extrapolated), their mean, the share with pneumonia."""

    low: float
    high: float
    answers: int
    studies: float
    mean_probability: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    `of_all`: drawn negatives are among the answers; without any it speaks of the positives alone. `brier` is
    the mean square of the error, `ece` the expected calibration error: the mean distance of mean probability
    and observed share over the bins.
    """

    bins: Sequence[Bin]
    brier: float
    ece: float
    of_all: bool


@dataclass(frozen=True)
class Figures:
    """What the answers of one group come to.

    Attributes
    ----------
    positives, negatives
        Studies by what the network said, whether readers spoke of them or not.
    tp, fp, tn, fn
        Answers, as they were given; `tn_drawn` and `fn_drawn` are those of negatives drawn for review.
    ppv, npv, sensitivity, specificity
        None where there are no answers to tell them from.
    kappa
        Cohen's, of the answers as they were given.
    kappa_of_all
        Cohen's, extrapolated to all studies.
    """

    positives: int
    negatives: int
    tp: int
    fp: int
    tn: int
    fn: int
    tn_drawn: int
    fn_drawn: int
    ppv: Share | None
    npv: Share | None
    sensitivity: Share | None
    specificity: Share | None
    kappa: float | None
    kappa_of_all: float | None


def wilson(share: float, answers: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share of so many answers (Wilson 1927, JASA 22:209)."""
    scale = 1.0 + _Z**2 / answers
    centre = (share + _Z**2 / (2 * answers)) / scale
    half = _Z / scale * math.sqrt(share * (1.0 - share) / answers + _Z**2 / (4 * answers**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def kappa(tp: float, fp: float, fn: float, tn: float) -> float | None:
    """Return Cohen's kappa of a 2 x 2 table (Cohen 1960); None where one side always says the same."""
    total = tp + fp + fn + tn
    if not total:
        return None
    chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / total**2
    return None if chance == 1 else ((tp + tn) / total - chance) / (1 - chance)


def figures(answers: Iterable[Answer], positives: int, negatives: int) -> Figures:
    """Return what answers come to, given the numbers of all positives and negatives."""
    given = list(answers)
    count = {(said, truth): 0 for said in (True, False) for truth in (True, False)}
    for answer in given:
        count[answer.positive, answer.truth] += 1
    drawn = [answer for answer in given if not answer.positive and answer.is_sampled]
    ppv = _share([answer for answer in given if answer.positive], truth=True)
    npv = _share(drawn, truth=False)
    sensitivity = specificity = overall = None
    if ppv and npv and positives and negatives:
        right, missed = positives * ppv.value, negatives * (1 - npv.value)
        false, passed = positives * (1 - ppv.value), negatives * npv.value
        reviewed = ppv.answers, npv.answers
        sensitivity = _of_all(right, missed, ppv.value, 1 - npv.value, reviewed, (positives, negatives))
        specificity = _of_all(
            passed, false, npv.value, 1 - ppv.value, (reviewed[1], reviewed[0]), (negatives, positives)
        )
        overall = kappa(right, false, missed, passed)
    return Figures(
        positives=positives,
        negatives=negatives,
        tp=count[True, True],
        fp=count[True, False],
        tn=count[False, False],
        fn=count[False, True],
        tn_drawn=sum(not answer.truth for answer in drawn),
        fn_drawn=sum(answer.truth for answer in drawn),
        ppv=ppv,
        npv=npv,
        sensitivity=sensitivity,
        specificity=specificity,
        kappa=kappa(count[True, True], count[True, False], count[False, True], count[False, False]),
        kappa_of_all=overall,
    )


def calibration(answers: Iterable[Answer], positives: int, negatives: int) -> Calibration | None:
    """Return calibration over all studies: answers weigh what they stand for; None without any."""
    sampled = [item for item in answers if item.is_sampled and item.probability is not None]
    if not sampled:
        return None
    whole = {
        said: sum(item.weight for item in sampled if item.positive is said) or 1.0 for said in (True, False)
    }
    stands = {True: positives / whole[True], False: negatives / whole[False]}
    rows: list[list[tuple[float, float, bool]]] = [[] for _ in range(BINS)]
    for item in sampled:
        probability = item.probability or 0.0
        weight = item.weight * stands[item.positive]
        rows[min(BINS - 1, int(probability * BINS))].append((weight, probability, item.truth))
    total = sum(weight for row in rows for weight, _, _ in row)
    if not total:
        return None
    bins, brier, ece = [], 0.0, 0.0
    for place, row in enumerate(rows):
        held = sum(weight for weight, _, _ in row)
        if not held:
            continue
        mean = sum(weight * probability for weight, probability, _ in row) / held
        observed = sum(weight * truth for weight, _, truth in row) / held
        bins.append(Bin(place / BINS, (place + 1) / BINS, len(row), held, mean, observed))
        brier += sum(weight * (probability - truth) ** 2 for weight, probability, truth in row)
        ece += held * abs(mean - observed)
    of_all = any(not item.positive for item in sampled)
    return Calibration(bins, brier / total, ece / total, of_all)


def truth_of(finding: str, assessment: str, own_finding: str | None) -> bool | None:
    """Return whether a reader finds pneumonia; None when they do not say.

    Who agrees finds what the network found; who disagrees their own finding, or the opposite.
    """
    if assessment == "agree":
        found: str | None = finding
    elif assessment == "disagree":
        found = own_finding or _OPPOSITE.get(finding)
    else:
        found = None
    return _TRUTH.get(found or "")


def _share(answers: Sequence[Answer], *, truth: bool) -> Share | None:
    """Return the weighted share of answers with this truth.

    Where the share of negatives that was drawn changed, the interval is Wilson's of Kish's effective number
    of answers, (sum w)^2 / sum w^2 (Kish 1965, Survey Sampling); else that is their number.
    """
    if not answers:
        return None
    whole = sum(item.weight for item in answers)
    value = sum(item.weight for item in answers if item.truth is truth) / whole
    effective = whole**2 / sum(item.weight**2 for item in answers)
    return Share(value, *wilson(value, effective), len(answers))


def _of_all(
    right: float,
    missed: float,
    right_share: float,
    missed_share: float,
    reviewed: tuple[int, int],
    studies: tuple[int, int],
) -> Share | None:
    """Return right / (right + missed) with its interval by the delta method on the logit.

    Begg and Greenes' variance of the logit: (1 - p) / (n p) of each of the two shares, and that of the share
    of positives among all. Half an answer is added on each side of either, so that none is 0.
    """
    if not right + missed:
        return None
    value = right / (right + missed)
    shares = [
        (share * answers + 0.5) / (answers + 1)
        for share, answers in zip((right_share, missed_share), reviewed, strict=True)
    ]
    ahead = studies[0] / sum(studies)
    variance = sum((1 - p) / ((n + 1) * p) for p, n in zip(shares, reviewed, strict=True))
    variance += 1 / (sum(studies) * ahead * (1 - ahead))
    middle = math.log(studies[0] * shares[0] / (studies[1] * shares[1]))
    half = _Z * math.sqrt(variance)
    low, high = (1 / (1 + math.exp(-(middle + sign * half))) for sign in (-1, 1))
    return Share(value, min(value, low), max(value, high), sum(reviewed))
