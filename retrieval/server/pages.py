"""The pages: templates filled with searches. What a user or a file wrote is text in them, never markup."""

import asyncio
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import FileResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dmae.retrieval.asking import MAX_RESULTS, clock
from dmae.retrieval.fit import WELL
from dmae.retrieval.server.explaining import explanation
from dmae.retrieval.server.replies import Page
from dmae.retrieval.server.searching import SORTS, Found, Search, nothing_fits, reasons
from dmae.retrieval.server.security import COOKIE
from dmae.retrieval.server.service import Service, service_of
from dmae.retrieval.server.timeline import timeline_bars
from dmae.visuals.pages import TEMPLATES

router = APIRouter(include_in_schema=False)
SIZES = (12, 24, 48, 96)
RECENT = 12
WRONG_TOKEN_SECONDS = 1.0
templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {"clock": clock, "reasons": reasons, "bars": timeline_bars}


def page(template: str, status: int = 200, **values) -> Page:
    return Page(templates.get_template(template).render(**values), status_code=status)


def _search(
    q: Annotated[str, Query(max_length=10_000)] = "",
    like: Annotated[int | None, Query()] = None,
    clip: Annotated[str, Query(max_length=100)] = "",
    filter: Annotated[str, Query(max_length=2_000)] = "",
    sort: Annotated[str, Query()] = "best",
    page: Annotated[int, Query(ge=1, le=MAX_RESULTS)] = 1,
    size: Annotated[int, Query()] = 24,
) -> Search:
    sort, size = sort if sort in SORTS else "best", min(SIZES, key=lambda one: abs(one - size))
    return Search(q, like, clip, filter, sort, page, size)


@router.get("/static/base.css")
async def base_style() -> FileResponse:
    """The style that these pages share with the reports."""
    return FileResponse(TEMPLATES / "base.css", media_type="text/css")


@router.get("/")
async def home(request: Request, part: str = ""):
    """The search page; `part=results` is its results alone, for the script."""
    service, params = service_of(request), request.query_params
    try:
        search = _search(**_typed(params))
        values = await service.work(_results, service, search)
        status = 200
    except HTTPException as error:
        search = Search(q=params.get("q", "")[:2_000], filter=params.get("filter", "")[:2_000])
        status = error.status_code
        values = {**_nothing(service, search), "trouble": error.detail}
    return page("_results.html" if part == "results" else "search.html", status, **values)


def _typed(params) -> dict:
    """The address's values in their types; what makes no sense is as if it were not there."""
    found = {name: params[name] for name in ("q", "clip", "filter", "sort") if name in params}
    for name in ("like", "page", "size"):
        if params.get(name, "").isascii() and params.get(name, "").isdigit():
            found[name] = min(int(params[name]), 2**60)
    found["page"] = min(MAX_RESULTS, max(1, found.get("page", 1)))
    return found


def _nothing(service: Service, search: Search) -> dict:
    """The values of a page without results."""
    index = service.live.index
    return {
        "search": search,
        "found": [],
        "more": False,
        "trouble": None,
        "nothing_fits": False,
        "well": WELL,
        "like": None,
        "clip_name": None,
        "recent": [],
        "explained": None,
        "sorts": SORTS,
        "sizes": SIZES,
        "index": {"videos": len(index.video_ids), "rows": len(index), "model": index.manifest["model"]["name"]},
        "columns": sorted({str(name) for row in index.rows() for name in row.get("metadata", {})}),
        "favourites": {one["video_id"] for one in service.store.favourites()},
        "has_token": service.options.token is not None,
        "stale": service.live.trouble,
    }


def _results(service: Service, search: Search) -> dict:
    service.live.fresh()
    values = _nothing(service, search)
    if not search:
        return values | {"recent": _recent(service)}
    with service.counters.timed():
        hits = service.searcher.run(search)
        first = (search.page - 1) * search.size
        found = service.searcher.found(search, hits[first : first + search.size])
    values |= {"found": found, "more": len(hits) > first + search.size}
    values["nothing_fits"] = search.page == 1 and nothing_fits(found)  # later pages fit less than the first
    if search.like is not None:
        values["like"] = service.live.row(search.like)[2]["video_id"]
    if search.clip:
        values["clip_name"] = service.clips.name(search.clip)
    return values


