"""What mends it, in plain words: a failure, a refusal of a report, of an image or of a caller.

Tables of what a message begins with or holds; the messages are those of the code that writes them
(`tests/viewers/test_walk.py` causes them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Step:
    """One thing to do; a command to copy, or a button of the study's page."""

    text: str
    command: str | None = None
    button: Literal["retry", "as_built"] | None = None


NOTHING = Step("Nothing: it goes on by itself.")
DISK_STEPS = (
    Step("What the system says of the disk, and whether it is mounted read-only:", "dmesg | tail; mount"),
    Step("See how full it is:", "df -h"),
    Step("Mend the disk or mount it for writing. Everything goes on by itself then, and senders send again."),
)
LEDGER_STEPS = (
    Step(
        "With Docker: bring PostgreSQL back; Hilum connects again by itself.",
        "docker compose restart postgres",
    ),
    Step(
        "With SQLite: end what holds the ledger locked, such as a backup program.", "fuser -v ledger.sqlite3"
    ),
    Step("With either: see that its disk has room, and is not mounted read-only.", "df -h; mount"),
    Step("What was answered with success is safe. Images that come meanwhile are refused, and sent again."),
)
_RETRY = Step("Then give it another try.", button="retry")
_AGAIN = Step("Then let the PACS send the study again.")

_FAILURES: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "died",
        (
            Step(
                "The film ended the process that worked on it three times: too little memory, or a damaged "
                "file. Other films go on."
            ),
            Step(
                "Give the worker more memory if its log speaks of memory (MemoryError, signal 9).",
                "docker compose logs --since 1h worker-decode",
            ),
            _RETRY,
            Step("A film that fails again: keep the file, and report it as a fault of Hilum."),
        ),
    ),
    (
        "MemoryError",
        (Step("Give the worker more memory (`mem_limit` in docker-compose.yml)."), _RETRY),
    ),
    (
        "its file is gone",
        (Step("The data folder lost the file. Is the right folder mounted?", "hilum doctor"), _AGAIN),
    ),
    (
        "FileNotFound",
        (Step("The data folder lost a file. Is the right folder mounted?", "hilum doctor"), _AGAIN),
    ),
)
_ANY_FAILURE = (
    Step("The bracket names the kind of the fault; the worker's log has the rest.", "hilum doctor"),
    _RETRY,
    Step("If it fails again: keep the film, and report it as a fault of Hilum."),
)

_REFUSALS: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "identity",
        (
            Step(
                "The PACS files this study under another patient than the images name. Correct the patient "
                "in the PACS, or send the corrected images here again: the report is built anew."
            ),
            _RETRY,
            Step("If the report names the right patient, it can go as it is.", button="as_built"),
        ),
    ),
    (
        "SOP class",
        (
            Step("Let the PACS accept “Comprehensive 3D SR”, “Comprehensive SR” or “Enhanced SR” from us."),
            Step("Or send it another form: in HILUM_CONFIG, under this destination.", 'sr = "text"'),
            _RETRY,
        ),
    ),
    (
        "accepts neither",
        (
            Step("Let the PACS accept “Comprehensive 3D SR” or “Comprehensive SR” from us."),
            Step("Or send it another form: in HILUM_CONFIG, under this destination.", 'sr = "text"'),
            _RETRY,
        ),
    ),
    (
        "transfer syntax",
        (Step("Let the PACS accept Explicit VR Little Endian for this kind of object."), _RETRY),
    ),
    (
        "not authorised",
        (Step("Let the PACS's administrator allow our AE title (HILUM_AE_TITLE) to store."), _RETRY),
    ),
    (
        "cannot understand",
        (Step("The PACS could not process it, five times. Its own log of that time says why."), _RETRY),
    ),
    (
        "does not hold the object",
        (
            Step(
                "The PACS said yes three times, and does not have it. Ask its administrator: an import "
                "queue, a rule that drops structured reports, a full volume."
            ),
            _RETRY,
        ),
    ),
    (
        "not sent: made",
        (
            Step("It was made later than this destination wants reports (`expires_after` in HILUM_CONFIG)."),
            Step("To send it after all:", button="retry"),
        ),
    ),
    (
        "no destination",
        (
            Step("Put the destination back under its name (HILUM_DESTINATIONS, HILUM_CONFIG), or leave it."),
            _RETRY,
        ),
    ),
    (
        "file is gone",
        (Step("The data folder lost the report. Is the right folder mounted?", "hilum doctor"), _AGAIN),
    ),
)
_ANY_REFUSAL = (
    Step("Ask the PACS's administrator what its log says of that time, and mend it there."),
    _RETRY,
)

_NOT_YET: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "out of resources",
        (
            NOTHING,
            Step(
                "If it lasts: ask the PACS's administrator whether it is full, or refuses to import just now."
            ),
        ),
    ),
)
_ANY_NOT_YET = (
    NOTHING,
    Step("If it lasts: ask the PACS's administrator what its log says of that time."),
)

