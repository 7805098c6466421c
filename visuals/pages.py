"""Pages from templates: one style, everything a person wrote escaped, pictures and small clips inside, nothing loaded.

`templates/base.css` is the style of the reports here and of the search page; `style.css` adds the reports' layout;
`cards.html` holds what several pages show (a clip, a word-frame map).
"""

import base64
import mimetypes
import os
from fractions import Fraction
from functools import cache
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dmae.files import write_file

TEMPLATES = Path(__file__).with_name("templates")
EMBED_BYTES = 3 * 2**20  # a clip up to this size travels inside the page; a larger one is linked relative to it
COLOURS = np.array([[0, 32, 76], [64, 77, 107], [124, 123, 120], [187, 175, 113], [255, 233, 69]])  # dark blue … yellow


@cache
def environment() -> Environment:
    """The templates, with every value escaped; a name that a page was not given is an error, not an empty place."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("base.css", "style.css", "playing.js", "judging.js"):
        made.globals[name.partition(".")[0]] = Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return made


def render(template: str, **values) -> str:
    """A whole page as text."""
    return environment().get_template(template).render(**values)


def write_page(path: str | Path, template: str, **values) -> Path:
    """Render into a file, in one step. FileNotFoundError where its folder is missing."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder for the page {path.name}")
    # a file name that is no UTF-8 is shown with the odd byte written out; the link to it is right
    write_file(path, render(template, **values).encode("utf-8", "backslashreplace"))
    return path


def picture_uri(frame: torch.Tensor) -> str:
    """(3,H,W) uint8 -> `data:image/png;base64,…`, exact."""
    pixels = np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = *pixels.shape[:2], "rgb24"
    codec.time_base = Fraction(1)
    packets = [*codec.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), *codec.encode(None)]
    return data_uri(b"".join(bytes(packet) for packet in packets), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def video_source(path: str | Path, page: str | Path, embed_bytes: int = EMBED_BYTES) -> str:
    """What a clip's `src` says: a data URI for a small file, else the way from the page's folder to the file."""
    path = Path(path)
    if path.is_file() and path.stat().st_size <= embed_bytes:
        kind = "video/mp4" if path.suffix.lower() in (".mov", ".m4v") else mimetypes.guess_type(path.name)[0]
        return data_uri(path.read_bytes(), kind or "video/mp4")
    return quote(os.fsencode(Path(os.path.relpath(path.resolve(), Path(page).resolve().parent)).as_posix()))


def colour(share: float) -> str:
    """0 … 1 on a scale that people of every colour vision can read."""
    place = float(np.clip(share, 0, 1)) * (len(COLOURS) - 1)
    low = min(int(place), len(COLOURS) - 2)
    red, green, blue = (COLOURS[low] + (COLOURS[low + 1] - COLOURS[low]) * (place - low)).round().astype(int)
    return f"rgb({red},{green},{blue})"


def gradient() -> str:
    return f"linear-gradient(to right,{','.join(colour(step / 4) for step in range(5))})"
