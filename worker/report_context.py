"""What goes into a result object, and what every one of them says about its making."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from highdicom import ContributingEquipment
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from service.core.population import Population
from service.core.results import Finding, ModelIdentity, Result
from worker import codes

MANUFACTURER = "Hilum"


@dataclass(frozen=True)
class ImageResult:
    """One film behind a report.

    Attributes
    ----------
    source
        Header of the source instance, read without its pixels.
    result
        The answer for this film.
    activation
        float32 (h, w) in [0, 1]: class activation map covering the whole film edge to edge, in the
        orientation of the stored pixels; None without a map.
    film
        uint16 (h', w'), 0 black to 65535 white: the film as displayed, whole, long side at most 1024, in
        the orientation of the stored pixels; None when there is no picture.
    """

    source: Dataset
    result: Result
    activation: NDArray[np.float32] | None = None
    film: NDArray[np.uint16] | None = None

    @property
    def analysed(self) -> bool:
        """Whether the film has a number."""
        return self.result.finding is not Finding.NOT_ANALYSED


@dataclass(frozen=True)
class Predecessor:
    """The document that a revision replaces (Predecessor Documents Sequence, PS3.3 C.17.2)."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class ReportContext:
    """What a result object says beyond the results; everything that makes it this object and no other.

    Attributes
    ----------
    conclusion
        The study's result.
    activation_method
        How the activation map is computed, as the weights state it; up to 900 characters.
    series_instance_uid, sop_instance_uid, instance_number
        Identity of the object to build; the instance number is the revision.
    predecessors
        What this revision replaces; empty for the first.
    device_uid, device_serial_number
        This installation: one UID for its whole life, at most 64 characters each.
    software_version
        Version of the gateway.
    at
        Aware time of creation, in the site's own zone.
    device_name
        Name of the installation, by its AE title.
    feedback_url
        Where a reader says what they think of the result; empty without a page to go to.
    population
        On whom the network was validated; None where nobody kept it.
    beside
        Whether it stands beside earlier revisions: they speak of images that it cannot speak of any more.
    """

    conclusion: Result
    model: ModelIdentity
    activation_method: str
    series_instance_uid: str
    sop_instance_uid: str
    instance_number: int
    revision: int
    predecessors: tuple[Predecessor, ...]
    device_uid: str
    device_serial_number: str
    software_version: str
    at: datetime
    device_name: str = "HILUM"
    feedback_url: str = ""
    beside: bool = False
    population: Population | None = None


def identity(
    context: ReportContext, at: datetime, series_number: int, series_description: str
) -> dict[str, Any]:
    """Return what every constructor of highdicom takes: series, instance, equipment, times.

    Parameters
    ----------
    at
        Local time of creation, from `worker.source.local_time`.
    series_number, series_description
        Of the kind of object.
    """
    return {
        "series_instance_uid": context.series_instance_uid,
        "series_number": series_number,
        "series_description": series_description,
        "sop_instance_uid": context.sop_instance_uid,
        "instance_number": context.instance_number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": context.software_version,
        "device_serial_number": context.device_serial_number,
        "transfer_syntax_uid": ExplicitVRLittleEndian,
        "content_date": at.date(),
        "content_time": at.time(),
        "series_date": at.date(),
        "series_time": at.time(),
    }


def reference(header: Dataset) -> Dataset:
    """Return an item that refers to an instance (SOP Instance Reference Macro, PS3.3 table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def processing_algorithm(context: ReportContext) -> ContributingEquipment:
    """Return the Contributing Equipment item of the network (IHE AIR 6.5.3.1).

    It is known by the hash of its weights, so that it is another device whenever the weights change.
    """
    item = ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.PROCESSING_EQUIPMENT,
        manufacturer_model_name=context.model.name,
        software_versions=context.model.version,
        device_serial_number=context.model.sha256,
        contribution_description="Algorithm that computed the result",
    )
    # highdicom knows the purposes of CID 7005 only.
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.PROCESSING_ALGORITHM)]
    return item


def names_of(model: ModelIdentity) -> list[str]:
    """Return how `processing_algorithm` calls the network: text of ours, which a character set must fit."""
    return [model.name, model.version]


def set_creation(report: Dataset, at: datetime) -> None:
    """Replace the moments that highdicom took from the clock, so that a rebuilt object has the same bytes."""
    report.InstanceCreationDate = at.strftime("%Y%m%d")
    report.InstanceCreationTime = at.strftime("%H%M%S")
    for equipment in report.ContributingEquipmentSequence:
        if equipment.get("ManufacturerModelName") == "highdicom":
            equipment.ContributionDateTime = at.strftime("%Y%m%d%H%M%S")
