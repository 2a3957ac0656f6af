"""The JSON of the API; field names are fixed, others script against them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict


class ResultOut(BaseModel):
    finding: str
    probability: float | None
    threshold: float | None
    reason: str | None
    pattern: str | None
    flags: list[str]


class ComparisonOut(BaseModel):
    """An attribute of a film beside the films that the model was validated on.

    `beside` is inside, outside, unknown (of this film) or not_recorded (of the validated ones).
    """

    model_config = ConfigDict(from_attributes=True)

    attribute: str
    value: str
    validated: str
    beside: str


class InstanceOut(BaseModel):
    sop_instance_uid: str
    sop_class_uid: str
    state: str
    finding: str | None
    probability: float | None
    reason: str | None
    flags: list[str]
    rule: str | None
    population: list[ComparisonOut]


class ModelOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    version: str
    sha256: str


class RegisteredModelOut(ModelOut):
    role: str | None
    threshold: float | None
    first_used_at: datetime


class ModelChangeOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    at: datetime
    model: ModelOut
    kind: str
    threshold: float | None
    by: str
    reason: str


class Models(BaseModel):
    models: list[RegisteredModelOut]
    changes: list[ModelChangeOut]


class ReportOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    sop_instance_uid: str
    sop_class_uid: str
    kind: str
    revision: int


class DeliveryOut(BaseModel):
    destination: str
    kind: str
    revision: int
    sop_instance_uid: str
    state: str
    attempts: int
    last_error: str | None
    waits_for: str | None
    waits_until: datetime | None
    delivered_at: datetime | None
    confirmed_at: datetime | None


class EventOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    at: datetime
    kind: str
    detail: str


class FeedbackOut(BaseModel):
    """What one reader said, once; `finding` is their own, `ai_…` the result that they spoke of.

    `user` is the API token that it came with, `source` whether it came from the dashboard, the API or a link.
    `review_share`: of a negative that readers were asked to review, the share of negatives that were.
    `current`: the newest one of this reader.
    """

    at: datetime
    assessment: str
    finding: str | None
    note: str | None
    reader: str | None
    user: str | None
    source: str
    revision: int
    ai_finding: str
    ai_probability: float | None
    review_share: float | None
    current: bool


class BackfillOut(BaseModel):
    """One back-fill and how far it is.

    `studies` is by what became of them on their way here, `searched_to` the next day to be searched, null
    when all were. Of what was fetched: `in_work`, `analysed`, `not_analysed` (refused with a reason),
    `failed`, and `live`, what somebody has sent since.
    """

    name: str
    state: str
    source: str
    looks_for: str
    delivers: bool
    created_at: datetime
    created_by: str
    finished_at: datetime | None
    searched_to: str | None
    waits_for: str | None
    note: str | None
    found: int
    fetched: int
    studies: dict[str, int]
    in_work: int
    analysed: int
    not_analysed: int
    failed: int
    live: int


class StudySummary(BaseModel):
    """One line of the study list.

    `feedback` is what readers say of the result as it is now: agree, disagree, unsure, not_usable, or mixed.
    `to_review`: a negative that readers are asked to review, and nobody has. `backfilled`: a back-fill
    fetched it, and nobody has sent it.
    """

    study_instance_uid: str
    state: str
    revision: int
    attention: str | None
    reason: str | None
    received_at: datetime
    reported_at: datetime | None
    delivered_at: datetime | None
    confirmed_at: datetime | None
    result: ResultOut | None
    feedback: str | None
    to_review: bool
    backfilled: bool = False

    @property
    def to_know(self) -> str:
        """What is wrong, or why there is no number, and each limit under which a number stands."""
        result = self.result
        why = self.attention or self.reason or (result.reason if result else None)
        return "; ".join(filter(None, (why, *(result.flags if result else ()))))


class StudyOut(StudySummary):
    """All that is known of one study, without what identifies the patient."""

    instances: list[InstanceOut]
    model: ModelOut | None
    reports: list[ReportOut]
    deliveries: list[DeliveryOut]
    events: list[EventOut]


class StudyList(BaseModel):
    """A page of studies, newest first; `cursor` asks for the next page, null on the last one."""

    studies: list[StudySummary]
    cursor: str | None

    @classmethod
    def of(cls, studies: Sequence[StudySummary], older: int | None) -> Self:
        """Return the page whose next one begins before the id `older`."""
        return cls(studies=list(studies), cursor=None if older is None else str(older))


class HappeningOut(EventOut):
    """One event as it is streamed; `row`, if asked for, is the study as a row of the dashboard (HTML)."""

    study: StudySummary
    row: str | None = None


class Readiness(BaseModel):
    """Whether every role is alive; `faults` names what is down and why, `warnings` what else to look at."""

    ready: bool
    faults: dict[str, str]
    warnings: dict[str, str] = {}
