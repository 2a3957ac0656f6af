"""What one line says of a back-fill."""

from service.commands.backfill.command import one_line
from service.core.backfill import Progress
from service.core.states import BackfillState, FetchState
from service.core.tables import Backfill


def test_what_was_found_and_what_is_still_to_come_are_told_apart() -> None:
    run = Backfill(name="2024", state=BackfillState.RUNNING)
    said = one_line(run, Progress({"found": 41, "fetched": 8, "missing": 1}, 3, 4, 1, 0, 0))
    assert said == (
        "back-fill 2024, running: 50 found; 41 to come, 8 fetched, 1 found and not given; "
        "of those fetched 3 in work, 4 analysed, 1 refused with a reason, 0 failed here"
    )
    for state in FetchState:
        assert "1 " in one_line(run, Progress({state: 1}, 0, 0, 0, 0, 0)).split(";")[1]
