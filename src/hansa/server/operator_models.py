"""Operator API: models, up before a job is submitted and down after a round closed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from hansa.core.errors import RefusedError
from hansa.server import operator_bodies as bodies
from hansa.server import usage
from hansa.server.operator_access import allowed, refusals, services_of
from hansa.server.operator_runs import owned
from hansa.server.operator_tenant import Limit
from hansa.server.operator_types import Digest, Id
from hansa.server.rounds_at_rest import model_name
from hansa.server.submissions import not_found, store_upload
from hansa.store.records import Release, Stage, Token

router = APIRouter()

Reading = Annotated[Token, Depends(allowed("models.read"))]
Downloading = Annotated[Token, Depends(allowed("models.download"))]
Staging = Annotated[Token, Depends(allowed("models.stage"))]
Submitting = Annotated[Token, Depends(allowed("jobs.submit"))]

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_NEXT: Final[Mapping[Stage, frozenset[Stage]]] = {
    "candidate": frozenset(("canary", "production", "retired")),
    "canary": frozenset(("candidate", "production", "retired")),
    "production": frozenset(("canary", "retired")),
    "retired": frozenset(("candidate",)),
}
"""Stage of a model -> those that may follow."""
_FILE: Final[dict[str, Any]] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "description": "the model, a safetensors file",
}


@router.get("/models", operation_id="listModels", tags=["models"], responses=refusals(404))
async def list_models(
    request: Request,
    token: Reading,
    run: Annotated[Id | None, Query(description="only those of this run")] = None,
    limit: Limit = 100,
) -> bodies.Releases:
    """List the models that closed rounds gave, the last first."""
    async with services_of(request).store.reading() as rows:
        if run is not None:
            await owned(rows, token, run)
        found = await rows.releases.of(token.tenant, run=run)
    newest = sorted(found, key=lambda each: (each.at, each.round), reverse=True)[:limit]
    return bodies.Releases(models=[_release(each) for each in newest])


@router.put(
    "/models/{sha256}",
    operation_id="uploadModel",
    tags=["models"],
    status_code=201,
    responses=refusals(507),
    openapi_extra={"requestBody": {"required": True, "content": _FILE["content"]}},
)
async def upload_model(request: Request, token: Submitting, sha256: Digest) -> bodies.Uploaded:
    """Upload an initial model under its digest, with its length; a job names it then."""
    services = services_of(request)
    length = request.headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="A model is uploaded with its length.",
            found="There is no Content-Length.",
            action="Send the file's size in it.",
        )
    await usage.require_room(services, token.tenant, int(length), "an initial model")
    await store_upload(services, token.tenant, sha256, int(length), request.stream())
    return bodies.Uploaded(sha256=sha256, size=int(length))


@router.get(
    "/models/{sha256}",
    operation_id="downloadModel",
    tags=["models"],
    response_class=StreamingResponse,
    responses={
        **refusals(404),
        200: _FILE,
        206: {**_FILE, "description": "the asked range"},
        304: {"description": "the caller has it: the ETag is the digest"},
        416: {"description": "the range lies beyond the end"},
    },
)
async def download_model(request: Request, token: Downloading, sha256: Digest) -> Response:
    """Download a model that a closed round gave, whole or a range of it."""
    services = services_of(request)
    async with services.store.reading() as rows:
        if await rows.releases.get(token.tenant, sha256) is None:
            raise not_found(f"model {sha256}")
    name, etag = model_name(sha256), f'"{sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable", "Accept-Ranges": "bytes"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    size = await usage.size_of(services.blobs, name)
    if size is None:
        raise not_found(f"model {sha256}: its file was removed")
    start, stop, status = _range(request, size, etag)
    if status == 416:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers |= {
        "Content-Length": str(stop - start),
        "Content-Disposition": f'attachment; filename="{sha256[:16]}.safetensors"',
    }
    content = services.blobs.read(name, start, stop)
    return StreamingResponse(content, status_code=status, headers=headers, media_type="application/octet-stream")


@router.put("/models/{sha256}/stage", operation_id="stageModel", tags=["models"], responses=refusals(404, 409))
async def stage_model(
    request: Request, token: Staging, sha256: Digest, wanted: bodies.StageRequest
) -> bodies.ReleaseBody:
    """Take a model to another stage: candidate, canary, production, retired."""
    services = services_of(request)
    now = services.clock.now()
    async with services.store.transaction() as rows:
        found = await rows.releases.get(token.tenant, sha256)
        if found is None:
            raise not_found(f"model {sha256}")
        if wanted.stage == found.stage:
            return _release(found)
        if wanted.stage not in _NEXT[found.stage]:
            raise RefusedError(
                "HANSA-STATE",
                rule=f"From {found.stage} a model goes on to {', '.join(sorted(_NEXT[found.stage]))}.",
                found=f"{wanted.stage} was asked for.",
                action="Take it there step by step.",
            )
        await rows.releases.set_stage(token.tenant, sha256, wanted.stage)
        detail = {"model": sha256, "from": found.stage, "to": wanted.stage, "by": token.name}
        await rows.events.add("model.stage", tenant=token.tenant, at=now, run=found.run, detail=detail)
    return _release(replace(found, stage=wanted.stage))


def _range(request: Request, size: int, etag: str) -> tuple[int, int, int]:
    """Return the first byte, the one after the last, and the status that an answer has."""
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None or request.headers.get("if-range", etag) != etag or wanted.groups() == ("", ""):
        return 0, size, 200
    first, last = wanted.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    return start, stop, 206 if start < stop else 416


def _release(release: Release) -> bodies.ReleaseBody:
    return bodies.ReleaseBody(
        sha256=release.sha256, run=release.run, round=release.round, stage=release.stage, at=release.at
    )
