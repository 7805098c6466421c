"""The paper's ablations under control: MovingDigits, several seeds per row, every run one line of JSON.

    python benchmarks/ablations.py --table 5 --seeds 5            # resumable: finished runs are skipped
    python benchmarks/ablations.py --table 7 --seeds 5 --jobs 2
    python benchmarks/ablations.py --report                       # docs/evidence.md from the result lines

Runs of one seed see the same initial weights and the same batches, so rows are also compared pair by pair. `quick`
is made for two CPU cores (at most 90 s a run there), `large` for a GPU.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ablations.jsonl"

OFF = {"loss": "info_nce", "textual_attention": False, "visual_attention": False, "partial_order": False}
DMAE = {"loss": "neg_nce", "textual_attention": True, "visual_attention": True, "partial_order": False}
FULL = {**DMAE, "partial_order": True}
ROWS = {
    "baseline": OFF,
    "+NegNCE": {**OFF, "loss": "neg_nce"},
    "+NegNCE+TA": {**OFF, "loss": "neg_nce", "textual_attention": True},
    "+NegNCE+VA": {**OFF, "loss": "neg_nce", "visual_attention": True},
    "+NegNCE+TA+VA": DMAE,
    "+TPM-CL": {**OFF, "partial_order": True},
    "+DMAE+TPM-CL": FULL,
    **{f"gamma2={value}": {**DMAE, "negative_weight": value} for value in (0.0, 0.3, 0.7)},
    **{f"tau={tau}, delta=0.2": {**FULL, "mask_ratio": tau, "partial_margin": 0.2} for tau in (0.2, 0.6, 0.9)},
    **{f"tau=0.6, delta={delta}": {**FULL, "partial_margin": delta} for delta in (0.6, 1.0)},
    "wti": {**FULL, "interaction": "wti"},
    "pooled": {**FULL, "similarity_form": "pooled"},
    "linear word weights": {**FULL, "word_weighting": "linear"},
    "no straight-through": {**FULL, "mask_gradient": "none"},
    "margin schedule": {**FULL, "margin_schedule": "linear"},
    "memory of 192": {**FULL, "memory_size": 192},
}
TABLES = {
    "5": ["baseline", "+NegNCE", "+NegNCE+TA", "+NegNCE+VA", "+NegNCE+TA+VA"],
    "6": ["baseline", "gamma2=0.0", "gamma2=0.3", "+NegNCE+TA+VA", "gamma2=0.7"],
    "7": ["baseline", "+TPM-CL", "+DMAE+TPM-CL"],
    "8": [name for name in ROWS if name.startswith("tau=")],
    "forms": ["+DMAE+TPM-CL", "wti", "pooled", "linear word weights", "no straight-through"],
    "beyond": ["+DMAE+TPM-CL", "margin schedule", "memory of 192"],
}
# corpus: what is rendered once; settings: laid over training/recipes/moving_digits.yaml.
PRESETS = {
    "quick": {
        "corpus": {"preset": "ablation"},
        "settings": {
            "training.max_steps": 500,
            "training.train_batch_size": 48,
            "training.num_train_epochs": 100,
            "processor.vocab_size": 400,
        },
    },
    "large": {
        "corpus": {"preset": "full"},
        "settings": {"training.max_steps": 6000, "training.train_batch_size": 128, "training.num_train_epochs": 100},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each")
    parser.add_argument(
        "--corpora", type=Path, default=ROOT / "outputs" / "ablations", help="where corpora are rendered"
    )
    parser.add_argument("--report", action="store_true", help="write docs/evidence.md and stop")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.report:
        from ablations_report import write_evidence

        write_evidence(RESULTS, ROOT / "docs", TABLES)
    elif options.one:
        print("RESULT " + json.dumps(run_one(options.one[0], int(options.one[1]), options.preset, options.corpora)))
    else:
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    """Run what is not in the result file yet, seed by seed, so that an early stop leaves whole seeds."""
    names = list(dict.fromkeys(row for table in options.table for row in TABLES[table]))
    done = {(line["row"], line["seed"], line["preset"]) for line in read_lines(RESULTS)}
    todo = [(row, seed) for seed in range(options.seeds) for row in names if (row, seed, options.preset) not in done]
    corpus_of(options.preset, options.corpora)  # before the runs, so that they do not race to render it
    print(f"{len(todo)} runs to do, {len(names) * options.seeds - len(todo)} done", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for line in pool.map(lambda job: _in_child(*job, options), todo):
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            metrics = line["metrics"]
            print(
                f"{line['row']} seed {line['seed']}: R@1 {metrics['text_to_video_R@1']:.3f}, {line['seconds']:.0f} s",
                flush=True,
            )


def _in_child(row: str, seed: int, options: argparse.Namespace) -> dict:
    """A process of its own per run: its peak memory is the run's."""
    command = [
        sys.executable,
        __file__,
        "--one",
        row,
        str(seed),
        "--preset",
        options.preset,
        "--corpora",
        str(options.corpora),
    ]
    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    child = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": threads}
    )
    if child.returncode:
        raise SystemExit(f"{row}, seed {seed} failed:\n{child.stderr[-3000:]}")
    return json.loads(child.stdout.split("RESULT ")[1])


def corpus_of(preset: str, folder: Path) -> Path:
    from dmae.data.moving_digits.corpus import render_moving_digits

    return render_moving_digits(folder / f"corpus-{preset}", **PRESETS[preset]["corpus"])


def run_one(row: str, seed: int, preset: str, folder: Path) -> dict:
    """Train one row with one seed and score the test split."""
    import numpy as np
    import torch

    from dmae import __version__
    from dmae.evaluation.near_misses import near_miss_accuracy, read_rows, score_split
    from dmae.inference.loading import load_model_and_processor
    from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics
    from dmae.training.config import load_config, recipes_folder
    from dmae.training.loop import train

    corpus = corpus_of(preset, folder)
    settings = {f"model.{name}": value for name, value in ROWS[row].items()} | PRESETS[preset]["settings"]
    with tempfile.TemporaryDirectory() as output:
        settings |= {
            "data.videos": str(corpus),
            "data.validation_split": None,  # a fixed number of steps; nothing is selected
            "data.num_workers": 1,
            "training.seed": seed,
            "training.output_dir": output,
            "training.report_to": [],
        }
        overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        config = load_config(recipes_folder() / "moving_digits.yaml", overrides)
        started = time.process_time()
        result = train(config)
        cpu_seconds = time.process_time() - started
        model, processor = load_model_and_processor(result.model_dir)
        rows = read_rows(corpus / "test")
        scores = score_split(model, processor, corpus / "test", rows, num_workers=0)
    return {
        "row": row,
        "seed": seed,
        "preset": preset,
        "metrics": {**retrieval_metrics(scores, np.arange(len(scores))), "gallery_size": len(scores)},
        "near_miss": near_miss_accuracy(scores, rows),
        "steps": result.steps,
        "seconds": result.seconds,
        "cpu_ms_per_step": round(1000 * cpu_seconds / max(result.steps, 1), 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "settings": ROWS[row] | {"batch": settings["training.train_batch_size"]},
        "conditions": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
            "dmae": __version__,
        },
    }


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
