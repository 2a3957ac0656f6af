"""Every report before PixelMed's DicomSRValidator, which knows the templates of PS3.16 as of 2022.

One JVM a file, as its command line takes no more: 5 s of a processor each, 11 with the second compiler.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from service.core.results import Finding
from service.core.states import Assessment
from tests.unit.worker.reports import (
    LATERAL,
    NEGATIVE,
    POSITIVE,
    STUDY,
    context,
    encoded,
    header,
    image,
    of_series,
    reading,
    reread,
    second_revision,
)
from worker.assessment import build_assessment
from worker.comprehensive import comprehensive_of
from worker.rejection_note import build_rejection_note
from worker.structured_report import build_structured_report
from worker.text_report import build_text_report

JAR = Path("/usr/share/java/pixelmed.jar")
SHORT_LIVED = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
# Newer Java allows an XPath fewer operators than the validator needs.
UNLIMITED = [f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("TotalOp", "ExprOp", "ExprGrp")]

# What the validator's rules of 2022 do not know: CID 100 may be extended, TID 4019 has got a manufacturer
# since, and TID 1501 of that year has no qualitative evaluation and no comment.
KNOWN = [
    r'Error: .*\(399208008,SCT,"Chest X-ray"\) not found in context group 100.*',
    *(
        rf"Warning: .*/{item}: Content Item not in template"
        for item in (
            r'TEXT \(122405,DCM,"Algorithm Manufacturer"\)',
            r'CODE \(705057003,SCT,"Presence"\)',
            r'TEXT \(121106,DCM,"Comment"\)',
        )
    ),
]

FILM = image(NEGATIVE)
LATERAL_VIEW = image(LATERAL, header(2, ViewPosition="LL"))


def measured(*images: object) -> Dataset:
    return build_structured_report(images, context(*images))  # type: ignore[arg-type]


def copied() -> Dataset:
    return comprehensive_of(
        reread(measured(image(POSITIVE))),
        series_instance_uid=f"{STUDY}.9008",
        sop_instance_uid=f"{STUDY}.9008.1",
        predecessors=(),
    )


REPORTS: dict[str, tuple[str, Callable[[], Dataset]]] = {
    "positive": ("TID_1500", lambda: measured(image(POSITIVE))),
    "negative": ("TID_1500", lambda: measured(FILM)),
    "two-images": ("TID_1500", lambda: measured(image(POSITIVE), LATERAL_VIEW)),
    "revision": ("TID_1500", lambda: build_structured_report([FILM], second_revision(FILM))),
    "comprehensive": ("TID_1500", copied),
    "text": (
        "TID_2000",
        lambda: build_text_report(
            [image(POSITIVE), LATERAL_VIEW], of_series(9003, image(POSITIVE), LATERAL_VIEW)
        ),
    ),
    "rejection-note": (
        "TID_2010",
        lambda: build_rejection_note([reread(measured(FILM))], of_series(9007, FILM, revision=2)),
    ),
}


def judged(report: Dataset, folder: Path) -> list[str]:
    """All that the validator says of a report."""
    path = folder / "report.dcm"
    path.write_bytes(encoded(report))
    assert shutil.which("java"), "java is missing: install the Debian package default-jre-headless"
    assert JAR.exists(), f"{JAR} is missing: install the Debian package libpixelmed-java"
    command = [
        "java",
        *SHORT_LIVED,
        *UNLIMITED,
        "-cp",
        str(JAR),
        "com.pixelmed.validate.DicomSRValidator",
        str(path),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert "IOD validation complete" in lines, lines
    return lines


@pytest.mark.parametrize("name", REPORTS)
def test_pixelmed_finds_nothing_against_a_report_that_its_rules_know(name: str, tmp_path: Path) -> None:
    template, build = REPORTS[name]
    lines = judged(build(), tmp_path)
    assert any(line.startswith(f"Found Root Template {template} ") for line in lines), lines
    assert "Root Template Validation Complete" in lines
    complaints = [line for line in lines if line.startswith(("Error", "Warning"))]
    assert [line for line in complaints if not any(re.fullmatch(known, line) for known in KNOWN)] == []


def assessed() -> Dataset:
    said = reading(NEGATIVE, assessment=Assessment.DISAGREE, own_finding=Finding.PRESENT, note="left base")
    return build_assessment([reread(measured(FILM))], said, of_series(9008, FILM))


@pytest.mark.parametrize(
    "build",
    [lambda: build_text_report([LATERAL_VIEW], of_series(9004, LATERAL_VIEW)), assessed],
    ids=["note", "assessment"],
)
def test_pixelmed_finds_no_error_in_a_document_that_claims_no_template(
    build: Callable[[], Dataset], tmp_path: Path
) -> None:
    lines = judged(build(), tmp_path)
    assert "Found EnhancedSR IOD" in lines
    complaints = [line for line in lines if line.startswith(("Error", "Warning"))]
    assert all(line.endswith("Content Item not in template") for line in complaints), complaints
