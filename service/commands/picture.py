"""A JPEG or PNG of a film as a DICOM object, for trying the gateway with what is at hand."""

import hashlib
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from model.preprocess import read_image
from service.core.identifiers import derived_uid


def film_of_picture(path: Path) -> Dataset:
    """Return the picture as a DX film For Presentation of an unnamed patient of unknown age.

    The same file gives the same UIDs. Pixels keep their 8 or 16 bits, MONOCHROME2.
    """
    pixels = np.ascontiguousarray(read_image(path))
    pixels = pixels if pixels.dtype == np.uint8 else pixels.astype("<u2")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SpecificCharacterSet = "ISO_IR 192"
    film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = derived_uid("picture", digest)
    film.StudyInstanceUID = derived_uid("picture study", digest)
    film.SeriesInstanceUID = derived_uid("picture series", digest)
    film.Modality, film.PresentationIntentType = "DX", "FOR PRESENTATION"
    film.ImageType = ["DERIVED", "PRIMARY"]
    film.PatientName, film.PatientID = "Picture^Demo", f"DEMO-{digest[:8]}"
    film.PatientBirthDate = film.PatientSex = film.StudyDate = film.StudyTime = ""
    film.AccessionNumber = film.StudyID = film.ReferringPhysicianName = film.Manufacturer = ""
    film.BodyPartExamined, film.ViewPosition = "CHEST", ""
    film.SeriesNumber = film.InstanceNumber = 1
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = pixels.shape
    film.BitsAllocated = film.BitsStored = 8 * pixels.itemsize
    film.HighBit, film.PixelRepresentation = film.BitsStored - 1, 0
    # The window that a display would open with: all that the picture holds.
    top = 2**film.BitsStored
    film.WindowCenter, film.WindowWidth = top // 2, top
    film.PixelData = pixels.tobytes()
    return film
