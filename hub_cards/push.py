"""`push(source, repo_id)`: from a run, a model, a corpus or the metric to a repository on the Hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from dmae.hub_cards import staging
from dmae.hub_cards.cards import Statement
from dmae.hub_cards.corpus import is_corpus
from dmae.hub_cards.licences import check_licence
from dmae.hub_cards.publish import check_repo_id, publish


def push(
    source: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    license: str | None = None,
    datasets: tuple[str, ...] = (),
    results: tuple[str | Path, ...] = (),
    space: bool = False,
    show: Callable[[str], None] = print,
    confirm: Callable[[str], bool] | None = None,
):
    """Publish `source` as `repo_id` in one commit and return its `CommitInfo` (None: dry run, or nothing to change).

    source: a run's output folder, a model folder, a corpus (a folder with `metadata.jsonl` files), what `dmae prepare`
        wrote, or "metric".
    private: make a new repository private (None: the account's default).
    license: what the publisher states, a word that the Hub knows; required for a corpus.
    datasets: Hub ids of what the model was trained on, for its card.
    results: `results.json` files of `dmae evaluate` for the card, besides those in `source`; only results of these very
        weights are used.
    space: also publish a Gradio Space of the same name that shows the model.
    confirm: asked before a corpus is sent, after its files were shown; anything but True sends nothing.
    """
    check_licence(license)
    for name in (repo_id, *datasets):
        check_repo_id(name)
    options = {"private": private, "dry_run": dry_run, "show": show}
    with tempfile.TemporaryDirectory() as scratch:
        folder, page = Path(scratch, "files"), Path(scratch, "space")
        folder.mkdir()
        if str(source) == "metric":
            return publish(staging.stage_metric(folder, repo_id), repo_id, repo_type="space", **options)
        if is_corpus(Path(source)):
            files = staging.stage_dataset(Path(source), folder, repo_id, license, show)
            return publish(files, repo_id, repo_type="dataset", confirm=confirm, **options)
        files = staging.stage_model(source, folder, repo_id, Statement(license, tuple(datasets), space), results, show)
        commit = publish(files, repo_id, **options)
        if space:
            publish(staging.stage_space(page, repo_id), repo_id, repo_type="space", **options)
        return commit
