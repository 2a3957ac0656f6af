"""One transaction for all that waits to be written: many senders share one wait for the disk.

A thread that comes while another one writes waits in line; whoever gets the turn writes everything that
waits by then. Nobody is told of success before the commit that holds his own.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

from service.core.ledger import Ledger, Writing

Item = TypeVar("Item")
Result = TypeVar("Result")

AWAY = (OperationalError, InterfaceError, TimeoutError)
"""What the ledger raises when it can be written by nobody now."""


class _Turn(Generic[Item, Result]):
    """Something that waits to be written, and then what became of it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.results: list[Result] = []  # one, or none yet
        self.fault: Exception | None = None


class GroupCommit(Generic[Item, Result]):
    """Writes items of one kind, for any number of threads.

    Parameters
    ----------
    write
        Writes an item within a transaction.
    alone
        Writes an item in a transaction of its own, where it stood in the way of others or they in its.
    order
        By what items are sorted: two processes lock what these write in the same order.
    """

    def __init__(
        self,
        ledger: Ledger,
        write: Callable[[Writing, Item], Result],
        alone: Callable[[Item], Result],
        order: Callable[[Item], str],
    ) -> None:
        self._ledger = ledger
        self._write = write
        self._alone = alone
        self._order = order
        self._waiting: deque[_Turn[Item, Result]] = deque()
        self._writing = threading.Lock()

    def __call__(self, item: Item) -> Result:
        """Write an item, on disk when this returns; raises what `alone` raises, or the ledger."""
        turn: _Turn[Item, Result] = _Turn(item)
        self._waiting.append(turn)
        with self._writing:
            if not turn.results and turn.fault is None:  # nobody else wrote it meanwhile
                self._write_waiting()
        if turn.fault is not None:
            raise turn.fault
        return turn.results[0]

    def _write_waiting(self) -> None:
        turns = [self._waiting.popleft() for _ in range(len(self._waiting))]
        fault = self._write_together(turns) if len(turns) > 1 else None
        for turn in turns:
            if turn.results:
                continue
            if fault is None:
                try:
                    turn.results.append(self._alone(turn.item))
                except AWAY as away:
                    fault = away  # for those behind too: each of them would wait as long
                except Exception as own:
                    turn.fault = own
            turn.fault = turn.fault or fault

    def _write_together(self, turns: Sequence[_Turn[Item, Result]]) -> Exception | None:
        """Write all of them or none; return the fault when the ledger is away."""
        ordered = sorted(turns, key=lambda turn: self._order(turn.item))
        results = []
        try:
            with self._ledger.write_plainly() as writing:
                for turn in ordered:
                    results.append(self._write(writing, turn.item))
                    writing.forget()
        except AWAY as away:
            return away
        except Exception:  # of one of them: it shall not be the others'
            return None
        for turn, result in zip(ordered, results, strict=True):
            turn.results.append(result)
        return None
