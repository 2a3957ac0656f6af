"""The states of everything the ledger follows, and which change is allowed to follow which."""

from enum import StrEnum


class StudyState(StrEnum):
    """Where a study stands (DESIGN: ``receiving → analysing → reported → delivered → confirmed``)."""

    RECEIVING = "receiving"
    ANALYSING = "analysing"
    REPORTED = "reported"
    DELIVERED = "delivered"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    HELD = "held"


class InstanceState(StrEnum):
    """Where one received object stands.

    ``received`` waits for decoding and ``decoded`` for inference; the others are final. ``rejected`` was
    taken out of use by its archive.
    """

    RECEIVED = "received"
    DECODED = "decoded"
    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"
    IGNORED = "ignored"
    SUPERSEDED = "superseded"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"
    FAILED = "failed"


class AnalysisState(StrEnum):
    """Where one model's look at one film stands."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


class RevisionState(StrEnum):
    """Where one revision of a study's report stands."""

    PENDING = "pending"
    REPORTED = "reported"
    FAILED = "failed"


class Kind(StrEnum):
    """What an object that we make is; each kind has a series of its own."""

    SR = "sr"
    COMPREHENSIVE_SR = "comprehensive-sr"
    TEXT = "text"
    NOT_ANALYSED = "not-analysed"
    HEATMAP = "heatmap"
    PLAIN_HEATMAP = "heatmap-plain"
    GSPS = "gsps"
    PDF = "pdf"
    REJECTION = "rejection"
    ASSESSMENT = "assessment"


class ModelRole(StrEnum):
    """What becomes of a model's answers: they are reported, only recorded, or nobody asks it."""

    REPORTING = "reporting"
    SHADOW = "shadow"
    RETIRED = "retired"


class ModelChangeKind(StrEnum):
    """What was decided about a model; ``configured``: HILUM_WEIGHTS or this version of Hilum brought it."""

    ADDED = "added"
    CONFIGURED = "configured"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    RETIRED = "retired"
    THRESHOLD = "threshold"


class DeliveryState(StrEnum):
    """Where one report stands at one destination.

    ``confirmed`` is proven by storage commitment or by a query. ``parked`` waits for a person; ``withdrawn``
    is not sent, because what it says no longer holds or because another object says it there.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    CONFIRMED = "confirmed"
    PARKED = "parked"
    WITHDRAWN = "withdrawn"


class Assessment(StrEnum):
    """What a reader says of an AI result."""

    AGREE = "agree"
    DISAGREE = "disagree"
    UNSURE = "unsure"
    NOT_USABLE = "not_usable"


class FeedbackSource(StrEnum):
    """How an assessment came: from the study's page, the API, or the page behind a report's link."""

    DASHBOARD = "dashboard"
    API = "api"
    LINK = "link"


class AssessmentState(StrEnum):
    """Where the SR of one assessment stands."""

    PENDING = "pending"
    BUILT = "built"
    FAILED = "failed"


class ConfirmationState(StrEnum):
    """Where the proof of one delivery stands; ``given_up`` was asked for and did not come."""

    WAITING = "waiting"
    DONE = "done"
    GIVEN_UP = "given_up"


class Proof(StrEnum):
    """What proved that a destination holds an object."""

    COMMITMENT = "commitment"
    QUERY = "query"


class BackfillState(StrEnum):
    """Where one back-fill stands; ``done`` has fetched all there was to be fetched."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


class FetchState(StrEnum):
    """Where one study of a back-fill stands on its way here.

    ``found`` waits to be fetched; ``moving`` is sent to our listener just now, as we asked by C-MOVE, and
    ``fetching`` comes over our own association or connection. ``known`` was here already, ``skipped`` has
    nothing that was asked for, ``missing`` was found and not given.
    """

    FOUND = "found"
    FETCHING = "fetching"
    MOVING = "moving"
    FETCHED = "fetched"
    KNOWN = "known"
    SKIPPED = "skipped"
    MISSING = "missing"
    FAILED = "failed"


class NoticeKind(StrEnum):
    """What a person may be told of (`[notices.NAME]`, events)."""

    POSITIVE = "positive"
    FAILED = "failed"
    HELD = "held"
    PARKED = "parked"
    GIVEN_UP = "given_up"
    QUARANTINED = "quarantined"
    UNCONFIRMED = "unconfirmed"
    DESTINATION_DOWN = "destination_down"
    SILENCE = "silence"
    TEST = "test"


class NoticeState(StrEnum):
    """Where one notice stands; ``given_up`` was tried as often as makes sense."""

    WAITING = "waiting"
    SENT = "sent"
    GIVEN_UP = "given_up"


UNFINISHED_INSTANCES = (InstanceState.RECEIVED, InstanceState.DECODED)
# What a report speaks of: every radiograph of the study, the unanalysed with their reason.
REPORTABLE_INSTANCES = (InstanceState.ANALYSED, InstanceState.NOT_ANALYSED, InstanceState.FAILED)
# The kinds that are SR documents: one of them replaces another when the study's result changes.
DOCUMENTS = (Kind.SR, Kind.COMPREHENSIVE_SR, Kind.TEXT, Kind.NOT_ANALYSED)
# What is sent in place of an object that a destination does not take.
SECOND_FORMS = {Kind.SR: Kind.COMPREHENSIVE_SR, Kind.HEATMAP: Kind.PLAIN_HEATMAP}
DELIVERED_STATES = (DeliveryState.DELIVERED, DeliveryState.CONFIRMED)