_REASONS: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "left out by the rule",
        (
            Step(
                "A rule in the file of HILUM_CONFIG says so. If that is not meant, look which rule speaks of "
                "a film, and why:",
                "hilum rules test FILE --calling AET",
            ),
            Step("With the rule changed:", button="retry"),
        ),
    ),
    (
        "age unknown",
        (
            Step(
                "The images say neither age nor birth date. Fill Patient's Age or Patient's Birth Date in "
                "on the modality, and send the images again."
            ),
            Step(
                "Or let such studies be scored with that limit stated, from the next start of Hilum on.",
                "HILUM_POPULATION=flag",
            ),
        ),
    ),
    (
        "outside the validated population",
        (
            Step("Nothing: the network knows patients of those ages only, and guesses about nobody else."),
            Step(
                "For research such studies can be scored with that limit stated, from the next start on.",
                "HILUM_POPULATION=flag",
            ),
        ),
    ),
    (
        "not a frontal chest radiograph (",
        (
            Step("Nothing, if that is what the images are."),
            Step(
                "If it is a frontal chest film, its header says otherwise: correct modality, body part or "
                "view position where the images come from, and send them again."
            ),
        ),
    ),
    (
        "not a frontal chest radiograph",
        (
            Step("Look at the film on this page: its pixels do not look like an upright frontal chest."),
            Step("If it is one (rotated, cropped, badly exposed), a corrected film can be sent again."),
        ),
    ),
    (
        "pixel data cannot be decoded",
        (Step("The file itself is damaged, or no radiograph: let the modality send it again."),),
    ),
    (
        "the archive rejected",
        (Step("Nothing: the archive took the images out of use, and Hilum follows it."),),
    ),
    ("removed", (Step("Send the study again from the PACS: it is analysed anew."),)),
)
_ANY_REASON = (Step("Nothing: only frontal chest radiographs are analysed."),)


_REFUSED: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "nearly full",
        (
            Step("The disk was full. See what may go:", "hilum purge --expired --dry-run"),
            Step("Else:", "df -h"),
        ),
    ),
    ("the object cannot be", DISK_STEPS),
    ("the data folder cannot be", DISK_STEPS),
    ("the ledger cannot be", LEDGER_STEPS),
    (
        "HILUM_MAX_OBJECT_BYTES",
        (Step("Raise that setting and start the listener again, or let the router keep such objects."),),
    ),
)
_ANY_REFUSED = (
    Step(
        "The image itself is not as DICOM wants it. Ask whoever runs the modality or the router, with this "
        "reason; other images are not concerned."
    ),
)

_CERTIFICATE_OF_THE_CALLER = (
    Step("Give the router a certificate that is valid and signed by a CA of HILUM_DIMSE_TLS_CA_FILE."),
)
_HANDSHAKE = (
    Step(
        "If that is the router: let it speak TLS 1.2 or 1.3 on HILUM_DIMSE_TLS_PORT, with a cipher suite of "
        "deploy/conformance.md, or use the port without TLS."
    ),
)
_REJECTED: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "nobody is known",
        (
            Step(
                "Put its AE title into HILUM_CALLING_AE_TITLES (or `[peers.TITLE]` into the file of "
                "HILUM_CONFIG) and start the listener again; or set the title right on the router."
            ),
        ),
    ),
    (
        "another AE title than ours",
        (Step("Let the router call our AE title, which stands on the system page (HILUM_AE_TITLE)."),),
    ),
    (
        "another address",
        (Step("Put its address among `addresses` of its `[peers.NAME]`, and start the listener again."),),
    ),
    (
        "without TLS",
        (Step("Let the router use the port with TLS and its certificate (HILUM_DIMSE_TLS_PORT)."),),
    ),
    (
        "by TLS",
        (Step("Put what its certificate is called into `certificates` of its `[peers.NAME]`."),),
    ),
    (
        "no room now",
        (
            Step(
                "It tries again by itself. If it happens often, raise that setting and restart the listener."
            ),
        ),
    ),
    ("its certificate", _CERTIFICATE_OF_THE_CALLER),
    ("shows no certificate", _CERTIFICATE_OF_THE_CALLER),
    (
        "our certificate",
        (Step("Let it believe the CA of our certificate. Whether ours has ended:", "hilum doctor"),),
    ),
    ("TLS", _HANDSHAKE),
    ("cipher suite", _HANDSHAKE),
)
_ANY_REJECTED = (Step("What the listener's log says of it:", "docker compose logs --since 1h listener"),)


def away_steps(name: str) -> list[Step]:
    """Return what to do about a destination that cannot be reached."""
    return [
        Step(f"See that {name} runs, that its address and AE title are right, and that it lets ours in."),
        Step("Ask from this machine:", "hilum doctor"),
    ]


def refusal_steps(reason: str) -> Sequence[Step]:
    """Return what to do about an object that was not taken in."""
    return _first(_REFUSED, reason, _ANY_REFUSED)


def rejection_steps(reason: str) -> Sequence[Step]:
    """Return what to do about a caller that was not let in."""
    return _first(_REJECTED, reason, _ANY_REJECTED)


def failure_steps(reason: str) -> Sequence[Step]:
    """Return what to do about a study that failed."""
    return _first(_FAILURES, reason, _ANY_FAILURE)


def delivery_steps(error: str) -> Sequence[Step]:
    """Return what to do about a report that a destination refused."""
    return _first(_REFUSALS, error, _ANY_REFUSAL)


def note_hint(attention: str) -> str:
    """Return what to do about something that needs a person beside the report, in a sentence or none."""
    if "other pixels" in attention:
        return (
            "Ask who sent it. If the later film is right, have it sent under a SOP Instance UID of its own."
        )
    if "could not be compared" in attention:
        return "Have it sent again from where it came, or press Retry once it can be decoded."
    return ""


def pending_steps(error: str) -> Sequence[Step]:
    """Return what to do about a report that a destination has not taken yet."""
    return _first(_NOT_YET, error, _ANY_NOT_YET)


def reason_steps(reason: str) -> Sequence[Step]:
    """Return what to do about images that were not analysed."""
    return _first(_REASONS, reason, _ANY_REASON)


def _first(
    table: Sequence[tuple[str, Sequence[Step]]], said: str, otherwise: Sequence[Step]
) -> Sequence[Step]:
    return next((steps for part, steps in table if part in said), otherwise)
