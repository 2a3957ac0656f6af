"""One notice as its receiver gets it."""

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from service.core.errors import HilumError
from service.core.states import NoticeKind

WORDS = {
    NoticeKind.POSITIVE: "finding present",
    NoticeKind.FAILED: "a study or film failed",
    NoticeKind.HELD: "a study is held",
    NoticeKind.PARKED: "a report is parked",
    NoticeKind.GIVEN_UP: "a study was given up",
    NoticeKind.QUARANTINED: "an image is quarantined",
    NoticeKind.UNCONFIRMED: "a delivery is not confirmed",
    NoticeKind.DESTINATION_DOWN: "a destination is away",
    NoticeKind.SILENCE: "no studies come",
    NoticeKind.TEST: "a test",
}


class NotDelivered(HilumError):
    """The receiver of a notice did not take it; the message says why."""

    code = "notice-not-delivered"
    retry_helps = True


@dataclass(frozen=True)
class Message:
    """What is told: no patient, but the study's UID by which who may can look it up.

    `message_id` stays the same when it is sent again, so that its receiver knows it.
    """

    message_id: str
    kind: NoticeKind
    at: datetime
    detail: str
    study_instance_uid: str | None = None
    finding: str | None = None
    probability: float | None = None

    def as_json(self) -> dict[str, object]:
        """Return the body for a webhook: type, timestamp and data, as Standard Webhooks recommends."""
        data: dict[str, object] = {"detail": self.detail}
        if self.study_instance_uid is not None:
            data |= {
                "study_instance_uid": self.study_instance_uid,
                "finding": self.finding,
                "probability": self.probability,
            }
        moment = self.at.astimezone(UTC).isoformat(timespec="seconds")
        return {"type": self.kind, "timestamp": moment, "data": data}

    def as_text(self, zone: tzinfo | None) -> str:
        """Return a paragraph for a person, with times of the site."""
        lines = [f"{self.at.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}  {WORDS[self.kind]}", f"  {self.detail}"]
        if self.study_instance_uid is not None:
            score = "" if self.probability is None else f", {100 * self.probability:.1f} %"
            said = f"  finding: {self.finding}{score}" if self.finding else ""
            lines += [f"  study {self.study_instance_uid}", *[said] * bool(said)]
        return "\n".join(lines)
