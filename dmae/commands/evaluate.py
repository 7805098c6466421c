"""`dmae evaluate`."""

import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from dmae.extras import require


def evaluate(
    model: Annotated[str, typer.Option(help="DMAE model or any CLIP checkpoint (zero-shot): Hub id or folder.")],
    dataset: Annotated[
        Optional[str],
        typer.Option(help="A folder with metadata.jsonl, a recipe (.yaml), or a name such as msrvtt-9k, msvd, didemo."),
    ] = None,
    mteb: Annotated[
        Optional[str],
        typer.Option(help='Instead: a task or benchmark of mteb, e.g. MSRVTTT2V, "MVEB(text, video, v1)".'),
    ] = None,
    split: Annotated[
        Optional[str], typer.Option(help="Default: test, or everything where a folder of your own is not divided.")
    ] = None,
    annotations: Annotated[Optional[str], typer.Option(help="Folder of the dataset's annotation files.")] = None,
    videos: Annotated[Optional[str], typer.Option(help="Folder of the dataset's videos.")] = None,
    protocol: Annotated[
        str, typer.Option(help="Video to text with several captions a video: group_max or individual.")
    ] = "group_max",
    ties: Annotated[str, typer.Option(help="average, optimistic or pessimistic.")] = "average",
    post: Annotated[
        Optional[str], typer.Option(help="dsl (transductive) or qbnorm (bank of training queries).")
    ] = None,
    bank_split: Annotated[str, typer.Option(help="QB-Norm: the split of its bank.")] = "train",
    bank_videos: Annotated[int, typer.Option(min=1, help="QB-Norm: videos in the bank.")] = 1000,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", "-o", help="Folder for results.json. Default: outputs/evaluate/MODEL/DATASET-SPLIT."),
    ] = None,
    benchmark: Annotated[
        Optional[str],
        typer.Option(help="The Hub's id of the benchmark this is, OWNER/NAME or OWNER/NAME:TASK: for `.eval_results`."),
    ] = None,
    compare: Annotated[
        Optional[Path], typer.Option(help="Another results.json: print differences, if the protocols are the same.")
    ] = None,
    per_query: Annotated[
        Optional[Path], typer.Option(help="Also write a line per caption: rank and top 10; for `dmae compare`.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Also write pages: hardest wrong matches, words and frames, …")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos per forward pass.")] = 16,
    num_workers: Annotated[Optional[int], typer.Option(min=0, help="Decoding processes; default: cores - 1.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    samples: Annotated[int, typer.Option(min=0, help="Bootstrap draws for the intervals; 0: none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    cache: Annotated[
        Optional[Path], typer.Option(help="Where embeddings are kept. Default: $DMAE_CACHE or ~/.cache/dmae.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Encode anew, keep nothing.")] = False,
) -> None:
    """Measure a model on a dataset: R@1, R@5, R@10, median and mean rank, rsum, text→video and video→text.

    Several processes: `accelerate launch -m dmae evaluate …`.
    """
    if mteb is not None and dataset is None:
        how = {"device": device, "batch_size": batch_size, "workers": num_workers, "benchmark": benchmark}
        return _evaluate_mteb(model, mteb, output or default_output(model) / "mteb", **how)
    if dataset is None or mteb is not None:
        raise ValueError("give --dataset, or --mteb with a name: one of the two")
    require("train")
    from dmae.evaluation.cache import default_cache
    from dmae.evaluation.evaluate_model import EvaluationOptions, evaluate_model
    from dmae.evaluation.results import print_table
    from dmae.training.config import dataset_location

    if output is None:
        output = default_output(model) / "-".join(filter(None, [Path(dataset).stem, split, post]))
    options = EvaluationOptions(
        split=split,
        protocol=protocol,
        ties=ties,
        post=post,
        bank_split=bank_split,
        bank_videos=bank_videos,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
        dtype=dtype,
        device=device,
        benchmark=benchmark,
    )
    cache, location = None if no_cache else cache or default_cache(), dataset_location(dataset, annotations, videos)
    besides = {"cache": cache, "other": compare, "pictures": pictures, "per_query": per_query}
    result = evaluate_model(model, location, output, options, **besides)
    if result:
        record, comparison = result
        print_table(record, comparison)
        _say_what_is_missing(record["data"])
        written = ["results.json", *sorted(page.name for page in output.glob("*.html") if pictures)]
        print(f"wrote {', '.join(written)} in {output}")


def default_output(model: str) -> Path:
    """outputs/evaluate/NAME; for a run's `best` or `seed-1/best` with the name of the run, or runs would share it."""
    path = Path(model).resolve() if Path(model).exists() else Path(model)
    parts, kept = path.relative_to(path.anchor).parts, 1
    while kept < len(parts) and re.fullmatch(r"best|last|(checkpoint|seed)-\d+", parts[-kept]):
        kept += 1
    return Path("outputs/evaluate", *parts[-kept:])


def _evaluate_mteb(model: str, name: str, output: Path, **how) -> None:
    require("mteb")
    from dmae.evaluation.mteb_model import find_tasks
    from dmae.evaluation.mteb_run import evaluate_mteb

    found = evaluate_mteb(model, find_tasks(name), output, **how)
    for task, scores in found.items():
        print(f"{task}: {100 * scores['main_score']:.2f} (mteb's main score)")
    print(f"wrote {len(found)} results.json in {output}")


def _say_what_is_missing(data: dict) -> None:
    if data["missing_videos"] or data["undecodable_videos"]:
        print(
            f"left out: {data['missing_videos']} of {data['listed_videos']} listed videos are missing, "
            f"{data['undecodable_videos']} cannot be decoded; results.json names them"
        )
    if data["truncated_captions"]:
        print(f"{data['truncated_captions']} captions are longer than the model reads and were cut")
