"""Replies that hold any file name: JSON in ASCII, pages in UTF-8 with undecodable bytes spelled out."""

import json
from collections.abc import Mapping

from starlette.responses import HTMLResponse, JSONResponse


class AsciiJSON(JSONResponse):
    """A name that is not UTF-8 lives in Python as surrogates, which UTF-8 cannot hold and `\\udcXX` in JSON can."""

    def render(self, content) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


class Page(HTMLResponse):
    def render(self, content: str) -> bytes:
        return content.encode("utf-8", "backslashreplace")


def error_reply(status: int, detail, headers: Mapping[str, str] | None = None) -> AsciiJSON:
    return AsciiJSON({"detail": detail}, status_code=status, headers=headers)
