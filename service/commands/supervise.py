"""Child processes that die with their parent and are started again when they die alone."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from service.commands.ending import Termination, ended
from service.core.errors import CONFIGURATION_EXIT_CODE, ConfigurationError
from service.core.leases import backoff_seconds

_LONGEST_BACKOFF_SECONDS = 30.0
# A child that ran this long was healthy: its next death starts the backoff anew.
_HEALTHY_SECONDS = 60.0
# Asks Linux for SIGTERM when the parent dies (PR_SET_PDEATHSIG is 1), looks whether it has died already, and
# becomes the command. Not as `preexec_fn`: that runs Python between fork and exec, which may hang where the
# parent has threads.
_DIES_WITH_ITS_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) and os.execvp(sys.argv[2], sys.argv[2:])"
)
_log = structlog.get_logger()


class Running(Protocol):
    """What the supervisor needs of a process."""

    pid: int

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""

    def wait(self, timeout: float | None = None) -> object:
        """Wait for its end; raises subprocess.TimeoutExpired after `timeout` seconds."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


@dataclass
class Child:
    """One supervised command; `stop_seconds` is how long it may drain after SIGTERM.

    `proven`: it has run for so long that it is configured rightly, whatever it ends with later.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    stop_seconds: float = 20.0
    process: Running | None = None
    started_at: float = 0.0
    deaths: int = 0
    start_at: float = 0.0
    proven: bool = False

    def start(self, inherited: Sequence[int]) -> Running:
        """Return a new process that has these descriptors.

        Raises
        ------
        OSError
            When there is no memory or no process left just now.
        """
        command = list(self.command)
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIES_WITH_ITS_PARENT, str(os.getpid()), *command]
        return subprocess.Popen(  # noqa: S603
            command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            process_group=0,  # out of the terminal's Ctrl-C, and to be killed with its own children
        )


@dataclass(kw_only=True)
class Fork(Child):
    """A child that is forked and does `work`; what was made before is there, and shares its memory.

    Its parent must have no other thread. It is killed when that dies.
    """

    command: Sequence[str] = ()
    work: Callable[[], object]

    def start(self, inherited: Sequence[int]) -> Running:
        return _Forked(self.work)


class _Forked:
    def __init__(self, work: Callable[[], object]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_work, args=(work, os.getpid()))
        self._process.start()
        self.pid = self._process.pid or 0
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> object:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired([], timeout or 0.0)
        return self._process.exitcode


def _work(work: Callable[[], object], parent: int) -> None:
    """Do the work of a forked child, without what its parent does at signals."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == parent:
        try:
            code = ended(work)
        except Exception as fault:  # multiprocessing would print it with its words
            sys.excepthook(type(fault), fault, fault.__traceback__)
            code = 1
        sys.exit(code)


class Supervisor:
    """Keeps its children running until `stop`.

    Children added first are stopped last, one after the other, unless they are to be stopped `together`. They
    get the descriptors `inherited`. `leave` is called before they are stopped.
    """

    def __init__(
        self,
        *,
        together: bool = False,
        inherited: Sequence[int] = (),
        leave: Callable[[], object] = int,
    ) -> None:
        self._together = together
        self._inherited = inherited
        self._leave = leave
        self._children: list[Child] = []

    def add(self, child: Child) -> None:
        """Start a child and keep it running."""
        self._children.append(child)
        self._start(child)

    def run(self) -> None:
        """Watch the children until SIGTERM or SIGINT, then stop them in reverse order.

        Raises
        ------
        ConfigurationError
            When a child can't start as it is configured; all others are stopped by then.
        """
        termination = Termination()
        try:
            while not termination.comes_within(0.1):
                for child in self._children:
                    self._watch(child)
        finally:
            self.stop()

    def replace(self, name: str, why: str) -> None:
        """Kill a child that lives and does not work, with all of its own children; `run` starts it again."""
        for child in self._children:
            if child.name == name and child.process is not None and child.process.poll() is None:
                _log.error("supervisor.not_working", child=name, reason=why)
                with suppress(ProcessLookupError):
                    # A process that is stopped heeds nothing else.
                    os.killpg(child.process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Send SIGTERM to each child, the newest first, and wait for it; kill it when it takes too long."""
        self._leave()
        if self._together:
            for child in self._children:
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
        for child in reversed(self._children):
            process = child.process
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(child.stop_seconds)
            except subprocess.TimeoutExpired:
                _log.warning("supervisor.killed", child=child.name)
                process.kill()
                process.wait()

    def _watch(self, child: Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.start_at:
                self._start_again(child)
            return
        code = child.process.poll()
        if code is None:
            return
        if time.monotonic() - child.started_at > _HEALTHY_SECONDS:
            child.deaths, child.proven = 0, True
        if code == CONFIGURATION_EXIT_CODE and not child.proven:
            raise ConfigurationError(f"{child.name} can't start: see its line above")
        delay = 0.0 if child.deaths == 0 else backoff_seconds(child.deaths, _LONGEST_BACKOFF_SECONDS)
        child.deaths += 1
        child.process, child.start_at = None, time.monotonic() + delay
        _log.error(
            "supervisor.child_died", child=child.name, exit_code=code, restart_in_seconds=round(delay, 1)
        )

    def _start_again(self, child: Child) -> None:
        try:
            self._start(child)
        except OSError as fault:  # no memory or no process left just now
            child.deaths += 1
            child.start_at = time.monotonic() + backoff_seconds(child.deaths, _LONGEST_BACKOFF_SECONDS)
            _log.error("supervisor.not_started", child=child.name, error=type(fault).__name__)

    def _start(self, child: Child) -> None:
        child.process = child.start(self._inherited)
        child.started_at = time.monotonic()


def hilum_command(*arguments: str) -> list[str]:
    """Return the command that runs `hilum` with this very interpreter."""
    return [sys.executable, "-m", "service.commands.main", *arguments]
