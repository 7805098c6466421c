"""The output folder of a run, file by file and rank by rank: what is held, checked, cleared, saved and named."""

import json
import re
import zlib
from types import SimpleNamespace

import pytest
from transformers.utils import logging

from dmae import files
from dmae.training import checkpoints
from dmae.training.checkpoints import (
    check_output,
    checksum_of,
    drop_old,
    find_checkpoint,
    only_run,
    open_output,
    read_state,
    save_checkpoint,
    save_model,
)


class Rank:
    """What the functions ask of an accelerator: which process this is; calls are told, with what is in `folder`."""

    def __init__(self, folder, main: bool = True):
        self.folder, self.is_main_process, self.told = folder, main, []

    def wait_for_everyone(self):
        self.told.append(("wait", sorted(path.name for path in self.folder.iterdir())))

    def save_state(self, folder: str):
        self.told.append(("save", folder))
        with open(f"{folder}/model.safetensors", "wb") as file:
            file.write(b"weights")


def asked(resume=None, overwrite=False):
    return SimpleNamespace(resume_from_checkpoint=resume, overwrite_output_dir=overwrite)


def lay(folder, step):
    """A whole checkpoint."""
    save_checkpoint(Rank(folder), folder, {"step": step}, keep=99)
    return folder / f"checkpoint-{step}"


def names(folder) -> set:
    return {path.name for path in folder.iterdir()}


def test_the_main_process_holds_the_folder_for_all(tmp_path, monkeypatch):
    """Another rank that asked for the lock would be refused by its own run; new folders survive a power failure."""
    folder, synced = tmp_path / "a" / "out", []
    monkeypatch.setattr(files, "fault", lambda point, path: synced.append((point, path)))
    with only_run(Rank(folder, main=False), folder):
        assert not folder.exists() and not synced
    with only_run(Rank(folder), folder):
        assert (folder / ".lock").exists() and {("fsync", tmp_path), ("fsync", tmp_path / "a")} <= {*synced}
        with only_run(Rank(folder, main=False), folder):
            pass
        refusal = re.escape(f"{folder}: another run is training into this folder")
        with pytest.raises(OSError, match=refusal), only_run(Rank(folder), folder):
            pass


@pytest.mark.parametrize(
    ("resume", "main", "back"), [("last", True, True), ("last", False, False), (None, True, False)]
)
def test_what_a_kill_had_set_aside_is_back_before_any_rank_looks(tmp_path, resume, main, back):
    """A run that is refused has changed nothing; of a run that goes on the main process alone puts things back."""
    aside = lay(tmp_path, 3).rename(tmp_path / ".checkpoint-3.dmae-old")
    rank = Rank(tmp_path, main)
    check_output(rank, tmp_path, asked(resume))
    assert rank.told == [("wait", ["checkpoint-3" if back else aside.name])]
    assert names(tmp_path) == {"checkpoint-3" if back else aside.name}


def test_what_is_of_an_earlier_run_is_told_by_its_kind(tmp_path):
    """Only a folder with this project's kind of model may be replaced by one."""
    (tmp_path / "last").mkdir()
    for content in ('{"model_type": "clip"}', "{}", "[]", "no json"):
        (tmp_path / "last" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'last'}: is no model of an earlier run")):
            check_output(Rank(tmp_path), tmp_path, asked())
    (tmp_path / "last" / "config.json").write_text('{"model_type": "dmae"}')
    check_output(Rank(tmp_path), tmp_path, asked())
    for step in (3, 12):
        lay(tmp_path, step)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds checkpoint-12 of an earlier run; go on with")):
        check_output(Rank(tmp_path), tmp_path, asked())
    for options in (asked("last"), asked(overwrite=True), asked("last", overwrite=True)):
        check_output(Rank(tmp_path), tmp_path, options)
    assert names(tmp_path) == {"last", "checkpoint-3", "checkpoint-12"}


@pytest.mark.parametrize(
    ("options", "main", "left"),
    [
        (asked(), True, {"best", "last", "checkpoint-3", "mine"}),
        (asked("last", overwrite=True), True, {"best", "last", "checkpoint-3", "mine"}),
        (asked(overwrite=True), False, {"best", "last", "checkpoint-3", "mine", ".best.dmae-new"}),
        (asked(overwrite=True), True, {"mine"}),
    ],
)
def test_an_earlier_run_goes_only_where_it_is_not_gone_on_with(tmp_path, options, main, left):
    lay(tmp_path, 3)
    for name in ("best", "last", "mine", ".best.dmae-new"):
        (tmp_path / name).mkdir()
    rank = Rank(tmp_path, main)
    open_output(rank, tmp_path, options)
    assert names(tmp_path) == left and rank.told == [("wait", sorted(left))]


