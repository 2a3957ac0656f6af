"""Feedback through the whole gateway: from the link in the report that the PACS holds, back into the PACS."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedSRStorage

from service.core.content_tree import content_tree
from tests import factories
from tests.servers import HTTP, Gateway, Orthanc, eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
def pacs() -> Iterator[Orthanc]:
    with Orthanc() as server:
        yield server


def _said(document: Dataset) -> str:
    return "\n".join(f"{item.name}: {item.value}" for item in content_tree(document))


def test_what_a_reader_says_behind_the_link_of_a_report_comes_into_the_study(
    pacs: Orthanc, tmp_path: Path
) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text(
        f'[destinations.PACS]\nurl = "{pacs.destination}"\nobjects = ["sr", "assessment"]\n', encoding="utf-8"
    )
    film = factories.chest_film(1)
    public = "https://hilum.hospital.local"
    with Gateway(config=config, public_url=public, population="flag") as gateway:
        sent = gateway.send(factories.write(film, tmp_path / "films"))
        assert sent.returncode == 0, sent.stderr
        (report,) = eventually(lambda: pacs.instances(film.StudyInstanceUID), 90)
        link = re.search(rf"{public}(/feedback/\S+)", _said(dcmread(io.BytesIO(pacs.download(report)))))
        assert link
        opened = HTTP.get(f"{gateway.http_url}{link[1]}", timeout=10)
        assert opened.status_code == 200
        form = {"assessment": "disagree", "reader": "Dr. Weber", "note": "Motion."}
        stored = HTTP.post(f"{gateway.http_url}{link[1]}", data=form, timeout=10)
        assert "Stored: disagree." in stored.text
        eventually(lambda: len(pacs.instances(film.StudyInstanceUID)) == 2, 60)
        (made,) = [
            item
            for item in pacs.instances(film.StudyInstanceUID)
            if item.sop_class_uid == EnhancedSRStorage and item.sop_instance_uid != report.sop_instance_uid
        ]
        said = _said(dcmread(io.BytesIO(pacs.download(made))))
        for words in ("Rejected", "Dr. Weber", "Note by Dr. Weber: Motion.", report.sop_instance_uid):
            assert words in said
        table = gateway.run("feedback", "export", "--csv", "-")
        assert table.returncode == 0, table.stderr
        assert f"{film.StudyInstanceUID}," in table.stdout
        assert "Motion" not in table.stdout
