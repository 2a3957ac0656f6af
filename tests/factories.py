"""DICOM objects made on demand, of patients who never lived.

Every UID follows from the seeds, so that the same call gives the same object, byte for byte. Objects of one
`study` seed belong to one study and one patient. Any attribute can be set by its keyword; None removes it.
"""

import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

Pixels = npt.NDArray[np.uint16]
Seed = int | str

_DATE = "20260115"
_TIME = "101500"
# What the class CR does not have of the class DX.
_DX_ONLY = (
    "PresentationIntentType",
    "AcquisitionContextSequence",
    "PresentationLUTShape",
    "PositionerType",
    "DetectorType",
    "DetectorConfiguration",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "ViewCodeSequence",
)
# pydicom writes none of these.
_DCMCJPEG = {JPEGBaseline8Bit: "+eb", JPEGExtended12Bit: "+ee", JPEGLossless: "+el", JPEGLosslessSV1: "+e1"}


class _Source(NamedTuple):
    """Pixels that a film is made of, and what they mean."""

    pixels: Pixels
    bits_stored: int
    photometric_interpretation: str


def chest_film(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a frontal chest radiograph (DX, For Presentation) of a child of three, with real pixels.

    Parameters
    ----------
    seed
        Decides SOP Instance UID and noise, so that two seeds give two films.
    **options
        `study` (seed of study and patient; the film's own seed when left out), `rows` and `columns` (1955 by
        1841, 7 MB, when left out), `photometric_interpretation` (MONOCHROME1, as in the source, when left
        out), and DICOM attributes by keyword.
    """
    return _radiograph(seed, _source("RG1_UNCR.dcm"), options)


def phantom_chest(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a small frontal film of drawn lungs, quick to make; `options` as of `chest_film`."""
    rows, columns = options.pop("rows", 256), options.pop("columns", 224)
    return _radiograph(seed, _Source(_drawn_chest(rows, columns), 12, "MONOCHROME2"), options)


def lateral_film(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a lateral chest radiograph by its header; `options` as of `chest_film`."""
    view = {
        "ViewPosition": "LL",
        "ViewCodeSequence": Sequence([_code("399173006", "left lateral")]),
        "PatientOrientation": ["A", "F"],
        "SeriesDescription": "Chest lateral",
        "series": 2,
    }
    return chest_film(seed, **view, **options)


def for_processing_film(seed: Seed = 0, **options: Any) -> Dataset:
    """Return the For Processing film that goes with `chest_film` of the same study."""
    raw = {
        "SOPClassUID": DigitalXRayImageStorageForProcessing,
        "PresentationIntentType": "FOR PROCESSING",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SeriesDescription": "Chest AP raw",
        "WindowCenter": None,
        "WindowWidth": None,
        "series": 3,
    }
    return chest_film(seed, **raw, **options)


def computed_film(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a frontal chest radiograph of the class CR; `options` as of `chest_film`."""
    dataset = chest_film(
        seed, **{"SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR", **options}
    )
    for keyword in _DX_ONLY:
        if keyword in dataset and keyword not in options:
            delattr(dataset, keyword)
    return dataset


def knee_film(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a radiograph of a lower leg, with a real film's pixels; `options` as of `chest_film`."""
    anatomy = {
        "BodyPartExamined": "KNEE",
        "AnatomicRegionSequence": Sequence([_code("72696002", "Knee")]),
        "StudyDescription": "Knee",
        "SeriesDescription": "Knee AP",
        "ImageLaterality": "R",
        "PatientOrientation": ["R", "F"],
    }
    return _radiograph(seed, _source("RG3_UNCR.dcm"), {**anatomy, **options})


def ct_slice(seed: Seed = 0, **options: Any) -> Dataset:
    """Return an axial slice of a CT of the chest."""
    rows, columns = options.pop("rows", 128), options.pop("columns", 128)
    pixels = _noisy(np.full((rows, columns), 1024, np.uint16), 12, seed)
    dataset = _instance(CTImageStorage, "CT", seed, options)
    dataset.update(
        _attributes(
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            BodyPartExamined="CHEST",
            KVP="100",
            AcquisitionNumber=1,
            FrameOfReferenceUID=_uid("frame of reference", options.get("study", seed)),
            PositionReferenceIndicator="",
            ImagePositionPatient=[0, 0, 0],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[2, 2],
            SliceThickness="1",
            PatientPosition="HFS",
            RescaleIntercept="-1024",
            RescaleSlope="1",
            RescaleType="HU",
        )
    )
    return _finished(dataset, options, pixels, 12, "MONOCHROME2")


def secondary_capture(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a screen shot: an 8-bit image of the class Secondary Capture, marked SECONDARY."""
    pixels = _noisy(_drawn_chest(options.pop("rows", 128), options.pop("columns", 128)) // 16, 8, seed)
    dataset = _instance(SecondaryCaptureImageStorage, "OT", seed, options)
    dataset.update(
        _attributes(
            ImageType=["DERIVED", "SECONDARY"],
            ConversionType="WSD",
            PatientOrientation="",
            BodyPartExamined="CHEST",
        )
    )
    return _finished(dataset, options, pixels, 8, "MONOCHROME2")


def basic_text_sr(seed: Seed = 0, **options: Any) -> Dataset:
    """Return a Basic Text SR as a reporting system writes it."""
    dataset = _instance(BasicTextSRStorage, "SR", seed, options)
    text = _attributes(
        RelationshipType="CONTAINS",
        ValueType="TEXT",
        ConceptNameCodeSequence=Sequence([_code("121071", "Finding", "DCM")]),
        TextValue="No finding. Made for tests.",
    )
    dataset.update(
        _attributes(
            ReferencedPerformedProcedureStepSequence=Sequence(),
            CompletionFlag="COMPLETE",
            VerificationFlag="UNVERIFIED",
            PerformedProcedureCodeSequence=Sequence(),
            ValueType="CONTAINER",
            ContinuityOfContent="SEPARATE",
            ConceptNameCodeSequence=Sequence([_code("18748-4", "Diagnostic imaging report", "LN")]),
            ContentSequence=Sequence([text]),
        )
    )
    return _finished(dataset, options)


def key_object_note(*named: Dataset, code: str = "113001", seed: Seed = 0, **options: Any) -> Dataset:
    """Return a Key Object Selection titled (`code`, DCM), of the study of the first instance it names.

    113001, 113037, 113038 and 113039 make it a rejection note (IHE RAD TF-2 4.66), 113000 a bookmark.
    """
    options.setdefault("study", str(named[0].StudyInstanceUID)[-8:])
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName"):
        options.setdefault(keyword, named[0][keyword].value)
    dataset = _instance(KeyObjectSelectionDocumentStorage, "KO", seed, options)
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for item in named:
        series = studies.setdefault(item.StudyInstanceUID, {})
        series.setdefault(item.SeriesInstanceUID, []).append(_reference(item))
    evidence = [
        _attributes(
            StudyInstanceUID=study_instance_uid,
            ReferencedSeriesSequence=Sequence(
                _attributes(SeriesInstanceUID=uid, ReferencedSOPSequence=Sequence(references))
                for uid, references in series.items()
            ),
        )
        for study_instance_uid, series in studies.items()
    ]
    content = [
        _attributes(
            RelationshipType="CONTAINS", ValueType="IMAGE", ReferencedSOPSequence=Sequence([_reference(item)])
        )
        for item in named
    ]
    dataset.update(
        _attributes(
            ReferencedPerformedProcedureStepSequence=Sequence(),
            CurrentRequestedProcedureEvidenceSequence=Sequence(evidence),
            ValueType="CONTAINER",
            ContinuityOfContent="SEPARATE",
            ConceptNameCodeSequence=Sequence([_code(code, "Title of the note", "DCM")]),
            ContentTemplateSequence=Sequence(
                [_attributes(MappingResource="DCMR", TemplateIdentifier="2010")]
            ),
            ContentSequence=Sequence(content),
        )
    )
    return _finished(dataset, options)


def _reference(instance: Dataset) -> Dataset:
    return _attributes(
        ReferencedSOPClassUID=instance.SOPClassUID, ReferencedSOPInstanceUID=instance.SOPInstanceUID
    )


def write(
    dataset: Dataset, folder: Path, transfer_syntax_uid: UID = ExplicitVRLittleEndian, **encoding: Any
) -> Path:
    """Write a data set as a Part 10 file named by its SOP Instance UID, compressed when the syntax says so.

    Parameters
    ----------
    dataset
        Left as it is.
    folder
        Made when it is not there.
    transfer_syntax_uid
        Any that pydicom writes (uncompressed, deflated, RLE, JPEG-LS, JPEG 2000), or dcmtk's dcmcjpeg (JPEG).
    **encoding
        What pydicom's encoder of a lossy syntax needs, such as ``j2k_cr=[5]``.

    Returns
    -------
    Path
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = deepcopy(dataset)
    written.file_meta = FileMetaDataset()
    written.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if transfer_syntax_uid.is_encapsulated and transfer_syntax_uid not in _DCMCJPEG:
        written.compress(transfer_syntax_uid, generate_instance_uid=False, **encoding)
    elif transfer_syntax_uid not in _DCMCJPEG:
        written.file_meta.TransferSyntaxUID = transfer_syntax_uid
        if not transfer_syntax_uid.is_little_endian and written.get("BitsAllocated") == 16:
            written.PixelData = np.frombuffer(written.PixelData, "<u2").byteswap().tobytes()
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    written.save_as(path, enforce_file_format=True)
    if transfer_syntax_uid in _DCMCJPEG:
        command = ["dcmcjpeg", _DCMCJPEG[transfer_syntax_uid], "+un", str(path), str(path)]
        subprocess.run(command, check=True, capture_output=True)
    return path


def _radiograph(seed: Seed, source: _Source, options: dict[str, Any]) -> Dataset:
    pixels, bits_stored, own_interpretation = source
    rows, columns = options.pop("rows", pixels.shape[0]), options.pop("columns", pixels.shape[1])
    photometric_interpretation: str = options.pop("photometric_interpretation", own_interpretation)
    if (rows, columns) != pixels.shape:
        pixels = np.asarray(Image.fromarray(pixels).resize((columns, rows)), np.uint16)
    pixels = _noisy(pixels, bits_stored, seed)
    if photometric_interpretation != own_interpretation:
        pixels = ((1 << bits_stored) - 1 - pixels).astype(np.uint16)
    inverse = photometric_interpretation == "MONOCHROME1"
    low, high = (int(level) for level in np.percentile(pixels[::8, ::8], (1, 99)))
    dataset = _instance(DigitalXRayImageStorageForPresentation, "DX", seed, options)
    dataset.update(
        _attributes(
            ImageType=["DERIVED", "PRIMARY"],
            PresentationIntentType="FOR PRESENTATION",
            BodyPartExamined="CHEST",
            AnatomicRegionSequence=Sequence([_code("51185008", "Chest")]),
            ViewPosition="AP",
            ViewCodeSequence=Sequence([_code("399348003", "antero-posterior")]),
            PatientOrientation=["L", "F"],
            ImageLaterality="U",
            StudyDescription="Chest",
            SeriesDescription="Chest AP",
            AcquisitionDate=_DATE,
            AcquisitionTime=_TIME,
            AcquisitionContextSequence=Sequence(),
            KVP="70",
            PositionerType="",
            DetectorType="DIRECT",
            DetectorConfiguration="AREA",
            ImagerPixelSpacing=[0.2, 0.2],
            PixelIntensityRelationship="LOG",
            PixelIntensityRelationshipSign=1 if inverse else -1,
            PresentationLUTShape="INVERSE" if inverse else "IDENTITY",
            RescaleIntercept="0",
            RescaleSlope="1",
            RescaleType="US",
            WindowCenter=str((low + high) // 2),
            WindowWidth=str(max(high - low, 2)),
            LossyImageCompression="00",
            BurnedInAnnotation="NO",
        )
    )
    return _finished(dataset, options, pixels, bits_stored, photometric_interpretation)


def _instance(sop_class_uid: UID, modality: str, seed: Seed, options: dict[str, Any]) -> Dataset:
    """Return what every instance has: patient, study, series and equipment."""
    study = options.pop("study", seed)
    series = options.pop("series", 1)
    return _attributes(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=sop_class_uid,
        SOPInstanceUID=_uid("instance", modality, series, study, seed),
        PatientName=f"Test^{str(study).title()}",
        PatientID=f"TEST-{study}",
        IssuerOfPatientID="HILUM-TEST",
        PatientBirthDate="20221201",
        PatientSex="F",
        PatientAge="003Y",
        StudyInstanceUID=_uid("study", study),
        StudyDate=_DATE,
        StudyTime=_TIME,
        StudyID=f"S{study}"[:16],
        AccessionNumber=f"A{study}"[:16],
        ReferringPhysicianName="",
        SeriesInstanceUID=_uid("series", modality, series, study),
        SeriesNumber=series,
        SeriesDate=_DATE,
        SeriesTime=_TIME,
        Modality=modality,
        Manufacturer="Hilum tests",
        ManufacturerModelName="factory",
        DeviceSerialNumber="1",
        SoftwareVersions="1",
        StationName="TEST",
        InstanceNumber=1,
        ContentDate=_DATE,
        ContentTime=_TIME,
    )


def _finished(
    dataset: Dataset,
    attributes: dict[str, Any],
    pixels: Pixels | None = None,
    bits_stored: int = 0,
    photometric_interpretation: str = "",
) -> Dataset:
    """Set the pixels and, last, the attributes that the caller asked for."""
    if pixels is not None:
        dataset.update(
            _attributes(
                SamplesPerPixel=1,
                PhotometricInterpretation=photometric_interpretation,
                Rows=pixels.shape[0],
                Columns=pixels.shape[1],
                BitsAllocated=8 if bits_stored <= 8 else 16,
                BitsStored=bits_stored,
                HighBit=bits_stored - 1,
                PixelRepresentation=0,
            )
        )
        stored = pixels.astype(np.uint8 if bits_stored <= 8 else "<u2").tobytes()
        dataset.add_new("PixelData", "OB" if bits_stored <= 8 else "OW", stored + b"\0" * (len(stored) % 2))
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def _attributes(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    return _attributes(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _uid(*sources: Seed) -> UID:
    return generate_uid(entropy_srcs=["hilum tests", *map(str, sources)])


@cache
def _source(name: str) -> _Source:
    path = get_testdata_file(name, download=False)
    if path is None:
        raise FileNotFoundError(f"{name} comes with the package pydicom-data: pip install 'hilum[demo]'")
    film = dcmread(path)
    return _Source(np.asarray(film.pixel_array, np.uint16), film.BitsStored, film.PhotometricInterpretation)


@cache
def _drawn_chest(rows: int, columns: int) -> Pixels:
    """Return 12-bit pixels, bright where the body is dense: trunk, two dark lungs, a spine, a heart."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]

    def ellipse(centre_x: float, centre_y: float, width: float, height: float) -> npt.NDArray[np.float64]:
        inside: npt.NDArray[np.float64] = 1 - ((x - centre_x) / width) ** 2 - ((y - centre_y) / height) ** 2
        return np.clip(8 * inside, 0, 1)

    density = 0.6 * ellipse(0, 0.2, 0.95, 1.2)
    density -= 0.4 * (ellipse(-0.45, 0, 0.32, 0.7) + ellipse(0.45, 0, 0.32, 0.7))
    density += 0.25 * (np.abs(x) < 0.08) + 0.2 * ellipse(0.15, 0.3, 0.3, 0.35)
    density += 0.05 * (np.sin(24 * (y + 0.2 * np.abs(x))) > 0.4)
    return np.asarray(np.clip(density, 0, 1) * 4095, np.uint16)


def _noisy(pixels: Pixels, bits_stored: int, seed: Seed) -> Pixels:
    """Add a little noise of its own to every film: a change that no reader sees and every digest does."""
    generator = np.random.default_rng(list(str(seed).encode()))
    spread = max(1, 1 << max(bits_stored - 9, 0))
    noise = generator.integers(-spread, spread, pixels.shape, dtype=np.int16, endpoint=True)
    return np.asarray(np.clip(pixels.astype(np.int32) + noise, 0, (1 << bits_stored) - 1), np.uint16)
