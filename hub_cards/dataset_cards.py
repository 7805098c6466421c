"""Dataset cards, written from what a corpus holds and its owner said."""

from pathlib import Path

from dmae.data.listing import CAPTION_COLUMNS, FILE_COLUMNS, read_rows
from dmae.hub_cards.cards import TAGS, as_yaml, render
from dmae.hub_cards.corpus import is_prepared, metadata_files
from dmae.hub_cards.record import read_json


def dataset_card(folder: str | Path, repo_id: str, license: str | None) -> str:
    """The README.md of a videofolder or of what `dmae prepare` wrote; the licence is what its owner states, no guess.

    A card the corpus already has keeps its text, with the stated licence in its header. Raises ValueError without a
    licence.
    """
    from huggingface_hub import DatasetCard

    folder = Path(folder)
    card = DatasetCard.load(folder / "README.md") if (folder / "README.md").is_file() else None
    license = license or (card and card.data.get("license"))
    if not license:
        raise ValueError(
            "a dataset needs its owner's licence: --license NAME, a word of hf.co/docs/hub/repositories-licenses"
        )
    if card:
        card.data["license"] = license
        return str(card)
    metadata = {
        "license": license,
        "task_categories": ["feature-extraction"],
        "tags": TAGS[:2],
        "pretty_name": repo_id.split("/")[-1],
    }
    facts = {"metadata": as_yaml(metadata), "name": repo_id.split("/")[-1], "repo_id": repo_id, "license": license}
    if is_prepared(folder):
        return render("prepared_card.md", facts | _prepared_facts(folder))
    found = [(path, [row for _, row in read_rows(path)]) for path in metadata_files(folder)]
    # without folders of splits, `datasets` calls all of it train
    splits = [_split_facts("train" if path.parent == folder else path.parent.name, rows) for path, rows in found]
    columns = sorted({name for _, rows in found for row in rows for name in row})
    return render("dataset_card.md", facts | {"splits": splits, "columns": columns})


def _prepared_facts(folder: Path) -> dict:
    report = read_json(folder / "report.json")
    splits, frames = list(report["splits"].values()), folder / "frames" / "cache.json"
    return {
        "dataset": " and ".join(dict.fromkeys(split["dataset"] for split in splits)),
        "splits": splits,
        "words": report.get("words"),
        "frames": read_json(frames) if frames.is_file() else None,
    }


def _split_facts(name: str, rows: list[dict]) -> dict:
    captions = [row.get(name) or [] for row in rows for name in CAPTION_COLUMNS]
    return {
        "name": name,
        "videos": len({tuple(row.get(name) for name in (*FILE_COLUMNS, "start", "end")) for row in rows}),
        "captions": sum(1 if isinstance(item, str) else len(item) for item in captions),
    }
