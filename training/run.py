"""Train from a recipe, on one process or many:

    dmae train --config training/recipes/moving_digits.yaml
    accelerate launch -m dmae train --config training/recipes/msrvtt_b32.yaml --variant dmae_wti
    … --resume-from-checkpoint last        go on after a stop
    … --seeds 5                            five runs with the seeds after the recipe's, and their mean with an interval
    … --dry-run                            print splits, steps, memory and what differs from the paper; train nothing

The global batch is the recipe's on any number of processes. Two machines with 8 GPUs each, and a folder both can write
(on the second --machine_rank 1):

    accelerate launch --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip HOST \\
        --main_process_port 29500 -m dmae train --config …

SIGTERM (what clusters send before they take a machine back) finishes the step, saves a checkpoint and exits 0. Send it
to the process group: `accelerate launch` does not hand it on to a single process. `python training/run.py …` is the
same command, and `dmae.training.loop.train(config)` the same as a function.
"""

import functools
import os
import sys
from typing import Annotated, NamedTuple, Optional

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked after the tokenizer was used

import typer


class Options(NamedTuple):
    """The command line."""

    config: str
    settings: list[str]  # of --set
    recipe_words: dict  # section.key -> value
    seeds: int | None
    dry_run: bool


def train(
    config: Annotated[str, typer.Option(help="A recipe: its path, or the name of one that comes along, e.g. msvd.")],
    settings: Annotated[
        Optional[list[str]],
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a word of the recipe; repeatable."),
    ] = None,
    variant: Annotated[
        Optional[str], typer.Option(help="One of the recipe's variants, e.g. baseline, dmae_ti, dmae_wti.")
    ] = None,
    output_dir: Annotated[
        Optional[str], typer.Option("--output-dir", "--output_dir", help="Where checkpoints, models and logs go.")
    ] = None,
    max_steps: Annotated[
        Optional[int], typer.Option("--max-steps", "--max_steps", help="Stop after this many optimiser steps.")
    ] = None,
    resume_from_checkpoint: Annotated[
        Optional[str],
        typer.Option(
            "--resume-from-checkpoint",
            "--resume_from_checkpoint",
            metavar="PATH|last",
            help="A checkpoint folder, or the last one of the output folder if any.",
        ),
    ] = None,
    gradient_cache_chunk: Annotated[
        Optional[int],
        typer.Option(
            "--gradient-cache-chunk",
            "--gradient_cache_chunk",
            help="Encode so many pairs at a time: a batch beyond memory with all its negatives, equal to the whole.",
        ),
    ] = None,
    gradient_accumulation_steps: Annotated[
        Optional[int],
        typer.Option(
            "--gradient-accumulation-steps",
            "--gradient_accumulation_steps",
            help="Sum the gradients of so many batches per step; this does NOT enlarge the negatives of a pair "
            "(--gradient-cache-chunk does).",
        ),
    ] = None,
    save_total_limit: Annotated[
        Optional[int], typer.Option("--save-total-limit", "--save_total_limit", help="Keep so many checkpoints.")
    ] = None,
    seeds: Annotated[
        Optional[int], typer.Option(min=2, help="So many runs, one a seed, and their mean with a 95 % interval.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "--dry_run", help="Print splits, steps, memory, differences from the paper; stop."),
    ] = False,
) -> None:
    """Train from a recipe. Several processes: `accelerate launch -m dmae train …`."""
    run(_options(locals()))


def _options(given: dict) -> Options:
    """From the parameters of `train`, by name."""
    recipe = {f"training.{name}": value for name, value in given.items() if name not in (*Options._fields, "variant")}
    words = {**recipe, "variant": given["variant"]}
    return Options(given["config"], given["settings"] or [], words, given["seeds"], given["dry_run"])


def parse(arguments: list[str]) -> Options:
    """What a command line asks for, without doing it."""
    return _options(typer.main.get_command(_app()).make_context("train", list(arguments)).params)


def run(options: Options) -> None:
    """Do what the command line says. Raises ValueError or OSError in one line."""
    from dmae.inference.progress import is_main_process
    from dmae.training.config import load_config

    config = load_config(options.config, overrides(options))
    if options.dry_run:
        from dmae.training.plan import describe

        plan = describe(config)
        if is_main_process():
            print(plan)
        return
    from dmae.training import loop, seeds  # seconds of imports, after the recipe is known to be right

    if options.seeds:
        seeds.train_seeds(config, options.seeds)
        return
    result = loop.train(config)
    if is_main_process():
        done = result.status == "finished"
        said = f"the model is in {result.model_dir}" if done else f"stopped as asked, saved in {result.output_dir}"
        print(f"{said} ({result.seconds:.0f} s)")


def overrides(options: Options) -> list[str]:
    """Every option that stands for a word of the recipe, as `--set` spells it; these win over --set."""
    import yaml

    given = {name: value for name, value in options.recipe_words.items() if value is not None}
    return options.settings + [f"{name}={yaml.safe_dump(value)}" for name, value in given.items()]


def _app(command=train) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="train", epilog="The head of training/run.py has launch lines.")(command)
    return app


@functools.wraps(train)
def _in_words(**words) -> None:
    try:
        train(**words)
    except KeyboardInterrupt:
        print("interrupted; go on with --resume-from-checkpoint last", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("DMAE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done, or saved after SIGTERM; 1: one line says what was wrong; 2: no such option; 130: Ctrl-C."""
    code = None
    try:
        _app(_in_words)(arguments)
    except SystemExit as stop:  # as click ends every command
        code = stop.code
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
