"""Lay out, in an empty folder, exactly the files that a repository gets: model, Space, metric or corpus."""

import html
import shutil
from collections.abc import Callable
from pathlib import Path

from dmae.hub_cards.cards import dataset_card, eval_results_yaml, model_card
from dmae.hub_cards.corpus import corpus_files, describe_left_out
from dmae.hub_cards.record import PICTURES, Source, find_model, find_source
from dmae.inference.loading import describe_model
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.processing.processing_dmae import DMAEProcessor

FOLDER = Path(__file__).parent
METRIC = FOLDER.parent / "metrics" / "text_video_retrieval"
PIPELINE = {"impl": "pipeline_dmae.TextVideoRetrievalPipeline", "pt": ["AutoModel"], "type": "multimodal"}
METRIC_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Text-video retrieval metric</title>
<meta name="viewport" content="width=device-width"><style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ overflow-x: auto; padding: 1rem; border: 1px solid #8886; border-radius: 8px }}
</style></head><body><h1>Text-video retrieval</h1>
<p>R@1, R@5, R@10, median rank, mean rank and rsum, text→video and video→text, from a matrix of similarities. Runs where
your scores are, with <code>pip install evaluate</code>:</p><pre>{example}</pre>
<p><a href="https://huggingface.co/spaces/{repo_id}/blob/main/README.md" target="_top">What it returns, its options and
its limits</a></p></body></html>
"""
PLACEHOLDER = "your-name/your-model"  # the model that space/app.py and space/README.md name before they are staged


def stage_model(
    path: str | Path, folder: Path, repo_id: str, license: str | None = None, results=(), show: Callable = print
) -> dict[str, Path]:
    """Weights, settings, flattened code, processor, card, results, endpoint handler and pipeline -> {path: file}.

    Model and processor are loaded and saved again, so what does not load is found here and not by a user. Records and
    results of other models that lie beside it are named to `show` and left out.
    """
    place = find_model(path)
    model = DMAEForTextVideoRetrieval.from_pretrained(place)
    processor = DMAEProcessor.from_pretrained(place)
    source = find_source(place, describe_model(model, processor), results)
    for line in source.left_out:
        show(line)
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


def stage_metric(folder: Path, repo_id: str) -> dict[str, Path]:
    """The `evaluate` metric as a static Space: `evaluate.load(repo_id)` reads it from there, people see its page."""
    for path in METRIC.iterdir():
        if path.is_file() and path.name != "__init__.py":
            shutil.copy(path, folder / path.name)
    card = (METRIC / "README.md").read_text(encoding="utf-8")
    card = card.replace('"metrics/text_video_retrieval")  # this folder, or its id on the Hub', f'"{repo_id}")')
    example = card.split("```python\n")[1].split("```")[0]
    page = METRIC_PAGE.format(repo_id=repo_id, example=html.escape(example))
    _write(folder, {"README.md": card, "index.html": page})
    return files_in(folder)


def stage_dataset(
    corpus: Path, folder: Path, repo_id: str, license: str | None, show: Callable = print
) -> dict[str, Path]:
    """A corpus where it lies (videos are not copied), with its card beside it; what is left out is told to `show`."""
    files, left_out = corpus_files(corpus)
    _write(folder, {"README.md": dataset_card(corpus, repo_id, license)})
    if left_out:
        show(describe_left_out(left_out))
    return files | files_in(folder)


def files_in(folder: Path) -> dict[str, Path]:
    """{path in the repository: file} of all under `folder`, sorted; hidden files (but `.eval_results`) are left out."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): path for name, path in found.items() if not _hidden(name)}


def _hidden(name: Path) -> bool:
    """`.git/`, `.cache/` of a download, `.env`, lock files: nobody means to publish them."""
    return any(part.startswith(".") and part != ".eval_results" for part in name.parts)


def _pictures(source: Source, folder: Path) -> list[dict[str, str]]:
    """The pictures of the run and of its evaluations, copied to `pictures/`, with captions."""
    pictures = {}
    for path in source.pictures:
        name = path.name if path.name not in pictures else f"{path.parent.name}_{path.name}"
        (folder / "pictures").mkdir(exist_ok=True)
        shutil.copy(path, folder / "pictures" / name)
        pictures[name] = {"name": name, "path": f"pictures/{name}", "caption": PICTURES[path.name]}
    return list(pictures.values())


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
