"""`dmae push`, `dmae leaderboard`."""

from pathlib import Path
from typing import Optional

import typer

from dmae.extras import require


def push(
    source: str = typer.Argument(
        help="A run's output folder, a model folder, a corpus (prepared or not), or the word metric."
    ),
    repo_id: str = typer.Option(..., "--repo-id", help="Where to: NAMESPACE/NAME on the Hugging Face Hub."),
    private: bool = typer.Option(False, "--private", help="Make a new repository private."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be uploaded, and stop."),
    license: Optional[str] = typer.Option(None, "--license", help="The licence you state; a corpus needs one."),
    datasets: Optional[list[str]] = typer.Option(
        None, "--trained-on", help="Hub id of a dataset the model was trained on, for its card; repeatable."
    ),
    results: Optional[list[str]] = typer.Option(
        None, help="A results.json of `dmae evaluate` for the card; repeatable."
    ),
    space: bool = typer.Option(False, "--space", help="Also publish a Gradio Space that shows the model."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Publish a corpus without asking, for scripts."),
) -> None:
    """Publish a model (or corpus, or the metric) on the Hugging Face Hub: one commit, compared and checked first.

    Example: `dmae push outputs/demo --repo-id your-name/my-videos --dry-run`
    """
    require("train")
    from transformers.utils import logging

    from dmae.hub_cards.push import push as publish

    logging.disable_progress_bar()  # the model is only loaded and saved again; the upload keeps its own bars
    options = {"private": private or None, "dry_run": dry_run, "license": license, "space": space}
    options |= {"results": tuple(results or ()), "datasets": tuple(datasets or ())}
    publish(source, repo_id, show=typer.echo, confirm=None if yes else _ask, **options)


def leaderboard(
    models: list[str] = typer.Argument(help="Models: folders with a README.md, or names on the Hub."),
    output: Path = typer.Option(Path("leaderboard.html"), "--output", "-o", help="Where the page goes."),
) -> None:
    """One table for each dataset and split, from what the models' cards state about themselves.

    Example: `dmae leaderboard your-name/first your-name/second -o leaderboard.html`
    """
    require("train")
    from dmae.hub_cards.leaderboard import write_leaderboard

    for line in write_leaderboard(models, output):
        typer.echo(line, err=True)
    typer.echo(str(output))


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        raise ValueError("nothing was sent: nobody answered; give --yes where nobody can") from None
