"""A part of each day, by the clock on the wall: "19:00-07:00"."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Self

_TEXT = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Hours:
    """From `start` to before `end`, in minutes since midnight; over midnight when it ends before it starts.

    It follows the wall clock: an hour that is there twice in autumn counts twice, one that spring leaves out
    does not come.
    """

    start: int
    end: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read "19:00-07:00".

        Raises
        ------
        ValueError
            When it is something else, or a whole day.
        """
        match = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('hours are from a time to a time of the 24-hour clock: "19:00-07:00"')
        hour, minute, end_hour, end_minute = map(int, match.groups())
        if (hour, minute) == (end_hour, end_minute):
            raise ValueError("they begin when they end: leave hours out for the whole day")
        return cls(60 * hour + minute, 60 * end_hour + end_minute)

    def __str__(self) -> str:
        return "-".join(f"{time // 60:02}:{time % 60:02}" for time in (self.start, self.end))

    def hold(self, moment: datetime, zone: tzinfo | None) -> bool:
        """Return whether `moment` lies inside; `zone` None is that of this machine."""
        local = moment.astimezone(zone)
        time = 60 * local.hour + local.minute
        if self.start < self.end:
            return self.start <= time < self.end
        return time >= self.start or time < self.end

    def begin(self, moment: datetime, zone: tzinfo | None) -> datetime:
        """Return when they begin next, `moment` itself while they last."""
        if self.hold(moment, zone):
            return moment
        # Minute by minute, which is right whatever the zone does to its clocks; 1 ms for a day.
        following = moment.replace(second=0, microsecond=0)
        for _ in range(3 * 24 * 60):
            following += _MINUTE
            if self.hold(following, zone):
                return following
        raise AssertionError("a part of the day begins within three days")
