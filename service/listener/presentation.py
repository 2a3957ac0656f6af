"""What the listener offers: every storage class, in every transfer syntax that Hilum can decode.

A router pushes whole studies; an SR or a CT slice that rides along is answered with success and recorded as
ignored, because a refused object makes many routers send the whole study again.
"""

from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from service.core.syntaxes import OFFERED


def supported_contexts() -> list[PresentationContext]:
    """Return the presentation contexts of the listener as acceptor."""
    classes = dict.fromkeys(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
    return [build_context(Verification), *(build_context(name, list(OFFERED)) for name in classes)]
