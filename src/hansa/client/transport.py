"""Calls to the server, over HTTP: signed, tried again after what passes by itself, and resumed where they broke off.

The messages are those of Connect: unary POST of protobuf. Models come and updates go as plain HTTP, to and from files,
so that memory stays flat whatever their size.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import stamina
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError, Message

from hansa.client import tls
from hansa.client.lean import httpx
from hansa.core.clock import Clock, SystemClock
from hansa.core.errors import CATALOGUE, RefusedError
from hansa.core.killpoints import reached
from hansa.core.settings import UPLOAD_PART, value_of
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.signatures import sign_request

PART: Final = 8 * 2**20
"""Bytes of one part of an upload, at most."""
_SERVICE: Final = "/hansa.v1.Federation/"
_PROBLEM: Final = "hansa.v1.Problem"
_UNREACHABLE: Final = "HANSA-SERVER-UNREACHABLE"
_LOOK: Final = "Check the address, the network, proxies, and --ca for a server with an authority of its own."
_PASSING: Final = frozenset({
    _UNREACHABLE, "HANSA-SERVER-BUSY", "HANSA-SERVER-LIMIT", "HANSA-SERVER-STORAGE", "HANSA-REQUEST-SLOW"
})  # fmt: skip
"""What is tried again."""
ANSWER: Final = 1024
"""Bytes that are to be left for the answer to a call, before it is made."""
_LARGEST: Final = 2**20
"""Bytes of an answer, at most: what is larger, models and jobs, has a size that is known before it is read."""
_AS_IT_IS: Final = {"Accept-Encoding": "identity"}
"""Answers come uncompressed: a small one would else become as large as it likes."""
_AFTER: Final = "retry-after: "
_ON_THE_WAY: Final = "no server of Hansa said so"
_LONGEST_PAUSE: Final = 30.0
"""Seconds; where the server asks for more, the call fails and the agent comes back later."""
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Reply = TypeVar("Reply", bound=Message)


class Meter:
    """Is asked before each call and told of every byte of a body. This one allows all and counts nothing."""

    def begin_call(self, up: int) -> None:
        """Count the bytes of a call. Raises RefusedError where it is not to be made now."""

    def require_now(self) -> None:
        """Raise RefusedError where nothing is to be sent or fetched now."""

    def require_bytes(self, size: int) -> None:
        """Raise RefusedError where so many bytes are too many."""

    def received(self, size: int) -> None:
        """Count bytes that came."""


@dataclass(frozen=True)
class Reach:
    """How the server is reached. ``ca``: trust this authority only; ``plain``: allow http to other machines."""

    server: str
    ca: Path | None = None
    certificate: tuple[Path, Path] | None = None
    """The client's own certificate (with its chain) and key, PEM, where the server asks for one."""
    plain: bool = False
    timeout: float = 30.0
    tries: int = 4

    def client(self) -> httpx.Client:
        """Return an HTTP client; proxies are those of the environment. Raises RefusedError for a bad URL or file."""
        parts = urlsplit(self.server)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise _unreachable(f"{self.server!r} is no http or https address.")
        if parts.scheme == "http" and not self.plain and parts.hostname not in _LOOPBACK:
            raise _unreachable(f"{self.server!r} would send everything in plain; allow that explicitly, or use https.")
        verify: ssl.SSLContext | bool = False
        if parts.scheme == "https":
            verify = tls.context(self.ca, self.certificate)
        return httpx.Client(base_url=self.server, verify=verify, timeout=httpx.Timeout(self.timeout))


