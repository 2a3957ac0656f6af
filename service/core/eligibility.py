"""Which objects the network may look at, as far as the header tells; the pixels are asked afterwards.

Three answers. *Candidate*: the pixels decide. *Not analysed*: a radiograph that gets a reason instead of a
number. *Ignored*: no radiograph for us at all (CT, SR, presentation states, our own results).
"""

from dataclasses import dataclass
from enum import StrEnum

from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from service.core.header import Header
from service.core.terms import BODY_PARTS, MODALITIES, VIEW_POSITIONS, shown

RADIOGRAPH_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
NOT_A_FRONTAL_CHEST_RADIOGRAPH = "not a frontal chest radiograph"

# CR, DX and RG are the defined terms of C.7.3.1.1.1 for radiographs; XR and XC turn up for none.
_RADIOGRAPH_MODALITIES = {"CR", "DX", "RG"}
# PS3.16 Annex L. RIB and RIBCAGE films hold a whole thorax, so their pixels decide; an empty value says
# nothing.
_CHEST_BODY_PARTS = {"", "CHEST", "THORAX", "LUNG", "LUNGS", "RIB", "RIBS", "RIBCAGE", "CHESTABDOMEN"}
# CID 4031 in SCT and its retired SRT: chest, thorax, lung, rib, chest and abdomen.
_CHEST_REGIONS = {
    *("816094009", "51185008", "39607008", "113197003", "416550000"),
    *("T-D3000", "T-28000", "T-11300"),
}
_FRONTAL_VIEWS = {"", "AP", "PA", "XX"}
# CID 4010 in SCT and its retired SRT: antero-posterior, postero-anterior, frontal.
_FRONTAL_VIEW_CODES = {"399348003", "272479007", "399033003", "R-10206", "R-10214", "R-40888"}
_HUMAN = {"", "HUMAN", "HOMO SAPIENS", "PERSON"}


class Eligibility(StrEnum):
    CANDIDATE = "candidate"
    NOT_ANALYSED = "not_analysed"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Verdict:
    """What the header says; `reason` is empty for a candidate."""

    eligibility: Eligibility
    reason: str = ""


def assess(header: Header) -> Verdict:
    """Return whether the film may go on to the pixels, with the reason when it may not."""
    if header.sop_class_uid not in RADIOGRAPH_CLASSES:
        return Verdict(Eligibility.IGNORED, f"not a radiograph: {header.sop_class_uid.name}")
    if "SECONDARY" in header.image_type[1:2]:
        return Verdict(Eligibility.IGNORED, "a secondary image (Image Type value 2 is SECONDARY)")
    if "LOCALIZER" in header.image_type[2:3]:
        return Verdict(Eligibility.IGNORED, "a localizer")
    if header.modality not in _RADIOGRAPH_MODALITIES:
        return _refused(f"modality {shown(header.modality, MODALITIES)}")
    if header.species not in _HUMAN:
        return _refused("the patient is an animal")
    if header.region_codes and not _CHEST_REGIONS.intersection(header.region_codes):
        return _refused("another anatomic region")
    if not header.region_codes and header.body_part_examined not in _CHEST_BODY_PARTS:
        return _refused(f"body part {shown(header.body_part_examined, BODY_PARTS)}")
    if header.view_position not in _FRONTAL_VIEWS:
        return _refused(f"view position {shown(header.view_position, VIEW_POSITIONS)}")
    if (
        not header.view_position
        and header.view_codes
        and not _FRONTAL_VIEW_CODES.intersection(header.view_codes)
    ):
        return _refused("another view")
    if header.number_of_frames != 1:
        return _refused(f"{header.number_of_frames} frames")
    return Verdict(Eligibility.CANDIDATE)


def says_chest(header: Header) -> bool:
    """Return whether the header calls the object a chest radiograph, whatever the view.

    A reader expects an answer about such a film, so "not analysed" is one. An empty body part says nothing.
    """
    if assess(header).eligibility is Eligibility.IGNORED or header.modality not in _RADIOGRAPH_MODALITIES:
        return False
    if header.species not in _HUMAN:
        return False
    if header.region_codes:
        return bool(_CHEST_REGIONS.intersection(header.region_codes))
    return header.body_part_examined in _CHEST_BODY_PARTS - {""}


def burned_in_limit(header: Header) -> str | None:
    """Return that marks are burned into the film, when its header says so (PS3.3 C.7.6.1), or None."""
    if header.burned_in_annotation == "YES":
        return "marks are burned into the film (Burned In Annotation is YES)"
    return None


def population_limit(age_years: float | None, ages: tuple[float, float]) -> str | None:
    """Return why the patient lies outside the population the weights were validated for, or None.

    Parameters
    ----------
    age_years
        Of the patient when the film was taken; None when unknown.
    ages
        Lowest and highest age in completed years, both inside.
    """
    low, high = ages
    validated = f"validated for {low:g} to {high:g} years"
    if age_years is None:
        return f"outside the validated population (age unknown; {validated})"
    if not low <= age_years < high + 1:
        return f"outside the validated population ({int(age_years)} years; {validated})"
    return None


def _refused(why: str) -> Verdict:
    return Verdict(Eligibility.NOT_ANALYSED, f"{NOT_A_FRONTAL_CHEST_RADIOGRAPH} ({why})")
