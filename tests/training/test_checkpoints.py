"""A checkpoint folder is whole or absent, whatever happens while it is written."""

import errno
import os
import re
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from dmae.training import checkpoints
from dmae.training.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    new_folder,
    open_output,
    save_checkpoint,
    tidy,
    write_file,
)


def fill(path, text):
    with new_folder(path) as partial:
        (partial / "weights").write_text(text)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        RuntimeError("write failed"),
        SafetensorError("io"),
    ],
    ids=["full disk", "ctrl-c", "torch's full disk", "safetensors' full disk"],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path, failure, earlier):
    path = tmp_path / "best"
    if earlier:
        fill(path, "old")
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OSError
    with pytest.raises(expected) as error, new_folder(path) as partial:
        (partial / "weights").write_text("half")
        raise failure
    assert os.listdir(tmp_path) == (["best"] if earlier else [])
    assert not earlier or (path / "weights").read_text() == "old"
    if expected is OSError:
        assert str(path) in str(error.value) and "is kept" in str(error.value)


def test_a_real_full_disk_is_reported(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is Linux's always-full device")
    import torch

    with pytest.raises(OSError, match="could not be written"), new_folder(tmp_path / "checkpoint-1") as partial:
        (partial / "optimizer.bin").symlink_to("/dev/full")
        torch.save({"moment": torch.zeros(1 << 16)}, partial / "optimizer.bin")
    assert os.listdir(tmp_path) == []


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    fill(tmp_path / "best", "old")
    fill(tmp_path / "best", "new")
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best" / "weights").read_text() == "new"


def test_a_kill_between_the_two_renames_is_repaired(tmp_path):
    fill(tmp_path / "best", "old")
    os.rename(tmp_path / "best", tmp_path / "best.old")  # killed here: nothing stands at `best`
    (tmp_path / "checkpoint-3.tmp").mkdir()
    (tmp_path / "run.json.tmp").write_text("{")
    tidy(tmp_path)
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best" / "weights").read_text() == "old"
    fill(tmp_path / "best", "new")
    os.makedirs(tmp_path / "best.old")  # killed after both renames: the old one is waste
    tidy(tmp_path)
    assert os.listdir(tmp_path) == ["best"] and (tmp_path / "best" / "weights").read_text() == "new"


def test_a_text_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_file(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old"


def test_last_is_the_highest_step_not_the_last_by_name(tmp_path):
    for step in (9, 10, 100):
        fill(tmp_path / f"checkpoint-{step}", "x")
    assert find_checkpoint("last", tmp_path).name == "checkpoint-100"
    assert find_checkpoint(None, tmp_path) is None
    with pytest.raises(FileNotFoundError, match=re.escape("checkpoint-9, checkpoint-10, checkpoint-100")):
        find_checkpoint(str(tmp_path / "checkpoint-11"), tmp_path)


def test_overwriting_removes_the_earlier_run_only_when_asked(tmp_path):
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    fill(tmp_path / "checkpoint-5", "x")
    options = SimpleNamespace(resume_from_checkpoint=None, overwrite_output_dir=False)
    with pytest.raises(ValueError, match="holds checkpoint-5 of an earlier run"):
        open_output(accelerator, tmp_path, options)
    options.overwrite_output_dir = True
    open_output(accelerator, tmp_path, options)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_of_another_model_is_refused_in_words(tmp_path):
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    save_checkpoint(accelerator, tmp_path, {"step": 1}, keep=1)
    accelerator.free_memory()
    accelerator.prepare(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="do not fit this recipe's model"):
        load_checkpoint(accelerator, find_checkpoint("last", tmp_path))
    accelerator.free_memory()
