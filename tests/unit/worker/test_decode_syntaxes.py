"""Each offered transfer syntax through its real codec, and the public films that show what decoding means.

`python -m tests.unit.worker.test_decode_syntaxes` rewrites the golden figures of those films.
"""

import json
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import data_store
import gdcm
import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from service.core.errors import Undecodable
from service.core.syntaxes import LOSSLESS, LOSSY, OFFERED, UNCOMPRESSED
from tests.unit.worker.decode_samples import Pixels, compressed_dataset, film_dataset, film_file, ramp, saved
from worker import pixel_data
from worker.decode import Film, decode, missing_decoders

GOLDEN = Path(__file__).parents[2] / "golden/decode"
PUBLIC_FILMS = Path(data_store.__file__).parent / "data"
HTJ2K_FRAMES = json.loads((GOLDEN / "htj2k.json").read_text())
HTJ2K_PICTURE = (np.add.outer(np.arange(24) * 97, np.arange(20) * 61) % 4096).astype(np.uint16)
PICTURE = np.tile(HTJ2K_PICTURE, (3, 4))  # OpenJPEG encodes nothing smaller than 32 x 32


def by_pydicom(pixels: Pixels, folder: Path, syntax: UID, **options: Any) -> Path:
    dataset = film_dataset(pixels, BitsStored=12 if pixels.itemsize == 2 else 8)
    dataset.compress(syntax, generate_instance_uid=False, **options)
    return saved(dataset, folder, "compressed.dcm")


def by_openjpeg(pixels: Pixels, folder: Path, syntax: UID, **options: Any) -> Path:
    frame = encode_array(pixels, bits_stored=12, photometric_interpretation=2, **options)
    return saved(compressed_dataset(bytes(frame), pixels, syntax, BitsStored=12), folder, "compressed.dcm")


def by_gdcm(pixels: Pixels, folder: Path, syntax: UID) -> Path:
    source = film_file(folder, pixels, BitsStored=12)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str.__str__(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return folder / "compressed.dcm"


def by_openjph(pixels: Pixels, folder: Path, syntax: UID, frame: str) -> Path:
    assert np.array_equal(pixels, HTJ2K_PICTURE)
    dataset = compressed_dataset(b64decode(HTJ2K_FRAMES[frame]), pixels, syntax, BitsStored=12)
    return saved(dataset, folder, "compressed.dcm")


def by_pillow(pixels: Pixels, folder: Path, syntax: UID) -> Path:
    frame = BytesIO()
    Image.fromarray(pixels).save(frame, "JPEG", quality=95)
    return saved(compressed_dataset(frame.getvalue(), pixels, syntax), folder, "compressed.dcm")


ENCODERS: dict[UID, Callable[[Pixels, Path], Path]] = {
    JPEGLosslessSV1: lambda pixels, folder: by_gdcm(pixels, folder, JPEGLosslessSV1),
    JPEGLossless: lambda pixels, folder: by_gdcm(pixels, folder, JPEGLossless),
    JPEGLSLossless: lambda pixels, folder: by_pydicom(pixels, folder, JPEGLSLossless),
    JPEG2000Lossless: lambda pixels, folder: by_openjpeg(pixels, folder, JPEG2000Lossless),
    HTJ2KLossless: lambda pixels, folder: by_openjph(pixels, folder, HTJ2KLossless, "lossless"),
    HTJ2KLosslessRPCL: lambda pixels, folder: by_openjph(pixels, folder, HTJ2KLosslessRPCL, "lossless"),
    RLELossless: lambda pixels, folder: by_pydicom(pixels, folder, RLELossless),
    JPEGBaseline8Bit: lambda pixels, folder: by_pillow(pixels, folder, JPEGBaseline8Bit),
    JPEGLSNearLossless: lambda pixels, folder: by_pydicom(pixels, folder, JPEGLSNearLossless, jls_error=4),
    JPEG2000: lambda pixels, folder: by_openjpeg(pixels, folder, JPEG2000, signal_noise_ratios=[60]),
    HTJ2K: lambda pixels, folder: by_openjph(pixels, folder, HTJ2K, "lossy"),
}


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda syntax: syntax.keyword)
def test_uncompressed_pixels_are_the_same_in_every_byte_order(syntax: UID, tmp_path: Path) -> None:
    reference = decode(film_file(tmp_path, HTJ2K_PICTURE, BitsStored=12))

    film = decode(film_file(tmp_path, HTJ2K_PICTURE, BitsStored=12, syntax=syntax))

    assert film.pixel_digest == reference.pixel_digest


@pytest.mark.fault(37)
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_lossless_syntaxes_give_the_stored_values_bit_by_bit(syntax: UID, tmp_path: Path) -> None:
    pixels = HTJ2K_PICTURE if "HTJ2K" in syntax.keyword else PICTURE
    reference = decode(film_file(tmp_path, pixels, BitsStored=12))

    film = decode(ENCODERS[syntax](pixels, tmp_path))

    assert film.pixel_digest == reference.pixel_digest
    assert np.array_equal(film.pixels, reference.pixels)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda syntax: syntax.keyword)
