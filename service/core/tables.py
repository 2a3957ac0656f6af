"""The ledger's tables. Alembic's migrations make them; nothing else creates or alters a table."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment, kept in UTC; SQLite has no zones, so they are put on again when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Declarative base of every table."""

    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        list[str]: JSON,
        list[int]: JSON,
        dict[str, Any]: JSON,
    }


class Leased:
    """Work that is handed out by lease: see `service.core.leases`.

    `lease_token` counts claims; a result commits only under the token it was claimed with. `attempts` counts
    starts, so that work which kills its process is counted too. `ready_at` is the earliest next start.
    """

    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None]
    lease_token: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    ready_at: Mapped[datetime]
    last_error: Mapped[str | None] = mapped_column(Text)


class Installation(Base):
    """The one row that says which installation this ledger belongs to; our UIDs are derived from it.

    Reports name `identity`. Nothing that leaves the gateway names `secret`: signatures and hashes are keyed
    with it (`service.core.secret`).
    """

    __tablename__ = "installation"

    id: Mapped[int] = mapped_column(primary_key=True)
    identity: Mapped[str] = mapped_column(String(64))
    secret: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class Model(Base):
    """A network that looks at films or has; the weights' SHA-256 is its identity.

    Attributes
    ----------
    role
        One of `service.core.states.ModelRole`; None of what served before there were roles.
    path
        Its weights in the data folder; None of what served before they were kept there.
    threshold
        The site's own operating point; None: that of the weights.
    population
        On whom it was validated (`service.core.population.Population`); None of what served before that was
        kept.
    """

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(32))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    activation_method: Mapped[str] = mapped_column(Text)
    first_used_at: Mapped[datetime]
    role: Mapped[str | None] = mapped_column(String(16))
    path: Mapped[str | None] = mapped_column(Text)
    threshold: Mapped[float | None] = mapped_column(Float)
    population: Mapped[dict[str, Any] | None]


class ModelChange(Base):
    """One decision about a model: who made it, when and why. No row is ever altered.

    `kind` is one of `service.core.states.ModelChangeKind`; `threshold` the site's new one.
    """

    __tablename__ = "model_change"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(16))
    by: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text)
    threshold: Mapped[float | None] = mapped_column(Float)

    model: Mapped[Model] = relationship()


