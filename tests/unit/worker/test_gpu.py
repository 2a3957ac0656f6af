"""Workers share out the GPUs of a machine."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from worker.gpu import own_gpu

WORKER = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
torch.cuda.is_available, torch.cuda.init, torch.cuda.device_count = lambda: True, lambda: None, lambda: 2
torch.cuda.get_device_properties = lambda number: SimpleNamespace(uuid=f"GPU-{number}")
from worker.gpu import own_gpu
print(own_gpu(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(data_dir: Path) -> Iterator[str]:
    """Run a process that computes on one of two GPUs, and yield which."""
    command = [sys.executable, "-c", WORKER, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_workers_share_out_the_gpus_and_a_dead_one_s_is_taken_next(tmp_path: Path) -> None:
    with ExitStack() as others, worker(tmp_path) as first:
        with worker(tmp_path) as second:
            assert {first, second} == {"cuda:0", "cuda:1"}
            third = others.enter_context(worker(tmp_path))
            fourth = others.enter_context(worker(tmp_path))
            assert {third, fourth} == {"cuda:0", "cuda:1"}
        assert others.enter_context(worker(tmp_path)) == second


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let torch see so many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: SimpleNamespace(uuid=of))


def test_without_a_gpu_nothing_is_chosen_and_a_single_one_needs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, chosen in ((0, None), (1, "cuda:0")):
        gpus(monkeypatch, number)
        assert own_gpu(tmp_path) == chosen
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_locked_it_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    gpus(monkeypatch, 2)
    monkeypatch.setattr(fcntl, "flock", fails)
    assert own_gpu(tmp_path) == "cuda:0"
