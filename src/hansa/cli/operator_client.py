"""How commands call a server's operator API: over TLS, with a token that is no argument."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import typer
from rich.table import Table

from hansa.core.errors import CATALOGUE, HansaError, PlanError, Problem, RefusedError, RunError
from hansa.core.settings import CA, CERTIFICATE, CERTIFICATE_KEY, SERVER, TOKEN, path_of, value_of

if TYPE_CHECKING:
    import httpx

PREFIX: Final = "/api/v1"
_SECONDS: Final = 60.0
_CHUNK: Final = 1 << 20
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Operator:
    """Calls one server with one token. Raises HansaError with the server's own code and words."""

    http: httpx.Client

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Return what is at a path."""
        return self.call("GET", path, query={key: value for key, value in query.items() if value is not None})

    def call(
        self, method: str, path: str, content: Mapping[str, Any] | None = None, query: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the answer to a call with a JSON body."""
        with _reachable(str(self.http.base_url)):
            answer = self.http.request(method, PREFIX + path, json=content, params=query)
        _raise_for(answer)
        found: dict[str, Any] = answer.json()
        return found

    def upload(self, path: str, content: bytes) -> dict[str, Any]:
        """Send bytes as they are."""

        def parts() -> Iterator[bytes]:
            yield from (content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK))

        headers = {"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"}
        with _reachable(str(self.http.base_url)):
            answer = self.http.put(PREFIX + path, content=parts(), headers=headers)
        _raise_for(answer)
        found: dict[str, Any] = answer.json()
        return found

    def download(self, path: str) -> bytes:
        """Return the bytes at a path."""
        with _reachable(str(self.http.base_url)), self.http.stream("GET", PREFIX + path) as answer:
            if answer.is_error:
                answer.read()
            _raise_for(answer)
            return b"".join(answer.iter_bytes(_CHUNK))


@contextmanager
def operator(server: str | None, token_file: Path | None, ca: Path | None) -> Iterator[Operator]:
    """Connect to a server as its operator; options first, then the environment."""
    try:
        import httpx  # noqa: PLC0415 - other commands do without
    except ImportError:
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule="Commands that call a server need httpx.",
            found="It is not installed.",
            action="pip install 'hansa[client]'",
        ) from None
    url = _url(server or value_of(SERVER))
    headers = {"Authorization": f"Bearer {_token(token_file)}", "Accept": "application/json"}
    with httpx.Client(base_url=url, headers=headers, timeout=_SECONDS, verify=_trust(ca)) as http:
        yield Operator(http)


def new_secret(path: Path, secret: str, what: str) -> Path:
    """Write a secret into a new file for its owner only; return its path. Raises RunError where there is one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise RunError(
            "HANSA-OUTPUT-FILE",
            rule=f"{what} is written to a new file.",
            found=f"{path} cannot be: {error.strerror or error}. It was made, and is lost.",
            action="Choose another --out, and make another.",
        ) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{secret}\n")
    return path


def in_path(text: str) -> str:
    """Return a name as one part of a path."""
    return quote(text, safe="")


def whole(table: Table, *columns: int) -> Table:
    """Return a table some of whose columns are never broken: ids and times are copied."""
    for column in columns:
        table.columns[column].no_wrap = True
    return table


def when(at: float | None) -> str:
    """Return a time as people read it, in this machine's zone."""
    return "" if at is None else f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def _url(url: str | None) -> str:
    if not url:
        raise typer.BadParameter("name the server, here or in HANSA_SERVER.", param_hint="--server")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise typer.BadParameter("must be a URL such as https://hansa.example.org.", param_hint="--server")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise typer.BadParameter("a token travels over https only, but to this machine itself.", param_hint="--server")
    return url.rstrip("/")


def _token(path: Path | None) -> str:
    """Return the token of a file, of the environment, or of whoever sits at the terminal."""
    if path is not None:
        try:
            token = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise typer.BadParameter(f"{path} cannot be read: {why}.", param_hint="--token-file") from None
    else:
        token = value_of(TOKEN) or ""
    if not token.strip() and sys.stdin.isatty():
        token = getpass.getpass("operator token: ")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise typer.BadParameter("give your operator token by --token-file FILE or HANSA_TOKEN.")
    return token


def _trust(ca: Path | None) -> Any:
    """Return what the connection is made by: an authority's file or the system's, and a certificate of the caller's."""
    from hansa.client import tls  # noqa: PLC0415 - with httpx

    ca, certificate, key = ca or path_of(CA), path_of(CERTIFICATE), path_of(CERTIFICATE_KEY)
    if (certificate is None) != (key is None):
        raise typer.BadParameter(f"{CERTIFICATE.name} and {CERTIFICATE_KEY.name} go together.")
    return tls.context(ca, None if certificate is None or key is None else (certificate, key))


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    """Say in a sentence why a server cannot be reached, or is not trusted."""
    import httpx  # noqa: PLC0415 - with the client

    from hansa.client import tls  # noqa: PLC0415

    try:
        yield
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        trust = "CERTIFICATE_VERIFY_FAILED" in reason
        broken = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and url.startswith("http:")
        action = "Is it running? Is the URL right?" + (" Does it begin with https?" if broken else "")
        if trust:
            action = "Name its authority with --ca (ca.pem of the server)."
        raise HansaError(
            "HANSA-SERVER-UNREACHABLE",
            rule="Commands call a server that answers and is trusted.",
            found=f"{url} does not: {reason}.",
            action=tls.hint(reason) or action,
        ) from None


def _raise_for(answer: httpx.Response) -> None:
    """Raise what a server answered where that is no success."""
    if answer.is_success:
        return
    try:
        told = answer.json()["error"]
        code, problems = str(told["code"]), told.get("problems") or []
    except (ValueError, KeyError, TypeError, AttributeError):
        told, code, problems = {}, "", []
    if code == "HANSA-PLAN-INVALID" and problems:
        raise PlanError([Problem(str(each["path"]), str(each["message"])) for each in problems])
    if code not in CATALOGUE:
        raise HansaError(
            "HANSA-SERVER-UNREACHABLE",
            rule="The URL is that of a Hansa server.",
            found=f"It answered with HTTP status {answer.status_code} and no error of Hansa's.",
            action="Is the URL right? Is a proxy in between?",
        )
    raise RefusedError(code, **{part: str(told.get(part, "")) for part in ("rule", "found", "action")})
