"""`dmae serve`: a page and an API over one index. Search is Gradio's; clips and health are plain HTTP beside it.

    GET  /            the page: type or upload a clip; results play at their moment
    GET  /health      {"status": "ok", "videos": …, "rows": …, "generation": …}
    GET  /clip?id=…   the file of an indexed video, and of no other
    gradio_client.Client(url).predict("a dog", 5, api_name="/search") -> [{video_id, clip, score, start, end}, …]

The index is read again when it has changed on disk. At SIGTERM no new connection is taken and queries in flight finish.
"""

import asyncio
import html
import threading
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dmae.inference.embedding import encode_texts
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import SearchResult

MAX_BODY_BYTES = 64 * 2**20
MAX_RESULTS = 50
QUERY_SECONDS = 30.0
CONCURRENT_QUERIES = 4
WAITING_QUERIES = 256
SHUTDOWN_SECONDS = 15
STYLE = """
.hits {display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: .8rem}
.hits figure {margin: 0; border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .4rem}
.hits video {width: 100%; aspect-ratio: 4/3; background: #000; border-radius: 4px}
.map {overflow-x: auto} .map table {border-collapse: collapse; font-size: .85em; margin-top: .4rem}
.map th, .map td {padding: 3px 8px; text-align: center; border: 0} .map td {color: #111}
"""


class LiveIndex:
    """An index that follows its folder; many threads may search it."""

    def __init__(self, index: VideoIndex):
        self.index = index
        self._refreshing = threading.Lock()
        self._paths: tuple[int, dict] = (-1, {})

    def fresh(self) -> VideoIndex:
        if self._refreshing.acquire(blocking=False):  # one thread looks; the others need not wait for it
            try:
                self.index.refresh()
            finally:
                self._refreshing.release()
        return self.index

    def path_of(self, video_id: str) -> str | None:
        generation = self.index.manifest["generation"]
        if self._paths[0] != generation:
            self._paths = generation, {row["video_id"]: row["path"] for row in self.index.rows()}
        return self._paths[1].get(video_id)

    def search(self, query: str, clip: str | None, top_k: int) -> list[SearchResult]:
        if not 1 <= top_k <= MAX_RESULTS:
            raise ValueError(f"top_k={top_k} must be between 1 and {MAX_RESULTS}")
        if clip and query.strip():
            raise ValueError("give words or a clip, not both")
        index = self.fresh()
        return index.search_by_video(clip, top_k=top_k) if clip else index.search(query, top_k=top_k)[0]


def make_app(index: VideoIndex):
    """The ASGI application."""
    import gradio as gr
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import FileResponse, JSONResponse

    live = LiveIndex(index)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def limit_body(request: Request, call_next):
        if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            return JSONResponse({"error": f"at most {MAX_BODY_BYTES >> 20} MB are accepted"}, status_code=413)
        return await call_next(request)

    @app.get("/health")
    def health():
        current = live.fresh()
        counts = {"videos": len(current.video_ids), "rows": len(current)}
        return {"status": "ok", **counts, "generation": current.manifest["generation"]}

    @app.get("/clip")
    def clip(id: str):
        path = live.path_of(id)
        if path is None or not Path(path).is_file():
            raise HTTPException(404, "no such video in this index")
        return FileResponse(path)

    page = _page(live)
    page.queue(default_concurrency_limit=CONCURRENT_QUERIES, max_size=WAITING_QUERIES)
    mounted = gr.mount_gradio_app(app, page, path="/", max_file_size=MAX_BODY_BYTES, css=STYLE)
    # Gradio copies any path that a client names (or waits for ever on a FIFO) until `has_launched` says that the page
    # is public; mounting does not set it
    page.has_launched = True
    return mounted