def test_the_ranks_fill_one_checkpoint_together(tmp_path):
    """The others write their random states into the folder that the main process has made, and it waits for them."""
    main, other, partial = Rank(tmp_path), Rank(tmp_path, main=False), tmp_path / ".checkpoint-7.dmae-new"
    assert save_checkpoint(main, tmp_path, {"step": 7}, keep=2) == tmp_path / "checkpoint-7"
    under_way, done = ("wait", [partial.name]), ("wait", ["checkpoint-7"])
    assert main.told == [under_way, ("save", str(partial)), under_way, done]
    text = (tmp_path / "checkpoint-7" / "state.json").read_text()
    assert text == '{\n  "step": 7\n}'
    sums = {"model.safetensors": b"weights", "state.json": text.encode()}
    expected = {name: f"{zlib.crc32(content):08x}" for name, content in sums.items()}
    kept = (tmp_path / "checkpoint-7" / "checksums.json").read_text()
    assert json.loads(kept) == expected and kept == json.dumps(expected, indent=2)

    partial.mkdir()
    assert save_checkpoint(other, tmp_path, {"step": 7}, keep=2) == tmp_path / "checkpoint-7"
    there = ("wait", [partial.name, "checkpoint-7"])
    assert other.told == [there, ("save", str(partial)), there, there]
    assert not (partial / "state.json").exists()


def test_the_main_process_alone_drops_the_oldest(tmp_path):
    for step in (3, 12, 101):
        lay(tmp_path, step)
    drop_old(Rank(tmp_path, main=False), tmp_path, 1)
    drop_old(Rank(tmp_path), tmp_path, 3)
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-12", "checkpoint-101"}
    save_checkpoint(Rank(tmp_path), tmp_path, {"step": 102}, keep=2)
    assert names(tmp_path) == {"checkpoint-101", "checkpoint-102"}


def test_a_checkpoint_is_asked_for_by_path_or_as_the_last(tmp_path):
    assert find_checkpoint("last", tmp_path) is None and find_checkpoint(None, tmp_path) is None
    with pytest.raises(FileNotFoundError) as error:
        find_checkpoint("elsewhere", tmp_path)
    assert str(error.value) == f"elsewhere: no checkpoint there (no state.json); in {tmp_path}: none"
    path = lay(tmp_path, 3)
    assert find_checkpoint(str(path), tmp_path / "other") == path == find_checkpoint("last", tmp_path)


def test_damage_is_told_with_the_way_on(tmp_path, monkeypatch):
    """The first checkpoint has none before it; one that was given another name has no place among the others."""
    path, seen = lay(tmp_path, 3), []
    monkeypatch.setattr(files, "fault", lambda point, at: seen.append((point, at.name)))
    assert read_state(path) == {"step": 3} and seen == [("read", "model.safetensors"), ("read", "state.json")]
    monkeypatch.setattr(files, "fault", None)
    (path / "model.safetensors").write_bytes(b"weight5")
    told = f"{path}: this checkpoint is damaged (model.safetensors differs from what was saved); start the run anew"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        read_state(path)
    (path / "checksums.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"damaged \(checksums\.json differs from what was saved\); start the run anew$"
    ):
        read_state(path)
    lay(tmp_path, 0)
    path = path.rename(tmp_path / "the one of monday")
    with pytest.raises(ValueError, match=r"start the run anew$"):
        read_state(path)


def test_a_checksum_is_that_of_all_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at once
    (tmp_path / "a").write_bytes(content)
    assert checksum_of(tmp_path / "a") == f"{zlib.crc32(content):08x}"
    (tmp_path / "a").write_bytes(b"")
    assert checksum_of(tmp_path / "a") == "00000000"


def test_a_model_is_saved_by_the_main_process_with_all_that_loads_it(tmp_path, monkeypatch):
    saved = []

    def part(name):
        return SimpleNamespace(save_pretrained=lambda folder: saved.append((name, folder.name)))

    monkeypatch.setattr(checkpoints, "add_sentence_module", lambda folder: saved.append(("sentence", folder.name)))
    adapter = lambda folder: saved.append(("adapter", f"{folder.parent.name}/{folder.name}"))  # noqa: E731
    other, main, partial = Rank(tmp_path, main=False), Rank(tmp_path), ".best.dmae-new"
    was_shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        save_model(other, part("model"), part("processor"), tmp_path / "best", adapter)
        assert saved == [] and other.told == [("wait", [])] and logging.is_progress_bar_enabled()
        save_model(main, part("model"), part("processor"), tmp_path / "best", None)
        assert not logging.is_progress_bar_enabled(), "a line per file would come between those of the run"
    finally:
        (logging.enable_progress_bar if was_shown else logging.disable_progress_bar)()
    whole = [("model", partial), ("processor", partial), ("sentence", partial)]
    assert saved == whole and main.told == [("wait", ["best"])]
    saved.clear()
    save_model(main, part("model"), part("processor"), tmp_path / "best", adapter)
    assert saved == [*whole, ("adapter", f"{partial}/adapter"), ("processor", "adapter")]


def test_weights_that_do_not_fit_are_told_with_the_cause(tmp_path):
    def load_state(folder: str):
        loaded.append(folder)
        raise RuntimeError("size mismatch for weight")

    loaded: list[str] = []
    said = re.escape("its weights do not fit this recipe's model (size mismatch for weight); go on with the recipe")
    with pytest.raises(ValueError, match=said):
        checkpoints.load_checkpoint(SimpleNamespace(load_state=load_state), tmp_path)
    assert loaded == [str(tmp_path)]