class Study(Base):
    """One study and, once there is one, its current result.

    `expired_at` is when its files were removed (`service.core.retention`), None while there are any; the
    paths of what is gone are empty. `removing` is what takes them away just now. `wanted` is why they are
    needed all the same: sent again, its images are taken in anew. `review_share` is of a negative that
    readers are asked to review, and is the share of negatives that were (`service.core.review`).
    `backfill_id` is the back-fill that fetched it, None of what was sent here (`service.core.backfill`).
    """

    __tablename__ = "study"
    __table_args__ = (
        Index("ix_study_due_at", "due_at"),
        Index("ix_study_received_at", "received_at"),
        Index("ix_study_expired_at", "expired_at", "received_at"),
        Index("ix_study_removing", "removing"),
        Index("ix_study_finding", "finding"),
        Index(
            "ix_study_backfill",
            "backfill_id",
            "state",
            sqlite_where=text("backfill_id IS NOT NULL"),
            postgresql_where=text("backfill_id IS NOT NULL"),
        ),
        Index(
            "ix_study_attention",
            "id",
            sqlite_where=text("attention IS NOT NULL"),
            postgresql_where=text("attention IS NOT NULL"),
        ),
        Index(
            "ix_study_review",
            "id",
            sqlite_where=text("review_share IS NOT NULL"),
            postgresql_where=text("review_share IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str | None] = mapped_column(Text)
    attention: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(default=0)
    header_revision: Mapped[int] = mapped_column(default=0)
    build: Mapped[int] = mapped_column(default=0)
    received_at: Mapped[datetime]
    first_eligible_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    reported_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    confirmed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    removing: Mapped[str | None] = mapped_column(String(16))
    wanted: Mapped[str | None] = mapped_column(Text)
    finding: Mapped[str | None] = mapped_column(String(16))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    result_reason: Mapped[str | None] = mapped_column(Text)
    pattern: Mapped[str | None] = mapped_column(String(16))
    flags: Mapped[list[str]] = mapped_column(default=list)
    model_id: Mapped[int | None] = mapped_column(ForeignKey("model.id"))
    review_share: Mapped[float | None] = mapped_column(Float)
    backfill_id: Mapped[int | None]

    model: Mapped[Model | None] = relationship()
    instances: Mapped[list["Instance"]] = relationship(back_populates="study", order_by="Instance.id")
    reports: Mapped[list["Report"]] = relationship(back_populates="study", order_by="Report.id")
    events: Mapped[list["Event"]] = relationship(back_populates="study", order_by="Event.id")


class Subject(Base):
    """A patient as one study names them: what identifies a person lives here, nowhere else.

    `told` is what destination `told_by` says of patient and order, by keyword, where that is not what the
    images say: the archive was corrected after they were sent here. Once the study's files are gone nothing
    is left but a keyed hash in the place of the patient ID (`service.core.removal`).

    From `study_date` on it is what studies are searched by over DICOMweb; None of what came before there were
    these columns, until `service.core.catalogue` has read it from the files. `study_identifier` is Study ID
    (0020,0010).
    """

    __tablename__ = "subject"
    __table_args__ = (
        UniqueConstraint("study_id", "patient_id", "issuer_of_patient_id"),
        Index("ix_subject_accession_number", "accession_number"),
        Index("ix_subject_patient_id", "patient_id"),
        Index("ix_subject_study_date", "study_date"),
        Index(
            "ix_subject_not_catalogued",
            "id",
            sqlite_where=text("study_date IS NULL"),
            postgresql_where=text("study_date IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    patient_id: Mapped[str] = mapped_column(Text)
    issuer_of_patient_id: Mapped[str] = mapped_column(Text)
    patient_name: Mapped[str] = mapped_column(Text)
    patient_birth_date: Mapped[str] = mapped_column(Text)
    patient_sex: Mapped[str] = mapped_column(Text)
    accession_number: Mapped[str] = mapped_column(Text)
    study_date: Mapped[str | None] = mapped_column(String(8))
    study_time: Mapped[str | None] = mapped_column(String(16))
    study_identifier: Mapped[str | None] = mapped_column(Text)
    study_description: Mapped[str | None] = mapped_column(Text)
    referring_physician_name: Mapped[str | None] = mapped_column(Text)
    timezone_offset_from_utc: Mapped[str | None] = mapped_column(String(8))
    told: Mapped[dict[str, Any] | None]
    told_by: Mapped[str | None] = mapped_column(String(64))


class Instance(Leased, Base):
    """One received object; the lease is for decoding. The same UID with other bytes is another row.

    `says_chest`: its header calls it a chest radiograph, so that silence about it could be read as normal.
    `picture_path`: the decoded film as a PNG for people to look at. `decision`: what the rules said of it
    (`service.core.rules.Decision`); None of what came before there were rules, and of what is to be decided
    anew. `patient_sex` (F, M, O or empty) and `scanner` (`service.core.population.scanner_of`) name nobody
    and stay when the files go, as age and view do. `image_…` are of the film's grey values
    (`worker.image_statistics`), all within [0, 1].
    """

    __tablename__ = "instance"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "digest"),
        Index("ix_instance_work", "state", "ready_at"),
        Index("ix_instance_study", "study_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    subject_id: Mapped[int | None] = mapped_column(ForeignKey("subject.id"))
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    pixel_digest: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    received_at: Mapped[datetime]
    size: Mapped[int]
    spool_path: Mapped[str | None] = mapped_column(Text)
    film_path: Mapped[str | None] = mapped_column(Text)
    picture_path: Mapped[str | None] = mapped_column(Text)
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    modality: Mapped[str] = mapped_column(String(16))
    view_position: Mapped[str] = mapped_column(String(16))
    presentation_intent_type: Mapped[str] = mapped_column(String(16))
    acquired_at: Mapped[str] = mapped_column(String(64))
    patient_age_years: Mapped[float | None] = mapped_column(Float)
    patient_sex: Mapped[str | None] = mapped_column(String(1))
    scanner: Mapped[str | None] = mapped_column(Text)
    image_mean: Mapped[float | None] = mapped_column(Float)
    image_deviation: Mapped[float | None] = mapped_column(Float)
    image_entropy: Mapped[float | None] = mapped_column(Float)
    image_clipped: Mapped[float | None] = mapped_column(Float)
    says_chest: Mapped[bool] = mapped_column(default=False)
    flags: Mapped[list[str]] = mapped_column(default=list)
    decision: Mapped[dict[str, Any] | None]

    study: Mapped[Study] = relationship(back_populates="instances")
    subject: Mapped[Subject | None] = relationship()
    analyses: Mapped[list["Analysis"]] = relationship(back_populates="instance")


class Analysis(Leased, Base):
    """One model's look at one film; the lease is for inference.

    `overlay_path`: the activation map as a PNG that lies over the film's picture.
    """

    __tablename__ = "analysis"
    __table_args__ = (
        UniqueConstraint("instance_id", "model_id"),
        Index("ix_analysis_work", "state", "ready_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id"))
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    state: Mapped[str] = mapped_column(String(16))
    finding: Mapped[str | None] = mapped_column(String(16))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str | None] = mapped_column(Text)
    pattern: Mapped[str | None] = mapped_column(String(16))
    flags: Mapped[list[str]] = mapped_column(default=list)
    gate_distance: Mapped[float | None] = mapped_column(Float)
    activation_path: Mapped[str | None] = mapped_column(Text)
    overlay_path: Mapped[str | None] = mapped_column(Text)

    instance: Mapped[Instance] = relationship(back_populates="analyses")
    model: Mapped[Model] = relationship()


class Shadow(Leased, Base):
    """What a model that does not report says of one film, never sent; the lease is for inference."""

    __tablename__ = "shadow"
    __table_args__ = (
        UniqueConstraint("instance_id", "model_id"),
        Index("ix_shadow_work", "state", "ready_at"),
        Index("ix_shadow_model", "model_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id"))
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    state: Mapped[str] = mapped_column(String(16))
    finding: Mapped[str | None] = mapped_column(String(16))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str | None] = mapped_column(Text)
    pattern: Mapped[str | None] = mapped_column(String(16))
    flags: Mapped[list[str]] = mapped_column(default=list)
    gate_distance: Mapped[float | None] = mapped_column(Float)

    instance: Mapped[Instance] = relationship()
    model: Mapped[Model] = relationship()


class Revision(Leased, Base):
    """One version of a study's report, and the images it speaks of; the lease is for building it.

    Without a model it says that nothing of the study was analysed. `finding`, `probability` and `threshold`
    are what it said once it was reported, whatever the study's result is now.
    """

    __tablename__ = "revision"
    __table_args__ = (UniqueConstraint("study_id", "number"), Index("ix_revision_work", "state", "ready_at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    model_id: Mapped[int | None] = mapped_column(ForeignKey("model.id"))
    number: Mapped[int]
    header_revision: Mapped[int]
    build: Mapped[int]
    instance_ids: Mapped[list[int]]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    finding: Mapped[str | None] = mapped_column(String(16))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)

    study: Mapped[Study] = relationship()
    model: Mapped[Model | None] = relationship()


class Report(Base):
    """One DICOM object made for a study; its bytes are built once and resent unchanged.

    `kind` is one of `service.core.states.Kind`; `part` counts the objects of one kind in one revision (a heat
    map for each positive film).
    """

    __tablename__ = "report"
    __table_args__ = (UniqueConstraint("study_id", "kind", "revision", "part"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    kind: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int]
    part: Mapped[int]
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    created_at: Mapped[datetime]

    study: Mapped[Study] = relationship(back_populates="reports")
    deliveries: Mapped[list["Outbox"]] = relationship(back_populates="report", order_by="Outbox.id")


class Feedback(Base):
    """What one reader said of one AI result, with that result as it was then; no row is ever altered.

    A changed mind is another row. But once the study's files are gone there is no `note` any more, and hashes
    stand for `reader` and `user` (`service.core.removal`).

    Attributes
    ----------
    revision, model_id, finding, probability, threshold
        The AI result: which revision of the report said it, which model, and what it said.
    assessment, own_finding, note
        One of `service.core.states.Assessment`; the reader's own finding, if given; free text.
    reader, user
        The name as given, and the API token that it came with, empty for none.
    source
        One of `service.core.states.FeedbackSource`.
    review_share
        Of a negative that readers were asked to review: the share of negatives that were, else None.
    """

    __tablename__ = "feedback"
    __table_args__ = (Index("ix_feedback_study", "study_id", "finding"), Index("ix_feedback_at", "at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    at: Mapped[datetime]
    revision: Mapped[int]
    model_id: Mapped[int | None] = mapped_column(ForeignKey("model.id"))
    finding: Mapped[str] = mapped_column(String(16))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    assessment: Mapped[str] = mapped_column(String(16))
    own_finding: Mapped[str | None] = mapped_column(String(16))
    note: Mapped[str | None] = mapped_column(Text)
    reader: Mapped[str] = mapped_column(Text)
    user: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(16))
    review_share: Mapped[float | None] = mapped_column(Float)

    study: Mapped[Study] = relationship()
    model: Mapped[Model | None] = relationship()


class AssessmentReport(Leased, Base):
    """The SR of one piece of feedback; the lease is for building it. `report_id` is what it became."""

    __tablename__ = "assessment_report"
    __table_args__ = (Index("ix_assessment_report_work", "state", "ready_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    feedback_id: Mapped[int] = mapped_column(ForeignKey("feedback.id"), unique=True)
    report_id: Mapped[int | None] = mapped_column(ForeignKey("report.id"))
    state: Mapped[str] = mapped_column(String(16))

    feedback: Mapped[Feedback] = relationship()


class Outbox(Leased, Base):
    """One report on its way to one destination; the lease is for sending.

    `failures` counts the answers that may clear up and did not; `losses` how often the destination took it
    and turned out not to hold it. `as_built`: a person lets it go out under the patient and order it names.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("destination", "report_id"),
        Index("ix_outbox_work", "state", "ready_at"),
        Index("ix_outbox_report", "report_id"),
        Index("ix_outbox_destination", "destination", "state", "delivered_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    destination: Mapped[str] = mapped_column(String(64))
    report_id: Mapped[int] = mapped_column(ForeignKey("report.id"))
    required: Mapped[bool]
    state: Mapped[str] = mapped_column(String(16))
    last_status: Mapped[int | None]
    failures: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    as_built: Mapped[bool] = mapped_column(default=False)
    delivered_at: Mapped[datetime | None]
    confirmed_at: Mapped[datetime | None]

    report: Mapped[Report] = relationship(back_populates="deliveries")


class Confirmation(Leased, Base):
    """The proof, still to be had, that a destination holds what it accepted; the lease is for asking.

    `until` is how long an absent object may still be on its way into the archive. `transaction_uid` is that
    of the storage commitment that was asked for last (PS3.4 J.3.2): its answer may come days later. `proof`
    is what it was in the end, one of `service.core.states.Proof`.
    """

    __tablename__ = "confirmation"
    __table_args__ = (Index("ix_confirmation_work", "state", "ready_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    outbox_id: Mapped[int] = mapped_column(ForeignKey("outbox.id"), unique=True)
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    until: Mapped[datetime]
    transaction_uid: Mapped[str | None] = mapped_column(String(64), index=True)
    proof: Mapped[str | None] = mapped_column(String(16))

    delivery: Mapped[Outbox] = relationship()


class Rejection(Base):
    """An instance that an archive took out of use, whether it has come or not; `note_id` is the note's row.

    `code` is the code value of the note's title; see `service.core.rejection`.
    """

    __tablename__ = "rejection"
    __table_args__ = (UniqueConstraint("study_id", "sop_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    note_id: Mapped[int] = mapped_column(ForeignKey("instance.id"))
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    code: Mapped[str] = mapped_column(String(16))


class Backfill(Leased, Base):
    """Past studies that are looked for in an archive and analysed here; the lease is for its next step.

    Attributes
    ----------
    name
        What people call it.
    source
        The destination that is asked.
    query
        What is looked for: see `service.core.backfill.Query`.
    delivers
        Whether results are sent to destinations, as those of studies that were sent here are.
    way
        How studies are fetched: "get", "move" or "auto" (by C-GET, and by C-MOVE where that is not offered).
    rate, hours
        Studies a minute at most, and when; None: no bound of its own.
    cursor
        The next day to be searched, YYYYMMDD; None when all of them were.
    note
        What a person should know of it.
    """

    __tablename__ = "backfill"
    __table_args__ = (Index("ix_backfill_work", "state", "ready_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    source: Mapped[str] = mapped_column(String(64))
    query: Mapped[dict[str, Any]]
    delivers: Mapped[bool]
    way: Mapped[str] = mapped_column(String(8))
    rate: Mapped[int | None]
    hours: Mapped[str | None] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    cursor: Mapped[str | None] = mapped_column(String(8))
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(64))
    finished_at: Mapped[datetime | None]


class BackfillStudy(Base):
    """One study that a back-fill found; `state` is one of `service.core.states.FetchState`.

    Nothing here names the patient. `attempts` counts starts; `instances` objects that came.
    """

    __tablename__ = "backfill_study"
    __table_args__ = (
        UniqueConstraint("backfill_id", "study_instance_uid"),
        Index("ix_backfill_study_work", "backfill_id", "state", "ready_at"),
        Index("ix_backfill_study_uid", "study_instance_uid"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    backfill_id: Mapped[int] = mapped_column(ForeignKey("backfill.id"))
    study_instance_uid: Mapped[str] = mapped_column(String(64))
    study_date: Mapped[str] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    ready_at: Mapped[datetime]
    instances: Mapped[int] = mapped_column(Integer, default=0)
    reason: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime]


class Tombstone(Base):
    """A study that was erased: its UIDs, and that what comes of it again is not taken in.

    `ignored` counts what came since.
    """

    __tablename__ = "tombstone"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text)
    ignored: Mapped[int] = mapped_column(default=0)
    last_ignored_at: Mapped[datetime | None]


class TombstoneInstance(Base):
    """One SOP instance of an erased study."""

    __tablename__ = "tombstone_instance"

    id: Mapped[int] = mapped_column(primary_key=True)
    tombstone_id: Mapped[int] = mapped_column(ForeignKey("tombstone.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), index=True)


class Circuit(Base):
    """A destination that could not be reached when it was tried last; nothing is sent before `open_until`."""

    __tablename__ = "circuit"

    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    since: Mapped[datetime]
    failures: Mapped[int]
    open_until: Mapped[datetime]
    last_error: Mapped[str] = mapped_column(Text)


class Pause(Base):
    """A destination that nothing is sent to before `until`, because of its hours or its rate (`why`)."""

    __tablename__ = "pause"

    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    until: Mapped[datetime]
    why: Mapped[str] = mapped_column(Text)


class Refusal(Base):
    """A destination that rejected the first form of a kind when it was offered last, at this address."""

    __tablename__ = "refusal"

    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime]


class Event(Base):
    """One thing that happened to a study; `detail` is for people and never identifies a patient."""

    __tablename__ = "event"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)

    study: Mapped[Study] = relationship(back_populates="events")


class Tally(Base):
    """One sum that all processes add to: see `service.core.tally`.

    `labels` is a JSON list, `bucket` the upper bound of a histogram's bucket, "" for everything else.
    """

    __tablename__ = "tally"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(255), primary_key=True)
    bucket: Mapped[str] = mapped_column(String(16), primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class Occurrence(Base):
    """Something about a study that somebody may want to be told, until the scheduler has made notices of it.

    Written together with its event; `kind` is one of `service.core.states.NoticeKind`.
    """

    __tablename__ = "occurrence"
    # Else SQLite would use an id again that was told already.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)


class Notice(Base):
    """One message to one channel (`[notices.NAME]`); its receiver knows it again by `message_id`.

    What is told once only has a `key`. `ready_at` is the next try's earliest moment, and afterwards when it
    was sent or given up.
    """

    __tablename__ = "notice"
    __table_args__ = (UniqueConstraint("channel", "key"), Index("ix_notice_work", "state", "ready_at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str] = mapped_column(String(36))
    channel: Mapped[str] = mapped_column(String(64))
    key: Mapped[str | None] = mapped_column(String(128))
    kind: Mapped[str] = mapped_column(String(32))
    study_id: Mapped[int | None] = mapped_column(ForeignKey("study.id"), index=True)
    at: Mapped[datetime]
    detail: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    ready_at: Mapped[datetime]
    last_error: Mapped[str | None] = mapped_column(Text)

    study: Mapped[Study | None] = relationship()


class Heartbeat(Base):
    """The last sign of life of one process of a role.

    `detail` is what is wrong with it, `about` what it says of itself: version, and what only it knows.
    """

    __tablename__ = "heartbeat"

    process: Mapped[str] = mapped_column(String(128), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime]
    detail: Mapped[str] = mapped_column(Text)
    about: Mapped[dict[str, Any] | None]


class SchedulerLease(Base):
    """The one row that says which scheduler acts."""

    __tablename__ = "scheduler_lease"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(128))
    until: Mapped[datetime | None]


class SignIn(Base):
    """A browser that is signed in: hashes of its cookie and of the token it showed, and when that ends."""

    __tablename__ = "sign_in"

    session_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64))
    until: Mapped[datetime]
