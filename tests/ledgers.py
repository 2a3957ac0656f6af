"""Ledgers whose migrations ran once a process: each test gets a copy, with an identity of its own."""

import secrets
import sqlite3
import tempfile
import uuid
from contextlib import closing
from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from service.core.ledger import migrate
from tests.servers import PostgreSQL


def migrated(url: str) -> None:
    """Do what `migrate` does, by a copy where SQLite has nothing yet."""
    parsed = make_url(url)
    path = Path(parsed.database or "")
    if parsed.get_backend_name() != "sqlite" or path.exists():
        migrate(url)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(_sqlite())
    with closing(sqlite3.connect(path)) as ledger, ledger:
        ledger.execute("PRAGMA synchronous = OFF")
        ledger.execute(_another_identity())


def migrated_postgresql(server: PostgreSQL) -> str:
    """Create a database with an empty ledger and return its SQLAlchemy URL."""
    url = server.fresh_url(template=_template(server))
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as ledger:
        ledger.execute(_another_identity())
    return url


@cache
def _sqlite() -> bytes:
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        path = Path(folder, "ledger.sqlite3")
        migrate(f"sqlite:///{path}")
        return path.read_bytes()


@cache
def _template(server: PostgreSQL) -> str:
    url = server.fresh_url()
    migrate(url)
    return url.rpartition("/")[2]


def _another_identity() -> str:
    return f"UPDATE installation SET identity = '{uuid.uuid4()}', secret = '{secrets.token_hex(32)}'"
