"""Every error Hilum raises on purpose, and what each one means at its doors.

::

    HilumError
    ├── ConfigurationError        a setting, file or dependency is wrong: the start stops
    ├── Refused                   the object cannot be taken as it is
    │   ├── Unreadable            C000  the bytes are no DICOM data set
    │   ├── InvalidUID            0117  a UID breaks PS3.5 9.1
    │   ├── Mismatch              A900  command, file meta or URL and data set name different objects
    │   └── SyntaxNotOffered      C122  a transfer syntax we do not take (STOW-RS; C-STORE never gets there)
    ├── OutOfResources            A700  disk full, ledger unreachable: the sender tries again
    │   └── TooLarge              A700  longer than HILUM_MAX_OBJECT_BYTES
    ├── Undecodable               the pixels cannot be turned into a film
    ├── LeaseLost                 somebody else owns this piece of work now
    └── DeliveryError             a destination did not take a report
        ├── TransientDelivery     try again later
        │   └── Unanswered        it took a question and did not answer it
        └── PermanentDelivery     park it and tell a person
            └── NotAccepted       the destination does not take this SOP class at all

Each class carries its code, its DIMSE status (PS3.4 B.2.3, PS3.7 C; the same values are the failure reasons
of PS3.18 I.2.2), its HTTP status and whether a retry can help; nothing else in the code maps an error to a
status.
"""

from typing import ClassVar

CONFIGURATION_EXIT_CODE = 2
"""Of a process that can't start as it is configured: to start it again helps nobody."""


class HilumError(Exception):
    """Root of the tree; the message is written for the person who reads it."""

    code: ClassVar[str] = "internal"
    dimse_status: ClassVar[int] = 0x0110
    http_status: ClassVar[int] = 500
    retry_helps: ClassVar[bool] = False


class ConfigurationError(HilumError):
    """Hilum can't start as it is configured; the message lists every fault with its mend."""

    code = "configuration"


class Refused(HilumError):
    """The received object cannot be taken; sending it again unchanged gives the same answer."""

    code = "refused"
    dimse_status = 0xC000
    http_status = 400


class Unreadable(Refused):
    """The bytes are not a DICOM data set that names its study, series and instance."""

    code = "unreadable"


class InvalidUID(Refused):
    """A UID is malformed (PS3.5 9.1: digits and dots, at most 64 characters)."""

    code = "invalid-uid"
    dimse_status = 0x0117


class Mismatch(Refused):
    """The data set is of another SOP class, instance or study than its sender named."""

    code = "mismatch"
    dimse_status = 0xA900


class SyntaxNotOffered(Refused):
    """The object is encoded in a transfer syntax that we do not take (PS3.18 table I.2-2)."""

    code = "syntax-not-offered"
    dimse_status = 0xC122


class OutOfResources(HilumError):
    """Disk or ledger cannot keep the object now; the sender should send it again."""

    code = "out-of-resources"
    dimse_status = 0xA700
    http_status = 503
    retry_helps = True


class TooLarge(OutOfResources):
    """The object is longer than this site takes (HILUM_MAX_OBJECT_BYTES)."""

    code = "too-large"
    http_status = 413
    retry_helps = False


class Undecodable(HilumError):
    """The pixel data cannot be turned into a film; the message says why."""

    code = "undecodable"


class LeaseLost(HilumError):
    """The lease ran out and the work belongs to somebody else: drop the result."""

    code = "lease-lost"


class DeliveryError(HilumError):
    """A destination did not take a report."""

    code = "delivery"


class TransientDelivery(DeliveryError):
    """The destination is away or busy: try again later."""

    code = "delivery-transient"
    retry_helps = True


class Unanswered(TransientDelivery):
    """The destination took a query and ended the association, or said nothing."""

    code = "delivery-unanswered"


class PermanentDelivery(DeliveryError):
    """The destination refuses the object itself: park it until a person looks."""

    code = "delivery-permanent"


class NotAccepted(PermanentDelivery):
    """The destination does not take this SOP class: another form of the object may do."""

    code = "delivery-not-accepted"
