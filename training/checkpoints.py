"""A run's output folder: checkpoints that are whole or absent and checked before they are believed, and its models."""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from dmae.files import locked, make_folder, new_folder, partial_name, reached, remove_folder, tidy
from dmae.hub_cards.staging import add_sentence_module

CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
STATE, CHECKSUMS = "state.json", "checksums.json"
MODELS = ("best", "last")


@contextmanager
def only_run(accelerator: Accelerator, output_dir: Path) -> Iterator[None]:
    """Hold the output folder: a second run would clear away what the first one is writing."""
    if not accelerator.is_main_process:
        yield
        return
    make_folder(output_dir)
    with locked(output_dir / ".lock", f"{output_dir}: another run is training into this folder"):
        yield


def check_output(accelerator: Accelerator, output_dir: Path, options) -> None:
    """Refuse to mix two runs in one folder, or to take the place of something else. Writes nothing.

    A run that goes on first gets back what a kill between two renames had set aside.
    """
    if options.resume_from_checkpoint and accelerator.is_main_process:
        tidy(output_dir)
    accelerator.wait_for_everyone()
    for path in (output_dir / name for name in MODELS):
        if path.exists() and not _is_model(path):
            raise ValueError(f"{path}: is no model of an earlier run and would be replaced; choose another output_dir")
    earlier = checkpoints(output_dir)
    if earlier and not options.resume_from_checkpoint and not options.overwrite_output_dir:
        raise ValueError(
            f"{output_dir} holds {earlier[-1].name} of an earlier run; go on with --resume-from-checkpoint last, "
            "choose another training.output_dir, or set training.overwrite_output_dir=true to remove it"
        )


def open_output(accelerator: Accelerator, output_dir: Path, options) -> None:
    """Clear away what a killed run left and, if that is asked for, the whole earlier run."""
    if accelerator.is_main_process:
        tidy(output_dir)
        if options.overwrite_output_dir and not options.resume_from_checkpoint:
            for path in [*checkpoints(output_dir), *(output_dir / name for name in MODELS)]:
                if path.is_dir():
                    remove_folder(path)
    accelerator.wait_for_everyone()


def checkpoints(output_dir: Path) -> list[Path]:
    """This trainer's checkpoint folders, oldest first; other programs' (without our files) are not counted."""
    found = [path for path in output_dir.glob("checkpoint-*") if CHECKPOINT.search(path.name)]
    ours = [path for path in found if (path / STATE).is_file() or (path / CHECKSUMS).is_file()]
    return sorted(ours, key=_step)


def find_checkpoint(requested: str | None, output_dir: Path) -> Path | None:
    """The folder to resume from: a path, or "last" in `output_dir` (None when there is none yet: a fresh start)."""
    if requested is None:
        return None
    if requested == "last":
        return next(reversed(checkpoints(output_dir)), None)
    path = Path(requested)
    if not (path / STATE).is_file():
        there = ", ".join(item.name for item in checkpoints(output_dir)) or "none"
        raise FileNotFoundError(f"{path}: no checkpoint there (no {STATE}); in {output_dir}: {there}")
    return path


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict, keep: int) -> Path:
    """Save everything a resumed run needs as `checkpoint-<step>`; every rank takes part, the oldest beyond `keep` go.

    Weights, optimiser, scheduler, loss scaler and each rank's random state are Accelerate's `save_state`; `state` is
    the run's own place in the data, as JSON; `checksums.json` has the CRC-32 of every file.
    """
    path = output_dir / f"checkpoint-{state['step']}"
    if accelerator.is_main_process:
        with new_folder(path) as partial:
            _save_state(accelerator, partial)
            (partial / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
            (partial / CHECKSUMS).write_text(json.dumps(_checksums(partial), indent=2), encoding="utf-8")
    else:
        _save_state(accelerator, partial_name(path))
    accelerator.wait_for_everyone()
    drop_old(accelerator, output_dir, keep)
    return path


def drop_old(accelerator: Accelerator, output_dir: Path, keep: int) -> None:
    """Remove all checkpoints but the `keep` last ones."""
    if accelerator.is_main_process:
        for old in checkpoints(output_dir)[:-keep]:
            remove_folder(old)


def _save_state(accelerator: Accelerator, partial: Path) -> None:
    accelerator.wait_for_everyone()  # the main process has made the folder
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()  # every rank's random state is in it


def read_state(path: Path) -> dict:
    """The run's own state in a checkpoint all of whose files are as they were saved.

    Raises ValueError that names the file which is missing or damaged, and the checkpoint before this one.
    """
    before = [item.name for item in checkpoints(path.parent) if _step(item) < _step(path)]
    remedy = f"go on from {before[-1]}" if before else "start the run anew"
    try:
        kept = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        found = {name: checksum_of(path / name) for name in kept}
        damaged = [name for name in kept if found[name] != kept[name]]
        if damaged or STATE not in kept:
            raise ValueError(f"{', '.join(damaged) or CHECKSUMS} differs from what was saved")
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: this checkpoint is damaged ({error}); {remedy}") from error


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Restore what `save_checkpoint` saved, random states included. ValueError where the model is another."""
    try:
        accelerator.load_state(str(path))
    except RuntimeError as error:  # torch's word for weights of another shape
        raise ValueError(
            f"{path}: its weights do not fit this recipe's model ({error}); go on with the recipe of that run, or "
            "choose another training.output_dir"
        ) from error


def save_model(
    accelerator: Accelerator, model, processor, path: Path, adapter: Callable[[Path], None] | None = None
) -> None:
    """A model folder that loads by remote code: weights, configs, processor and the modelling files themselves.

    It loads as a SentenceTransformer too. adapter: writes what was trained of it into the folder's `adapter/`.
    """
    if accelerator.is_main_process:
        with new_folder(path) as partial:
            disable_progress_bar()  # of transformers: one line per shard file
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            add_sentence_module(partial)
            if adapter is not None:
                adapter(partial / "adapter")
                processor.save_pretrained(partial / "adapter")
    accelerator.wait_for_everyone()


def checksum_of(path: Path) -> str:
    """CRC-32 of a file's bytes, in hexadecimal."""
    value = 0
    reached("read", path)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): checksum_of(path) for path in files}


def _step(path: Path) -> int:
    named = CHECKPOINT.search(path.name)
    return int(named.group(1)) if named else 0


def _is_model(path: Path) -> bool:
    """Whether `path` is a folder that `save_model` could have written."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return config["model_type"] == "dmae"
    except (OSError, ValueError, KeyError, TypeError):
        return False
