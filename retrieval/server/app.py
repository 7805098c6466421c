"""The application and its server: routes, guard, lifespan, uvicorn.

    serve(index, ServerOptions())    # until SIGTERM or Ctrl-C; what is in flight may finish

The index is read again when it has changed on disk. Nothing is loaded from elsewhere, by the pages neither.
"""

import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

import dmae
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.running import announce, withdraw
from dmae.retrieval.server import api, keeping, pages
from dmae.retrieval.server.connections import limited_protocol
from dmae.retrieval.server.options import ServerOptions
from dmae.retrieval.server.replies import error_reply
from dmae.retrieval.server.security import Guard, Session
from dmae.retrieval.server.service import Service

SHUTDOWN_SECONDS = 15
DESCRIPTION = "Search videos with words, clips and pictures. A row is a video or a moment of a long one."


def make_app(index: VideoIndex, options: ServerOptions) -> FastAPI:
    """The ASGI application over one index."""
    service = Service(index, options)

    @asynccontextmanager
    async def lifespan(app):
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="dmae search",
        description=DESCRIPTION,
        version=dmae.__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its script from elsewhere; `pages.docs` is the package's own
        redoc_url=None,
    )
    app.state.service, app.state.session = service, Session(options.token)
    app.include_router(api.router)
    app.include_router(keeping.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static")), name="static")
    app.exception_handler(StarletteHTTPException)(_told)
    app.exception_handler(RequestValidationError)(_misunderstood)
    _count(app, service)
    app.add_middleware(Guard, options=options, session=app.state.session)
    return app


def _count(app: FastAPI, service: Service) -> None:
    @app.middleware("http")
    async def count(request: Request, call_next):
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")
        service.counters.requests.labels(route, response.status_code).inc()
        return response


async def _told(request: Request, error: HTTPException):
    """An error as a page for a browser, as JSON for a program."""
    if "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/"):
        shown = pages.page("error.html", status=error.status_code, detail=str(error.detail), code=error.status_code)
        shown.headers.update(error.headers or {})
        return shown
    return error_reply(error.status_code, error.detail, error.headers)


async def _misunderstood(request: Request, error: RequestValidationError):
    """Which parameter is wrong and how; what was sent is not sent back."""
    wrong = [f"{' '.join(str(place) for place in one['loc'][1:])}: {one['msg']}" for one in error.errors()]
    return await _told(request, HTTPException(422, "; ".join(wrong)[:2_000]))


def serve(index: VideoIndex, options: ServerOptions) -> None:
    """Run until SIGTERM or Ctrl-C; what is in flight may take SHUTDOWN_SECONDS to finish."""
    config = uvicorn.Config(
        make_app(index, options),
        host=options.host,
        port=options.port,
        log_level="warning",
        http=limited_protocol(options.connections),
        ws="none",
        limit_concurrency=1024,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
        proxy_headers=False,  # a client could claim any address
    )
    guarded = "" if options.token is None else ", with a token"
    print(f"serving {index.path} ({len(index)} rows) on http://{options.host}:{options.port}{guarded}", flush=True)
    # uvicorn sends itself the signal again once it has closed everything: then it is time to end, and no failure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = Path(str(index.path))  # `make_app` has refused an index that is in memory only
    try:
        _Server(config, folder, options).run()
    finally:
        withdraw(folder)


class _Server(uvicorn.Server):
    """Notes itself beside the index once it listens."""

    def __init__(self, config: uvicorn.Config, folder: Path, options: ServerOptions):
        super().__init__(config)
        self.folder, self.options = folder, options

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            announce(self.folder, self.options.host, self.options.port, self.options.token)
