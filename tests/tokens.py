"""A token for each role, and how it is shown."""

import hashlib
from typing import Any

SECRETS = {role: f"the secret of the {role}" for role in ("viewer", "clinician", "administrator")}
HASHES = {role: hashlib.sha256(secret.encode()).hexdigest() for role, secret in SECRETS.items()}


def entries(*roles: str) -> str:
    """Return HILUM_API_TOKENS with one token of each role (of all roles when none is named)."""
    return ",".join(f"{role}-token:{role}:{HASHES[role]}" for role in roles or SECRETS)


def bearer(role: str) -> dict[str, str]:
    """Return the header that shows a role's token."""
    return {"Authorization": f"Bearer {SECRETS[role]}"}


def sign_in(client: Any, role: str) -> str:
    """Sign a client in on the pages, and return what its forms have to repeat."""
    answer = client.post("/login", data={"token": SECRETS[role]}, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return csrf(client.get("/").text)


def csrf(page: str) -> str:
    """Return what the forms of a page repeat."""
    return page.partition('name="csrf" value="')[2].partition('"')[0]
