"""What the roles tell the audit trail: who started, sent, received, deleted, logged in, or was kept out.

Nothing here raises, and nobody waits longer than a moment: what can't be written now is kept in memory and
written with what comes next.
"""

import os
import socket
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from service.core import audit_message as said
from service.core.audit_message import Action, Code, Object, Outcome, Participant
from service.core.audit_trail import Trail
from service.core.errors import HilumError, OutOfResources
from service.core.header import Header
from service.core.settings import Settings

_MOST_WAITING = 10_000
# An alert that comes again and again is written once in so long, with how often it came.
_REPEATED_SECONDS = 60.0
_MOST_KINDS = 1000
# A token shows up with every request: its user counts as logged in for so long.
_LOGIN_SECONDS = 3600.0
# A page that is looked at comes anew by itself.
_SIGHT_SECONDS = 900.0
# What a killed process may lose of an association that lasts.
_TRANSFER_SECONDS = 60.0
_log = structlog.get_logger()


class Audit:
    """The audit trail as one process of `role` writes it."""

    def __init__(self, settings: Settings, role: str) -> None:
        self._ae_title = settings.ae_title
        self._role = role
        self._trail = Trail(trail_folder(settings))
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._lock = threading.Lock()
        self._alerts = _Repeats(_REPEATED_SECONDS)
        self._logins = _Repeats(_LOGIN_SECONDS)
        self._sights = _Repeats(_SIGHT_SECONDS)

    def started(self) -> None:
        """Tell that this process runs (A.5.3.1)."""
        self._activity(said.APPLICATION_START)

    def stopped(self) -> None:
        """Tell that this process ends as it was asked to; one that is killed tells nothing."""
        self._activity(said.APPLICATION_STOP)

    def refused(self, address: str, reason: str, calling_ae_title: str = "", who: str = "") -> None:
        """Tell that a node was kept out (A.5.3.11); `who` is whose certificate it showed."""
        before = self._alerts.due(("refused", address, reason))
        if before is None:
            return
        alert = reason + (f", calling AE title {calling_ae_title}" if calling_ae_title else "")
        alert += (f", certificate of {who}" if who else "") + _again(before)
        self._alert(said.NODE_AUTHENTICATION, address, alert)

    def unreadable(self, address: str, sender: str, code: str) -> None:
        """Tell that an object was refused before it said whose it is (A.5.3.11).

        A transfer that failed (A.5.3.7) must name study and patient, and a node whose objects nobody can read
        is broken or an attacker.
        """
        before = self._alerts.due(("unreadable", address, code))
        if before is not None:
            alert = f"an object from {sender} was refused unread: {code}{_again(before)}"
            self._alert(said.UNREADABLE_OBJECT, address, alert)

    def restored(self, user: str) -> None:
        """Tell that `user` put an earlier ledger in the place of the present one (A.5.3.11)."""
        participants = [self._ourselves(is_requestor=False), Participant(user, is_requestor=True)]
        alert = "the ledger was replaced by an earlier one"
        self._alert(said.RESTRICTED_FUNCTION, _source(), alert, Outcome.SUCCESS, participants)

    def configured(self, user: str, what: str) -> None:
        """Tell that `user` changed which model answers, or how (A.5.3.11)."""
        participants = [self._ourselves(is_requestor=False), Participant(user, is_requestor=True)]
        self._alert(said.SOFTWARE_CONFIGURATION, _source(), what, Outcome.SUCCESS, participants)

    def login(self, user: str, address: str) -> None:
        """Tell that somebody uses the API (A.5.3.12): once an hour, for a token comes with every request."""
        if self._logins.due((user, address)) is not None:
            self._authentication(said.LOGIN, user, address)

    def login_failed(self, address: str, reason: str) -> None:
        """Tell that somebody tried to."""
        before = self._alerts.due(("login", address, reason))
        if before is not None:
            self._authentication(said.LOGIN, "unknown", address, reason + _again(before))

    def logout(self, user: str, address: str) -> None:
        """Tell that somebody left."""
        self._logins.forget((user, address))
        self._authentication(said.LOGOUT, user, address)

    def study_seen(self, study_instance_uid: str, patient_ids: Sequence[tuple[str, str]], user: str) -> None:
        """Tell that somebody looked at a study and whose it is (A.5.3.6), once a quarter of an hour."""
        if self._sights.due((user, study_instance_uid)) is None:
            return
        objects = [said.study(study_instance_uid, {}), *(said.patient(*found) for found in patient_ids)]
        self._write(
            said.INSTANCES_ACCESSED,
            Action.READ,
            Outcome.SUCCESS,
            [Participant(user, is_requestor=True), self._ourselves(is_requestor=False)],
            objects,
        )

    def feedback_given(
        self,
        study_instance_uid: str,
        patient_ids: Sequence[tuple[str, str]],
        user: str,
        address: str = "",
    ) -> None:
        """Tell that somebody gave feedback on the result of a study (A.5.3.6), and nothing of what it says.

        Parameters
        ----------
        user
            The API token, or the name that was given behind a link.
        """
        objects = [said.study(study_instance_uid, {}), *(said.patient(*found) for found in patient_ids)]
        self._write(
            said.INSTANCES_ACCESSED,
            Action.CREATE,
            Outcome.SUCCESS,
            [Participant(user, is_requestor=True, address=address), self._ourselves(is_requestor=False)],
            objects,
        )

    def queried(self, asked: str, user: str, address: str) -> None:
        """Tell that somebody searched (A.5.3.10); the same question is told once a quarter of an hour.

        `asked` names no person: a name that was searched for stays out of the trail as every other one does.
        """
        if self._sights.due((user, address, asked)) is None:
            return
        self._write(
            said.QUERY,
            Action.EXECUTE,
            Outcome.SUCCESS,
            [
                Participant(user, True, said.SOURCE_ROLE, address=address),
                self._ourselves(said.DESTINATION_ROLE, is_requestor=False),
            ],
            [said.query(asked)],
        )

    def study_deleted(
        self,
        study_instance_uid: str,
        patient_ids: Sequence[tuple[str, str]],
        sop_classes: Mapping[str, int],
        user: str = "",
    ) -> None:
        """Tell that a study is removed, or its files are (A.5.3.8).

        Parameters
        ----------
        patient_ids
            ID and issuer of each of its patients.
        sop_classes
            Number of its instances by SOP Class UID.
        user
            Who asked for it; nobody, when a rule did.
        """
        participants = [self._ourselves(is_requestor=not user)]
        if user:
            participants.append(Participant(user, is_requestor=True))
        study = said.study(study_instance_uid, sop_classes)
        patients = [said.patient(*found) for found in patient_ids]
        self._write(said.STUDY_DELETED, Action.DELETE, Outcome.SUCCESS, participants, [study, *patients])

    def receiving(self, calling_ae_title: str, address: str) -> "Transfer":
        """Return what collects the objects that somebody sends us."""
        source = Participant(calling_ae_title, True, said.SOURCE_ROLE, calling_ae_title, address=address)
        return Transfer(self, [source, self._ourselves(said.DESTINATION_ROLE, is_requestor=False)])

    def retrieving(self, user: str, address: str) -> "Transfer":
        """Return what collects the objects that somebody gets from us."""
        destination = Participant(user, True, said.DESTINATION_ROLE, address=address)
        return Transfer(self, [self._ourselves(said.SOURCE_ROLE, is_requestor=False), destination])

    def sending(self, name: str, ae_title: str, address: str) -> "Transfer":
        """Return what collects the objects that we send to a destination."""
        destination = Participant(name, False, said.DESTINATION_ROLE, ae_title, address=address)
        return Transfer(self, [self._ourselves(said.SOURCE_ROLE, is_requestor=True), destination])

    def write(self, messages: Sequence[bytes]) -> None:
        """Write messages, and those that could not be written before."""
        with self._lock:
            if lost := max(0, len(self._waiting) + len(messages) - _MOST_WAITING):
                _log.error("audit.lost", messages=lost)
            self._waiting.extend(messages)
            if not self._waiting:
                return
            try:
                self._trail.append(self._waiting)
            except OSError as fault:
                _log.error(
                    "audit.not_written", reason=fault.strerror or str(fault), waiting=len(self._waiting)
                )
            else:
                self._waiting.clear()

    def message(
        self,
        event: Code,
        action: Action,
        outcome: Outcome,
        participants: Sequence[Participant],
        objects: Sequence[Object] = (),
        event_type: Code | None = None,
        description: str = "",
    ) -> bytes:
        """Return a message of this process."""
        return said.message(event, action, outcome, _source(), participants, objects, event_type, description)

    def _write(
        self,
        event: Code,
        action: Action,
        outcome: Outcome,
        participants: Sequence[Participant],
        objects: Sequence[Object] = (),
        event_type: Code | None = None,
        description: str = "",
    ) -> None:
        self.write([self.message(event, action, outcome, participants, objects, event_type, description)])

    def _alert(
        self,
        event_type: Code,
        address: str,
        alert: str,
        outcome: Outcome = Outcome.MINOR_FAILURE,
        participants: Sequence[Participant] = (),
    ) -> None:
        by = participants or [self._ourselves(is_requestor=False)]
        objects = [said.node(address, alert)]
        self._write(said.SECURITY_ALERT, Action.EXECUTE, outcome, by, objects, event_type)

    def _activity(self, event_type: Code) -> None:
        ourselves = self._ourselves(said.APPLICATION, is_requestor=False)
        self._write(
            said.APPLICATION_ACTIVITY, Action.EXECUTE, Outcome.SUCCESS, [ourselves], event_type=event_type
        )

    def _authentication(self, event_type: Code, user: str, address: str, fault: str = "") -> None:
        self._write(
            said.USER_AUTHENTICATION,
            Action.EXECUTE,
            Outcome.MINOR_FAILURE if fault else Outcome.SUCCESS,
            [Participant(user, True, address=address), self._ourselves(is_requestor=False)],
            event_type=event_type,
            description=fault,
        )

    def _ourselves(self, role: Code | None = None, *, is_requestor: bool) -> Participant:
        """Return this process (A.5.2.1: by its number; A.5.2.2: with its AE title)."""
        return Participant(
            str(os.getpid()), is_requestor, role, self._ae_title, f"hilum {self._role}", _source()
        )


