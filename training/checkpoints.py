"""Checkpoint folders that are either whole or absent: written under another name, synced to disk, then renamed."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
PARTIAL, REPLACED = ".tmp", ".old"


def write_file(path: Path, text: str) -> None:
    """Replace a text file in one step; a reader sees the old or the new one, never half."""
    partial = path.with_name(path.name + PARTIAL)
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """`with new_folder(path) as partial:` fill `partial`; on success it is synced and takes the place of `path`.

    On any failure, Ctrl-C included, the partial folder goes and what stood at `path` stays. Raises OSError with the
    path when the disk refuses (torch and safetensors report a full disk in exceptions of their own).
    """
    partial, replaced = path.with_name(path.name + PARTIAL), path.with_name(path.name + REPLACED)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise OSError(f"{path}: could not be written ({error}); what was there before is kept") from error
        raise
    if path.exists():
        os.rename(path, replaced)
    os.rename(partial, path)
    _sync_entry(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def tidy(output_dir: Path) -> None:
    """Undo what a killed run left: remove partial folders, put back a folder whose replacement did not arrive."""
    for partial in output_dir.glob(f"*{PARTIAL}"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    for replaced in output_dir.glob(f"*{REPLACED}"):
        if replaced.with_suffix("").exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, replaced.with_suffix(""))


def open_output(accelerator: Accelerator, output_dir: Path, options) -> None:
    """Make the output folder and clear away what a killed run left. Refuses to mix two runs in one folder."""
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        tidy(output_dir)
    accelerator.wait_for_everyone()
    earlier = checkpoints(output_dir)
    if earlier and not options.resume_from_checkpoint:
        if not options.overwrite_output_dir:
            raise ValueError(
                f"{output_dir} holds {earlier[-1].name} of an earlier run; go on with --resume_from_checkpoint last, "
                "choose another training.output_dir, or set training.overwrite_output_dir=true to remove it"
            )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for path in [*earlier, output_dir / "best", output_dir / "last"]:
                shutil.rmtree(path, ignore_errors=True)
        accelerator.wait_for_everyone()


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoint folders, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.is_dir() and CHECKPOINT.search(path.name)]
    return sorted(found, key=lambda path: int(CHECKPOINT.search(path.name).group(1)))


def find_checkpoint(requested: str | None, output_dir: Path) -> Path | None:
    """The folder to resume from: a path, or "last" in `output_dir` (None when there is none yet: a fresh start)."""
    if requested is None:
        return None
    if requested == "last":
        return next(reversed(checkpoints(output_dir)), None)
    path = Path(requested)
    if not (path / "state.json").is_file():
        there = ", ".join(item.name for item in checkpoints(output_dir)) or "none"
        raise FileNotFoundError(f"{path}: no checkpoint there (no state.json); in {output_dir}: {there}")
    return path


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict, keep: int) -> Path:
    """Save everything a resumed run needs as `checkpoint-<step>`; every rank takes part, the oldest beyond `keep` go.

    Weights, optimiser, scheduler, loss scaler and each rank's random state are Accelerate's `save_state`; `state` is
    the run's own place in the data, as JSON.
    """
    path = output_dir / f"checkpoint-{state['step']}"
    if accelerator.is_main_process:
        with new_folder(path) as partial:
            _save_state(accelerator, partial)
            (partial / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    else:
        _save_state(accelerator, path.with_name(path.name + PARTIAL))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for old in checkpoints(output_dir)[:-keep]:
            going = old.with_name(old.name + PARTIAL)  # a kill in the middle must not leave half a checkpoint
            os.rename(old, going)
            shutil.rmtree(going)
    return path


def _save_state(accelerator: Accelerator, partial: Path) -> None:
    accelerator.wait_for_everyone()  # the main process has made the folder
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()  # every rank's random state is in it


def load_checkpoint(accelerator: Accelerator, path: Path) -> dict:
    """Restore what `save_checkpoint` saved and return the run's own state. ValueError where the model is another."""
    try:
        accelerator.load_state(str(path))
    except RuntimeError as error:  # torch's word for weights of another shape
        raise ValueError(
            f"{path}: its weights do not fit this recipe's model ({error}); go on with the recipe of that run, or "
            "choose another training.output_dir"
        ) from error
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def save_model(accelerator: Accelerator, model, processor, path: Path) -> None:
    """A model folder that loads by remote code: weights, configs, processor and the modelling files themselves."""
    if accelerator.is_main_process:
        with new_folder(path) as partial:
            disable_progress_bar()  # of transformers: one line per shard file
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    accelerator.wait_for_everyone()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    """Make a rename or a new name durable (POSIX; elsewhere directories cannot be opened)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
