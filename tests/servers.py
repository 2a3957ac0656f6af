"""The real servers of the tests (Redis, PostgreSQL, Orthanc, storescp, the gateway), and dcmtk's storescu.

Each is a context manager that listens on a free port with its data in a temporary folder, is ready when its
`start` returns, and can be killed and started again on the same port with the same data.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from uuid import uuid4

import httpx
import psutil
import psycopg
import redis
from pydicom.filereader import read_file_meta_info
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).resolve().parent.parent
_START_ATTEMPTS = 3
# Below the range that Linux hands to outgoing connections, so that nobody takes the port of a killed server
# before it is started again. Each process of the tests has its own ports and gives none twice: one that is
# chosen now may be listened on a minute later.
_OURS = range(
    15000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
    32000,
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)
_ports = cycle(random.sample(_OURS, len(_OURS)))

HTTP = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
"""For what is asked again and again: `httpx.get` reads all certificates anew, which takes 40 ms each time."""

T = TypeVar("T")


class ServerError(AssertionError):
    """A server of the tests is not installed, did not start, or did not get where it should in time."""


def eventually(
    predicate: Callable[[], T], deadline: float = 10.0, message: str = "", interval: float = 0.05
) -> T:
    """Return the first truthy value of `predicate`, asked again and again for `deadline` seconds.

    Raises
    ------
    ServerError
        With `message` and the last value seen, when time is up.
    """
    end = time.monotonic() + deadline
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= end:
            name = message or getattr(predicate, "__name__", "the condition")
            raise ServerError(f"not within {deadline:g} s: {name} (last seen: {value!r})")
        time.sleep(interval)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    for port in islice(_ports, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError("200 ports tried, and none of them was free")


def executable(name: str, package: str, *folders: Path) -> str:
    """Return the path of a program, or fail with the Debian package that brings it."""
    places = os.pathsep.join([*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])
    found = shutil.which(name, path=places)
    if found is None:
        raise ServerError(f"{name} is not installed: apt-get install {package}")
    return found


class Server:
    """One server process: what the servers below have in common."""

    name: ClassVar[str]
    account: ClassVar[str | None] = None
    start_seconds: ClassVar[float] = 30.0
    stop_seconds: ClassVar[float] = 10.0

    def __init__(self) -> None:
        # Not pytest's own folder: its path is too long for a Unix socket and closed to other accounts.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether the server answers."""
        raise NotImplementedError

    def choose_ports(self) -> None:
        """Take free ports; asked again when one of them turns out to be taken."""
        self.port = free_port()

    def environment(self) -> dict[str, str]:
        """Return the environment of the process."""
        return dict(os.environ)

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    def log(self) -> str:
        """Return all that the server has written to stdout and stderr."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def start(self) -> Self:
        """Start on fresh ports and return when the server is ready."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            self.choose_ports()
            try:
                self._launch()
            except ServerError:
                if attempt == _START_ATTEMPTS or "in use" not in self.log().lower():
                    raise
            else:
                break
        return self

    def restart(self) -> Self:
        """Start again, on the same ports and with the same data, stopping first what still runs."""
        self.stop()
        self._launch()
        return self

    def kill(self) -> None:
        """Kill with SIGKILL: no time to save anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop with SIGTERM, and with SIGKILL what does not heed it."""
        self._end(signal.SIGTERM)

    def end(self) -> None:
        """Stop for good: with SIGKILL, since the data goes too."""
        self.kill()

    def close(self) -> None:
        """End and remove the data."""
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self) -> None:
        command = [*_dies_with_its_parent(self.account if os.geteuid() == 0 else None), *self.command()]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_ready()

    def wait_ready(self, deadline: float | None = None) -> None:
        """Return when the server answers; raise ServerError with its log when it ends or time is up."""
        deadline = deadline or self.start_seconds
        end = time.monotonic() + deadline
        while not self.ready():
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() > end:
                self.kill()
                why = "ended at its start" if ended else f"was not ready within {deadline:g} s"
                raise ServerError(f"{self.name} {why}\n{self.log()}")
            time.sleep(0.02)

    def _end(self, first: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(first)
        try:
            process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Redis(Server):
    """A Redis server; `appendonly` says whether what was acknowledged outlives `kill`."""

    name = "redis"

    def __init__(self, *options: str, appendonly: bool = True) -> None:
        super().__init__()
        self.options = options
        self.appendonly = appendonly

    @property
    def address(self) -> str:
        return "127.0.0.1"

    @property
    def url(self) -> str:
        return f"redis://{self.address}:{self.port}/0"

    @property
    def client(self) -> redis.Redis:
        """A client of the server, which asks once."""
        return redis.Redis(host=self.address, port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def command(self) -> list[str]:
        persistence = "--appendonly yes --appendfsync always" if self.appendonly else "--appendonly no"
        return [
            executable("redis-server", "redis-server", Path("/usr/bin")),
            *f"--port {self.port} --bind 127.0.0.1 --dir {self.folder} --maxmemory-policy noeviction".split(),
            *persistence.split(),
            *("--save", ""),
            *self.options,
        ]

    def ready(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class PostgreSQL(Server):
    """A PostgreSQL server of one cluster that trusts whoever connects from here.

    It syncs nothing unless it is `durable`, which one that is killed must be.
    """

    name = "postgresql"
    account = "postgres"
    user = "hilum"

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self.durable = durable

    def command(self) -> list[str]:
        quick = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
        return [
            self._program("postgres"),
            *("-D", str(self.data), "-p", str(self.port), "-k", str(self.folder), "-h", "127.0.0.1"),
            *(() if self.durable else quick),
            *("-c", "max_connections=200"),
        ]

    @property
    def address(self) -> str:
        return "127.0.0.1"

    @property
    def data(self) -> Path:
        return self.folder / "cluster"

    def start(self) -> Self:
        if not self.data.exists():
            self._initialise()
        return super().start()

    def ready(self) -> bool:
        try:
            with psycopg.connect(self._conninfo("postgres"), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of one of the databases."""
        return f"postgresql+psycopg://{self.user}@{self.address}:{self.port}/{database}"

    def fresh_url(self, template: str = "template1") -> str:
        """Create a database, empty or a copy of another one, and return its SQLAlchemy URL."""
        database = f"test_{uuid4().hex}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database} TEMPLATE {template} STRATEGY file_copy")
        return self.url(database)

    def kill(self) -> None:
        """Kill the server and all of its processes, or the next start would wait for them."""
        children = _children_of(self.process)
        super().kill()
        _kill(children)

    def stop(self) -> None:
        # SIGTERM would wait for the clients to leave.
        self._end(signal.SIGINT)

    def end(self) -> None:
        # Killed, it would leave its shared memory behind.
        self.stop()

    def _conninfo(self, database: str) -> str:
        return f"host={self.address} port={self.port} user={self.user} dbname={database}"

    def _initialise(self) -> None:
        account = self.account if os.geteuid() == 0 else None
        if account is not None:
            shutil.chown(self.folder, account)
        made = subprocess.run(
            [
                *_dies_with_its_parent(account),
                self._program("initdb"),
                *(
                    "-D",
                    str(self.data),
                    "-U",
                    self.user,
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "--locale=C",
                    "--no-sync",
                ),
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise ServerError(f"initdb failed\n{made.stdout}{made.stderr}")

    def _program(self, name: str) -> str:
        installed = sorted(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -float(folder.parent.name)
        )
        return executable(name, "postgresql", *installed)


@dataclass(frozen=True)
class StoredInstance:
    """One instance in Orthanc; `identifier` is Orthanc's own."""

    identifier: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


class Orthanc(Server):
    """An Orthanc that plays the PACS, over DIMSE and DICOMweb; `configuration` overrides."""

    name = "orthanc"

    def __init__(self, ae_title: str = "ORTHANC", **configuration: Any) -> None:
        super().__init__()
        self.ae_title = ae_title
        self.configuration = configuration
        self.dicom_port = 0

    @property
    def aet(self) -> str:
        return self.ae_title

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dicomweb_url(self) -> str:
        return f"{self.http_url}/dicom-web"

    @property
    def destination(self) -> str:
        """Its URL as a destination of reports."""
        return f"dicom://{self.ae_title}@127.0.0.1:{self.dicom_port}"

    def choose_ports(self) -> None:
        self.port = free_port()
        self.dicom_port = free_port()

    def command(self) -> list[str]:
        program = executable("Orthanc", "orthanc")
        plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
        if not plugin.exists():
            raise ServerError(f"{plugin.name} is not installed: apt-get install orthanc-dicomweb")
        configuration = {
            "Name": self.ae_title,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "DicomAlwaysAllowStore": True,
            "DicomCheckCalledAet": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(plugin)],
            "DicomWeb": {
                "Enable": True,
                "Root": "/dicom-web/",
                "StudiesMetadata": "Full",
                "SeriesMetadata": "Full",
            },
            **self.configuration,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration, indent=2), encoding="utf-8")
        return [program, str(path)]

    def ready(self) -> bool:
        try:
            answer = HTTP.get(f"{self.http_url}/system", timeout=2)
        except httpx.HTTPError:
            return False
        # Another server may hold the port that this one wanted.
        return answer.is_success and answer.json().get("DicomPort") == self.dicom_port

    def studies(self) -> list[str]:
        """Return the Study Instance UIDs it holds."""
        return [found["MainDicomTags"]["StudyInstanceUID"] for found in self._find("Study", {})]

    def instances(self, study_instance_uid: str) -> list[StoredInstance]:
        """Return the instances of a study, in the order of their SOP Instance UIDs."""
        stored = []
        for found in self._find("Instance", {"StudyInstanceUID": study_instance_uid}):
            identifier = found["ID"]
            sop_class_uid = self._get(f"/instances/{identifier}/metadata/SopClassUid").text
            series = self._get(f"/instances/{identifier}/series").json()["MainDicomTags"]
            stored.append(
                StoredInstance(
                    identifier,
                    sop_class_uid,
                    found["MainDicomTags"]["SOPInstanceUID"],
                    series["SeriesInstanceUID"],
                    study_instance_uid,
                )
            )
        return sorted(stored, key=lambda instance: instance.sop_instance_uid)

    def dicomweb_metadata(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """Return the DICOM JSON of every instance of a study, as DICOMweb tells it (PS3.18 10.4)."""
        metadata: list[dict[str, Any]] = self._get(f"/dicom-web/studies/{study_instance_uid}/metadata").json()
        return metadata

    def download(self, instance: StoredInstance) -> bytes:
        """Return the Part 10 file of an instance."""
        return self._get(f"/instances/{instance.identifier}/file").content

    def stored(self) -> list[str]:
        """Return Orthanc's own identifiers of all instances."""
        identifiers: list[str] = self._get("/instances").json()
        return identifiers

    def store(self, path: Path) -> None:
        """Put a DICOM file into it."""
        HTTP.post(f"{self.http_url}/instances", content=path.read_bytes(), timeout=30).raise_for_status()

    def lose(self, identifier: str) -> None:
        """Delete an instance."""
        HTTP.delete(f"{self.http_url}/instances/{identifier}", timeout=30).raise_for_status()

    def _find(self, level: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        body = {"Level": level, "Query": dict(query), "Expand": True}
        answer = HTTP.post(f"{self.http_url}/tools/find", json=body, timeout=30).raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def _get(self, path: str) -> httpx.Response:
        return HTTP.get(f"{self.http_url}{path}", timeout=30).raise_for_status()


class Prometheus(Server):
    """A Prometheus with the configuration and rules of `deploy/prometheus`.

    It asks the API on port `target` every second, and shows it the token `secret`.
    """

    name = "prometheus"

    def __init__(self, target: int, secret: str = "none") -> None:
        super().__init__()
        self.target = target
        self.secret = secret

    def command(self) -> list[str]:
        shutil.copytree(ROOT / "deploy" / "prometheus", self.folder / "etc", dirs_exist_ok=True)
        (self.folder / "token").write_text(self.secret, encoding="utf-8")
        path = self.folder / "etc" / "prometheus.yml"
        text = path.read_text(encoding="utf-8")
        for written, here in (
            ("api:8080", f"127.0.0.1:{self.target}"),
            ("/run/secrets/metrics_token", str(self.folder / "token")),
            ("_interval: 15s", "_interval: 1s"),
        ):
            assert written in text
            text = text.replace(written, here)
        path.write_text(text, encoding="utf-8")
        return [
            executable("prometheus", "prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def ready(self) -> bool:
        try:
            return HTTP.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression at this moment."""
        answer = HTTP.get(
            f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": expression}, timeout=10
        )
        assert answer.is_success, f"{expression}\n{answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """Return the only value of an expression, 0 without any."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0


class StoreScp(Server):
    """dcmtk's storescp as a PACS that takes the given SOP classes, and no others; JPEG if it is told to.

    `tls`: dcmtk's options of TLS; it must be called as localhost then.
    """

    name = "storescp"

    def __init__(
        self, *sop_classes: str, ae_title: str = "STORESCP", jpeg: bool = True, tls: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.tls = list(tls)
        self.jpeg = jpeg
        self.sop_classes = sop_classes
        self.ae_title = ae_title

    @property
    def destination(self) -> str:
        """Its URL as a destination of reports."""
        where = f"{self.ae_title}@localhost" if self.tls else f"{self.ae_title}@127.0.0.1"
        return f"{'dicoms' if self.tls else 'dicom'}://{where}:{self.port}"

    @property
    def received(self) -> Path:
        """The folder of what it has received."""
        return self.folder / "received"

    def command(self) -> list[str]:
        self.received.mkdir(exist_ok=True)
        lines = ["[[TransferSyntaxes]]", "[Taken]"]
        lines += ["TransferSyntax1 = LittleEndianExplicit", *["TransferSyntax2 = JPEGBaseline"] * self.jpeg]
        lines += ["[[PresentationContexts]]", "[Contexts]"]
        for number, sop_class in enumerate(self.sop_classes, start=1):
            lines.append(f"PresentationContext{number} = {sop_class}\\Taken")
        lines += ["[[Profiles]]", "[Default]", "PresentationContexts = Contexts"]
        configuration = self.folder / "storescp.cfg"
        configuration.write_text("\n".join(lines) + "\n", encoding="ascii")
        # The one in a virtual environment's bin is pynetdicom's.
        program = Path("/usr/bin/storescp")
        if not program.exists():
            raise ServerError(f"{program} is not installed: apt-get install dcmtk")
        options = ["-v", "-aet", self.ae_title, "-od", str(self.received), "-xf", str(configuration)]
        return [str(program), *options, "Default", *self.tls, str(self.port)]

    def ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


_ROLES = {"listen": "listener", "api": "api", "scheduler": "scheduler", "worker": "worker"}


class Gateway(Server):
    """The gateway as its users start it: `hilum up`, with HILUM_* settings given without the prefix.

    Quiet period and longest wait are short unless given; everything lies in a folder of its own.
    """

    name = "gateway"
    # Six processes that import half of Python's science, on a machine with other tests running.
    start_seconds = 120.0
    stop_seconds = 60.0

    def __init__(self, *, command: Sequence[str] = ("up",), **settings: object) -> None:
        super().__init__()
        self.arguments = tuple(command)
        self.settings = {name.lower(): str(value) for name, value in settings.items()}
        self.dimse_port = 0
        self.data_dir = Path(self.settings.get("data_dir", self.folder / "data"))

    @property
    def ae_title(self) -> str:
        return self.settings.get("ae_title", "HILUM")

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def choose_ports(self) -> None:
        self.port = int(self.settings.get("http_port", free_port()))
        self.dimse_port = int(self.settings.get("dimse_port", free_port()))

    def environment(self) -> dict[str, str]:
        settings = {
            "study_quiet_seconds": "1",
            "study_max_wait_seconds": "30",
            **self.settings,
            "data_dir": str(self.data_dir),
            "http_port": str(self.port),
            "dimse_port": str(self.dimse_port),
        }
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HILUM_")}
        ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return ours | {f"HILUM_{name.upper()}": value for name, value in settings.items()}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "service.commands.main", *self.arguments]

    def ready(self) -> bool:
        try:
            return HTTP.get(f"{self.http_url}/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run another `hilum` command with the settings of this gateway."""
        return subprocess.run(
            [sys.executable, "-m", "service.commands.main", *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def send(self, *paths: Path, calling_ae_title: str = "TEST") -> subprocess.CompletedProcess[str]:
        """Push files or folders into the gateway with dcmtk's storescu."""
        return storescu(paths, self.ae_title, self.dimse_port, calling_aet=calling_ae_title)

    def studies(self) -> list[dict[str, Any]]:
        """Return the studies as the API lists them."""
        listed = HTTP.get(f"{self.http_url}/api/studies", timeout=10).raise_for_status().json()
        found: list[dict[str, Any]] = listed["studies"] if isinstance(listed, dict) else listed
        return found

    def study(self, study_instance_uid: str) -> dict[str, Any] | None:
        """Return the API's JSON of a study, or None when it knows none of that UID."""
        answer = HTTP.get(f"{self.http_url}/api/studies/{study_instance_uid}", timeout=10)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def wait_for_state(
        self, study_instance_uid: str, states: str | Iterable[str], deadline: float = 30.0
    ) -> dict[str, Any]:
        """Return the API's JSON of a study once its state is one of `states`; fail with the log."""
        wanted = {states} if isinstance(states, str) else set(states)
        seen: dict[str, Any] | None = None

        def arrived() -> bool:
            nonlocal seen
            # A restart between two questions is part of many tests.
            with suppress(httpx.TransportError):
                seen = self.study(study_instance_uid)
            return seen is not None and seen["state"] in wanted

        try:
            eventually(
                arrived, deadline, f"study {study_instance_uid} in state {' or '.join(sorted(wanted))}"
            )
        except ServerError as late:
            raise ServerError(f"{late}\nlast seen: {json.dumps(seen, indent=2)}\n{self.log()}") from None
        assert seen is not None
        return seen

    def pids(self) -> dict[str, list[int]]:
        """Return the process ids of the children by role, parents before their own children.

        The roles are listener, api, scheduler, worker, redis and one `worker-QUEUE` for each queue; a child
        whose command line tells no role belongs to its parent's.
        """
        found: dict[str, list[int]] = {}

        def walk(parent: psutil.Process, role: str) -> None:
            for child in sorted(parent.children(), key=lambda process: process.create_time()):
                with suppress(psutil.NoSuchProcess):
                    own = _role(child.cmdline()) or role
                    if own:
                        found.setdefault(own, []).append(child.pid)
                    walk(child, own)

        if self.process is not None:
            with suppress(psutil.NoSuchProcess):
                walk(psutil.Process(self.process.pid), "")
        return found

    def kill(self) -> None:
        """Kill the gateway with SIGKILL, and all of its children with it."""
        children = _children_of(self.process)
        super().kill()
        _kill(children)

    def stop(self) -> None:
        """Stop with SIGTERM as an administrator does; children that outlive it are killed."""
        children = _children_of(self.process)
        super().stop()
        _kill(children)

    def end(self) -> None:
        self.stop()


def _children_of(process: "subprocess.Popen[bytes] | None") -> list[psutil.Process]:
    if process is None:
        return []
    try:
        children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=10)


def storescu(
    paths: Path | Iterable[Path],
    aet: str,
    port: int,
    *extra: str,
    calling_aet: str = "TEST",
    address: str = "127.0.0.1",
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Push files or folders with dcmtk's storescu, in the transfer syntax each of them has.

    Parameters
    ----------
    paths
        Files, or folders that are searched to the bottom.
    aet, port
        Called AE title, and the port at `address`.
    extra
        More options of storescu; one that proposes syntaxes (``-x…``, ``-R``) replaces the files' own.
    calling_aet
        Calling AE title.
    timeout
        Longest run, in seconds.

    Returns
    -------
    CompletedProcess
        `returncode` 0 when every file was answered with success; stdout and stderr are text.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    files = [file for path in given for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    # The one in a virtual environment's bin is pynetdicom's.
    program = Path("/usr/bin/storescu")
    if not program.exists():
        raise ServerError(f"{program} is not installed: apt-get install dcmtk")
    with tempfile.TemporaryDirectory(prefix="storescu-") as folder:
        command = [str(program), "-v", "-aet", calling_aet, "-aec", aet, "-to", "10", *extra]
        chosen = any(option.startswith(("-x", "-R")) for option in extra)
        if not chosen and (profile := _association_profile(files)):
            configuration = Path(folder) / "storescu.cfg"
            configuration.write_text(profile, encoding="ascii")
            command += ["-xf", str(configuration), "Default"]
        done = subprocess.run(
            [*command, address, str(port), *(str(file) for file in files if file.is_file())],
            # Nagle's algorithm and delayed acknowledgements cost 40 ms an object.
            env={**os.environ, "TCP_NODELAY": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    if not done.returncode and "Store Failed" in done.stderr:
        # Of a peer that is gone it tells a status that it never had: one of 256, and 0 is one of these.
        done.returncode = 1
    return done


def _association_profile(files: Iterable[Path]) -> str | None:
    """Return dcmtk's configuration that proposes each file's class and syntax; None without DICOM files."""
    proposed = set()
    for file in files:
        with suppress(Exception):  # what is no DICOM file is storescu's to refuse
            meta = read_file_meta_info(file)
            proposed.add((str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    if not proposed:
        return None
    syntaxes = sorted({syntax for _, syntax in proposed})
    names = {syntax: f"Syntax{number}" for number, syntax in enumerate(syntaxes, start=1)}
    lines = ["[[TransferSyntaxes]]"]
    for syntax, name in names.items():
        lines += [f"[{name}]", f"TransferSyntax1 = {syntax}"]
    lines += ["[[PresentationContexts]]", "[Contexts]"]
    for number, (sop_class_uid, syntax) in enumerate(sorted(proposed), start=1):
        lines.append(f"PresentationContext{number} = {sop_class_uid}\\{names[syntax]}")
    lines += ["[[Profiles]]", "[Default]", "PresentationContexts = Contexts"]
    return "\n".join(lines) + "\n"


def _role(command_line: Sequence[str]) -> str | None:
    """Return the role that a command line names, or None."""
    if not command_line:
        return None
    if "redis-server" in command_line[0]:
        return "redis"
    role = next((_ROLES[word] for word in command_line[1:] if word in _ROLES), None)
    if role == "worker" and "--queue" in command_line:
        return f"worker-{command_line[command_line.index('--queue') + 1]}"
    return role


def _dies_with_its_parent(account: str | None) -> list[str]:
    """Return the command that makes a server end with the tests, even killed ones, and run as `account`."""
    program = shutil.which("setpriv")
    if program is None:
        if account is not None:
            raise ServerError("setpriv is not installed: apt-get install util-linux")
        return []
    identity = [f"--reuid={account}", f"--regid={account}", "--init-groups"] if account else []
    return [program, "--pdeathsig=KILL", *identity]
