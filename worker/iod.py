"""What highdicom asks again and again, of the standard's tables and of codes, looked up once.

Whether an IOD has an attribute is searched for in all of its modules each time, eight times an object: a
tenth of a report's time. Which modality an image is of is looked up in a table that is made anew twice for
each image of the library. A code becomes a data set anew each time it names an item: another tenth. The
tables ship with highdicom and never change; to read those of the IODs takes most of a second and 100 MB, so
a pool does it before it forks.
"""

import sys
from functools import cache

from highdicom import _standard_utils
from highdicom.sr import CodedConcept, templates
from pydicom.sr.coding import Code
from pydicom.uid import ComputedRadiographyImageStorage

_ASKED = (
    (_standard_utils, "does_iod_have_pixel_data", (ComputedRadiographyImageStorage,)),
    (_standard_utils, "is_attribute_in_iod", ("PixelData", ComputedRadiographyImageStorage)),
    (templates, "_get_coded_modality", (ComputedRadiographyImageStorage,)),
)

_HASH = "_hilum_hash"


def _remembered_hash(concept: CodedConcept) -> int:
    """Return what `CodedConcept.__hash__` does: a code is not changed once it has been made.

    Every content item is filed under the hash of its name two or three times, and each time two attributes of
    a data set were asked for: a tenth of a report's time.
    """
    kept = vars(concept)
    found: int | None = kept.get(_HASH)
    if found is None:
        found = kept[_HASH] = hash(concept.scheme_designator + concept.value)
    return found


@cache
def _concept_of(*code: str) -> CodedConcept:
    return CodedConcept(*code)


def _remembered_concept(code: Code | CodedConcept) -> CodedConcept:
    """Do what `CodedConcept.from_code` does, once for each of the few codes that there are."""
    return code if isinstance(code, CodedConcept) else _concept_of(*code)


def remember() -> None:
    """Let every module of highdicom that asks hear the first answer again; a second call changes nothing."""
    CodedConcept.__hash__ = _remembered_hash  # type: ignore
    CodedConcept.from_code = staticmethod(_remembered_concept)  # type: ignore
    for home, name, first in _ASKED:
        asked = getattr(home, name, None)
        if asked is None:  # another highdicom than the pinned one: it asks as it does
            continue
        answered = cache(asked)
        answered(*first)  # reads the tables
        for module in list(sys.modules.values()):
            asks = module.__name__.startswith("highdicom.") and module is not _standard_utils
            if asks and getattr(module, name, None) is asked:
                setattr(module, name, answered)
