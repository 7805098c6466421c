"""The REST API of what people keep: favourites, and saved searches with their news."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, Field

from dmae.retrieval.asking import parse_filter
from dmae.retrieval.fit import WELL
from dmae.retrieval.server.api import ERRORS
from dmae.retrieval.server.replies import AsciiJSON
from dmae.retrieval.server.searching import Search, shlex_words
from dmae.retrieval.server.service import Service, service_of

router = APIRouter(prefix="/api", tags=["keeping"], responses=ERRORS)


class Favourite(BaseModel):
    kept: bool = Field(description="true: keep, false: let go.")
    at: float = Field(0.0, ge=0, description="Seconds.")


class SavedSearch(BaseModel):
    q: Annotated[str, Field(min_length=1, max_length=2_000)]
    name: Annotated[str, Field(max_length=200)] = ""
    filter: Annotated[str, Field(max_length=2_000)] = ""
    webhook: Annotated[str | None, Field(max_length=2_000, description="Where news are sent, as JSON by POST.")] = None
    min_fit: Annotated[float, Field(ge=0, le=1, description="What counts as fitting.")] = WELL


@router.get("/favourites", summary="All favourites.")
def favourites(request: Request):
    return AsciiJSON(service_of(request).store.favourites())


@router.post("/videos/{row}/favourite", summary="Keep a video as a favourite, or let it go.")
async def set_favourite(request: Request, row: int, wish: Favourite):
    service = service_of(request)
    return AsciiJSON(await service.work(_set_favourite, service, row, wish))


def _set_favourite(service: Service, row: int, wish: Favourite) -> dict:
    _, _, stored = service.live.row(row)
    _written(service.store.set_favourite, stored["video_id"], wish.at, wish.kept)
    return {"video_id": stored["video_id"], "kept": wish.kept}


@router.get("/saved", summary="Saved searches with their news.")
def saved(request: Request):
    return AsciiJSON(service_of(request).store.saved())


@router.post("/saved", status_code=201, summary="Save a search; new footage that fits becomes news.")
async def save(request: Request, wish: SavedSearch):
    service = service_of(request)
    return AsciiJSON(await service.work(_save, service, wish), status_code=201)


def _save(service: Service, wish: SavedSearch) -> dict:
    index = service.live.fresh()
    service.searcher.parts(index, Search(q=wish.q))  # refuses what could never be searched
    parse_filter(shlex_words(wish.filter))
    newest = int(index.manifest["next_id"]) - 1
    wishes = (wish.name or wish.q, wish.q, wish.filter, wish.webhook, wish.min_fit)
    return _written(service.store.save_search, *wishes, newest)


@router.delete("/saved/{id}", status_code=204, summary="Forget a saved search.")
async def forget(request: Request, id: str):
    service = service_of(request)
    if not await service.work(_written, service.store.forget_saved, id):
        raise HTTPException(404, "no such saved search")


def _written(change, *arguments):
    """A full or read-only disk is the server's trouble, told as such."""
    try:
        return change(*arguments)
    except OSError as error:
        raise HTTPException(507, str(error)) from error
