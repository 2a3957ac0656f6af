"""Run a command with the system calls that a systemd unit leaves to it: systemd's own lists, by libseccomp.

python -m tests.systemcalls deploy/systemd/hilum@.service COMMAND…
"""

import ctypes
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000


def left_by(unit: str) -> set[str]:
    """Return the names of the system calls that the SystemCallFilter lines of a unit leave."""
    left: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        named = expanded(line.removeprefix("~").split())
        left = left - named if line.startswith("~") else left | named
    return left


def expanded(names: Iterable[str]) -> set[str]:
    """Return the names with the sets among them taken apart."""
    found: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        said = subprocess.run(
            ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
        )
        found |= expanded(re.findall(r"^    (@?\w[\w-]*)$", said.stdout, re.MULTILINE))
    return found


def restrict_to(names: Iterable[str]) -> None:
    """Leave these system calls to this process and its children; any other is not permitted (EPERM)."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.EPERM))
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            library.seccomp_rule_add(context, ctypes.c_uint32(_ALLOW), ctypes.c_int(number), ctypes.c_uint(0))
    if library.seccomp_load(context):
        raise OSError(ctypes.get_errno(), "seccomp_load")


if __name__ == "__main__":
    restrict_to(left_by(Path(sys.argv[1]).read_text(encoding="utf-8")) | {"execve"})
    os.execvp(sys.argv[2], sys.argv[2:])
