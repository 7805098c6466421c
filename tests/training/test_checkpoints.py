"""A checkpoint is whole and as it was saved, or refused in one line; what is not this trainer's stays."""

import json
import os
import re
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from dmae.files import new_folder
from dmae.training.checkpoints import (
    check_output,
    find_checkpoint,
    load_checkpoint,
    only_run,
    open_output,
    read_state,
    save_checkpoint,
)

FRESH = SimpleNamespace(resume_from_checkpoint=None, overwrite_output_dir=False)
OVERWRITE = SimpleNamespace(resume_from_checkpoint=None, overwrite_output_dir=True)
RESUME = SimpleNamespace(resume_from_checkpoint="last", overwrite_output_dir=False)
ALONE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


@pytest.fixture
def saved(tmp_path):
    """An output folder with the checkpoints of steps 9, 10 and 100 of a small network."""
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    for step in (9, 10, 100):
        save_checkpoint(accelerator, tmp_path, {"step": step}, keep=3)
    yield tmp_path
    accelerator.free_memory()


def open_run(folder, options):
    check_output(ALONE, folder, options)
    open_output(ALONE, folder, options)


def everything_in(folder) -> dict:
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


def test_a_real_full_disk_is_reported(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is Linux's always-full device")
    with pytest.raises(OSError, match="could not be written"), new_folder(tmp_path / "checkpoint-1") as partial:
        (partial / "optimizer.bin").symlink_to("/dev/full")
        torch.save({"moment": torch.zeros(1 << 16)}, partial / "optimizer.bin")
    assert os.listdir(tmp_path) == []


def test_last_is_the_highest_step_not_the_last_by_name(saved):
    assert find_checkpoint("last", saved).name == "checkpoint-100"
    assert find_checkpoint(None, saved) is None
    with pytest.raises(FileNotFoundError, match=re.escape("checkpoint-9, checkpoint-10, checkpoint-100")):
        find_checkpoint(str(saved / "checkpoint-11"), saved)


def test_half_of_a_checkpoint_is_still_one(tmp_path):
    """It is refused as damaged, by its name; to go on from an older one without a word would lose what was trained."""
    for number, file in ((20, "state.json"), (100, "checksums.json"), (300, "weights.bin")):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / file).write_text("{}")
    assert find_checkpoint("last", tmp_path).name == "checkpoint-100"
    (tmp_path / "checkpoint-100" / "checksums.json").unlink()
    assert find_checkpoint("last", tmp_path).name == "checkpoint-20"


def test_training_leaves_the_users_files_alone(saved):
    """Names that look like waste or like checkpoints, in the folder that a run is told to use."""
    mine = {"download.tmp", "thesis.old", "run.json.tmp", "notes.tmp", "videos.old", "checkpoint-1", "checkpoint-7"}
    for name in mine:
        (saved / name).mkdir()
        (saved / name / "trainer_state.json").write_text("of another program")
    open_run(saved, RESUME)
    save_checkpoint(Accelerator(cpu=True), saved, {"step": 101}, keep=1)
    assert set(os.listdir(saved)) == mine | {"checkpoint-101"}
    open_run(saved, OVERWRITE)
    assert set(os.listdir(saved)) == mine
    assert all((saved / name / "trainer_state.json").read_text() == "of another program" for name in mine)


def test_a_folder_that_is_no_model_is_not_replaced_by_one(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "holiday.mp4").write_bytes(b"mine")
    for options in (FRESH, OVERWRITE, RESUME):
        with pytest.raises(ValueError, match="is no model of an earlier run and would be replaced"):
            open_run(tmp_path, options)
    assert (tmp_path / "best" / "holiday.mp4").exists()


def test_overwriting_removes_the_earlier_run_only_when_asked(saved):
    before = everything_in(saved)
    with pytest.raises(ValueError, match="holds checkpoint-100 of an earlier run"):
        open_run(saved, FRESH)
    assert everything_in(saved) == before
    open_run(saved, OVERWRITE)
    assert os.listdir(saved) == []


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        only_run(ALONE, tmp_path),
        pytest.raises(OSError, match="another run is training into this folder"),
        only_run(ALONE, tmp_path),
    ):
        pass


def test_a_checkpoint_of_another_model_is_refused_in_words(saved):
    accelerator = Accelerator(cpu=True)
    accelerator.free_memory()
    accelerator.prepare(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="do not fit this recipe's model"):
        load_checkpoint(accelerator, find_checkpoint("last", saved))
    accelerator.free_memory()


def test_any_damage_is_one_line_that_names_the_file_and_the_checkpoint_before(saved):
    """A flipped bit in, an end cut off, or the loss of any file of a checkpoint."""
    path = find_checkpoint("last", saved)
    files = sorted(item for item in path.rglob("*") if item.is_file())
    assert {"state.json", "checksums.json", "model.safetensors"} <= {item.name for item in files}
    for item in files:
        sound = item.read_bytes()
        for damaged in (bytes([sound[0] ^ 1]) + sound[1:], sound[:-1], None):
            item.unlink() if damaged is None else item.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"checkpoint-100: this checkpoint is damaged .*from checkpoint-10$"):
                read_state(find_checkpoint("last", saved))
            item.write_bytes(sound)
    assert read_state(path) == {"step": 100}


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "7", '{"state.json": 3}', "", "\x00"])
def test_checksums_that_are_none_are_one_line(saved, content):
    path = find_checkpoint("last", saved)
    (path / "checksums.json").write_text(content)
    with pytest.raises(ValueError, match="this checkpoint is damaged") as error:
        read_state(path)
    assert len(str(error.value)) < 500


def test_state_of_another_version_is_refused_in_words(tmp_path):
    from dmae.training.state import RunState

    good = json.loads(json.dumps(vars(RunState(step=3))))
    assert RunState.of(good, tmp_path).step == 3
    for wrong in ([], {"step": 3}, {**good, "news": 1}, {**good, "step": "3"}, {**good, "best": []}):
        with pytest.raises(ValueError, match=r"state\.json"):
            RunState.of(wrong, tmp_path)
