"""Parsing in a box: films that claim, nest, repeat or garble what they like, through the real decode pool."""

import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from service.core.copies import UNDECODABLE
from service.core.leases import DECODE
from service.core.syntaxes import OFFERED, UNCOMPRESSED
from tests import factories
from tests.faults import peers
from tests.faults.peers import Peer
from tests.faults.victim import ENDED, PATIENCE, Victim, small_film
from tests.servers import eventually
from tests.unit.worker.decode_samples import HUGE, jpeg_2000_frame, jpeg_frame, ramp
from tests.unit.worker.test_decode_syntaxes import ENCODERS, HTJ2K_PICTURE, PICTURE

# Twice what they take where other tests run beside them.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_CHILD_BYTES = 1 << 30
_SIZES = {"rows": 24, "columns": 20, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
_MANY_SCANS = jpeg_frame(0xC2, rows=9984, columns=9984).replace(
    b"\xff\xda", b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00" * 2000 + b"\xff\xda"
)


def native(name: str, **attributes: object) -> tuple[UID, Dataset]:
    return ExplicitVRLittleEndian, factories.phantom_chest(name, rows=24, columns=20, **attributes)


def compressed(name: str, syntax: UID, frame: bytes, **attributes: object) -> tuple[UID, Dataset]:
    film = factories.phantom_chest(name, **_SIZES, **attributes)
    film.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    film["PixelData"].VR = "OB"
    film["PixelData"].is_undefined_length = True
    return syntax, film


def rle(*offsets: int, content: bytes = b"\x81\x07" * 500) -> bytes:
    return struct.pack("<16I", len(offsets), *offsets, *[0] * (15 - len(offsets))) + content


# Each with what its reason must say.
BOMBS = {
    "65535 x 65535": (lambda n: native(n, Rows=65535, Columns=65535), "more than a film has"),
    "2^31 frames": (lambda n: native(n, NumberOfFrames=str(2**31)), "2147483648 frames"),
    "no rows": (lambda n: native(n, Rows=0), "is no picture"),
    "10000 x 10000 of 960 bytes": (lambda n: native(n, Rows=10000, Columns=10000), "cut short"),
    "JPEG": (lambda n: compressed(n, JPEGBaseline8Bit, jpeg_frame(0xC0, **HUGE)), "holds 65535 x 65535"),
    "JPEG lossless": (
        lambda n: compressed(n, JPEGLosslessSV1, jpeg_frame(0xC3, **HUGE)),
        "holds 65535 x 65535",
    ),
    "JPEG-LS": (lambda n: compressed(n, JPEGLSLossless, jpeg_frame(0xF7, **HUGE)), "holds 65535 x 65535"),
    "JPEG 2000": (
        lambda n: compressed(n, JPEG2000Lossless, jpeg_2000_frame(rows=2**32 - 1, columns=2**32 - 1)),
        "holds 4294967295 x 4294967295",
    ),
    "HTJ2K": (
        lambda n: compressed(n, HTJ2KLossless, jpeg_2000_frame(components=16384)),
        "x 16384 samples",
    ),
    "both say 65535": (
        lambda n: compressed(n, JPEG2000Lossless, jpeg_2000_frame(**HUGE), Rows=65535, Columns=65535),
        "more than a film has",
    ),
    "both say 10000": (
        lambda n: compressed(
            n, JPEG2000Lossless, jpeg_2000_frame(rows=10000, columns=10000), Rows=10000, Columns=10000
        ),
        "damaged",
    ),
    "RLE offsets": (lambda n: compressed(n, RLELossless, rle(0xFFFFFFF0)), "damaged"),
    "RLE segments": (lambda n: compressed(n, RLELossless, rle(*[64] * 15)), "15 RLE segments"),
    "RLE of 100 million": (
        lambda n: compressed(n, RLELossless, rle(64), Rows=10000, Columns=10000),
        "damaged",
    ),
    "scans without end": (
        lambda n: compressed(n, JPEGBaseline8Bit, _MANY_SCANS, Rows=9984, Columns=9984),
        "more than 64 scans",
    ),
}


def push(victim: Victim, folder: Path, syntax: UID, film: Dataset) -> bytes:
    """Send one film as its bytes are; return the whole file."""
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    path = folder / f"{film.SOPInstanceUID}.dcm"
    film.save_as(path, enforce_file_format=True)
    store(victim, syntax, film, peers.data_set(path))
    return path.read_bytes()


def store(victim: Victim, syntax: UID, film: Dataset, content: bytes) -> None:
    with Peer(victim.gateway.dimse_port) as peer:
        peer.associate(transfer_syntax_uid=syntax, sop_class_uid=film.SOPClassUID)
        assert peer.store(film.SOPInstanceUID, content, film.SOPClassUID) == 0x0000
        peer.release()


def largest_child(victim: Victim) -> int:
    """Return the most memory in bytes that any process of the decode pool has ever held."""
    peaks = [0]
    for process in victim.pools("decode"):
        status = Path(f"/proc/{process.pid}/status").read_text()
        peaks += [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks)


@pytest.mark.fault(35)
def test_what_claims_a_huge_picture_ends_with_its_reason_and_takes_no_memory(victim: Victim) -> None:
    before = {process.pid for process in victim.pools("decode")}
    films = {}
    for name, (make, _) in BOMBS.items():
        syntax, films[name] = make(f"bomb {name}")
        push(victim, victim.folder, syntax, films[name])
    for name, (_, reason) in BOMBS.items():
        (study,) = victim.wait(films[name], states=ENDED)
        assert reason in study["instances"][0]["reason"], name
        assert study["result"]["probability"] is None
    assert {process.pid for process in victim.pools("decode")} == before, "no child died of it"
    print(f"largest process of the pool: {largest_child(victim) / 1e6:.0f} MB")
    assert largest_child(victim) < _CHILD_BYTES
    later = small_film("after the bombs")
    victim.push(later)
    victim.wait_for_one_result(later)


def sources(folder: Path) -> Iterator[tuple[UID, Dataset, bytes]]:
    """Give for each compressed syntax a film of its own study, with real pixels, and its bytes."""
    for syntax in OFFERED:
        if syntax in UNCOMPRESSED:
            continue
        picture = HTJ2K_PICTURE if "HTJ2K" in syntax.keyword else PICTURE
        if syntax == JPEGBaseline8Bit:
            picture = ramp(8, shape=(64, 64))
        own = folder / syntax.keyword
        own.mkdir()
        encoded = dcmread(ENCODERS[syntax](picture, own))
        film = factories.phantom_chest(syntax.keyword, study=f"mutants {syntax.keyword} {folder.name}")
        for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
            setattr(film, keyword, encoded[keyword].value)
        film["PixelData"] = encoded["PixelData"]
        film.file_meta = FileMetaDataset()
        film.file_meta.TransferSyntaxUID = syntax
        path = own / "film.dcm"
        film.save_as(path, enforce_file_format=True)
        yield syntax, film, peers.data_set(path)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a data set with one to six faults in the codestream at its end, or an early end."""
    # The item of the first frame begins after the element and an empty offset table.
    begin = content.index(b"\xe0\x7f\x10\x00OB") + 12 + 8 + 8
    made = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at = begin + int((len(made) - begin - 8) * chance.random() ** chance.choice([1, 2, 3]))
        count = chance.choice([1, 2, 4, 8])
        match chance.randrange(5):
            case 0:
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                made[at : at + count] = chance.randbytes(count)
            case 2:
                made[at : at + count] = b"\xff" * count
            case 3:
                other = begin + int((len(made) - begin - 8) * chance.random())
                made[at : at + count] = made[other : other + count]
            case _:
                made[at : at + 16] = bytes(16)
    if not chance.randrange(8):
        del made[begin + int((len(made) - begin) * chance.random()) :]
    return bytes(made)


@pytest.mark.fault(35, 37)
@pytest.mark.parametrize(
    "count", [25, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)
def test_every_garbled_codestream_ends_analysed_or_with_a_reason(victim: Victim, count: int) -> None:
    studies = {}
    for syntax, film, content in sources(victim.folder):
        own = str(film.SOPInstanceUID)
        studies[syntax] = film
        for number in range(count):
            chance = random.Random(f"{syntax} {number}")
            # Another last component of the same length: another object of the same study.
            film.SOPInstanceUID = f"{own[:-4]}{1000 + number}"
            mutant = mutated(content, chance).replace(own.encode(), film.SOPInstanceUID.encode())
            store(victim, syntax, film, mutant)
    ends: Counter[str] = Counter()
    eventually(lambda: not victim.unfinished(*studies.values()), PATIENCE + count, "every film decoded")
    for syntax, film in studies.items():
        study = victim.gateway.wait_for_state(film.StudyInstanceUID, ENDED, PATIENCE + count)
        assert len(study["instances"]) == count
        for instance in study["instances"]:
            assert instance["reason"] or instance["probability"] is not None, (syntax.name, instance)
            damaged = str(instance["reason"]).startswith(UNDECODABLE)
            ends[f"{syntax.keyword} {'damaged' if damaged else 'decoded'}"] += 1
    print(dict(ends))
    assert {end.split()[-1] for end in ends} == {"damaged", "decoded"}
    assert largest_child(victim) < _CHILD_BYTES
    later = small_film(f"after {count} mutants")
    victim.push(later)
    victim.wait_for_one_result(later)


@pytest.mark.fault(8)
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_process_that_hangs_in_a_film_is_killed_and_the_film_is_done(victim: Victim) -> None:
    film = factories.chest_film("hangs")
    assert victim.gateway.send(factories.write(film, victim.folder, JPEG2000Lossless)).returncode == 0
    _, _, child = victim.caught(DECODE, film)
    with victim.stopped([child]):
        eventually(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
            120,
            "the process killed by its limit of time",
        )
    victim.wait_for_one_result(film)