class Transport:
    """A connection to the server, kept between calls. One thread uses it."""

    def __init__(self, reach: Reach, *, clock: Clock | None = None, meter: Meter | None = None) -> None:
        self.reach = reach
        self._http = reach.client()
        self._clock = clock or SystemClock()
        self._meter = meter or Meter()
        self._signer: tuple[str, Ed25519PrivateKey] | None = None

    def sign_as(self, client: str, key: Ed25519PrivateKey) -> None:
        """Sign every call from now on."""
        self._signer = client, key

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def enrol(self, request: wire.EnrolRequest) -> wire.EnrolResponse:
        """Turn an invitation into a client."""
        return self._call("Enrol", request, wire.EnrolResponse)

    def check_in(self, request: wire.CheckInRequest) -> wire.CheckInResponse:
        """Say that the client is there; the answer may take as long as the request says that it waits."""
        return self._call("CheckIn", request, wire.CheckInResponse, wait=request.wait_seconds)

    def exchange(self, request: wire.ExchangeRequest) -> wire.ExchangeResponse:
        """Send a message of a secure sum; the answer may take as long as the request says that it waits."""
        return self._call("Exchange", request, wire.ExchangeResponse, wait=request.wait_seconds)

    def rotate_key(self, request: wire.RotateKeyRequest) -> None:
        """Have the server know the client by another key from the next call on."""
        self._call("RotateKey", request, wire.RotateKeyResponse)

    def goodbye(self) -> None:
        """End the client's part."""
        self._call("Goodbye", wire.GoodbyeRequest(), wire.GoodbyeResponse)

    def job(self, sha256: str, limit: int) -> bytes:
        """Return a job's descriptor of at most so many bytes. Raises RefusedError for other bytes than were named."""
        path = f"/v1/jobs/{sha256}"
        for attempt in self._tries():
            with attempt, self._stream("GET", path) as response:
                content = self._whole(response, limit, _other_digest("job"))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _other_digest("job")
        return content

    def download(self, sha256: str, target: Path, size: int) -> None:
        """Bring a model of ``size`` bytes into a file, going on where an earlier try ended.

        Raises RefusedError for other bytes than were named; nothing is left of them then.
        """
        partial = target.with_name(f"{target.name}.part")
        for attempt in self._tries():
            with attempt:
                self._fetch(f"/v1/models/{sha256}", partial, sha256, size)
        if partial.stat().st_size != size or _digest(partial) != sha256:
            partial.unlink()
            raise _other_digest("model")
        partial.rename(target)

    def _fetch(self, path: str, partial: Path, sha256: str, size: int) -> None:
        have = partial.stat().st_size if partial.exists() else 0
        if have >= size > 0:
            return
        resumed = {"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {}
        self._meter.require_bytes(size - have)
        with self._stream("GET", path, headers=resumed) as response:
            goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
            if goes_on and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise _other_digest("model")
            total = have if goes_on else 0
            self._meter.require_bytes(size - total)
            with partial.open("ab" if goes_on else "wb") as file:
                for block in response.iter_raw():
                    self._meter.received(len(block))
                    total += len(block)
                    if total > size:
                        raise _other_digest("model")
                    file.write(block)
                    if total // PART > (total - len(block)) // PART:
                        self._meter.require_now()
        if total < size:
            raise _unreachable("The connection ended in the middle of a model.")

    def upload(  # noqa: PLR0913 - what is sent, and which part of which file it is
        self, path: str, sha256: str, file: Path, *, start: int, size: int, resumes: bool
    ) -> wire.ReportResponse:
        """Send ``size`` bytes of a file, from ``start`` on, in parts; ask first what has arrived where it ``resumes``.

        Returns what became of the whole.
        """
        self._meter.require_bytes(size + ANSWER)
        repr_digest = f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
        asks, answer, longest = resumes, wire.ReportResponse(), part_bytes()
        for attempt in self._tries():
            with attempt:
                offset = self._arrived(path, repr_digest) if asks and size > longest else 0
                asks = True  # from the second try on
                while answer.verdict == wire.VERDICT_UNSPECIFIED:
                    offset = min(offset, max(0, size - 1))  # an update that is there whole is acknowledged by its end
                    with file.open("rb") as opened:
                        opened.seek(start + offset)
                        part = opened.read(min(longest, size - offset))
                    headers = {
                        "Content-Range": f"bytes {offset}-{offset + len(part) - 1}/{size}",
                        "Content-Type": "application/octet-stream",
                        "Repr-Digest": repr_digest,
                    }
                    answer = self._put(path, part, headers)
                    reached("client.part-sent")
                    if answer.verdict == wire.VERDICT_UNSPECIFIED and not offset < answer.offset < size:
                        raise _unreachable("A part of an update did not arrive.")
                    offset = answer.offset
        return answer

    def _put(self, path: str, part: bytes, headers: dict[str, str]) -> wire.ReportResponse:
        from google.protobuf.json_format import Parse, ParseError  # noqa: PLC0415 - needed where something is sent

        content, _ = self._send("PUT", path, part, headers=headers)
        try:
            return Parse(content, wire.ReportResponse(), ignore_unknown_fields=True)
        except (ParseError, UnicodeDecodeError, RecursionError):
            raise _unreachable("What answers is no server of Hansa.") from None

    def _arrived(self, path: str, repr_digest: str) -> int:
        """Return how many bytes of an update the server has."""
        try:
            _, told = self._send("HEAD", path, b"", headers={"Repr-Digest": repr_digest})
        except RefusedError as error:
            if passes_by_itself(error):
                raise
            return 0  # an answer to HEAD has no body: the part that follows is told why
        text = told.get("upload-offset", "0")
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0

    def _call(self, method: str, request: Message, reply: type[Reply], *, wait: float = 0.0) -> Reply:
        body = request.SerializeToString()
        headers = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}
        for attempt in self._tries():
            with attempt:
                content, _ = self._send("POST", _SERVICE + method, body, headers=headers, wait=wait)
        try:
            return reply.FromString(content)
        except DecodeError:
            raise _unreachable("What answers is no server of Hansa.") from None

    def _send(
        self, method: str, path: str, body: bytes, *, headers: dict[str, str], wait: float = 0.0
    ) -> tuple[bytes, httpx.Headers]:
        """Send one request and return its answer. Raises RefusedError for an error, of the server or on the way."""
        self._meter.begin_call(len(body))
        timeout = httpx.Timeout(self.reach.timeout, read=self.reach.timeout + wait)
        signed = {**_AS_IT_IS, **headers, **self._signature(method, path, body)}
        with (
            _on_the_way(),
            self._http.stream(method, path, content=body, headers=signed, timeout=timeout) as response,
        ):
            content = self._whole(response)
        if response.is_error:
            raise refusal(response.status_code, content, response.headers)
        return content, response.headers

    @contextmanager
    def _stream(self, method: str, path: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """Give an answer that is read block by block."""
        self._meter.begin_call(0)
        signed = {**_AS_IT_IS, **(headers or {}), **self._signature(method, path, b"")}
        with _on_the_way(), self._http.stream(method, path, headers=signed) as response:
            if response.is_error:
                raise refusal(response.status_code, self._whole(response), response.headers)
            yield response

    def _whole(self, response: httpx.Response, limit: int = _LARGEST, too_large: RefusedError | None = None) -> bytes:
        """Return the body of an answer, as it came, of at most so many bytes. Raises RefusedError for a larger one."""
        told = response.headers.get("content-length", "")
        if response.request.method != "HEAD":
            self._meter.require_bytes(min(limit, int(told)) if told.isdecimal() else limit)
        content = b""
        for block in response.iter_raw():
            self._meter.received(len(block))
            content += block
            if len(content) > limit:
                raise too_large or _unreachable(f"It answers with more than {limit} bytes.")
        return content

    def _signature(self, method: str, path: str, body: bytes) -> dict[str, str]:
        if self._signer is None:
            return {}
        client, key = self._signer
        now = self._clock.now()
        return {"Authorization": sign_request(key, client=client, method=method, target=path, body=body, now=now)}

    def _tries(self) -> Iterable[Any]:
        return stamina.retry_context(on=_passes, attempts=self.reach.tries, timeout=None, wait_max=10.0)


def part_bytes() -> int:
    """Return the most bytes of one part of an upload: smaller ones lose less where connections break often."""
    wanted = value_of(UPLOAD_PART) or ""
    return max(1, min(PART, int(wanted))) if wanted.isdecimal() else PART


@contextmanager
def _on_the_way() -> Iterator[None]:
    """Turn what goes wrong on the way into RefusedError."""
    try:
        yield
    except (httpx.HTTPError, ssl.SSLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "A server of https ends a call by http like that." if _may_want_tls(error) else ""
        found = f"{type(error).__name__}: {reason.rstrip('.')}. {hint}".rstrip()
        raise _unreachable(found, tls.hint(reason) or _LOOK) from None


def _may_want_tls(error: Exception) -> bool:
    """Return True where a call by http broke off as it does at a port of https."""
    return isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and error.request.url.scheme == "http"


def refusal(status: int, content: bytes, headers: httpx.Headers | None = None) -> RefusedError:
    """Return the error that an answer holds: that of a Connect call, of plain HTTP, or of something in between."""
    told = _told(content)
    if told.get("code") in CATALOGUE:
        error = RefusedError(told["code"], **{part: told.get(part, "") for part in ("rule", "found", "action")})
    else:
        passing = status in {408, 425, 429} or status >= 500
        code = "HANSA-SERVER-BUSY" if passing else {404: "HANSA-NOT-FOUND"}.get(status, "HANSA-REQUEST-INVALID")
        error = RefusedError(
            code,
            rule="A server of Hansa answers, or says why not.",
            found=f"Something answered with HTTP status {status} and no reason.",
            action="Correct the server's address, or look at proxies on the way.",
        )
        error.add_note(_ON_THE_WAY)
    after = "" if headers is None else headers.get("retry-after", "")
    if after.isdecimal():
        error.add_note(_AFTER + after)
    return error


def _told(content: bytes) -> dict[str, str]:
    """Return code, rule, found and action, where an answer tells them; nothing where it is of another form."""
    try:
        read = json.loads(content)
        if isinstance(read.get("error"), dict):
            return {part: str(text) for part, text in read["error"].items()}
        for detail in read.get("details", ()):
            if str(detail.get("type")).rpartition("/")[2] == _PROBLEM:
                value = detail["value"]
                problem = wire.Problem.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
                return {part: getattr(problem, part) for part in ("code", "rule", "found", "action")}
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError, RecursionError):
        return {}
    return {}


def passes_by_itself(error: BaseException) -> bool:
    """Return whether an error may be gone when the call is made again."""
    return isinstance(error, RefusedError) and error.code in _PASSING


def said_by_hansa(error: BaseException) -> bool:
    """Return whether an error is a server's own, and not that of something on the way."""
    return _ON_THE_WAY not in getattr(error, "__notes__", ())


def wanted_pause(error: BaseException) -> float:
    """Return how many seconds the server asks to be left alone, or 0."""
    told = (note.removeprefix(_AFTER) for note in getattr(error, "__notes__", ()) if note.startswith(_AFTER))
    return float(next(told, 0))


def _passes(error: Exception) -> bool | float:
    if isinstance(error, RefusedError) and error.code == "HANSA-UPLOAD-OFFSET":
        return True
    pause = wanted_pause(error)
    if not passes_by_itself(error) or pause > _LONGEST_PAUSE:
        return False
    return pause or True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreachable(found: str, action: str = _LOOK) -> RefusedError:
    return RefusedError(
        _UNREACHABLE,
        rule="The client calls its server, over a connection that it trusts.",
        found=found,
        action=action,
    )


def _other_digest(what: str) -> RefusedError:
    return RefusedError(
        "HANSA-UPLOAD-DIGEST",
        rule="What is fetched has the digest by which it was named.",
        found=f"The {what} that came is another.",
        action="Tell the operator of the server; nothing was trained.",
    )
