"""Children that are started again when they die, and that die with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from service.commands.supervise import Child, Supervisor
from tests.servers import eventually

_PARENT = """
import sys
from service.commands.supervise import Child, Supervisor
supervisor = Supervisor()
for name in sys.argv[1:]:
    supervisor.add(Child(name, [sys.executable, "-c", "import time; time.sleep(600)"], stop_seconds=5))
supervisor.run()
"""


def started(*names: str) -> psutil.Process:
    """Start a supervisor with a sleeping child for each name."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", _PARENT, *names], env=environment)
    parent = psutil.Process(process.pid)
    eventually(lambda: len(parent.children()) == len(names), 20, "the children")
    return parent


def test_a_child_that_dies_is_started_again() -> None:
    parent = started("one", "two")
    try:
        before = {child.pid for child in parent.children()}
        victim = min(before)
        os.kill(victim, signal.SIGKILL)

        def replaced() -> bool:
            alive = {child.pid for child in parent.children() if child.status() != psutil.STATUS_ZOMBIE}
            return len(alive) == 2 and victim not in alive

        eventually(replaced, 20, "a new child")
    finally:
        parent.terminate()
        parent.wait(20)


def test_sigterm_stops_every_child_before_the_parent_ends() -> None:
    parent = started("one", "two")
    children = parent.children()
    parent.terminate()
    assert parent.wait(20) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_children_die_with_a_parent_that_is_killed() -> None:
    parent = started("one")
    (child,) = parent.children()
    parent.kill()
    parent.wait(20)
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20, "the child gone")


def test_a_second_gateway_in_the_same_data_folder_is_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / "up.lock"):
        began = time.monotonic()
        refused = subprocess.run(
            [sys.executable, "-m", "service.commands.main", "up"],
            env={**os.environ, "HILUM_DATA_DIR": str(tmp_path / "data"), "HILUM_MIN_FREE_BYTES": "0"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert refused.returncode == 2
    assert "another `hilum up`" in refused.stderr
    assert time.monotonic() - began < 60


_MISTAKEN = """
import sys
from service.commands.supervise import Child, Supervisor
from service.core.errors import ConfigurationError
supervisor = Supervisor()
supervisor.add(Child("sound", [sys.executable, "-c", "import time; time.sleep(600)"], stop_seconds=5))
ends = "import sys; sys.exit(int(sys.argv[1]))"
supervisor.add(Child("mistaken", [sys.executable, "-c", ends, sys.argv[1]]))
try:
    supervisor.run()
except ConfigurationError as fault:
    sys.exit(str(fault))
"""


def test_a_child_that_is_configured_wrongly_stops_the_start_and_all_the_others() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", _MISTAKEN, "2"],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "mistaken can't start: see its line above" in ended.stderr


def test_a_child_that_ends_otherwise_is_started_again() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", _MISTAKEN, "1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = iter(parent.stdout.readline, "")
        assert all("child_died" in line for _, line in zip(range(2), said, strict=False))
        assert parent.poll() is None
        parent.terminate()


def test_a_child_that_is_stopped_is_replaced_when_it_is_said_not_to_work() -> None:
    supervisor = Supervisor()
    supervisor.add(Child("one", [sys.executable, "-c", "import time; time.sleep(600)"]))
    child = supervisor._children[0]
    first = child.process
    assert first is not None
    psutil.Process(first.pid).suspend()
    supervisor.replace("one", "a test")
    assert first.wait(10) == -signal.SIGKILL
    supervisor._watch(child)
    supervisor._watch(child)
    assert child.process is not None
    assert child.process.pid != first.pid
    supervisor.stop()


_WAITS = """
import signal, threading, time
from service.commands.roles import until_terminated
def kill():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.01)
    time.sleep(0.1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)
threading.Thread(target=kill, daemon=True).start()
until_terminated()
"""


_INTERRUPTED = """
import os, signal, threading, time
from service.commands.ending import Termination
Termination()
def interrupt():
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.0001)
threading.Thread(target=interrupt, daemon=True).start()
for _ in range(3000):
    termination = Termination()
    while not termination.comes_within(0):
        pass
"""


def test_a_signal_at_any_moment_of_the_wait_is_heeded() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", _INTERRUPTED], env=environment, check=False, timeout=30)
    assert ended.returncode == 0


def test_sigterm_ends_a_role_whatever_thread_it_comes_to() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert (
        subprocess.run([sys.executable, "-c", _WAITS], env=environment, check=False, timeout=30).returncode
        == 0
    )
