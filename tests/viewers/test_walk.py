"""A stranger at the dashboard: why a study has no report, and what to do, for each fault that can be mended.

Each is caused on a gateway that runs; `--screenshots FOLDER` keeps what he sees. The
numbers are those of `tests.faults.table`.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from tests import factories
from tests.faults import peers
from tests.faults.door import failing_fsync
from tests.faults.pacs import Pacs
from tests.faults.peers import Peer
from tests.pipeline import film
from tests.servers import Gateway, Orthanc, PostgreSQL, Redis, StoreScp, eventually

pytestmark = [pytest.mark.viewer, pytest.mark.long, pytest.mark.timeout(300)]
_PATIENCE = 60.0
_RULES = """
[destinations.PACS]
url = "{pacs}"

[destinations.STRICT]
url = "{strict}"
heatmap = "always"
confirm = "none"

[destinations.NARROW]
url = "{narrow}"

[[rules]]
name = "portable"
when.station_name = "PORT*"
analyse = false

[[rules]]
name = "strict"
when.calling_ae_title = "TO_STRICT"
destinations = ["STRICT"]

[[rules]]
name = "narrow"
when.calling_ae_title = "TO_NARROW"
destinations = ["NARROW"]

[[rules]]
name = "all others"
destinations = ["PACS"]
"""


@dataclass
class Site:
    """A gateway as an administrator runs it: Redis, PostgreSQL, a disk of its own, and three PACS."""

    gateway: Gateway
    redis: Redis
    postgresql: PostgreSQL
    orthanc: Orthanc
    strict: Pacs
    config: Path
    folder: Path

    def push(self, *films: Dataset, calling: str = "TEST", ok: bool = True) -> str:
        """Send films of one study, and return its Study Instance UID."""
        paths = [factories.write(item, self.folder / "sent") for item in films]
        sent = self.gateway.send(*paths, calling_ae_title=calling)
        assert (sent.returncode == 0) is ok, sent.stdout + sent.stderr
        return str(films[0].StudyInstanceUID)

    def reported(self, *films: Dataset, calling: str = "TEST") -> str:
        uid = self.push(*films, calling=calling)
        self.gateway.wait_for_state(uid, ("reported", "delivered", "confirmed", "held", "failed"), _PATIENCE)
        return uid


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Needs root and the right to mount, as in CI."""
    folder = tmp_path_factory.mktemp("walk")
    data, config = folder / "data", folder / "hilum.toml"
    data.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(data)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    strict = Pacs(ae_title="STRICT", queries=False)
    with ExitStack() as running:
        running.callback(subprocess.run, ["umount", "-l", str(data)], check=True)
        redis = running.enter_context(Redis())
        postgresql = running.enter_context(PostgreSQL())
        orthanc = running.enter_context(Orthanc())
        narrow = running.enter_context(StoreScp(SecondaryCaptureImageStorage))
        running.enter_context(strict.serving())
        config.write_text(
            _RULES.format(pacs=orthanc.destination, strict=strict.url, narrow=narrow.destination)
        )
        gateway = Gateway(
            config=config,
            data_dir=data,
            database_url=postgresql.fresh_url(),
            broker_url=redis.url,
            calling_ae_titles="TEST,TO_STRICT,TO_NARROW",
            min_free_bytes=20_000_000,
            retain_free_bytes=30_000_000,
            max_associations=4,
        )
        running.enter_context(gateway)
        yield Site(gateway, redis, postgresql, orthanc, strict, config, folder)


# Causes a fault until the stack is closed, and returns where a stranger looks: for a study, or at "/system".
Cause = Callable[[Site, ExitStack], str]
_CAUSES: dict[str, tuple[Cause, str, str]] = {}


def fault(name: str, words: str, to_do: str) -> Callable[[Cause], None]:
    """Enter a fault: its name begins with its number; the words that tell it, and something to be done."""

    def entered(cause: Cause) -> None:
        _CAUSES[name] = (cause, words, to_do)

    return entered


@contextmanager
def _stopped(*pids: int) -> Iterator[None]:
    found = [psutil.Process(pid) for pid in pids]
    for process in found:
        process.suspend()
    try:
        yield
    finally:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _sent_again(site: Site, after: ExitStack, made: Dataset) -> Dataset:
    """Let the router send a film again when everything else is mended, as routers do."""
    after.callback(site.push, made)
    return made


@fault("10-redis-down", "No report yet: Redis cannot be reached.", "docker compose restart redis")
def _(site: Site, after: ExitStack) -> str:
    site.redis.stop()
    after.callback(site.redis.restart)
    return site.push(film("redis down"))


