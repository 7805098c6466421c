"""`dmae demo`."""

from pathlib import Path
from typing import Annotated

import typer

from dmae.extras import require


def demo(
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the videos, the model, the index and the report.")
    ] = Path("outputs/demo"),
    preset: Annotated[str, typer.Option(help="Size of the generated corpus: demo, tiny, ablation or full.")] = "demo",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a word of the training recipe; repeatable."),
    ] = None,
) -> None:
    """Render videos, train on them, evaluate, index, search, and write a report: the whole line in minutes."""
    require("train")
    from dmae.demo import run_demo

    run_demo(output_dir, preset, tuple(set_ or ()))
