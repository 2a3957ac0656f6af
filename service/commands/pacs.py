"""A small storage SCP that plays the PACS in the demo: it keeps what it gets and makes it readable."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydicom import Dataset, dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event

from service.core.syntaxes import OFFERED
from worker.rendering import render_html


@dataclass(frozen=True)
class Received:
    """One object the PACS got: what it is, when it came (seconds since the epoch), and where it lies."""

    sop_instance_uid: str
    study_instance_uid: str
    kind: str
    at: float
    path: Path
    page: Path | None


class Pacs:
    """Accepts every storage object into `folder`."""

    def __init__(self, folder: Path, ae_title: str) -> None:
        self.received: list[Received] = []
        self._folder = folder
        self._lock = threading.Lock()
        self._ae = AE(ae_title)
        for context in AllStoragePresentationContexts:
            self._ae.add_supported_context(str(context.abstract_syntax), list(OFFERED))

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Serve on a free port of this machine until the block ends; give the port."""
        server = self._ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        assert server is not None, "a server that does not block is returned"
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()

    def _store(self, event: Event) -> int:
        at = time.time()
        dataset = event.dataset
        with self._lock:
            return self._keep(dataset, at, event)

    def _keep(self, dataset: Dataset, at: float, event: Event) -> int:
        dataset.file_meta = event.file_meta
        number = len(self.received) + 1
        kind = "structured report" if dataset.Modality == "SR" else "heat map"
        path = self._folder / f"{number:02}-{kind.replace(' ', '-')}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        page = _page(path, dataset)
        self.received.append(Received(dataset.SOPInstanceUID, dataset.StudyInstanceUID, kind, at, path, page))
        return 0x0000


def _page(path: Path, dataset: Dataset) -> Path | None:
    """Write what a browser can show of the object: a report as HTML, a picture as JPEG."""
    if dataset.Modality == "SR":
        page = path.with_suffix(".html")
        renderer = shutil.which("dsr2html")
        if renderer is None:
            page.write_text(render_html(dcmread(path)), encoding="utf-8")
            return page
        done = subprocess.run([renderer, "+U8", path, page], capture_output=True, check=False)  # noqa: S603
        return page if done.returncode == 0 else None
    page = path.with_suffix(".png")
    Image.fromarray(dcmread(path).pixel_array).save(page)
    return page