@fault("12-redis-full", "No report yet: Redis has no memory left.", "maxmemory")
def _(site: Site, after: ExitStack) -> str:
    site.redis.client.config_set("maxmemory", "1mb")
    after.callback(site.redis.client.config_set, "maxmemory", "0")
    return site.push(film("redis full"))


@fault("13-worker-stopped", "No report yet: no worker decodes films.", "docker compose up -d worker-decode")
def _(site: Site, after: ExitStack) -> str:
    after.enter_context(_stopped(*site.gateway.pids()["worker-decode"]))
    return site.push(film("worker stopped"))


@fault("13-scheduler-stopped", "No report yet: the scheduler", "docker compose up -d scheduler")
def _(site: Site, after: ExitStack) -> str:
    after.enter_context(_stopped(*site.gateway.pids()["scheduler"]))
    return site.push(film("scheduler stopped"))


@fault("14-disk-full", "the disk is full, and new images are refused.", "What to do")
def _(site: Site, after: ExitStack) -> str:
    filler = site.gateway.data_dir / "filler"
    made = _sent_again(site, after, film("disk full"))
    after.callback(filler.unlink)
    filler.write_bytes(bytes(shutil.disk_usage(site.gateway.data_dir).free - 5_000_000))
    return site.push(made, ok=False)


@fault("15-read-only", "the disk of the data folder is mounted read-only.", "What to do")
def _(site: Site, after: ExitStack) -> str:
    # Once more over itself: the first mount stays writable, since files on it are open for writing.
    data, made = str(site.gateway.data_dir), _sent_again(site, after, film("read only"))
    _mount("--bind", data, data)
    after.callback(subprocess.run, ["umount", "-l", data], check=True)
    _mount("-o", "remount,bind,ro", data)
    return site.push(made, ok=False)


@fault("15-eio", "the object cannot be written (Input/output error)", "dmesg")
def _(site: Site, after: ExitStack) -> str:
    made = _sent_again(site, after, film("eio"))
    for pid in site.gateway.pids()["listener"]:
        after.enter_context(failing_fsync(psutil.Process(pid)))
    return site.push(made, ok=False)


@fault("16-ledger-away", "the ledger cannot be reached", "docker compose restart postgres")
def _(site: Site, after: ExitStack) -> str:
    uid = site.reported(film("ledger away"))
    assert site.postgresql.process is not None
    server = psutil.Process(site.postgresql.process.pid)
    after.enter_context(_stopped(server.pid, *(child.pid for child in server.children(recursive=True))))
    return uid


@fault("17-pacs-down", "The report is made and waits: PACS cannot be reached.", "See that PACS runs")
def _(site: Site, after: ExitStack) -> str:
    site.orthanc.stop()
    after.callback(site.orthanc.restart)
    return site.reported(film("pacs down"))


@fault("18-pacs-hangs", "The report is made and waits: PACS", "See that PACS runs")
def _(site: Site, after: ExitStack) -> str:
    assert site.orthanc.process is not None
    after.enter_context(_stopped(site.orthanc.process.pid))
    return site.reported(film("pacs hangs"))


def _answers(name: str, statuses: list[int], words: str, to_do: str) -> None:
    @fault(name, words, to_do)
    def _(site: Site, after: ExitStack) -> str:
        site.strict.statuses = statuses
        after.callback(setattr, site.strict, "statuses", [])
        return site.reported(film(name), calling="TO_STRICT")


_REFUSED = "The report was made, and STRICT refused it"
_answers("19-pacs-full", [0xA700] * 99, "The report is made; sending it to STRICT is tried again.", "full")
_answers("19-not-authorised", [0x0124] * 9, _REFUSED, "allow our AE title")
_answers("19-wrong-patient", [0xA778] * 9, _REFUSED, "Correct the patient")
_answers(
    "19-not-understood", [0xC000] * 99, "The report is made; sending it to STRICT is tried again.", "log"
)
_answers("21-half", [0x0000, *[0x0122] * 9], "STRICT refused", "Let the PACS accept")


@fault("20-no-sr", "The report was made, and NARROW refused it", "Let the PACS accept")
def _(site: Site, _: ExitStack) -> str:
    return site.reported(film("no sr"), calling="TO_NARROW")


@fault("23-two-patients", "No report: this study holds images of two patients", "Find out whose images")
def _(site: Site, _: ExitStack) -> str:
    one = film("patients", PatientID="A")
    return site.reported(one, film("patients 2", PatientID="B", StudyInstanceUID=one.StudyInstanceUID))


