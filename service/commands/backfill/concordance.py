"""Results of a back-fill against final diagnoses: counts, rates with their intervals, what disagrees."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.commands.backfill.diagnoses import Diagnoses, Diagnosis, said_by
from service.commands.backfill.wording import Said
from service.core.agreement import Share, kappa, wilson
from service.core.results import Finding
from service.core.states import FetchState
from service.core.tables import Backfill, BackfillStudy, Model, Study, Subject


@dataclass(frozen=True)
class Case:
    """One study of a back-fill: what the network and the final diagnosis say of it.

    Attributes
    ----------
    finding, probability, threshold, reason
        The result; None while there is none, and of what did not come.
    state
        How far it got, in words.
    diagnosis
        None when no row names it.
    model
        Name and version.
    """

    study_id: int | None
    study_instance_uid: str
    study_date: str
    state: str
    finding: str | None
    probability: float | None
    threshold: float | None
    reason: str | None
    diagnosis: Said | None
    model: str

    @property
    def counts(self) -> bool:
        """Whether both say present or absent."""
        decided = self.finding in (Finding.PRESENT, Finding.ABSENT)
        return decided and self.diagnosis in (Said.PRESENT, Said.ABSENT)

    @property
    def is_discordant(self) -> bool:
        """Whether one of them says present and the other absent."""
        return self.counts and self.finding != self.diagnosis


@dataclass(frozen=True)
class Concordance:
    """All that the report says.

    Attributes
    ----------
    studies
        Found by the back-fill.
    apart
        Of these, not in the table: why, and how many.
    tp, fp, fn, tn
        The table: the network's finding against the final diagnosis.
    sensitivity, specificity, ppv, npv, accuracy
        With Wilson's 95 % intervals; None without a study to tell it from.
    kappa
        Cohen's.
    unmatched
        Rows of the table of diagnoses that name no study of the back-fill, by where they stand.
    models
        Those that gave the results, with their numbers of studies.
    cases
        All studies, the discordant ones first: of these those farthest from the threshold.
    """

    studies: int
    apart: Mapping[str, int]
    tp: int
    fp: int
    fn: int
    tn: int
    sensitivity: Share | None
    specificity: Share | None
    ppv: Share | None
    npv: Share | None
    accuracy: Share | None
    kappa: float | None
    unmatched: Sequence[str]
    models: Mapping[str, int]
    cases: Sequence[Case]

    @property
    def compared(self) -> int:
        """Studies in the table."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def discordant(self) -> list[Case]:
        """What disagrees, the surest first."""
        return [case for case in self.cases if case.is_discordant]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain = asdict(self)
        return {**plain, "compared": self.compared, "discordant": len(self.discordant)}


def concordance(session: Session, run: Backfill, diagnoses: Diagnoses) -> Concordance:
    """Return what a back-fill comes to, held against final diagnoses."""
    by_study, by_accession = diagnoses.by_study(), diagnoses.by_accession()
    used: set[Diagnosis] = set()
    cases = []
    rows = session.execute(
        select(BackfillStudy, Study)
        .outerjoin(Study, Study.study_instance_uid == BackfillStudy.study_instance_uid)
        .where(BackfillStudy.backfill_id == run.id, BackfillStudy.state != FetchState.SKIPPED)
        .order_by(BackfillStudy.study_date, BackfillStudy.id)
    ).all()
    accessions = _accessions(session, run)
    models = {
        model.id: f"{model.name} {model.version}, SHA-256 {model.sha256}"
        for model in session.scalars(select(Model))
    }
    for found, study in rows:
        named = [
            *by_study.get(found.study_instance_uid, ()),
            *(
                row
                for number in accessions.get(found.study_instance_uid, ())
                for row in by_accession.get(number, ())
            ),
        ]
        used.update(named)
        cases.append(_case(found, study, said_by(named) if named else None, models))
    cases.sort(key=_order)
    cells = Counter((case.finding, case.diagnosis) for case in cases if case.counts)
    tp, fp = cells[Finding.PRESENT, Said.PRESENT], cells[Finding.PRESENT, Said.ABSENT]
    fn, tn = cells[Finding.ABSENT, Said.PRESENT], cells[Finding.ABSENT, Said.ABSENT]
    return Concordance(
        studies=len(cases),
        apart=dict(Counter(_why_apart(case) for case in cases if not case.counts)),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        sensitivity=_share(tp, tp + fn),
        specificity=_share(tn, tn + fp),
        ppv=_share(tp, tp + fp),
        npv=_share(tn, tn + fn),
        accuracy=_share(tp + tn, tp + fp + fn + tn),
        kappa=kappa(tp, fp, fn, tn) if cells else None,
        unmatched=[row.where for row in diagnoses.rows if row not in used],
        models=dict(Counter(case.model for case in cases if case.model)),
        cases=cases,
    )


def _accessions(session: Session, run: Backfill) -> dict[str, set[str]]:
    """Return the accession numbers of the studies of a back-fill, by Study Instance UID."""
    rows = session.execute(
        select(Study.study_instance_uid, Subject.accession_number)
        .join(Subject, Subject.study_id == Study.id)
        .join(BackfillStudy, BackfillStudy.study_instance_uid == Study.study_instance_uid)
        .where(BackfillStudy.backfill_id == run.id, Subject.accession_number != "")
    )
    found: dict[str, set[str]] = {}
    for uid, number in rows:
        found.setdefault(uid, set()).add(number)
    return found


def _case(
    found: BackfillStudy, study: Study | None, diagnosis: Said | None, models: Mapping[int, str]
) -> Case:
    return Case(
        study_id=study.id if study else None,
        study_instance_uid=found.study_instance_uid,
        study_date=found.study_date,
        state=study.state if study else found.state,
        finding=study.finding if study else None,
        probability=study.probability if study else None,
        threshold=study.threshold if study else None,
        reason=(study.result_reason or study.reason if study else found.reason),
        diagnosis=diagnosis,
        model=models.get(study.model_id or 0, "") if study else "",
    )


def _order(case: Case) -> tuple[bool, float, str]:
    """Put what disagrees first, and of that what is farthest from the threshold."""
    apart = abs((case.probability or 0.0) - (case.threshold or 0.0))
    return not case.is_discordant, -apart if case.is_discordant else 0.0, case.study_date


def _why_apart(case: Case) -> str:
    if case.study_id is None:
        return f"not here ({case.state})"
    if case.finding is None:
        return "no result yet" if case.state in ("receiving", "analysing") else f"no result ({case.state})"
    if case.finding == Finding.NOT_ANALYSED:
        return "not analysed, with a reason"
    if case.diagnosis is None:
        return "no final diagnosis"
    if case.diagnosis is Said.UNCLEAR:
        return "final diagnosis unclear"
    return f"the network says {case.finding}"


def _share(count: int, of: int) -> Share | None:
    return Share(count / of, *wilson(count / of, of), of) if of else None
