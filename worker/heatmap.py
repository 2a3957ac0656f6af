"""The picture for any viewer: film, class activation and verdict, as a secondary capture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import ceil

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
from pydicom.valuerep import DA, DS, TM

from worker import codes, wording
from worker.colours import blend
from worker.contour import contour
from worker.picture import eight_bit
from worker.report_context import (
    ImageResult,
    ReportContext,
    identity,
    processing_algorithm,
    reference,
    set_creation,
)
from worker.source import anonymous, inherit, local_time, normalised

__all__ = ["build_heatmap", "contour", "plain_of"]

SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "AI Pneumonia heatmap, not for diagnosis"
LONG_SIDE = 1024
JPEG_QUALITY = 90

_MARGIN = 10
_BAR_HEIGHT = 10
_LEADING = 1.3
_WHITE, _YELLOW, _GREY = (255, 255, 255), (255, 214, 10), (190, 190, 190)
_MOST_LINES_OF_LIMITS = 3

Colour = tuple[int, int, int]
Line = tuple[str, int, Colour]


def build_heatmap(image: ImageResult, context: ReportContext) -> Dataset:
    """Build the secondary capture of one film; the same image and context give the same bytes.

    JPEG Baseline, once and for all at creation: archives take it by default where they refuse RLE, and a
    tenth of the size of an uncompressed one. The picture is stated to be lossy and not diagnostic.

    Parameters
    ----------
    image
        A film with its picture and its class activation map.
    context
        Identity of the object (its own series, not that of the SR) and of what made it.

    Returns
    -------
    Dataset
        Secondary Capture Image, YBR_FULL_422, long side at most 1024: the whole film in its own aspect
        ratio, below it the verdict, the disclaimer, the limits and a colour bar.

    Raises
    ------
    ValueError
        When the image has no film or no activation map.
    """
    if image.film is None or image.activation is None:
        raise ValueError("a heat map needs a film and an activation map")
    header = normalised(image.source)
    at = local_time(header, context.at)
    pixels = _picture(image, context)
    jpeg = _jpeg(pixels)
    ratio = pixels.nbytes / len(jpeg)
    capture = SCImage.from_ref_dataset(
        anonymous(header),
        pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom wants one; replaced below
        contributing_equipment=[processing_algorithm(context)],
        specific_character_set=None,
        **identity(context, at, SERIES_NUMBER, SERIES_DESCRIPTION),
    )
    _encapsulate(capture, jpeg)
    _state_lossy(capture, header, ratio)
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.ConversionType = "WSD"
    capture.BodyPartExamined = "CHEST"  # unpaired, so that no laterality is asked for
    orientation = header.get("PatientOrientation") or []
    capture.PatientOrientation = list(orientation) if len(orientation) == 2 else []
    # It means text that identifies the patient (PS3.3 C.7.6.1.1.1); what we draw does not.
    capture.BurnedInAnnotation = header.get("BurnedInAnnotation") or "NO"
    capture.DerivationDescription = (
        f"Source image with class activation of {context.model.name} {context.model.version}: "
        f"{context.activation_method}"
    )
    capture.DerivationCodeSequence = [CodedConcept.from_code(codes.LOSSY_COMPRESSION)]
    capture.SourceImageSequence = [_source_image(header)]
    capture.DateOfSecondaryCapture = DA(at.date())
    capture.TimeOfSecondaryCapture = TM(at.time())
    inherit(capture, [header], [capture.DerivationDescription])
    set_creation(capture, at)
    return capture


def plain_of(heatmap: Dataset, *, series_instance_uid: str, sop_instance_uid: str) -> Dataset:
    """Return the same picture uncompressed, for a destination that takes no JPEG.

    Its pixels are those of the JPEG, so it is as lossy and says so; what both show cannot differ.

    Parameters
    ----------
    heatmap
        From `build_heatmap`; left as it is.
    series_instance_uid, sop_instance_uid
        Identity of the copy: one UID never has two encodings.

    Returns
    -------
    Dataset
        Secondary Capture Image, RGB, Explicit VR Little Endian, up to 4 MB.
    """
    frame = next(generate_frames(heatmap.PixelData, number_of_frames=1))
    pixels = np.asarray(Image.open(BytesIO(frame)).convert("RGB"))
    copy = Dataset()
    copy.update(heatmap)
    copy.file_meta = FileMetaDataset()
    copy.file_meta.update(heatmap.file_meta)
    # New elements: assigning would change those that both data sets hold.
    copy.add_new("SOPInstanceUID", "UI", sop_instance_uid)
    copy.add_new("SeriesInstanceUID", "UI", series_instance_uid)
    copy.add_new("PhotometricInterpretation", "CS", "RGB")
    copy.add_new("PixelData", "OB", pixels.tobytes() + b"\0" * (pixels.nbytes % 2))
    copy.file_meta.add_new("MediaStorageSOPInstanceUID", "UI", sop_instance_uid)
    copy.file_meta.add_new("TransferSyntaxUID", "UI", ExplicitVRLittleEndian)
    return copy


def _picture(image: ImageResult, context: ReportContext) -> NDArray[np.uint8]:
    """Return the film with its overlay, and the legend in a strip below it that covers no anatomy."""
    assert image.film is not None
    assert image.activation is not None
    height, width = image.film.shape
    scale = LONG_SIDE / max(height, width)
    for _ in range(4):  # the strip's height follows from its width: narrower film, more lines
        columns = max(round(width * scale), 1)
        legend = _Legend.of(image, context, columns)
        if round(height * scale) + legend.height <= LONG_SIDE:
            break
        scale = (LONG_SIDE - legend.height) / height
    rows = min(max(round(height * scale), 1), LONG_SIDE - legend.height)
    film = Image.fromarray(eight_bit(image.film)).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.vstack([blend(np.asarray(film), image.activation), np.asarray(legend.drawn())])


@dataclass(frozen=True)
class _Legend:
    """The strip below the film: verdict, disclaimer, limits, network, colour bar."""

    width: int
    lines: Sequence[Line]
    small: int

    @classmethod
    def of(cls, image: ImageResult, context: ReportContext, width: int) -> "_Legend":
        large = int(np.clip(width / 38, 13, 22))
        small = int(np.clip(width / 52, 11, 16))
        fitting = width - 2 * _MARGIN
        lines: list[Line] = [
            *_wrapped(wording.verdict(image.result), large, _WHITE, fitting),
            *_wrapped(wording.NOT_FOR_PRIMARY_DIAGNOSIS, large, _YELLOW, fitting),
            *_wrapped(wording.limits(image.result.flags), small, _YELLOW, fitting)[:_MOST_LINES_OF_LIMITS],
            *_wrapped(f"{context.model.name} {context.model.version}", small, _GREY, fitting),
            *_wrapped(wording.COLOUR, small, _GREY, fitting),
        ]
        return cls(width, lines, small)

    @property
    def height(self) -> int:
        return (
            round(sum(size for _, size, _ in (*self.lines, ("", self.small, _GREY))) * _LEADING) + 2 * _MARGIN
        )

    def drawn(self) -> Image.Image:
        font = _font(self.small)
        strip = Image.new("RGB", (self.width, self.height))
        top = float(_MARGIN)
        for line in self.lines:
            strip.paste(_written(*line), (_MARGIN, round(top)))
            top += line[1] * _LEADING
        strip.paste(_written("low", self.small, _GREY), (_MARGIN, round(top)))
        start = round(_MARGIN + font.getlength("low") + 8)
        right = round(font.getlength("high")) + 8 + _MARGIN
        length = max(min(self.width - start - right, 300), 1)
        # The colours as they look over a mid-grey film, strongest at the right.
        ramp = np.broadcast_to(np.linspace(0, 1, length, dtype=np.float32), (_BAR_HEIGHT, length))
        bar = blend(np.full(ramp.shape, 96, np.uint8), ramp)
        strip.paste(Image.fromarray(bar), (start, round(top + self.small * 0.2)))
        strip.paste(_written("high", self.small, _GREY), (start + length + 8, round(top)))
        return strip


# All lines but the verdict are the same on film after film.
@lru_cache(maxsize=128)
def _wrapped(text: str, size: int, colour: Colour, fitting: int) -> Sequence[Line]:
    lines: list[str] = []
    for word in text.split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= fitting:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [(line, size, colour) for line in lines]


@lru_cache(maxsize=128)
def _written(text: str, size: int, colour: Colour) -> Image.Image:
    right, bottom = _font(size).getbbox(text)[2:]
    line = Image.new("RGB", (ceil(right), ceil(bottom)))
    ImageDraw.Draw(line).text((0, 0), text, fill=colour, font=_font(size))
    return line


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    # 4:2:2, as YBR_FULL_422 says (PS3.5 8.2.1).
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:2")
    return buffer.getvalue()


def _encapsulate(capture: Dataset, jpeg: bytes) -> None:
    """Put the JPEG in place of the pixels; highdicom's own encoder has a fixed quality and 4:2:0."""
    capture.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    capture.PhotometricInterpretation = "YBR_FULL_422"
    capture.PixelData = encapsulate([jpeg])
    capture["PixelData"].VR = "OB"
    capture["PixelData"].is_undefined_length = True


def _state_lossy(capture: Dataset, header: Dataset, ratio: float) -> None:
    """Say that the picture is lossy, with the steps the source went through first (PS3.3 C.7.6.1.1.5)."""
    ratios, methods = [f"{ratio:.4g}"], ["ISO_10918_1"]
    if header.get("LossyImageCompression") == "01":
        before = (
            _listed(header.get("LossyImageCompressionRatio")),
            _listed(header.get("LossyImageCompressionMethod")),
        )
        if before[0] and len(before[0]) == len(before[1]):
            ratios, methods = [*before[0], *ratios], [*before[1], *methods]
    capture.LossyImageCompression = "01"
    capture.LossyImageCompressionRatio = [DS(value) for value in ratios]
    capture.LossyImageCompressionMethod = methods


def _listed(value: object) -> list[str]:
    if value is None or value == "":
        return []
    return (
        [str(item) for item in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else [str(value)]
    )


def _source_image(header: Dataset) -> Dataset:
    item = reference(header)
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.SOURCE_IMAGE_FOR_PROCESSING)]
    return item
