"""`hilum bench` as an administrator runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT


def bench(folder: Path, *options: str, timeout: float = 170) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.commands.main", "bench", *options],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.long
def test_the_benchmark_tells_seconds_by_stage_and_what_each_role_uses(tmp_path: Path) -> None:
    size = ("--films", "3", "--singles", "1", "--megabytes", "0.5", "--associations", "2")
    done = bench(tmp_path, *size, "--plot", "bench.png", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for run, films in (("one_after_the_other", 1), ("all_at_once", 3)):
        assert (found[run]["films"], found[run]["lost"]) == (films, 0)
        assert set(found[run]["seconds"]) == {"receive", "decode", "infer", "report", "deliver", "all"}
        for shares in found[run]["seconds"].values():
            assert 0 <= shares["p50"] <= shares["p95"] <= shares["p99"] < 120
    used = found["all_at_once"]["cpu_milliseconds_a_film"]
    roles = {"listener", "scheduler", "api", "decode", "infer", "report", "deliver", "redis", "supervisor"}
    assert set(used) == roles | {"routers", "PACS"}
    assert all(used[role] > 0 for role in ("listener", "decode", "infer", "report", "deliver", "routers"))
    assert set(found["all_at_once"]["memory_megabytes"]) == roles
    assert found["receiving"] == {}
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_listener_is_measured_beside_others(tmp_path: Path) -> None:
    size = ("--films", "3", "--singles", "1", "--megabytes", "0.5")
    done = bench(tmp_path, *size, "--vs", "orthanc,storescp", timeout=800)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert {"hilum", "orthanc", "storescp"} <= {row.split()[1] for row in rows}


def test_a_benchmark_beside_somebody_unknown_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = bench(tmp_path, "--vs", "dcm4chee")
    assert done.returncode == 2
    assert "orthanc and storescp" in done.stderr
