"""A whole gateway in a folder of its own, for as long as a command needs one."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from service.commands.supervise import hilum_command
from service.core.errors import ConfigurationError

AE_TITLE = "HILUM"
_START_SECONDS = 90.0


@dataclass(frozen=True)
class OwnGateway:
    """`hilum up`, ready: its process, its folder, and its ports on this machine."""

    process: psutil.Process
    data_dir: Path
    dimse_port: int
    http_port: int

    def ask(self, path: str) -> dict[str, Any]:
        """Return the JSON at `path`; empty while there is none."""
        return _ask(self.http_port, path)


@contextmanager
def own_gateway(folder: Path, log: Path, settings: Mapping[str, object]) -> Iterator[OwnGateway]:
    """Run `hilum up` on free ports until the block ends.

    Parameters
    ----------
    folder
        Where its data folder is made; a ``.env`` of the site is not there.
    log
        The file that takes what it says.
    settings
        ``HILUM_*`` beside the ports, by name without the prefix. Of the environment's own only the weights
        hold.

    Raises
    ------
    ConfigurationError
        When it does not start.
    """
    data, dimse_port, http_port = folder / "data", free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HILUM_")}
    if "HILUM_WEIGHTS" in os.environ:
        environment["HILUM_WEIGHTS"] = str(Path(os.environ["HILUM_WEIGHTS"]).resolve())
    ours = {"data_dir": data, "ae_title": AE_TITLE, "dimse_port": dimse_port, "http_port": http_port}
    environment |= {f"HILUM_{name.upper()}": str(value) for name, value in {**settings, **ours}.items()}
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            hilum_command("up"), env=environment, cwd=folder, stdout=stream, stderr=stream
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _ask(http_port, "/readyz").get("ready"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ConfigurationError(f"the gateway did not start: {_last_words(log)}")
                time.sleep(0.1)
            yield OwnGateway(psutil.Process(process.pid), data, dimse_port, http_port)
        finally:
            process.terminate()
            process.wait(60)


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines() or [f"it said nothing in {_START_SECONDS:g} s"]
    return next((line for line in reversed(lines) if "hilum:" in line), lines[-1])


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ask(port: int, path: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except OSError:
        return {}