def test_lossy_syntaxes_give_nearly_the_same_film(syntax: UID, tmp_path: Path) -> None:
    pixels = {JPEGBaseline8Bit: ramp(8), HTJ2K: HTJ2K_PICTURE}.get(syntax, PICTURE)
    reference = decode(film_file(tmp_path, pixels, BitsStored=8 if pixels.itemsize == 1 else 12))

    film = decode(ENCODERS[syntax](pixels, tmp_path))

    assert np.abs(film.pixels.astype(float) - reference.pixels).max() < 0.02 * 65535


def test_every_offered_syntax_is_tried_here() -> None:
    assert {*UNCOMPRESSED, *ENCODERS} == set(OFFERED)


@pytest.mark.fault(37)
def test_every_offered_syntax_has_its_decoder() -> None:
    assert missing_decoders() == []


def test_a_decoder_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pixel_data.PLUGINS, HTJ2K, "a codec nobody has")

    assert missing_decoders() == ["High-Throughput JPEG 2000 Image Compression (needs a codec nobody has)"]


def test_signed_values_survive_a_codec_that_knows_no_sign(tmp_path: Path) -> None:
    pixels = ramp(12, signed=True)
    reference = decode(film_file(tmp_path, pixels, BitsStored=12))

    dataset = film_dataset(pixels, BitsStored=12)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)

    assert decode(saved(dataset, tmp_path)).pixel_digest == reference.pixel_digest


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_planes_and_colour_pixels_are_the_same_picture(planar: int, tmp_path: Path) -> None:
    pixels = np.stack([ramp(8), ramp(8)[::-1], ramp(8).T.reshape(24, 20)], axis=-1)
    dataset = film_dataset(pixels)
    if planar:
        dataset.PlanarConfiguration = 1
        dataset.PixelData = pixels.transpose(2, 0, 1).tobytes()
    reference = decode(saved(film_dataset(pixels), tmp_path, "reference.dcm"))

    assert decode(saved(dataset, tmp_path)).pixel_digest == reference.pixel_digest


def test_bytes_in_big_endian_words_are_swapped_back(tmp_path: Path) -> None:
    pixels = ramp(8)
    dataset = film_dataset(pixels, syntax=ExplicitVRBigEndian)
    dataset.add_new("PixelData", "OW", pixels.reshape(-1, 2)[:, ::-1].tobytes())

    film = decode(saved(dataset, tmp_path))

    assert film.pixel_digest == decode(film_file(tmp_path, pixels)).pixel_digest


def test_several_fragments_make_one_frame(tmp_path: Path) -> None:
    frame = b64decode(HTJ2K_FRAMES["lossless"])
    dataset = compressed_dataset(frame, HTJ2K_PICTURE, HTJ2KLossless, BitsStored=12)
    reference = decode(saved(dataset, tmp_path))

    dataset.PixelData = encapsulate([frame], fragments_per_frame=5)

    assert decode(saved(dataset, tmp_path)).pixel_digest == reference.pixel_digest


def figures(film: Film) -> dict[str, Any]:
    tenths = [f"{level:.4f}" for level in np.percentile(film.pixels / 65535, range(0, 101, 10))]
    return {
        "rows": film.rows,
        "columns": film.columns,
        "shape": list(film.pixels.shape),
        "pixel_digest": film.pixel_digest,
        "deciles": tenths,
        "flags": list(film.flags),
    }


GOLDEN_FILMS = ("RG1_UNCR", "RG1_J2KR", "RG3_UNCR", "RG3_J2KR", "mlut_18", "vlut_04")


@pytest.mark.parametrize("name", GOLDEN_FILMS)
def test_a_public_film_keeps_its_golden_figures(name: str) -> None:
    golden = json.loads((GOLDEN / "films.json").read_text())

    assert figures(decode(PUBLIC_FILMS / f"{name}.dcm")) == golden[name]


@pytest.mark.parametrize("name", ["RG1", "RG3"])
def test_the_same_film_uncompressed_and_as_lossless_jpeg_2000_has_one_digest(name: str) -> None:
    golden = json.loads((GOLDEN / "films.json").read_text())

    assert golden[f"{name}_UNCR"]["pixel_digest"] == golden[f"{name}_J2KR"]["pixel_digest"]


def test_lungs_are_darker_than_the_mediastinum_between_them() -> None:
    film = decode(PUBLIC_FILMS / "RG1_UNCR.dcm").pixels
    h, w = film.shape
    rows = slice(int(0.2 * h), int(0.35 * h))
    right_lung, mediastinum, left_lung = (
        film[rows, int(left * w) : int((left + 0.1) * w)].mean() for left in (0.25, 0.45, 0.65)
    )

    assert max(right_lung, left_lung) < 0.9 * mediastinum


def test_every_file_of_pydicom_decodes_or_says_why_not() -> None:
    files = [path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file()]
    reasons = []
    for path in files:
        try:
            decode(path)
        except Undecodable as refusal:
            reasons.append(str(refusal))

    assert len(files) - len(reasons) > 60
    assert all(reason and len(reason) < 200 for reason in reasons)


if __name__ == "__main__":
    now = {name: figures(decode(PUBLIC_FILMS / f"{name}.dcm")) for name in GOLDEN_FILMS}
    (GOLDEN / "films.json").write_text(json.dumps(now, indent=1) + "\n")
