"""Tokens of the operator API: who may do what, and how a token is made and known again."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Final, Literal, get_args

from hansa.core.errors import RefusedError, StoreConflictError
from hansa.server.settings import ServerSettings
from hansa.store.records import Role, Tenant, Token
from hansa.store.store import Store

Permission = Literal[
    "tokens.manage",
    "populations.read",
    "populations.change",
    "clients.read",
    "clients.change",
    "jobs.read",
    "jobs.submit",
    "runs.read",
    "runs.control",
    "models.read",
    "models.download",
    "models.stage",
    "events.read",
    "usage.read",
    "ledger.read",
    "ledger.limit",
]

_READING: Final[frozenset[Permission]] = frozenset(
    (
        "populations.read",
        "clients.read",
        "jobs.read",
        "runs.read",
        "models.read",
        "events.read",
        "usage.read",
        "ledger.read",
    )
)
ROLES: Final[dict[Role, frozenset[Permission]]] = {
    "owner": frozenset(get_args(Permission)),
    "operator": frozenset(get_args(Permission)) - {"tokens.manage", "ledger.limit"},
    "analyst": frozenset(
        ("populations.read", "jobs.read", "jobs.submit", "runs.read", "models.read", "models.download", "usage.read")
    ),
    "auditor": _READING,
    "site-administrator": frozenset(("populations.read", "clients.read", "clients.change", "runs.read")),
}
"""Role -> what it may do: the one place that says so."""

DEFAULT_TENANT: Final = "default"
OWNER_TOKEN: Final = "owner-token"  # noqa: S105 - the name of a file
"""The file in the server's folder that holds the first token."""

_BEARER: Final = re.compile(r"[Bb]earer ([A-Za-z0-9_-]{20,200})")


def new_secret(kind: Literal["token", "invitation"]) -> str:
    """Return a secret of 256 bits; its beginning tells people and secret scanners what it is."""
    return f"hansa_{kind}_{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> str:
    """Return what is kept of a secret: SHA-256, enough for a secret of 256 bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token(tenant: str, role: Role, name: str, expires_at: float | None) -> tuple[Token, str]:
    """Return a token's record, and the token itself, which is told once."""
    secret = new_secret("token")
    return Token(f"token-{secrets.token_hex(8)}", tenant, role, name, digest_of(secret), expires_at), secret


async def known(store: Store, header: str | None, now: float) -> Token:
    """Return whose token an Authorization header carries. Raises RefusedError for none, and for one that is no good.

    Unknown, expired and revoked tokens are told apart by nobody outside.
    """
    match = _BEARER.fullmatch(header or "")
    if match is None:
        raise RefusedError(
            "HANSA-AUTH-MISSING",
            rule="A call to the operator API carries `Authorization: Bearer` and a token.",
            found="There is none, or it cannot be read.",
            action="Give a token of this server: by HANSA_TOKEN, --token-file, the header, or the sign-in page.",
        )
    return await known_by_digest(store, digest_of(match[1]), now)


async def known_by_digest(store: Store, digest: str, now: float) -> Token:
    """Return the token with a digest. Raises RefusedError where it is unknown, has expired or was revoked."""
    async with store.reading() as rows:
        token = await rows.tokens.by_digest(digest)
    if token is None or not hmac.compare_digest(token.digest, digest) or not is_good(token, now):
        raise RefusedError(
            "HANSA-AUTH-UNKNOWN",
            rule="A token is known to the server, not expired and not revoked.",
            found="This one is not.",
            action="Ask an owner of the tenant for another.",
        )
    return token


def is_good(token: Token, now: float) -> bool:
    """Return True for a token that has neither expired nor been revoked."""
    return token.revoked_at is None and (token.expires_at is None or now < token.expires_at)


def may(token: Token, permission: Permission) -> bool:
    """Return whether a token's role has a permission."""
    return permission in ROLES[token.role]


def permit(token: Token, permission: Permission) -> None:
    """Raise RefusedError unless a token's role has a permission."""
    if not may(token, permission):
        able = ", ".join(role for role, granted in ROLES.items() if permission in granted)
        raise RefusedError(
            "HANSA-AUTH-ROLE",
            rule=f"This needs the permission {permission}, which these roles have: {able}.",
            found=f"The token's role is {token.role}.",
            action="Use a token of such a role.",
        )


async def authorise(store: Store, header: str | None, permission: Permission, now: float) -> Token:
    """Return the token of a call that its role permits. Raises RefusedError."""
    token = await known(store, header, now)
    permit(token, permission)
    return token


async def first_token(store: Store, settings: ServerSettings, now: float) -> Path | None:
    """Make the first tenant with a token of its owner; return the file that holds it, or None where tenants exist.

    The file is written before the rows are committed: a server that dies in between makes another token.
    """
    path = settings.make_folder() / OWNER_TOKEN
    try:
        async with store.transaction() as rows:
            if await rows.tenants.all():
                return None
            tenant = await rows.tenants.add(DEFAULT_TENANT)  # where two replicas start at once, one of them waits here
            await rows.tokens.add(_told(tenant, path, None))
            await rows.events.add("token.created", tenant=tenant.id, at=now, detail={"role": "owner", "name": "first"})
    except StoreConflictError:
        return None
    return path


async def owner_token(store: Store, tenant: str, path: Path, now: float) -> None:
    """Write another token of a tenant's owner into a new file: for whoever administers the machine.

    Raises RefusedError where there is no such tenant.
    """
    async with store.transaction() as rows:
        found = await rows.tenants.named(tenant)
        if found is None:
            raise RefusedError(
                "HANSA-NOT-FOUND",
                rule="A token belongs to a tenant of this server.",
                found=f"There is no tenant {tenant!r}.",
                action="Add it with: hansa server tenant.",
            )
        await rows.tokens.add(_told(found, path, None))
        await rows.events.add("token.created", tenant=found.id, at=now, detail={"role": "owner", "name": "machine"})


def _told(tenant: Tenant, path: Path, expires_at: float | None) -> Token:
    """Return an owner's token, written to a file that only its owner reads."""
    token, secret = new_token(tenant.id, "owner", f"owner of {tenant.name}", expires_at)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())
    return token
