"""Children that are started again when they die, and that die with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

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
