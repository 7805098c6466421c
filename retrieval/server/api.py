"""The REST API: search, videos, posters, previews, files, export. Errors are JSON, {"detail": …}."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from dmae.retrieval.asking import MAX_RESULTS
from dmae.retrieval.running import INDEX_HEADER
from dmae.retrieval.server import export, media
from dmae.retrieval.server.files import file_response
from dmae.retrieval.server.replies import AsciiJSON
from dmae.retrieval.server.searching import Found, Search, reasons
from dmae.retrieval.server.service import Service, service_of

router = APIRouter()
PREVIEW_SECONDS = 30.0
KEEP = {"Cache-Control": "private, max-age=3600"}

Words = Annotated[str, Query(max_length=10_000, description='Words; -word or -"some words" for what must not be.')]
TopK = Annotated[int, Query(ge=1, le=MAX_RESULTS, description="How many results.")]
Like = Annotated[int | None, Query(description="A row: videos like this one.")]
Filter = Annotated[str, Query(max_length=2_000, description="key=value on metadata, video_id or path; * and ? work.")]


class Result(BaseModel):
    """One hit."""

    video_id: str
    path: str
    score: float = Field(description="The model's similarity, unscaled.")
    start: float = Field(description="Seconds; the matching moment or the whole video.")
    end: float
    moment: float = Field(description="Seconds; the frame that gives most of the score.")
    reasons: list[str] = Field(description="Why it is there.")
    metadata: dict
    row: int = Field(description="Its number in the index, for the routes below /api/videos.")
    fit: float | None = Field(description="Share of random captions that score lower; null where not known.")
    available: bool = Field(description="Whether the file is there now.")
    copies: list[str] = Field(description="Other files with the same content.")


class Answer(BaseModel):
    query: str
    results: list[Result]


class Trouble(BaseModel):
    detail: str


ERRORS: dict[int | str, dict[str, Any]] = {400: {"model": Trouble}, 404: {"model": Trouble}}


def as_result(found: Found) -> dict:
    hit, state = found.hit, {"row": found.hit.row, "fit": found.fit, "available": found.available}
    return {**hit.to_dict(), "reasons": reasons(hit), **state}


def answer_to(service: Service, search: Search, top_k: int) -> AsciiJSON:
    with service.counters.timed():
        hits = service.searcher.run(search, top_k)[:top_k]
        found = service.searcher.found(search, hits, with_moments=False)
    answer = AsciiJSON({"query": search.q, "results": [as_result(one) for one in found]})
    answer.headers[INDEX_HEADER] = str(service.live.index.manifest.get("id"))
    return answer


@router.get("/health", summary="Whether the server works, and what it serves.", tags=["server"])
async def health(request: Request):
    service = service_of(request)
    index = await service.work(service.live.fresh)
    state = {"status": "ok" if service.live.trouble is None else "stale", "detail": service.live.trouble}
    if not request.app.state.session.admits(request.headers):  # without the token: that it lives, and no more
        return AsciiJSON({"status": state["status"]})
    counts = {"videos": len(index.video_ids), "rows": len(index), "generation": index.manifest["generation"]}
    return AsciiJSON({**state, **counts, "model": index.manifest["model"]["name"]})


@router.get("/metrics", response_class=PlainTextResponse, summary="Counters for Prometheus.", tags=["server"])
def metrics(request: Request):
    return Response(generate_latest(service_of(request).counters.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/search", response_model=Answer, responses=ERRORS, summary="Search with words.", tags=["search"])
async def search(
    request: Request,
    q: Words = "",
    top_k: TopK = 5,
    like: Like = None,
    filter: Filter = "",
    hits_per_video: Annotated[int, Query(ge=1, le=MAX_RESULTS, description="Moments of one video.")] = 1,
    text_weight: Annotated[
        float | None, Query(ge=0, allow_inf_nan=False, description="How much spoken and written words count.")
    ] = None,
):
    service = service_of(request)
    asked = Search(q=q, like=like, filter=filter, per_video=hits_per_video, text_weight=text_weight)
    return await service.work(answer_to, service, asked, top_k)


@router.post(
    "/api/search", response_model=Answer, responses=ERRORS, summary="Search with a clip or a picture.", tags=["search"]
)
async def search_with_clip(
    request: Request,
    clip: Annotated[UploadFile | None, File(description="A clip or a picture; it is deleted after the answer.")] = None,
    q: Annotated[str, Form(max_length=10_000, description="Words that must fit too.")] = "",
    top_k: Annotated[int, Form(ge=1, le=MAX_RESULTS)] = 5,
    filter: Annotated[str, Form(max_length=2_000)] = "",
):
    service = service_of(request)
    if clip is None and not q.strip():
        raise HTTPException(400, "give a clip or picture in the form field `clip`, words in `q`, or both")
    key = ""
    if clip is not None:
        with clip.file:
            query = await service.work(service.clips.embed, clip.file, service.live.index)
        key = service.clips.keep(query, clip.filename or "clip")
    return await service.work(answer_to, service, Search(q=q, clip=key, filter=filter), top_k)


@router.get("/api/videos/{row}", responses=ERRORS, summary="What is stored of a row.", tags=["videos"])
async def video(request: Request, row: int, q: Words = ""):
    service = service_of(request)
    return AsciiJSON(await service.work(_described, service, row, q))


def _described(service: Service, row: int, q: str) -> dict:
    snapshot, _, stored = service.live.row(row)
    windows = [
        {"row": int(snapshot.ids[at]), "start": snapshot.row(at)["start"], "end": snapshot.row(at)["end"]}
        for at in service.live.windows(snapshot, stored["video_id"])
    ]
    if q.strip():
        state, parts = service.live.index.state, service.searcher.parts(service.live.index, Search(q=q))
        scores = state.score(parts[0].query, service.live.windows(state.snapshot, stored["video_id"]))
        windows = [{**window, "score": float(score)} for window, score in zip(windows, scores)]
    kept = {name: stored[name] for name in ("video_id", "path", "start", "end")}
    extra = {"metadata": stored.get("metadata", {}), "available": service.live.available(stored["path"])}
    return {**kept, **extra, "row": row, "windows": windows}


@router.get(
    "/api/videos/{row}/poster",
    response_class=FileResponse,
    responses={200: {"content": {"image/webp": {}}}, **ERRORS},
    summary="A frame as WebP.",
    tags=["videos"],
)
async def poster(
    request: Request,
    row: int,
    at: Annotated[float | None, Query(ge=0, allow_inf_nan=False, description="Seconds; the middle by default.")] = None,
    width: Annotated[int, Query(ge=16, le=1920)] = 480,
):
    service = service_of(request)
    stored, path = service.file_of(row)
    moment = (stored["start"] + stored["end"]) / 2 if at is None else at
    file = await service.make(media.write_poster, ".webp", path, round(moment, 2), width)
    return FileResponse(file, media_type="image/webp", headers=KEEP)


@router.get(
    "/api/videos/{row}/preview",
    response_class=FileResponse,
    responses={200: {"content": {"video/mp4": {}}}, **ERRORS},
    summary=f"At most {PREVIEW_SECONDS:.0f} seconds as an MP4 that every browser plays.",
    tags=["videos"],
)
async def preview(
    request: Request,
    row: int,
    start: Annotated[
        float | None, Query(ge=0, allow_inf_nan=False, description="Seconds; the start of the row by default.")
    ] = None,
    end: Annotated[
        float | None, Query(ge=0, allow_inf_nan=False, description="Seconds; the end of the row by default.")
    ] = None,
    width: Annotated[int, Query(ge=16, le=1280)] = 640,
):
    service = service_of(request)
    stored, path = service.file_of(row)
    start = stored["start"] if start is None else start
    end = min(stored["end"] if end is None else end, start + PREVIEW_SECONDS)
    if end < start:
        raise HTTPException(400, f"end={end:g} is before start={start:g}")
    times = round(start, 2), round(end, 2)
    file = await service.make(media.write_clip, ".mp4", path, *times, width, 24.0)
    return FileResponse(file, media_type="video/mp4", headers=KEEP)


@router.get("/api/videos/{row}/file", response_class=FileResponse, responses=ERRORS, tags=["videos"])
def original(request: Request, row: int, download: bool = False):
    """The video's own file; parts of it where a Range header asks."""
    _, path = service_of(request).file_of(row)
    return file_response(path, download)


@router.get("/api/export", responses=ERRORS, summary="Hits as a file for other programs.", tags=["search"])
async def export_hits(
    request: Request,
    q: Words = "",
    like: Like = None,
    clip: Annotated[str, Query(max_length=100)] = "",
    filter: Filter = "",
    top_k: TopK = 100,
    format: Annotated[str, Query(pattern="^(csv|json|edl)$")] = "csv",
    fps: Annotated[
        float, Query(gt=0, le=240, allow_inf_nan=False, description="Frames a second that an EDL counts in.")
    ] = 25.0,
):
    service = service_of(request)
    asked = Search(q=q, like=like, clip=clip, filter=filter)
    hits = await service.work(lambda: service.searcher.run(asked, top_k)[:top_k])
    name = f'attachment; filename="hits.{format}"'
    body, kind = export.exported(hits, asked.q, format, fps)
    return Response(body, media_type=kind, headers={"Content-Disposition": name})
