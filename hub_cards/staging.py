"""Lay out, in an empty folder, exactly the files that a repository gets: model, Space, metric or corpus."""

import shutil
from pathlib import Path

from dmae.hub_cards.cards import dataset_card, eval_results_yaml, model_card
from dmae.hub_cards.record import Source
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.processing.processing_dmae import DMAEProcessor

FOLDER = Path(__file__).parent
METRIC = FOLDER.parent / "metrics" / "text_video_retrieval"
PIPELINE = {"impl": "pipeline_dmae.TextVideoRetrievalPipeline", "pt": ["AutoModel"], "type": "multimodal"}
PLACEHOLDER = "your-name/your-model"  # the model that space/app.py and space/README.md name before they are staged


def stage_model(source: Source, folder: Path, repo_id: str, license: str | None = None) -> dict[str, Path]:
    """Weights, settings, flattened code, processor, card, results, endpoint handler and pipeline -> {path: file}.

    Model and processor are loaded and saved again, so what does not load is found here and not by a user.
    """
    model = DMAEForTextVideoRetrieval.from_pretrained(source.model)
    processor = DMAEProcessor.from_pretrained(source.model)
    model.config.custom_pipelines = {"text-video-retrieval": PIPELINE}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in ("handler.py", "pipeline_dmae.py", "requirements.txt"):
        shutil.copy(FOLDER / name, folder / name)
    pictures = _pictures(source, folder)
    texts = {"README.md": model_card(source, model, repo_id, license, pictures), **eval_results_yaml(source.results)}
    _write(folder, texts)
    return files_in(folder)


def stage_space(folder: Path, repo_id: str) -> dict[str, Path]:
    """The Gradio page for the model `repo_id`: its three files, with the model's name filled in."""
    for name in ("app.py", "README.md", "requirements.txt"):
        text = (FOLDER / "space" / name).read_text(encoding="utf-8")
        _write(folder, {name: text.replace(PLACEHOLDER, repo_id)})
    return files_in(folder)


def stage_metric(folder: Path) -> dict[str, Path]:
    """The `evaluate` metric as a Space: `evaluate.load("your-name/text_video_retrieval")` reads it from there."""
    for path in METRIC.iterdir():
        if path.is_file() and path.name != "__init__.py":
            shutil.copy(path, folder / path.name)
    return files_in(folder)


def stage_dataset(corpus: Path, folder: Path, repo_id: str, license: str | None) -> dict[str, Path]:
    """A corpus where it lies (videos are not copied), with its card beside it."""
    _write(folder, {"README.md": dataset_card(corpus, repo_id, license)})
    return files_in(corpus) | files_in(folder)


def files_in(folder: Path) -> dict[str, Path]:
    """{path in the repository: file} of everything under `folder`, sorted; version control's own files left out."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not name.startswith(".git/")}


def _pictures(source: Source, folder: Path) -> list[dict[str, str]]:
    """The run's own plots, copied to `pictures/`; the file's name is its caption."""
    pictures = []
    for path in sorted((source.run or source.model).glob("*.png")):
        (folder / "pictures").mkdir(exist_ok=True)
        shutil.copy(path, folder / "pictures" / path.name)
        caption = path.stem.replace("_", " ").capitalize()
        pictures.append({"path": f"pictures/{path.name}", "caption": caption})
    return pictures


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
