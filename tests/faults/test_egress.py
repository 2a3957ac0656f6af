"""The pool that parses what strangers sent talks to Redis and to nobody else."""

import re
from pathlib import Path

from service.core.enqueue import Enqueuer
from service.core.settings import load
from service.core.states import InstanceState
from tests import pipeline
from tests.ledgers import migrated
from tests.servers import Gateway, Redis, eventually, executable
from worker.context import Context

# A connection, or a datagram to an address: what a parser that was taken over would have to make.
_CALLS = "connect,sendto,sendmsg,sendmmsg"


class Traced(Gateway):
    """The decode pool under strace, which writes down whom it and its children call."""

    name = "decode"

    def __init__(self, **settings: object) -> None:
        super().__init__(command=("worker", "--queue", "decode", "--pool"), **settings)

    def command(self) -> list[str]:
        strace = [
            executable("strace", "strace"),
            "--seccomp-bpf",
            "--follow-forks",
            f"--trace={_CALLS}",
            "--output",
            "calls",
        ]
        return [*strace, *super().command()]

    def ready(self) -> bool:
        return any("AF_INET" in line for line in self.calls)

    def end(self) -> None:
        # strace only lets go of it when it is asked to stop.
        self.kill()

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text(errors="replace").splitlines() if path.exists() else []


def test_the_decode_pool_calls_redis_and_nobody_else(redis: Redis, tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path / "data", broker_url=redis.url, min_free_bytes=0, population="flag")
    settings.data_dir.mkdir()
    migrated(settings.sqlalchemy_url)
    context = Context.open(settings)
    pipeline.receive(context, pipeline.film())
    with Traced(data_dir=settings.data_dir, broker_url=redis.url, population="flag") as pool:
        enqueuer = Enqueuer(context.ledger, redis.url)

        def decoded() -> bool:
            enqueuer.enqueue_ready()
            return pipeline.instances(context)[0].state == InstanceState.DECODED

        eventually(decoded, 60, "a decoded film")
        calls = pool.calls
    addressed = [line for line in calls if "sa_family=" in line and "AF_UNSPEC" not in line]
    others = [line for line in addressed if not re.search(rf"htons\({redis.port}\).*127\.0\.0\.1", line)]
    assert len(others) < len(addressed), "who sees no call to Redis sees none at all"
    # glibc asks its name service cache, a socket on this machine, when it looks for a user's or host's name.
    assert [line for line in others if "/nscd/socket" not in line] == []