def _recent(service: Service) -> list[tuple[int, dict]]:
    """The videos that were indexed last, and are there: (first row, what is stored of it)."""
    snapshot, found = service.live.index.snapshot, {}
    rows = snapshot.rows()
    for position in range(len(rows) - 1, -1, -1):
        stored = rows[position]
        if stored["video_id"] not in found and len(found) == RECENT:
            break
        found[stored["video_id"]] = int(snapshot.ids[position]), stored  # overwritten down to the first row
    return [(row, stored) for row, stored in found.values() if service.live.available(stored["path"])]


@router.get("/videos/{row}")
async def video(request: Request, row: int, at: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None):
    """One video: its player, its timeline and, for a search, what the score is made of."""
    service = service_of(request)
    search = _search(**_typed(request.query_params))
    return page("video.html", **await service.work(_video, service, row, search, at))


def _video(service: Service, row: int, search: Search, at: float | None) -> dict:
    index = service.live.fresh()
    snapshot, position, stored = service.live.row(row)
    values = _nothing(service, search)
    state = index.state
    available = service.live.available(stored["path"])
    values |= {"row": row, "stored": stored, "available": available, "at": stored["start"] if at is None else at}
    if search:
        parts = service.searcher.parts(index, search)
        (hit,) = state.results(parts[0].query, [_hit(state, parts[0].query, snapshot.ids[position])])
        bars, moments = service.searcher.timeline(parts[0].query, hit)
        values["found"] = [Found(hit, available, service.background.fit(hit.score), bars, moments)]
        values["explained"] = explanation(service, index, search, parts, hit)
        values["at"] = hit.moment if at is None else at
    return values


def _hit(state, query, row: int):
    place = state.snapshot.positions(np.array([row]))
    return state.snapshot.hit(place[0], state.score(query, place)[0])


@router.post("/clip")
async def upload(
    request: Request,
    clip: Annotated[UploadFile, File()],
    q: Annotated[str, Form(max_length=10_000)] = "",
    filter: Annotated[str, Form(max_length=2_000)] = "",
):
    """Embed an upload and lead to the search with it."""
    service = service_of(request)
    with clip.file:
        query = await service.work(service.clips.embed, clip.file, service.live.index)
    key = service.clips.keep(query, clip.filename or "clip")
    return RedirectResponse("/?" + Search(q=q, clip=key, filter=filter).query_string(), status_code=303)


@router.get("/saved")
async def saved(request: Request):
    """Favourites, saved searches and their news."""
    service = service_of(request)
    return page("saved.html", **await service.work(_saved, service))


def _saved(service: Service) -> dict:
    index = service.live.fresh()
    newest = {row["video_id"]: int(row_id) for row_id, row in zip(index.snapshot.ids, index.rows())}
    kept = [{**one, "row": newest.get(one["video_id"])} for one in service.store.favourites()]
    return {**_nothing(service, Search()), "kept": kept, "saved": service.store.saved()}


@router.get("/login")
def login(request: Request):
    return page("login.html", wrong=False)


@router.post("/login")
async def check_login(request: Request, token: Annotated[str, Form(max_length=1_000)] = ""):
    """The token for a cookie; a wrong one costs a second."""
    session = request.app.state.session
    if not session.is_token(token):
        await asyncio.sleep(WRONG_TOKEN_SECONDS)
        return page("login.html", status=401, wrong=True)
    response = RedirectResponse("/", status_code=303)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session.cookie, httponly=True, samesite="strict", secure=secure)
    return response


@router.get("/docs")
def docs(request: Request):
    """The API, from its own openapi.json."""
    service = service_of(request)
    return page("docs.html", api=request.app.openapi(), has_token=service.options.token is not None)
