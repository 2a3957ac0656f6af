"""Statements that are compiled once and given to the driver, where film after film executes the same.

What SQLAlchemy does around each execution costs five times what SQLite takes for the row. Text, types and
exceptions are SQLAlchemy's all the same.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Insert, Select, Table, insert
from sqlalchemy.exc import DBAPIError

from service.core.tables import Base

_Processor = Callable[[Any], Any]


@dataclass(frozen=True)
class _Form:
    """A statement as one driver takes it.

    `processors` are of the parameters that are given, `constants` the others; `places` is the order of all,
    None where the driver takes them by name.
    """

    text: str
    processors: Mapping[str, _Processor | None]
    constants: Mapping[str, Any]
    places: tuple[str, ...] | None


class Prepared:
    """A statement whose parameters are bound by name; values come as the driver gives them.

    Parameters
    ----------
    statement
        What is executed.
    columns
        Of an insert: what it is given; other columns get their defaults, which are made once.
    """

    def __init__(self, statement: Insert | Select[Any], columns: Collection[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._forms: dict[str, _Form] = {}

    @classmethod
    def insert(cls, table: type[Base], *columns: str) -> "Prepared":
        """Return the insert of one row of a table; it gives that row's id."""
        of = cast(Table, table.__table__)
        return cls(insert(of).returning(of.c.id), columns)

    def scalar(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """Return the first value that `rows` gives, None when it gives no row."""
        rows = self.rows(connection, values)
        return rows[0][0] if rows else None

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Execute it within the connection's transaction; `values` may have more than it takes.

        Raises what SQLAlchemy raises for the driver's faults.
        """
        form = self._forms.get(connection.dialect.name)
        if form is None:
            form = self._forms[connection.dialect.name] = self._compiled(connection.dialect)
        given = dict(form.constants)
        for name, process in form.processors.items():
            given[name] = values[name] if process is None else process(values[name])
        parameters = given if form.places is None else tuple(given[name] for name in form.places)
        return on_driver(connection, form.text, parameters)

    def _compiled(self, dialect: Dialect) -> _Form:
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
        processors = {
            name: compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)
            for name in compiled.params
        }
        known = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        for column in compiled.insert_prefetch:
            default: Any = column.default
            known[column.key] = default.arg(None) if default.is_callable else default.arg
        constants = {
            name: value if (process := processors.pop(name)) is None else process(value)
            for name, value in known.items()
        }
        places = None if compiled.positiontup is None else tuple(compiled.positiontup)
        return _Form(compiled.string, processors, constants, places)


def on_driver(connection: Connection, text: str, parameters: Any = ()) -> list[Any]:
    """Execute a statement that is in the driver's words already; return its rows.

    Raises
    ------
    DBAPIError
        SQLAlchemy's form of what the driver raised.
    """
    # Both drivers execute on the connection itself, which PEP 249 does not know.
    driver: Any = connection.connection.driver_connection
    dialect: Any = connection.dialect
    try:
        cursor = driver.execute(text, parameters)
        return cursor.fetchall() if cursor.description else []
    except dialect.loaded_dbapi.Error as fault:
        raise DBAPIError.instance(
            text,
            None,
            fault,
            dialect.loaded_dbapi.Error,
            hide_parameters=True,
            dialect=dialect,
        ) from fault
