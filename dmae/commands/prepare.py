"""`dmae prepare`."""

import os
from enum import Enum
from pathlib import Path
from typing import Optional

import typer

from dmae.extras import require


class Decode(str, Enum):
    """How many videos to try."""

    sample = "sample"
    all = "all"
    none = "none"


class Codec(str, Enum):
    """How cached frames are compressed."""

    jpeg = "jpeg"
    lossless = "lossless"


def prepare(
    name: str = typer.Argument(
        help="msrvtt-9k, msrvtt-7k, msrvtt-full, msvd, didemo, activitynet, lsmdc, vatex, webdataset or videofolder."
    ),
    annotations: Optional[Path] = typer.Option(
        None, help="Folder of the annotation files (videofolder: metadata or CSV)."
    ),
    videos: Optional[Path] = typer.Option(None, help="Folder of the videos, searched with its subfolders."),
    output: Path = typer.Option(
        ..., "--output", "-o", help="Folder for the report, the word table and the frame cache."
    ),
    split: Optional[list[str]] = typer.Option(
        None, help="Only this split (may be repeated); default: all that are there."
    ),
    holdout: int = typer.Option(
        0, min=0, help="Take this many training videos as validation, where none is published."
    ),
    decode: Decode = typer.Option(Decode.sample, help="Try to decode a sample of 200 videos per split, all, or none."),
    frame_cache: bool = typer.Option(False, "--frame-cache", help="Decode all and keep the frames for training."),
    codec: Codec = typer.Option(Codec.jpeg, help="jpeg: about 15 kB per frame; lossless: exact, about 80 kB."),
    num_frames: int = typer.Option(12, min=1, help="Frames per video, as the recipe's max_frames."),
    size: int = typer.Option(224, min=1, help="Side of the square frames in pixels."),
    sampling: str = typer.Option("fps", help="Which frames: fps, uniform or segment_center, as in the recipe."),
    shards: bool = typer.Option(False, "--shards", help="Pack each split into tars of 512 MB, as WebDataset has them."),
    words: bool = typer.Option(True, help="Fit the word table on the training captions."),
    workers: int = typer.Option(0, "--num-workers", min=0, help="Decoding processes; default: one per CPU core."),
) -> None:
    """Check a dataset before training: counts, missing and unreadable videos; fit the word table; cache its frames.

    All findings go to OUTPUT/report.json. Ctrl-C keeps the finished part of a frame cache; the same command goes on.
    """
    require("train")
    from dmae.data.preparation import Preparation, prepare_dataset
    from dmae.processing.frames_dmae import FrameSampler

    wanted = Preparation(
        name=name,
        annotations=annotations,
        videos=videos,
        output=output,
        splits=tuple(split or ()),
        holdout=holdout,
        decode=decode.value,
        codec=codec.value if frame_cache else None,
        words=words,
        shards=shards,
        workers=workers or os.cpu_count() or 1,
    )
    try:
        prepare_dataset(wanted, FrameSampler(num_frames=num_frames, size=size, sampling=sampling), typer.echo)
    except KeyboardInterrupt:
        typer.echo("interrupted; finished frames are kept, run the same command again to go on", err=True)
        raise typer.Exit(130) from None