class Transfer:
    """Objects that go over one association or request: one message a study, patient and outcome.

    For one thread at a time. What it holds is written by `write`, and every minute of a transfer that lasts.
    """

    def __init__(self, audit: Audit, participants: Sequence[Participant]) -> None:
        self._audit = audit
        self._participants = participants
        self._held: dict[tuple[str, str, str, Action, str], Counter[str]] = {}
        self._since = 0.0

    def add(
        self,
        study_instance_uid: str,
        patient_id: str,
        issuer: str,
        sop_class_uid: str,
        action: Action,
        fault: str = "",
    ) -> None:
        """Add one object; with a `fault` it was not taken."""
        if not self._held:
            self._since = time.monotonic()
        key = (study_instance_uid, patient_id, issuer, action, fault)
        self._held.setdefault(key, Counter())[sop_class_uid] += 1
        if time.monotonic() - self._since > _TRANSFER_SECONDS:
            self.write()

    def add_received(self, header: Header, action: Action, fault: str = "") -> None:
        """Add one object that came to us."""
        patient = header.subject
        self.add(
            header.study_instance_uid,
            patient.patient_id,
            patient.issuer_of_patient_id,
            header.sop_class_uid,
            action,
            fault,
        )

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Tell what is refused within the block: an object that did not say yet whose it is."""
        try:
            yield
        except OutOfResources:
            raise  # whatever it is: there is no room
        except HilumError as fault:
            source = self._participants[0]
            self._audit.unreadable(source.address, source.user_id, fault.code)
            raise

    def write(self) -> None:
        """Write what there is (A.5.3.7)."""
        held, self._held = self._held, {}
        self._audit.write(
            [
                self._audit.message(
                    said.INSTANCES_TRANSFERRED,
                    action,
                    Outcome.MINOR_FAILURE if fault else Outcome.SUCCESS,
                    self._participants,
                    [said.study(study, classes), said.patient(patient_id, issuer)],
                    description=fault,
                )
                for (study, patient_id, issuer, action, fault), classes in held.items()
            ]
        )


class _Repeats:
    """Tells when something that comes again and again is to be told again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._told: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()

    def due(self, key: tuple[str, ...]) -> int | None:
        """Return how often it came since it was told, None when it is not to be told now."""
        with self._lock:
            told_at, before = self._told.pop(key, (-self._seconds, 0))
            moment = time.monotonic()
            due = moment - told_at >= self._seconds
            self._told[key] = (moment, 0) if due else (told_at, before + 1)
            while len(self._told) > _MOST_KINDS:
                self._told.popitem(last=False)
            return before if due else None

    def forget(self, key: tuple[str, ...]) -> None:
        with self._lock:
            self._told.pop(key, None)


def trail_folder(settings: Settings) -> Path:
    """Return where the trail of this data folder lies."""
    return settings.data_dir.resolve() / "audit"


def _again(before: int) -> str:
    return f" ({before} times more since this was told last)" if before else ""


def _source() -> str:
    return socket.gethostname()