@fault("23-other-pixels", "other pixels", "SOP Instance UID of its own")
def _(site: Site, _: ExitStack) -> str:
    one = film("pixels")
    site.reported(one)
    one.PixelData = bytes(reversed(one.PixelData))
    return site.push(one)


@fault("28-too-many", "no room now", "HILUM_MAX_ASSOCIATIONS")
def _(site: Site, after: ExitStack) -> str:
    for _ in range(4):
        after.enter_context(Peer(site.gateway.dimse_port)).associate()
    return site.push(film("too many"), ok=False)


@fault("30-calling-title", "from STRANGER", "HILUM_CALLING_AE_TITLES")
def _(site: Site, _: ExitStack) -> str:
    return site.push(film("calling title"), calling="STRANGER", ok=False)


@fault("30-called-title", "it calls another AE title than ours", "HILUM_AE_TITLE")
def _(site: Site, _: ExitStack) -> str:
    with Peer(site.gateway.dimse_port) as peer:
        peer.associate(called="WRONG")
    return str(film("called title").StudyInstanceUID)


def _garbled(name: str, store: Callable[[Peer, Dataset, bytes], int], words: str) -> None:
    @fault(name, words, "Ask whoever runs the modality or the router")
    def _(site: Site, _: ExitStack) -> str:
        made = film(name)
        content = peers.data_set(factories.write(made, site.folder))
        with Peer(site.gateway.dimse_port) as peer:
            peer.associate()
            assert store(peer, made, content) != 0x0000
        return str(made.StudyInstanceUID)


_garbled("31-mismatch", lambda peer, made, content: peer.store("1.2.3.4", content), "A900")
_garbled("32-bad-uid", lambda peer, made, content: peer.store("../../x", content), "0117")
_garbled(
    "33-truncated",
    lambda peer, made, content: peer.store(made.SOPInstanceUID, content[:201]),
    "C000",
)


@fault("34-syntax", "No study of that UID", "transfer syntax")
def _(site: Site, _: ExitStack) -> str:
    with Peer(site.gateway.dimse_port) as peer:
        peer.associate(transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
    return str(film("deflated").StudyInstanceUID)


@fault("35-huge", "A report that nothing was analysed", "The file itself is damaged")
def _(site: Site, _: ExitStack) -> str:
    made = film("huge")
    made.Rows = made.Columns = 65535
    return site.reported(made)


@fault("39-no-age", "A report that nothing was analysed", "HILUM_POPULATION=flag")
def _(site: Site, _: ExitStack) -> str:
    return site.reported(film("no age", PatientAge=None, PatientBirthDate=""))


@fault("rule", "No report", "hilum rules test")
def _(site: Site, _: ExitStack) -> str:
    return site.reported(film("rule", StationName="PORTABLE1"))


@fault("config-refused", "the configuration file was saved with a fault", "hilum rules check")
def _(site: Site, after: ExitStack) -> str:
    before = site.config.read_text()
    after.callback(site.config.write_text, before)
    site.config.write_text(before.replace("PORT*", "").replace("analyse =", "analyze ="))
    return "/system"


@fault("not-sent", "No study of that UID", "See whether the router has sent it")
def _(_: Site, __: ExitStack) -> str:
    return str(generate_uid())


@pytest.mark.parametrize("name", _CAUSES)
def test_a_stranger_finds_why_there_is_no_report_and_what_to_do(
    name: str, site: Site, page: Page, screenshots: Path
) -> None:
    cause, words, to_do = _CAUSES[name]
    with ExitStack() as after:
        place = cause(site, after)

        def told() -> str:
            _look_up(page, site.gateway.http_url, place)
            said = page.locator("body").inner_text()
            return said if words in said and to_do in said else ""

        try:
            eventually(told, 30, interval=1)
        finally:
            page.screenshot(path=screenshots / f"walk-{name}.png", full_page=True)
            page.goto(f"{site.gateway.http_url}/system")
            page.screenshot(path=screenshots / f"walk-{name}-system.png", full_page=True)
    eventually(lambda: _all_is_well(page, site), 120, interval=1)


def _look_up(page: Page, url: str, place: str) -> None:
    """Open the system page, or look a study up as whoever is asked for it does."""
    if place.startswith("/"):
        page.goto(url + place)
        return
    page.goto(url)
    if page.get_by_label("Find a study").count():
        page.get_by_label("Find a study").fill(place)
        # The page before is loaded already: waiting for its state would be waiting for nothing.
        with page.expect_navigation():
            page.keyboard.press("Enter")


def _all_is_well(page: Page, site: Site) -> Any:
    page.goto(f"{site.gateway.http_url}/system")
    return "Every part of Hilum works." in page.locator("body").inner_text()