def _page(live: LiveIndex):
    import gradio as gr

    async def timed(function, *arguments):
        try:
            return await asyncio.wait_for(asyncio.to_thread(function, *arguments), QUERY_SECONDS)
        except TimeoutError as error:
            raise gr.Error(f"the search took more than {QUERY_SECONDS:.0f} seconds; try again") from error
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from error

    async def search(query: str, top_k: int = 5) -> list[dict]:
        """Words -> [{video_id, clip, score, start, end}, …], best first; clip is the way to the file on this server."""
        return [_answer(hit) for hit in await timed(live.search, query, None, int(top_k))]

    async def show(query: str, clip: str | None, top_k: int) -> str:
        return await timed(_found_html, live, query or "", clip, int(top_k))

    with gr.Blocks(title="Video search") as page:
        gr.Markdown("# Video search\nType what happens in the clip, or upload one to find others like it.")
        with gr.Row():
            query = gr.Textbox(label="Words", placeholder="a dog catches a frisbee", scale=4, autofocus=True)
            top_k = gr.Slider(1, MAX_RESULTS, value=6, step=1, label="Results", scale=1)
        with gr.Accordion("Search with a clip", open=False):
            clip = gr.File(label="Clip", file_types=["video"], type="filepath")
        button = gr.Button("Search", variant="primary")
        found = gr.HTML(label="Results")
        gr.on([button.click, query.submit], show, [query, clip, top_k], found, api_name=False)
        gr.api(search, api_name="search")
    return page


def _found_html(live: LiveIndex, query: str, clip: str | None, top_k: int) -> str:
    hits = live.search(query, clip, top_k)
    if not hits:
        return "<p>The index is empty.</p>"
    cards = "".join(_card(hit) for hit in hits)
    return f'<div class="hits">{cards}</div>' + ("" if clip else word_frame_table(live.index, query, hits[0]))


def _clip_url(hit: SearchResult) -> str:
    return f"/clip?id={quote(hit.video_id, safe='')}"


def _answer(hit: SearchResult) -> dict:
    """Without the path: it is the server's own affair, and Gradio's client would try to download it."""
    return {"video_id": hit.video_id, "clip": _clip_url(hit), "score": hit.score, "start": hit.start, "end": hit.end}


def _card(hit: SearchResult) -> str:
    name = html.escape(hit.video_id)
    source = f"{_clip_url(hit)}#t={hit.start:.2f},{hit.end:.2f}"
    return (
        f'<figure><video src="{html.escape(source)}" controls muted autoplay playsinline preload="metadata" '
        f'aria-label="{name}"></video><figcaption>{name}<br><small>score {hit.score:.3f}, '
        f"{hit.start:.1f}–{hit.end:.1f} s, best at {hit.moment:.1f} s</small></figcaption></figure>"
    )


def word_frame_table(index: VideoIndex, query: str, hit: SearchResult) -> str:
    """Which word meets which frame of a hit: the inner products that the score is made of, as a table."""
    snapshot = index.snapshot
    position = snapshot.positions(np.array([hit.row]))
    if not len(position):  # deleted since
        return ""
    text, video = encode_texts(index.model, index.processor, [query]), snapshot.gather(position)
    tokens = index.processor.tokenizer.convert_ids_to_tokens(index.processor(text=[query])["input_ids"][0])
    words = text.word_mask[0].nonzero().flatten().tolist()
    frames = video.video_mask[0].nonzero().flatten().tolist()
    times = snapshot.tensor("timestamps", position)[0]
    products = text.word_embeds[0, words] @ video.attended_embeds[0, frames].float().T
    low, high = float(products.min()), float(products.max())
    head = "".join(f"<th scope=col>{times[frame]:.1f} s</th>" for frame in frames)
    body = "".join(
        f"<tr><th scope=row>{html.escape(tokens[word].replace('</w>', '').replace('Ġ', ''))}</th>"
        + "".join(_cell(float(value), low, high) for value in row)
        + "</tr>"
        for word, row in zip(words, products)
    )
    caption = f"Words and frames of {html.escape(hit.video_id)}"
    return f'<div class="map"><table><caption>{caption}</caption><tr><th></th>{head}</tr>{body}</table></div>'


def _cell(value: float, low: float, high: float) -> str:
    lightness = 96 - 46 * (value - low) / max(high - low, 1e-6)
    return f'<td style="background: hsl(30 90% {lightness:.0f}%)">{value:.2f}</td>'


def serve(index: VideoIndex, host: str, port: int) -> None:
    """Run until SIGTERM or Ctrl-C; what is in flight may take SHUTDOWN_SECONDS to finish."""
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError("the page needs Gradio; install it: pip install 'dmae[ui]'") from error
    # now, so that the first visitor does not wait for model and tagger, and a missing model is told at once
    encode_texts(index.model, index.processor, ["a first query"])
    config = uvicorn.Config(
        make_app(index),
        host=host,
        port=port,
        log_level="warning",
        limit_concurrency=1024,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    print(f"serving {index.path} ({len(index)} rows) on http://{host}:{port}", flush=True)
    uvicorn.Server(config).run()
