"""Model cards, the model-index and `.eval_results`, written from what a run has recorded."""

import re
from dataclasses import dataclass
from pathlib import Path

from dmae.hub_cards.licences import base_terms
from dmae.hub_cards.record import Result, Source, dataset_name, seeds_table
from dmae.inference.presets import preset_of

FOLDER = Path(__file__).parent
TAGS = ["text-to-video-retrieval", "video-text-retrieval", "clip", "dmae", "custom_code"]
QUERY = "a dog runs on the beach"
INTERACTIONS = {
    "ti": "token interaction: every word looks for its frame and every frame for its word",
    "wti": "weighted token interaction: words and frames also weigh themselves",
    "mean": "cosine of the sentence and the mean frame",
}
SCORES = {
    "ti": "every word takes its best frame and every frame its best word; the two means are averaged",
    "wti": "every word takes its best frame and every frame its best word; the two weighted means are averaged",
    "mean": "the cosine of the sentence's embedding and the mean of the frames'",
}
LANGUAGES = {"English": "en", "Chinese": "zh"}  # the Hub's words for what the presets know; of more: "multilingual"
GRANULARITIES = {"both": "words and whole sentence", "words": "words", "sentence": "whole sentence"}


def requirements() -> list[str]:
    """The packages that inference from the Hub needs: those of `hub_cards/requirements.txt`, and torch.

    Without the upper bounds: they are the endpoint image's, whose torch is older than what users install.
    """
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return ["torch", *(line.split(",<")[0] for line in lines if line and not line.startswith("#"))]


@dataclass(frozen=True)
class Statement:
    """What only the publisher knows: licence of the weights, Hub ids of the training data, whether a Space is shown."""

    license: str | None = None
    datasets: tuple[str, ...] = ()
    space: bool = False


NOTHING_SAID = Statement()


def model_card(
    source: Source, model, repo_id: str, said: Statement = NOTHING_SAID, pictures=(), adapter_of: str | None = None
) -> str:
    """The README.md of a model repository; every number comes from `source.record`, `source.results` or `model`.

    adapter_of: the base of an adapter, whose repository holds no whole model.
    """
    config, record = model.config, source.record
    base = adapter_of or hub_name(record.get("config", {}).get("model", {}).get("from_clip"))
    languages = languages_of(base)
    facts = {
        "metadata": _model_metadata(source, repo_id, base, said, bool(adapter_of), languages),
        "languages": languages,
        "adapter": bool(adapter_of),
        "name": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "base_model": base,
        "base_terms": base_terms(base),
        "requirements": [f'"{line}"' for line in requirements()],
        "query": QUERY,
        "score": SCORES[config.interaction],
        "scale": f"{model.logit_scale.exp().item():.1f}",
        "architecture": _architecture(model, base),
        "results": source.results,
        "seeds": _seeds(source.seeds),
        "selection": _selection(record),
        "pictures": pictures,
        "training": _training(record),
        "recipe": _recipe(record),
        "max_words": config.max_words,
        "max_frames": config.max_frames,
        "cost": _cost(record),
        "license": said.license,
        "datasets": said.datasets,
        "space": said.space,
        "tagger": (source.model / "word_tagger.bin").is_file(),
    }
    return render("model_card.md", facts)


def languages_of(base: str | None) -> str | None:
    """The languages of the towers as `dmae models` says them; English from scratch, None for a base not known to it."""
    if base is None:
        return "English"
    preset = preset_of(base)
    return preset.languages if preset else None


def _seeds(summary: dict) -> dict:
    """Which seeds, on what, and their table; {} for a model of one run."""
    if not summary:
        return {}
    name, seeds = dataset_name(summary["dataset"], summary), ", ".join(map(str, summary["seeds"]))
    said = f"{name}, {summary['split']} split, {len(summary['seeds'])} seeds ({seeds})"
    return {"said": said, "table": seeds_table(summary)}


def render(template: str, facts: dict) -> str:
    """Fill one of this folder's templates; a fact that the template names and `facts` lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return re.sub(r"\n{3,}", "\n\n", templates.get_template(template).render(facts))


def eval_results_yaml(results: list[Result]) -> dict[str, str]:
    """`.eval_results/<dataset>_<split>.yaml` -> content, for the results of benchmarks that the Hub knows by an id.

    The other results are in the card's model-index only: an id that names no benchmark would be a claim about somebody
    else's repository.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files = {}
    for result in results:
        if not result.benchmark:
            continue
        notes = ", ".join([f"{result.split} split", *result.conditions])
        known = {"dataset_id": result.benchmark["id"], "task_id": result.benchmark["task"]}
        value = round(100 * result.metrics[result.benchmark["metric"]], 2)
        entries = [EvalResultEntry(**known, value=value, date=result.day, notes=notes)]
        content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        files[f".eval_results/{_file_name(result.dataset)}_{_file_name(result.split)}.yaml"] = content
    return files


