"""Models down and updates up, as plain HTTP. Memory does not grow with the size of either.

A model is named by its digest, never changes, and can be cached: by whoever may fetch it, or, where ``shared_caches``
is set, by all that lies on its way. An update comes in parts; each is sealed and on disk before it is acknowledged, and
the last one makes the report.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from hansa.core.errors import HansaError, RefusedError, StoreError
from hansa.core.killpoints import reached
from hansa.secagg.known import MessageHash
from hansa.server.board import Posted
from hansa.server.checking import Check, MaskedCheck, checker, name_sender
from hansa.server.following import follow_rounds
from hansa.server.masked_uploads import MaskedUploads
from hansa.server.recorder import Recorder, unexpected
from hansa.server.room import Room
from hansa.server.rounds_at_rest import binding, descriptor_name, model_name, part_name, round_name, update_prefix
from hansa.server.services import Services
from hansa.store.records import Client, Report, RoundKey
from hansa.store.sealing import Binding, plain_size, seal, unseal
from hansa.wire.update_checks import invalid
from hansa.wire.verdicts import KINDS, LATE, Verdict

RUN_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_MOST_PARTS: Final = 10_000
"""Parts of an update, at most: each is a file, which is looked at with each that follows."""
_REPR_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True)
class Transfers:
    """Serves blobs to those who may have them, and takes updates from those who were asked."""

    services: Services
    recorder: Recorder
    uploading: WeakValueDictionary[tuple[RoundKey, str], asyncio.Lock] = field(default_factory=WeakValueDictionary)
    masked: MaskedUploads = field(init=False)

    def __post_init__(self) -> None:
        room = Room(self.services.settings.uploads_in_memory_bytes)
        object.__setattr__(self, "masked", MaskedUploads(self.services, self.recorder, room))

    async def job(self, request: Request, client: Client) -> Response:
        """Answer with a job's descriptor."""
        digest = _digest(request.path_params["sha256"])
        if not await self._is_needed(client, digest):
            raise not_found()
        return await self._blob(request, descriptor_name(digest), digest, "application/json")

    async def model(self, request: Request, client: Client) -> Response:
        """Answer with a model, or a range of it. Only what a committed row names can be fetched."""
        digest = _digest(request.path_params["sha256"])
        if self.services.board.fetchable(client.population, digest) is None:
            async with self.services.store.reading() as rows:
                released = await rows.releases.get(client.tenant, digest) is not None
            if not released and not await self._is_needed(client, digest):
                raise not_found()
        return await self._blob(request, model_name(digest), digest, "application/octet-stream")

    async def _is_needed(self, client: Client, digest: str) -> bool:
        """Return True where an open round of the caller's population names a digest, one of another replica's too."""
        board = self.services.board
        if board.fetchable(client.population, digest) is None:
            await follow_rounds(self.services)
        return board.fetchable(client.population, digest) is not None

    async def _blob(self, request: Request, name: str, digest: str, media_type: str) -> Response:
        etag = f'"{digest}"'
        kept = f"{'public' if self.services.settings.shared_caches else 'private'}, max-age=31536000, immutable"
        headers = {"ETag": etag, "Cache-Control": kept, "Accept-Ranges": "bytes"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        size = await self.services.blobs.size(name)
        start, stop, status = 0, size, 200
        wanted = _RANGE.fullmatch(request.headers.get("range", ""))
        if wanted is not None and request.headers.get("if-range", etag) == etag:
            start, stop = _bounds(wanted, size)
            if start >= stop:
                return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        headers["Content-Length"] = str(stop - start)
        content = self.services.blobs.read(name, start, stop)
        return StreamingResponse(content, status_code=status, headers=headers, media_type=media_type)

    async def offset(self, request: Request, client: Client) -> Response:
        """Answer with how much of an update has arrived."""
        key, sha256 = _key(request), _announced(request)
        if await self._asked(key, client) is None and not await self._was_asked(key, client):
            raise unexpected()
        _, arrived = await self._parts(key, client.id, sha256)
        return Response(status_code=204, headers={"Upload-Offset": str(arrived), "Cache-Control": "no-store"})

    async def part(self, request: Request, client: Client, body: bytes, arrived: MessageHash) -> Response:
        """Take a part of an update; with the last part, record the report. One call of a client at a time.

        ``arrived`` is the body's own digest.
        """
        key, sha256 = _key(request), _announced(request)
        place = _content_range(request, body)
        limit = self.services.settings.largest_update_bytes
        start, stop, total = place
        if total > limit:
            raise _too_large(total, limit)
        if stop < total and (stop - start) * _MOST_PARTS < total:
            raise malformed(f"An update comes in at most {_MOST_PARTS} parts; this one is too small.")
        lock = self.uploading.setdefault((key, client.id), asyncio.Lock())
        async with lock:
            posted = await self._asked(key, client)
            if posted is None:
                return await self._answer_without_round(key, client, sha256)
            if posted.context.plan.secure_aggregation is not None:
                await self.masked.require_length(posted, client, total)
                check: Check = MaskedCheck()
            else:
                check = checker(posted, self.services.settings)
            most = check.most_bytes()
            if most is not None and total > most:
                error = invalid(f"It has {total} bytes, and such an update at most {most}.")
                await name_sender(self.services, posted.round.id, client, error.code)
                raise error
            return await self._take(posted, client, sha256, place, (body, arrived, check))

    async def _take(
        self, posted: Posted, client: Client, sha256: str, place: tuple[int, int, int],
        sent: tuple[bytes, MessageHash, Check],
    ) -> Response:  # fmt: skip
        body, arrived, check = sent
        key, (start, stop, total) = posted.round.id, place
        try:
            if stop - start == total:
                await self._take_whole(posted, client, sha256, body, arrived.hexdigest(), check)
            elif (offset := await self._take_part(posted, client, sha256, place, body)) is None:
                return await self._answer_without_round(key, client, sha256)  # another replica has taken its report
            elif offset < total:
                reached("server.upload.part-written")
                return JSONResponse({"offset": str(offset), "sha256": sha256}, status_code=202)
        except StoreError as error:
            if error.code != "HANSA-KEY-MISSING":
                raise
            return await self._answer_without_round(key, client, sha256)  # another replica has closed the round
        if posted.context.plan.secure_aggregation is not None:
            whole = (body, arrived.content) if stop - start == total else None
            return _verdict(await self.masked.take(posted, client, sha256, whole, total), sha256)
        reached("server.report.sealed")
        return _verdict(await self._record(key, client, sha256, total), sha256)

    async def _take_whole(  # noqa: PLR0913, PLR0917 - what came, whose it is, and what checks it
        self, posted: Posted, client: Client, sha256: str, body: bytes, digest: str, check: Check
    ) -> None:
        """Check and keep an update that came at once: its only part, whatever parts of it came before."""
        key = posted.round.id

        def checked_and_sealed() -> list[bytes]:
            check.whole(body, sha256, found=digest)
            return list(seal(self._unwrapped(posted), binding(key, client.id, sha256, 0), [body]))

        try:
            await self.services.blobs.put_made(part_name(key, client.id, sha256, 0), checked_and_sealed)
        except RefusedError as error:
            await self._refused(posted, client, error)
            raise

    async def _take_part(
        self, posted: Posted, client: Client, sha256: str, place: tuple[int, int, int], body: bytes
    ) -> int | None:
        """Keep a part, and check the whole after the last; return what has arrived, or None where that has ended.

        A masked vector is checked when it is read for its sum.
        """
        key, (start, stop, total) = posted.round.id, place
        sealing_key = await asyncio.to_thread(self._unwrapped, posted)
        number, arrived = await self._parts(key, client.id, sha256)
        complete = arrived >= stop == total  # all was here, and the server was killed before it recorded the report
        if start != arrived and not complete:
            raise _wrong_offset(arrived)
        if start == 0 and not await self._begins(key, client, sha256):
            return None
        if not complete:
            bound = binding(key, client.id, sha256, number)
            name = part_name(key, client.id, sha256, number)
            await self.services.blobs.put_made(name, lambda: list(seal(sealing_key, bound, [body])))
        if stop == total and posted.context.plan.secure_aggregation is None:
            await self._check_parts(posted, client, sha256, sealing_key)
        return stop

    def _unwrapped(self, posted: Posted) -> bytes:
        return self.services.keys.unwrap(round_name(posted.round.id), posted.round.key)

    async def _begins(self, key: RoundKey, client: Client, sha256: str) -> bool:
        """Remove what a client began to send and did not end; return False, and remove nothing, where it has ended.

        What it sent last of another update stays until its round ends: another replica may be about to record that.
        """
        async with self.services.store.reading() as rows:
            if await rows.reports.get(key, client.id) is not None:
                return False
        found = await self.services.blobs.listed(update_prefix(key, client.id))
        others = [each for each in found if each.name.split("/")[-2] != sha256]
        kept = max(others, key=lambda each: each.at).name.rpartition("/")[0] if others else ""
        for each in found:
            folder = each.name.rpartition("/")[0]
            if folder != kept and each.name != part_name(key, client.id, sha256, 0):  # written anew, in its place
                await self.services.blobs.delete(each.name)
        return True

    async def _record(self, key: RoundKey, client: Client, sha256: str, size: int) -> Verdict:
        blob = update_prefix(key, client.id)
        report = Report(key, client.id, 0, sha256, size, blob, self.services.clock.now())
        verdict = await self.recorder.record(report)
        if verdict == LATE:
            await self._remove(f"{blob}{sha256}/")
        return verdict

    async def _check_parts(self, posted: Posted, client: Client, sha256: str, sealing_key: bytes) -> None:
        """Check an update that came in parts, as if it had come at once; one that is wrong is removed."""
        key, check = posted.round.id, checker(posted, self.services.settings)
        prefix = f"{update_prefix(key, client.id)}{sha256}/"
        try:
            for number, name in enumerate(sorted(await self.services.blobs.names(prefix))):
                part = await self._unsealed(name, binding(key, client.id, sha256, number), sealing_key)
                await asyncio.to_thread(check.feed, part)
            check.finish(sha256)
        except RefusedError as error:
            await self._remove(prefix)
            await self._refused(posted, client, error)
            raise

    async def _refused(self, posted: Posted, client: Client, error: RefusedError) -> None:
        """Name a client whose update is wrong to the operator; not one whose bytes were garbled on the way."""
        if error.code != "HANSA-UPLOAD-DIGEST":
            await name_sender(self.services, posted.round.id, client, error.code)

    async def _remove(self, prefix: str) -> None:
        for name in await self.services.blobs.names(prefix):
            await self.services.blobs.delete(name)

    async def _unsealed(self, name: str, bound: Binding, sealing_key: bytes) -> bytes:
        sealed = b"".join([chunk async for chunk in self.services.blobs.read(name, 0, None)])
        return b"".join(unseal(sealing_key, bound, [sealed]))

    async def _parts(self, key: RoundKey, client: str, sha256: str) -> tuple[int, int]:
        """Return how many parts of an update have arrived, and how many bytes."""
        names = await self.services.blobs.names(f"{update_prefix(key, client)}{sha256}/")
        return len(names), sum([plain_size(await self.services.blobs.size(name)) for name in names])

    async def _asked(self, key: RoundKey, client: Client) -> Posted | None:
        """Return the open round in which a client is asked and has not answered."""
        standing = self.services.board.rounds.get(key)
        if standing is None or client.id not in standing.known:
            await follow_rounds(self.services)  # another replica may have asked
            standing = self.services.board.rounds.get(key)
        if standing is None or client.id not in standing.open:
            return None
        return standing.posted

    async def _was_asked(self, key: RoundKey, client: Client) -> bool:
        async with self.services.store.reading() as rows:
            return await rows.rounds.assignment(key, client.id) is not None

    async def _answer_without_round(self, key: RoundKey, client: Client, sha256: str) -> Response:
        """Answer a report that is not waited for: the same again is acknowledged again, another is late or refused."""
        report = Report(key, client.id, 0, sha256, 0, "", self.services.clock.now())
        return _verdict(await self.recorder.record(report), sha256)


def _verdict(verdict: Verdict, sha256: str) -> Response:
    return JSONResponse({"verdict": verdict, "sha256": sha256})


def _digest(text: str) -> str:
    if _DIGEST.fullmatch(text) is None:
        raise not_found()
    return text


def _key(request: Request) -> RoundKey:
    of = request.path_params
    if of["kind"] not in KINDS or not all(_NUMBER.fullmatch(of[name]) for name in ("round", "attempt")):
        raise not_found()
    number, attempt = int(of["round"]), int(of["attempt"])
    if not RUN_ID.fullmatch(of["run"]) or number >= 2**31 or not 0 < attempt < 2**31:
        raise not_found()
    return RoundKey(of["run"], of["kind"], number, attempt)


def _announced(request: Request) -> str:
    """Return the digest of the whole update that a request announces, in hexadecimal."""
    match = _REPR_DIGEST.fullmatch(request.headers.get("repr-digest", ""))
    if match is None:
        raise malformed("Repr-Digest must be sha-256=:BASE64: of the whole update.")
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        raise malformed("Repr-Digest is no base64.") from None


def _content_range(request: Request, body: bytes) -> tuple[int, int, int]:
    """Return where a part begins and ends, and how long the whole is."""
    match = _CONTENT_RANGE.fullmatch(request.headers.get("content-range", ""))
    if match is None:
        raise malformed("Content-Range must be bytes FIRST-LAST/TOTAL.")
    first, last, total = (int(number) for number in match.groups())
    if not first <= last < total or last - first + 1 != len(body):
        raise malformed("Content-Range is not that of the body.")
    return first, last + 1, total


def _bounds(wanted: re.Match[str], size: int) -> tuple[int, int]:
    first, last = wanted.groups()
    if not first:
        return max(0, size - int(last or 0)), size
    return int(first), min(size, int(last) + 1) if last else size


def not_found() -> RefusedError:
    """Return what to say where there is nothing, or nothing for this caller."""
    return RefusedError(
        "HANSA-NOT-FOUND",
        rule="A caller sees what is there for it.",
        found="There is no such thing, or not for this caller.",
        action="Check in, and fetch what the assignment names.",
    )


def internal() -> RefusedError:
    """Return what to say of a bug."""
    return RefusedError(
        "HANSA-INTERNAL",
        rule="A call is answered.",
        found="This one met a bug.",
        action="Try again; tell the operator.",
    )


def malformed(found: str) -> RefusedError:
    """Return what to say of a request that is not as the specification says."""
    return RefusedError(
        "HANSA-REQUEST-INVALID",
        rule="A request is as the specification of the client protocol says.",
        found=found,
        action="See docs/reference/client-protocol.",
    )


def _wrong_offset(arrived: int) -> HansaError:
    return RefusedError(
        "HANSA-UPLOAD-OFFSET",
        rule="A part begins where the last one ended.",
        found=f"{arrived} bytes are here.",
        action=f"Go on at {arrived}.",
    )


def _too_large(size: int, limit: int) -> HansaError:
    return RefusedError(
        "HANSA-REQUEST-TOO-LARGE",
        rule=f"An update has at most {limit} bytes here.",
        found=f"This one has {size}.",
        action="Ask the operator to raise largest_update_bytes, or train a smaller model.",
    )
