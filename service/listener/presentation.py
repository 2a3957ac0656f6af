"""What the listener offers: every storage class, in every transfer syntax that Hilum can decode.

A router pushes whole studies; an SR or a CT slice that rides along is answered with success and recorded as
ignored, because a refused object makes many routers send the whole study again. A destination of ours may
also bring the answer to a storage commitment; commitment itself is not offered, since a modality may then
delete its only copy.
"""

from dataclasses import dataclass

from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from service.core.syntaxes import OFFERED


@dataclass(frozen=True)
class Offer:
    """A presentation context, and its abstract syntax as it stands in a request."""

    context: PresentationContext
    name: bytes

    @classmethod
    def of(cls, context: PresentationContext) -> "Offer":
        """Return the offer of a context."""
        return cls(context, str(context.abstract_syntax).encode())


def verification_context() -> PresentationContext:
    """Return the presentation context for C-ECHO."""
    return build_context(Verification)


def storage_contexts() -> list[PresentationContext]:
    """Return the presentation contexts for who may send."""
    classes = dict.fromkeys(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
    return [build_context(name, list(OFFERED)) for name in classes]


def commitment_context() -> PresentationContext:
    """Return the presentation context for a destination that answers a storage commitment (PS3.4 J.3.3).

    It requests the association and is the SCP (PS3.7 D.3.3.4).
    """
    context = build_context(StorageCommitmentPushModel)
    context.scu_role, context.scp_role = False, True
    return context