def _model_metadata(
    source: Source, repo_id: str, base: str | None, said: Statement, adapter: bool, languages: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    evaluations = [
        EvalResult(
            task_type="text-to-video-retrieval",
            task_name="Text-to-video retrieval",
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            dataset_split=result.split,
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_config=next((said for said in result.conditions if said.startswith("post-processing")), None),
            metric_value=value,
        )
        for result in source.results
        for name, value in result.percent().items()
    ]
    data = ModelCardData(
        license=said.license,
        language=LANGUAGES.get(languages, "multilingual") if languages else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="feature-extraction",
        tags=[tag for tag in TAGS if tag != "custom_code"] if adapter else TAGS,
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        datasets=list(said.datasets) or None,
        model_name=repo_id.split("/")[-1],
        eval_results=evaluations or None,
    )
    return data.to_yaml().strip()


def _architecture(model, base: str | None) -> list[tuple[str, str]]:
    config = model.config
    vision = config.vision_config
    switches = {"textual attention": config.textual_attention, "visual attention": config.visual_attention}
    on = [name for name, used in switches.items() if used and config.interaction != "mean"]
    depth = getattr(vision, "num_hidden_layers", None) or vision.num_spatial_layers + vision.num_temporal_layers
    rows = [
        ("Towers", base or f"trained from scratch, {vision.hidden_size} wide, {depth} layers"),
        ("Parameters", f"{sum(weight.numel() for weight in model.parameters()):,}"),
        ("Joint width", str(config.projection_dim)),
        ("Input", f"{config.max_frames} frames of {config.frame_size} pixels, {config.max_words} text tokens"),
        ("Similarity", f"{INTERACTIONS[config.interaction]} (`{config.interaction}`)"),
    ]
    if config.interaction != "mean":
        rows.append(("Form", f"{config.similarity_form}, {GRANULARITIES[config.text_granularity]}"))
        rows.append(("Attention", ", ".join(on) or "none"))
    loss = {"neg_nce": "NegNCE", "info_nce": "InfoNCE"}[config.loss]
    layers = f"{config.temporal_layers} layer{'' if config.temporal_layers == 1 else 's'}"
    rows.append(("Temporal encoder", f"{layers} over {config.temporal_input} tokens"))
    rows.append(("Trained with", loss + (" and TPM-CL" if config.partial_order else "")))
    return rows


def _training(record: dict) -> list[str]:
    """Sentences about data, length and software, as far as the record has them."""
    lines = []
    for name, report in (record.get("splits") or {}).items():
        lines.append(_split_sentence(name, report, record))
    if record.get("steps"):
        batch = record.get("global_batch")
        lines.append(f"{record['steps']} optimiser steps" + (f" with batches of {batch} pairs" if batch else ""))
    if record.get("trained_parameters"):
        lines.append(f"{record['trained_parameters']:,} of {record['parameters']:,} parameters trained")
    lines += [f"seed {record['seed']}"] if record.get("seed") is not None else []
    lines += [f"precision {record['dtype']}"] if record.get("dtype") else []
    packages = (record.get("code") or {}).get("packages") or {}
    said = [f"{name} {version}" for name, version in packages.items() if version]
    git = (record.get("code") or {}).get("git") or {}
    said += [f"commit {git['commit'][:12]}" + (" with local changes" if git.get("dirty") else "")] if git else []
    return lines + (["software: " + ", ".join(said)] if said else [])


def _split_sentence(name: str, report: dict, record: dict) -> str:
    sizes = f"{report.get('videos')} videos, {report.get('captions')} captions"
    missing = f"; {report['missing_videos']} listed videos were missing" if report.get("missing_videos") else ""
    return f"{name}: {dataset_name(report.get('dataset'), record)}, {sizes}{missing}"


def _selection(record: dict) -> str:
    epoch, metric = (record.get("best") or {}).get("epoch"), record.get("config", {}).get("training", {})
    if epoch is None:
        return ""
    return (
        f"The weights are those of the epoch with the best validation {metric.get('metric_for_best_model', 'result')}."
    )


def _recipe(record: dict) -> str:
    """The run's configuration as YAML; a path keeps its last part only, the rest is somebody's machine."""
    config = record.get("config")
    return as_yaml(_without_paths({name: part for name, part in config.items() if part})) if config else ""


def _without_paths(value):
    if isinstance(value, dict):
        return {name: _without_paths(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    is_path = isinstance(value, str) and ("\\" in value or value.startswith(("/", "~", ".")))
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value


def _cost(record: dict) -> str:
    """Wall time and devices of the run, as recorded."""
    seconds, machine = record.get("wall_seconds"), record.get("hardware") or {}
    if not seconds:
        return ""
    time = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    gpus = machine.get("gpus") or []
    threads = machine.get("threads")
    processor = f"the processor alone ({machine.get('cpu', 'CPU')}" + (f", {threads} threads)" if threads else ")")
    devices = f"{len(gpus)} x {gpus[0]}" if gpus else processor
    return f"Training took {time} of wall time on {devices}."


def hub_name(name) -> str | None:
    """A base model's Hub id; a local folder is no public name."""
    is_id = isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    return name if is_id else None


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower()


def as_yaml(content: dict) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()
