"""Who called last, for the system page: kept in memory, and told with the listener's signs of life."""

from pynetdicom.association import Association

from service.core.ledger import now


class Callers:
    """The newest association, C-ECHO, rejection of an association and refusal of an object."""

    def __init__(self) -> None:
        self._newest: dict[str, dict[str, str]] = {}

    def called(self, what: str, association: Association, reason: str = "") -> None:
        """Remember who called; `what` is "association", "echo", "rejection" or "refusal"."""
        requestor = association.requestor
        self.came(what, str(requestor.ae_title).strip(), str(requestor.address), reason)

    def came(self, what: str, ae_title: str, address: str, reason: str = "") -> None:
        """Do the same for a caller that got no association."""
        self._newest[what] = {
            "at": now().isoformat(),
            "ae_title": ae_title[:16],
            "address": address,
            "reason": reason,
        }

    def about(self) -> dict[str, dict[str, str]]:
        """Return the newest of each."""
        return dict(self._newest)
