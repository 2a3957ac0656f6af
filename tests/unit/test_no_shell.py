"""No value from outside reaches a shell or an unpickler, as far as the source can say it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("service", "worker", "model", "deploy") for path in (ROOT / room).rglob("*.py")]
# What starts a program: our own children, PostgreSQL's dump and restore, the demonstration's PACS and viewer,
# deploy/'s own tools.
STARTERS = {
    *("service/commands/supervise.py", "service/commands/own_gateway.py", "service/commands/pacs.py"),
    "service/commands/bench/rivals.py",
    "service/core/backup.py",
    *("deploy/lock.py", "deploy/sbom.py", "deploy/audit.py"),
}
SHELLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "eval", "exec", "compile", "__import__"),
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and ast.unparse(node) != "from pickle import UnpicklingError":
            yield (node.module or "").split(".")[0]  # the error is what torch.load refuses with


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_calls_no_shell_and_unpickles_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, call in called(tree):
        assert name not in SHELLS, f"line {call.lineno}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("shell", "False") == "False", f"line {call.lineno}"
        assert given.get("allow_pickle", "False") == "False", f"line {call.lineno}"
        if name in {"torch.load", "load_state_dict_from_url"}:
            assert given.get("weights_only") == "True", f"line {call.lineno}"
    used = set(imported(tree))
    assert not UNPICKLERS & used
    if "subprocess" in used:
        assert str(path.relative_to(ROOT)) in STARTERS


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.system(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "eval(x)",
    ],
)
def test_the_look_finds_what_it_looks_for(text: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    with pytest.raises(AssertionError):
        test_source_calls_no_shell_and_unpickles_nothing(planted)
