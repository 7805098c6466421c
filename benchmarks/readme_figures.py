"""Fill the blocks of figures in the pages from the files in benchmarks/results: a line each, with its conditions.

    python benchmarks/readme_figures.py

docs/measurements.md gets every line, README.md three, and the tagger's own page the tagger's. A file that is not there
gives no line. Everything outside the blocks stays as it is.
"""

import json
import re
import textwrap
from pathlib import Path

from figure_lines import LINES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
PRINTED = "<!-- printed:begin -->", "<!-- printed:end -->"  # in README: what the demo prints at its end
WIDTH = 120
# which result files each page shows; None: all
PAGES = {
    ROOT / "README.md": ("demo.json", "search_hard_200000.json", "decode_cpu.json"),
    ROOT / "docs" / "measurements.md": None,
    ROOT / "processing" / "tagger" / "README.md": ("tagger.json",),
}


def main() -> None:
    for page, names in PAGES.items():
        page.write_text(filled(page, names), encoding="utf-8")
        print(f"wrote the figures of {page.relative_to(ROOT)}")


def filled(page: Path, names: tuple[str, ...] | None) -> str:
    """The page's text with today's figures."""
    text = with_block(page.read_text(encoding="utf-8"), block(RESULTS, names))
    if PRINTED[0] in text:
        text = with_block(text, printed(json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))), *PRINTED)
    return text


def printed(result: dict) -> str:
    """The end of what `dmae demo` printed in the run of the result file."""
    names = {"R@1": 6, "R@5": 6, "R@10": 6, "median_rank": 7, "mean_rank": 7}
    lines = [f"{'':31}" + "".join(f"{name.replace('median_rank', 'MdR').replace('mean_rank', 'MnR'):>{width}}"
                                  for name, width in names.items())]  # fmt: skip
    for row, label in (("random", "random scores"), ("before", "before training"), ("after", "after training")):
        values = {name: result[row][f"text_to_video_{name}"] * (1 if "rank" in name else 100) for name in names}
        cells = "".join(f"{values[name]:>{width}.1f}" for name, width in names.items())
        lines.append(f"text → video, {label:<17}{cells}")
    size = result["after"]["gallery_size"]
    title = f"MovingDigits test: {size} captions, {size} videos (percent; MdR, MnR: ranks)"
    end = "Look at outputs/demo/report.html; the model is in outputs/demo/model. Try:"
    try_it = f'dmae search outputs/demo/index "{result["search"]["query"]}"'
    hits = ["  ".join(words) for words in result["search"]["hits"]]
    return "\n".join(["```text", title, *lines, "…", end, f"  {try_it}", "", f"$ {try_it} --top-k 3", *hits, "```"])


def block(results: Path, names: tuple[str, ...] | None = None) -> str:
    """The Markdown list of the figures of the files `names` (None: all), wrapped; empty without result files."""
    lines = []
    for pattern, describe in LINES.items():
        for path in sorted(results.glob(pattern), key=_by_number):
            if names is None or path.name in names:
                said = f"{describe(json.loads(path.read_text(encoding='utf-8')))} (`{path.name}`)"
                lines += textwrap.wrap(
                    said,
                    WIDTH,
                    initial_indent="- ",
                    subsequent_indent="  ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return "\n".join(lines)


def with_block(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """A page's text with `content` between the markers; ValueError if it has not exactly one pair of them."""
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"a page with figures needs {begin} and {end} exactly once each")
    head, rest = text.split(begin)
    return "\n".join([head + begin, *content.splitlines(), end + rest.split(end)[1]])


def _by_number(path: Path) -> tuple:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))


if __name__ == "__main__":
    main()
