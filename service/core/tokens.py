"""The tokens of the API: who they are for, known by their SHA-256 only."""

import hashlib
import re
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Role = Literal["viewer", "clinician", "administrator"]
ROLES: tuple[str, ...] = get_args(Role)
_ENTRY = re.compile(rf"(?P<name>[\w.-]+):(?P<role>{'|'.join(ROLES)}):(?P<sha256>[0-9a-f]{{64}})", re.ASCII)
# What stands in examples, what people type first, and what a shell makes of an empty variable.
_GUESSED_FIRST = (
    *(
        "",
        "changeme",
        "change-me",
        "change_me",
        "change me",
        "changeit",
        "default",
        "example",
        "please-change",
    ),
    *("password", "passw0rd", "p@ssw0rd", "secret", "topsecret", "letmein", "welcome", "qwerty", "abc123"),
    *("123456", "12345678", "123456789", "1234567890", "000000", "111111", "foobar", "test", "testing"),
    *(
        "admin",
        "administrator",
        "root",
        "user",
        "guest",
        "demo",
        "operator",
        "service",
        "viewer",
        "clinician",
    ),
    *("token", "mytoken", "my-token", "TOKEN", "SECRET", "api", "apikey", "api-key", "bearer", "key", "none"),
    *(
        "hilum",
        "Hilum",
        "HILUM",
        "orthanc",
        "pacs",
        "PACS",
        "dicom",
        "radiology",
        "hospital",
        "router",
        "ward",
    ),
    *("null", "undefined", "postgres", "redis", "docker", "xxx", "todo", "TODO", "dev", "prod", "staging"),
)


class Token(BaseModel):
    """One token: in `Authorization: Bearer …`, or to sign in with."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Role
    sha256: str


def parse(entries: list[str]) -> list[Token]:
    """Return the tokens of ``name:role:sha256hex`` entries.

    Raises
    ------
    ValueError
        When one is no such entry, is of a secret that everybody tries first, or has that of another one. The
        message repeats no entry: it may be a secret in clear.
    """
    tokens: list[Token] = []
    for number, entry in enumerate(entries, start=1):
        match = _ENTRY.fullmatch(entry)
        if not match:
            raise ValueError(f"token {number} is not name:role:sha256hex ({', '.join(ROLES)})")
        token = Token.model_validate(match.groupdict())
        if token.sha256 in _guessed_first(token.name):
            raise ValueError(
                f"token {number} ({token.name}) is a secret that anybody guesses: take one of `hilum token`"
            )
        if any(token.sha256 == other.sha256 for other in tokens):
            raise ValueError(f"token {number} ({token.name}) has the secret of another one")
        tokens.append(token)
    return tokens


def _guessed_first(name: str) -> set[str]:
    # `echo TOKEN | sha256sum` hashes a line feed with it.
    words = (f"{word}{end}" for word in (*_GUESSED_FIRST, name) for end in ("", "\n"))
    return {hashlib.sha256(word.encode()).hexdigest() for word in words}
