"""Which test causes which fault: read from the marker `fault`, written into README.md.

`python -m tests.faults.table` rewrites the table.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = Path(__file__).with_name("README.md")
ROWS = {
    1: "kill -9 of the listener in the middle of a C-STORE",
    2: "kill -9 between fsync and ledger commit",
    3: "kill -9 after the commit, before the enqueue",
    4: "kill -9 of a pool child in the middle of its work",
    5: "kill -9 of a whole worker",
    6: "work that takes longer than its lease",
    7: "a message of a worker that is gone: the bound of its recovery",
    8: "a film that kills its process every time",
    9: "kill -9 of a Redis without persistence",
    10: "Redis down when an image arrives",
    11: "Redis restarted, its connections closed, or stopped, under live workers",
    12: "Redis emptied, or out of memory",
    13: "a worker that lives and does not consume",
    14: "spool full",
    15: "fsync fails, mount read-only",
    16: "ledger locked, or its server stopped",
    17: "PACS down when the result is to be returned",
    18: "PACS hangs after it accepted the association",
    19: "PACS answers with a warning or a failure",
    20: "PACS rejects the SR's SOP class",
    21: "PACS takes one object of two",
    22: "same UID, same bytes again",
    23: "same UID, changed header or changed pixels",
    24: "same instance from eight associations at once",
    25: "RST in the middle of an association or a PDU",
    26: "stall between PDUs",
    27: "stall inside a PDU",
    28: "silent sockets in all slots",
    29: "silent client on the TLS port",
    30: "wrong called or unknown calling AE title",
    31: "command and data set name different objects",
    32: "UID that is a path, too long, or holds a NUL",
    33: "truncated data set, odd length, unknown VR",
    34: "deflate bomb",
    35: "huge or empty pictures, in the header or in the codestream",
    36: "sequences nested a thousand deep",
    37: "every transfer syntax offered is decodable; garbled codestreams",
    38: "character sets",
    39: "empty values, private tags",
    40: "SIGTERM in the middle of work",
}
_HEAD = """# Which test causes which fault

Each test of a fault is marked `@pytest.mark.fault(row)`; `pytest -m fault` runs them all. The faults are
real: Redis, Celery workers, PostgreSQL, Orthanc and dcmtk as installed, signals, mounts, injected errors.
What needs root or a tool says so, is skipped where that is missing, and in CI counts as failed when skipped.
The table is written by `python -m tests.faults.table`.

| row | fault | test |
|---|---|---|
"""


@dataclass(frozen=True, order=True)
class Test:
    """One marked test, and what its docstring says it needs."""

    path: str
    name: str
    needs: str

    def __str__(self) -> str:
        return f"`{self.path}::{self.name}`{f' ({self.needs})' if self.needs else ''}"


def marked() -> dict[int, list[Test]]:
    """Return the tests of each row."""
    found = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                needs = (ast.get_docstring(node) or "").split(":")[0]
                for row in _rows(node):
                    test = Test(
                        str(path.relative_to(TESTS)),
                        node.name,
                        f"n{needs[1:].rstrip('.')}" if needs.startswith("Needs ") else "",
                    )
                    found[row].append(test)
    return found


def rendered() -> str:
    tests = marked()
    lines = []
    for row, fault in ROWS.items():
        named = "<br>".join(str(test) for test in sorted(tests[row]))
        lines.append(f"| {row} | {fault} | {named} |")
    return _HEAD + "\n".join(lines) + "\n"


def _rows(function: ast.FunctionDef) -> list[int]:
    return [
        argument.value
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault"
        for argument in decorator.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, int)
    ]


if __name__ == "__main__":
    README.write_text(rendered())
