"""`hilum model compare`: the model that reports and one in shadow, on the films that both looked at.

Readers speak of studies, so films of studies with several ones give each the same truth; intervals and tests
take films as independent. Readers look at what the reporting model calls positive and at drawn negatives, so
AUCs and McNemar's test are of the films that were read, which are no sample of all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm, rankdata  # type: ignore[import-untyped]
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.agreement import kappa, truth_of
from service.core.results import Finding
from service.core.states import AnalysisState
from service.core.tables import Analysis, Feedback, Instance, Shadow, Study

_DECIDED = (Finding.PRESENT, Finding.ABSENT)
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Film:
    """What both models say of one film, and what readers do (None: nobody, or not clearly)."""

    study_instance_uid: str
    sop_instance_uid: str
    first: str
    second: str
    first_probability: float | None
    second_probability: float | None
    truth: bool | None = None

    @property
    def is_decided(self) -> bool:
        """Whether both models say present or absent."""
        return self.first in _DECIDED and self.second in _DECIDED


@dataclass(frozen=True)
class Areas:
    """Areas under both ROC curves, their difference (second less first) with its 95 % interval, and its p."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Both models on the same films.

    Attributes
    ----------
    films, decided
        Films that both looked at; those of them that both call present or absent.
    table
        By (first, second) finding, as "present/absent".
    kappa
        Cohen's, of the two models.
    read
        Decided films with a truth.
    only_first_right, only_second_right, mcnemar_p
        McNemar's test, exact: films of which one alone is right; None without any such film.
    areas
        None without films of both kinds.
    disagreements
        Films with two findings, those that readers spoke of first.
    """

    films: int
    decided: int
    table: dict[str, int]
    kappa: float | None
    read: int
    only_first_right: int
    only_second_right: int
    mcnemar_p: float | None
    areas: Areas | None
    disagreements: Sequence[Film]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def compare(films: Sequence[Film]) -> Comparison:
    """Return how two models do on the same films."""
    decided = [film for film in films if film.is_decided]
    table = Counter((film.first, film.second) for film in decided)
    present, absent = Finding.PRESENT, Finding.ABSENT
    cells = [
        table[pair] for pair in ((present, present), (present, absent), (absent, present), (absent, absent))
    ]
    read = [film for film in decided if film.truth is not None]
    right = Counter(
        ((film.first == present) is film.truth, (film.second == present) is film.truth) for film in read
    )
    alone = right[True, False], right[False, True]
    return Comparison(
        films=len(films),
        decided=len(decided),
        table=dict(
            zip(("present/present", "present/absent", "absent/present", "absent/absent"), cells, strict=True)
        ),
        kappa=kappa(*cells),
        read=len(read),
        only_first_right=alone[0],
        only_second_right=alone[1],
        mcnemar_p=float(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else None,
        areas=_areas(read),
        disagreements=sorted(
            (film for film in films if film.first != film.second), key=lambda film: film.truth is None
        ),
    )


def delong(positives: Scores, negatives: Scores) -> tuple[Scores, Scores]:
    """Return the areas under the ROC curves of several scores of the same films, and their covariance.

    DeLong 1988 (Biometrics 44:837), by the midranks of Sun and Xu 2014 (IEEE Signal Processing Letters
    21:1389).

    Parameters
    ----------
    positives, negatives
        Scores, shape (k, m) and (k, n): k models, m films with pneumonia and n without.

    Returns
    -------
    Areas, shape (k,), and their covariance, shape (k, k); NaN with a single film of a kind.
    """
    m, n = positives.shape[1], negatives.shape[1]
    together = rankdata(np.hstack([positives, negatives]), axis=1)
    among_positives, among_negatives = rankdata(positives, axis=1), rankdata(negatives, axis=1)
    areas = (together[:, :m].sum(axis=1) / m - (m + 1) / 2) / n
    of_positives = (together[:, :m] - among_positives) / n
    of_negatives = 1 - (together[:, m:] - among_negatives) / m
    return areas, np.cov(of_positives) / m + np.cov(of_negatives) / n


def films_of(
    session: Session, first: int, second: int, since: datetime | None, until: datetime | None
) -> list[Film]:
    """Return the films of a time that the reporting model (`first`) and one in shadow looked at."""
    query = (
        select(
            Study.id,
            Study.study_instance_uid,
            Instance.sop_instance_uid,
            Analysis.finding,
            Shadow.finding,
            Analysis.probability,
            Shadow.probability,
        )
        .select_from(Shadow)
        .join(Analysis, Analysis.instance_id == Shadow.instance_id)
        .join(Instance, Instance.id == Shadow.instance_id)
        .join(Study, Study.id == Instance.study_id)
        .where(Shadow.model_id == second, Shadow.state == AnalysisState.DONE)
        .where(Analysis.model_id == first, Analysis.state == AnalysisState.DONE)
        .where(Analysis.finding.is_not(None), Shadow.finding.is_not(None))
        .order_by(Instance.id)
    )
    said = select(
        Feedback.study_id,
        Feedback.reader,
        Feedback.user,
        Feedback.finding,
        Feedback.assessment,
        Feedback.own_finding,
    ).join(Study, Study.id == Feedback.study_id)
    if since is not None:
        query, said = query.where(Study.received_at >= since), said.where(Study.received_at >= since)
    if until is not None:
        query, said = query.where(Study.received_at < until), said.where(Study.received_at < until)
    newest: dict[int, dict[tuple[str, str], bool | None]] = {}
    for study_id, reader, user, finding, assessment, own in session.execute(said.order_by(Feedback.id)):
        newest.setdefault(study_id, {})[reader, user] = truth_of(finding, assessment, own)
    truths = {study_id: _most(list(found.values())) for study_id, found in newest.items()}
    return [
        Film(study_uid, film_uid, str(one), str(other), p, q, truths.get(study_id))
        for study_id, study_uid, film_uid, one, other, p, q in session.execute(query)
    ]


def pictures_of(session: Session, first: int, film: Film) -> tuple[str | None, str | None]:
    """Return where the film's picture and the reporting model's activation map are, None without them."""
    found = session.execute(
        select(Instance.picture_path, Analysis.overlay_path)
        .join(Analysis, Analysis.instance_id == Instance.id)
        .where(Instance.sop_instance_uid == film.sop_instance_uid, Analysis.model_id == first)
        .order_by(Instance.id.desc())
        .limit(1)
    ).first()
    return (found.picture_path, found.overlay_path) if found else (None, None)


def _most(said: Sequence[bool | None]) -> bool | None:
    found, not_found = said.count(True), said.count(False)
    return None if found == not_found else found > not_found


def _areas(read: Sequence[Film]) -> Areas | None:
    scored = [
        (film.truth, film.first_probability, film.second_probability)
        for film in read
        if film.first_probability is not None and film.second_probability is not None
    ]
    split = [
        np.array([row[1:] for row in scored if row[0] is truth], np.float64).T for truth in (True, False)
    ]
    if any(part.size < 4 for part in split):  # two films of each kind have a variance
        return None
    areas, covariance = delong(split[0], split[1])
    difference = float(areas[1] - areas[0])
    error = float(np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    half = float(norm.ppf(0.975)) * error
    p = float(2 * norm.sf(abs(difference) / error)) if error else 1.0 if not difference else 0.0
    return Areas(float(areas[0]), float(areas[1]), difference, difference - half, difference + half, p)
