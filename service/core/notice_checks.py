"""What `hilum doctor` says of those who are told: whether they can be reached, and what waits for them."""

from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.core.checks import Check, reachable
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger
from service.core.notices import Channel
from service.core.settings import Settings
from service.core.states import NoticeState
from service.core.tables import Notice


def examine_notices(settings: Settings) -> Iterator[Check]:
    """Look at every channel."""
    if not settings.notices:
        mend = (
            "Set [notices.NAME] or HILUM_NOTICES, or watch hilum_attention and hilum_role_up with Prometheus"
        )
        yield Check("notices", True, "nobody is told when reports stop", mend, warns=True)
        return
    known = _known(settings)
    for channel in settings.notices:
        waiting, given_up, why = known.get(channel.name, (0, 0, ""))
        told = f"; {waiting} wait" * bool(waiting) + f"; {given_up} of the last month were given up" * bool(
            given_up
        )
        found = reachable(
            f"notices {channel.name}", channel.host, channel.port, f"{told} ({why})" if told else ""
        )
        if not found.right:
            yield found
            continue
        mends = [*_weak(channel), *["See `notice.not_sent` in the scheduler's log"] * bool(told)]
        tells = f"{found.seen}; is told of {', '.join(channel.events)}"
        yield Check(found.name, True, tells, "; ".join(mends), warns=bool(mends))


def _weak(channel: Channel) -> Iterator[str]:
    if not channel.is_encrypted:
        yield "Use https://: whoever listens reads results of studies"
    if not channel.is_mail and channel.secret_file is None:
        yield "Set secret_file: without a signature anybody could send such notices"


def _known(settings: Settings) -> dict[str, tuple[int, int, str]]:
    """Return, by channel, how many notices wait, how many were given up, and the last fault."""
    waits, lost = (
        func.count().filter(Notice.state == state) for state in (NoticeState.WAITING, NoticeState.GIVEN_UP)
    )
    query = (
        select(Notice.channel, waits, lost, func.max(Notice.last_error))
        .where(Notice.state != NoticeState.SENT)
        .group_by(Notice.channel)
    )
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            return {
                name: (waiting, given_up, why or "")
                for name, waiting, given_up, why in session.execute(query)
            }
    except (ConfigurationError, SQLAlchemyError):
        return {}  # said by the check of the ledger
