"""Hosts on one machine: network namespaces with a name of their own, joined by a bridge (needs root)."""

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.servers import Gateway, PostgreSQL, Redis, executable

_numbers = itertools.count(1)


class Network:
    """A bridge, to which this machine belongs at `address`; all of it ends with the block."""

    def __init__(self) -> None:
        # An interface's name has 15 characters.
        self.name = f"h{os.getpid() % 100_000}n{next(_numbers)}"
        self.prefix = f"10.213.{os.getpid() % 250}"
        self.hosts: list[Host] = []

    @property
    def address(self) -> str:
        return f"{self.prefix}.1"

    def __enter__(self) -> Self:
        ip("link", "add", self.name, "type", "bridge")
        ip("address", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            subprocess.run([_ip(), "netns", "delete", host.namespace], check=False)
        subprocess.run([_ip(), "link", "delete", self.name], check=False)

    def host(self, name: str) -> "Host":
        """Return a new host of the network."""
        host = Host(self, name, len(self.hosts) + 2)
        self.hosts.append(host)
        return host


class Host:
    """One host: `command` runs something there, `cut` takes its cable out and `join` puts it back."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name, self.address = name, f"{network.prefix}.{number}"
        self.namespace, self._cable = f"{network.name}-{name}", f"{network.name}v{number}"
        ip("netns", "add", self.namespace)
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self._cable, "master", network.name, "up")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", interface, "up")

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one on this host."""
        named = ("unshare", "--uts", "sh", "-c", f'hostname {self.name}; exec "$@"', "sh")
        return [_ip(), "netns", "exec", self.namespace, *named, *command]

    def cut(self) -> None:
        """Take the host off the network; what runs there goes on."""
        ip("link", "set", self._cable, "down")

    def join(self) -> None:
        """Bring the host back."""
        ip("link", "set", self._cable, "up")


def ip(*arguments: str) -> None:
    """Run iproute2's ip."""
    subprocess.run([_ip(), *arguments], check=True, capture_output=True)


def _ip() -> str:
    return executable("ip", "iproute2", Path("/usr/sbin"))


class HostRole(Gateway):
    """One role of the gateway on a host of its own; it is ready when it lives."""

    def __init__(self, host: Host, *command: str, **settings: object) -> None:
        super().__init__(command=command, **settings)
        self.host = host

    def command(self) -> list[str]:
        return self.host.command(super().command())

    def ready(self) -> bool:
        return self.process is not None and self.process.poll() is None


class HostRedis(Redis):
    """Redis on a host of its own."""

    def __init__(self, host: Host) -> None:
        super().__init__("--bind", host.address, "--protected-mode", "no")
        self.host = host

    def command(self) -> list[str]:
        return self.host.command(super().command())

    @property
    def address(self) -> str:
        return self.host.address


class HostPostgreSQL(PostgreSQL):
    """PostgreSQL on a host of its own, which trusts its network."""

    def __init__(self, host: Host) -> None:
        super().__init__(durable=True)
        self.host = host

    def start(self) -> Self:
        self._initialise()
        with (self.data / "pg_hba.conf").open("a", encoding="ascii") as stream:
            stream.write("host all all samenet trust\n")
        # Namespaces are entered by root, who then becomes the account.
        self.account = None  # type: ignore[misc]
        return super().start()

    def command(self) -> list[str]:
        account = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")
        return self.host.command([*account, *super().command(), "-c", f"listen_addresses={self.address}"])

    @property
    def address(self) -> str:
        return self.host.address
