"""Train from a recipe, on one process or many:

    accelerate launch training/run.py --config training/recipes/moving_digits.yaml
    accelerate launch --num_processes 8 training/run.py --config training/recipes/msrvtt_b32.yaml --variant dmae_wti
    … --resume_from_checkpoint last        go on after a stop
    … --dry_run                            print splits, steps, memory and negatives; train nothing

The global batch is the recipe's on any number of processes. Two machines with 8 GPUs each, and a folder both can write
(on the second --machine_rank 1):

    accelerate launch --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip HOST \\
        --main_process_port 29500 training/run.py --config …

SIGTERM (what clusters send before they take a machine back) finishes the step, saves a checkpoint and exits 0. Send it
to the process group: `accelerate launch` does not hand it on to a single process.
`dmae.training.loop.train(config)` is the same as a function.
"""

import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked after the tokenizer was used

import argparse

import yaml


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; the options named like a recipe's words override them."""
    parser = argparse.ArgumentParser(
        description="Train DMAE / TPM-CL from a recipe.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a recipe, see training/recipes/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a word of the recipe; repeatable",
    )
    parser.add_argument("--variant", help="one of the recipe's variants, e.g. baseline, dmae_ti, dmae_wti")
    parser.add_argument("--output_dir", help="where checkpoints, models and logs go")
    parser.add_argument("--max_steps", type=int, help="stop after this many optimiser steps")
    parser.add_argument(
        "--resume_from_checkpoint",
        metavar="PATH|last",
        help="a checkpoint folder, or the last one of output_dir if any",
    )
    parser.add_argument(
        "--gradient_cache_chunk",
        type=int,
        metavar="N",
        help="encode N pairs at a time: a batch beyond memory with all its negatives, equal to the whole batch",
    )
    parser.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        metavar="N",
        help="sum the gradients of N batches per step; this does NOT enlarge the negatives of a pair "
        "(use --gradient_cache_chunk for that)",
    )
    parser.add_argument("--save_total_limit", type=int, metavar="N", help="keep the last N checkpoints")
    parser.add_argument(
        "--dry_run", action="store_true", help="print splits, steps, memory estimate and negatives, then stop"
    )
    return parser.parse_args(arguments)


def overrides(options: argparse.Namespace) -> list[str]:
    """Every option that stands for a word of the recipe, as `--set` spells it."""
    named = (
        "output_dir max_steps resume_from_checkpoint gradient_cache_chunk gradient_accumulation_steps save_total_limit"
    )
    given = {f"training.{name}": getattr(options, name) for name in named.split()} | {"variant": options.variant}
    return options.set + [f"{name}={yaml.safe_dump(value)}" for name, value in given.items() if value is not None]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done, or saved after SIGTERM; 1: one line says what was wrong; 130: interrupted."""
    options = parse(arguments)
    from dmae.inference.progress import is_main_process
    from dmae.training.config import load_config

    try:
        config = load_config(options.config, overrides(options))
        from dmae.training.loop import train  # seconds of imports, after the recipe is known to be right
        from dmae.training.plan import describe

        if options.dry_run:
            plan = describe(config)
            if is_main_process():
                print(plan)
            return 0
        result = train(config)
    except KeyboardInterrupt:
        print("interrupted; go on with --resume_from_checkpoint last", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("DMAE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    if is_main_process():
        said = "the model is in" if result.status == "finished" else "stopped as asked, saved in"
        print(
            f"{said} {result.model_dir if result.status == 'finished' else result.output_dir} ({result.seconds:.0f} s)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
