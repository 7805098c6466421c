"""Lay out, in an empty folder, exactly the files that a repository gets: model, Space, metric or corpus."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dmae.data.moving_digits.captions import write_captions
from dmae.data.moving_digits.frames import render_clip
from dmae.data.moving_digits.scenes import PRESETS, random_scene
from dmae.hub_cards.cards import NOTHING_SAID, Statement, eval_results_yaml, hub_name, model_card, render
from dmae.hub_cards.corpus import corpus_files, describe_left_out
from dmae.hub_cards.dataset_cards import dataset_card
from dmae.hub_cards.pipeline_dmae import custom_pipelines
from dmae.hub_cards.record import PICTURES, Source, find_model, find_source
from dmae.inference.adapters import ADAPTER_FILE, adapter_settings, load_adapter
from dmae.inference.identity import describe_model
from dmae.inference.loading import damage_named
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.processing.processing_dmae import DMAEProcessor

FOLDER = Path(__file__).parent
METRIC = FOLDER.parent / "metrics" / "text_video_retrieval"
PLACEHOLDER = "your-name/your-model"  # the model that space/app.py and space/README.md name before they are staged


def stage_model(
    path: str | Path, folder: Path, repo_id: str, said: Statement = NOTHING_SAID, results=(), show: Callable = print
) -> dict[str, Path]:
    """Weights, settings, flattened code, processor, card, results, endpoint handler and pipeline -> {path: file}.

    Model and processor are loaded and saved again, so what does not load is found here and not by a user. Records and
    results of other models that lie beside it are named to `show` and left out.
    """
    place = find_model(path)
    if (place / ADAPTER_FILE).is_file():
        return _stage_adapter(place, folder, repo_id, said, results, show)
    with damage_named(place):
        model, processor = DMAEForTextVideoRetrieval.from_pretrained(place), DMAEProcessor.from_pretrained(place)
    model.config.custom_pipelines = custom_pipelines()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    source = find_source(place, describe_model(model, processor), results)
    for line in source.left_out:
        show(line)
    _add_card(model, source, folder, repo_id, said)
    return files_in(folder)


def _stage_adapter(
    place: Path, folder: Path, repo_id: str, said: Statement, results, show: Callable
) -> dict[str, Path]:
    """An adapter's few files as training left them, and a card. What it needs besides is its base, by its Hub name.

    Raises ValueError where that base is a folder, which nobody else has.
    """
    base = (adapter_settings(place) or {})["base_model_name_or_path"]
    if hub_name(base) is None:
        raise ValueError(
            f"{place}: the adapter's base is {base!r}, a folder, which nobody else has; publish the merged model in "
            f"{place.parent} instead, or train on a base by its Hub name"
        )
    with damage_named(place):
        model, processor = load_adapter(place), DMAEProcessor.from_pretrained(place)
    for name in (ADAPTER_FILE, "adapter_model.safetensors", "config.json"):
        shutil.copy(place / name, folder / name)
    processor.save_pretrained(folder)
    source = find_source(place.parent, describe_model(model, processor), results)
    for line in source.left_out:
        show(line)
    card = model_card(source, model, repo_id, said, _pictures(source, folder), adapter_of=base)
    _write(folder, {"README.md": card, **eval_results_yaml(source.results)})
    return files_in(folder)


def finish_upload(model, folder: str | Path, repo_id: str) -> None:
    """What transformers' own `model.push_to_hub` is about to send from `folder`, made whole as `dmae push` would.

    The processor is pushed by itself. A card that people have written stays.
    """
    folder, place = Path(folder), Path(model.name_or_path or "")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["custom_pipelines"] = custom_pipelines()
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    source = Source(folder)
    if model.name_or_path and (place / "config.json").is_file():
        source = find_source(place, describe_model(model, DMAEProcessor.from_pretrained(place)))
    card = folder / "README.md"
    ours = not card.is_file() or "[More Information Needed]" in card.read_text(encoding="utf-8")
    _add_card(model, source, folder, repo_id, NOTHING_SAID, write_card=ours)


def _add_card(model, source: Source, folder: Path, repo_id: str, said: Statement, write_card: bool = True) -> None:
    """Handler, pipeline, requirements, pictures, results and the card that tells about them."""
    for name in ("handler.py", "pipeline_dmae.py", "requirements.txt"):
        shutil.copy(FOLDER / name, folder / name)
    add_sentence_module(folder)
    if write_card:
        card = model_card(source, model, repo_id, said, _pictures(source, folder))
        _write(folder, {"README.md": card, **eval_results_yaml(source.results)})


def add_sentence_module(folder: Path) -> None:
    """What `SentenceTransformer(folder, trust_remote_code=True)` needs; without it that guesses, and then crashes."""
    shutil.copy(FOLDER / "sentence_dmae.py", folder / "sentence_dmae.py")
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_dmae.TextVideoModule"}
    settings = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
    _write(
        folder,
        {
            "modules.json": json.dumps([module], indent=2) + "\n",
            "config_sentence_transformers.json": json.dumps(settings, indent=2) + "\n",
        },
    )


def stage_space(folder: Path, repo_id: str) -> dict[str, Path]:
    """The Gradio page for the model `repo_id`: its three files with the model's name filled in, and example clips."""
    for name in ("app.py", "README.md", "requirements.txt"):
        text = (FOLDER / "space" / name).read_text(encoding="utf-8")
        _write(folder, {name: text.replace(PLACEHOLDER, repo_id)})
    render_examples(folder / "examples")
    return files_in(folder)


def render_examples(folder: Path, clips: int = 4, seed: int = 3) -> None:
    """A few clips of MovingDigits, drawn now, and `captions.txt`: one sentence for each, in their order."""
    folder.mkdir()
    corpus, rng = PRESETS["demo"], np.random.default_rng(seed)
    captions = []
    for number in range(clips):
        scene = random_scene(corpus, rng)
        render_clip((folder / f"clip_{number + 1}.mp4", scene, "test", corpus, [seed, number]))
        captions += write_captions(scene, rng, 1, filler=0.0)
    _write(folder, {"captions.txt": "\n".join(captions) + "\n"})


def stage_metric(folder: Path, repo_id: str) -> dict[str, Path]:
    """The `evaluate` metric as a static Space: `evaluate.load(repo_id)` reads it from there, people see its page."""
    for path in METRIC.iterdir():
        if path.is_file() and path.name != "__init__.py":
            shutil.copy(path, folder / path.name)
    card = (METRIC / "README.md").read_text(encoding="utf-8")
    card = card.replace('"metrics/text_video_retrieval")  # this folder, or its id on the Hub', f'"{repo_id}")')
    example = card.split("```python\n")[1].split("```")[0]
    page = render("metric_page.html", {"repo_id": repo_id, "example": example})
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
