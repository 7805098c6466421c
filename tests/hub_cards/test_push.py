"""`push`: compared first, one commit, safe to repeat after an interruption, and nothing private in any file."""

import json
import shutil

import pytest
import yaml

from dmae.hub_cards.push import push
from dmae.hub_cards.scan import find_private

KEY = "models/user/tiny"
FILES = {
    "config.json", "model.safetensors", "configuration_dmae.py", "modeling_dmae.py", "similarity_dmae.py",
    "processor_config.json", "processing_dmae.py", "frames_dmae.py", "words_dmae.py", "word_tagger.bin",
    "tokenizer.json", "tokenizer_config.json", "handler.py", "pipeline_dmae.py", "requirements.txt", "README.md",
    "modules.json", "config_sentence_transformers.json", "sentence_dmae.py",
}  # fmt: skip


@pytest.fixture
def hub(hub):
    """With nothing on it."""
    hub.repos.clear()
    hub.blobs.clear()
    hub.log.clear()
    return hub


def published(run_folder, **options) -> str:
    """What `push` shows, as one text."""
    shown = []
    push(run_folder, "user/tiny", show=shown.append, **options)
    return "\n".join(shown)


def test_a_dry_run_lists_everything_and_sends_nothing(online, run_folder):
    shown = published(run_folder, dry_run=True)
    assert "model user/tiny (to be created)" in shown and "nothing was sent" in shown
    assert all(f"+ {name}  (" in shown for name in FILES), shown
    assert not online.repos and not any(line.startswith(("POST", "PUT")) for line in online.log)


def test_one_commit_with_every_file_and_then_nothing_to_do(online, run_folder):
    assert "published: " in published(run_folder, private=True)
    assert [len(commit.files) > 0 for commit in online.repos[KEY]] == [False, True]  # the Hub's own first, then ours
    assert set(online.files(KEY)) >= FILES
    assert online.private[KEY]
    again = published(run_folder)
    assert "0 of" in again and "+" not in again and "~" not in again, again
    assert len(online.repos[KEY]) == 2


def test_the_difference_names_changed_stale_and_foreign_files(online, run_folder):
    published(run_folder)
    foreign = {
        "config.json": b"{}",
        "older_dmae.py": b"",
        "model-00001-of-00002.safetensors": b"x",
        "notes.txt": b"mine",
    }
    online.commit(KEY, "by somebody", foreign)
    shown = published(run_folder)
    for line in ("~ config.json", "- older_dmae.py", "- model-00001-of-00002.safetensors", "= model.safetensors"):
        assert line in shown, shown
    left = online.files(KEY)
    assert "older_dmae.py" not in left and left["notes.txt"] == b"mine" and left["config.json"] != b"{}"
    assert len(online.repos[KEY]) == 4


def test_an_interrupted_upload_resumes_without_sending_the_weights_again(online, run_folder):
    online.fail["/commit/"] = [500]
    with pytest.raises(OSError, match=r"answered 500.*push again"):
        published(run_folder)
    assert online.files(KEY) == {}
    sent = [line for line in online.log if line.startswith("PUT /lfs/")]
    assert sent
    published(run_folder)
    assert [line for line in online.log if line.startswith("PUT /lfs/")] == sent
    assert set(online.files(KEY)) >= FILES and len(online.repos[KEY]) == 2


def test_a_commit_by_somebody_else_meanwhile_is_not_overwritten(online, run_folder):
    published(run_folder)
    online.commit(KEY, "older card", {"README.md": b"---\n---\n"})

    def show(text):  # between the comparison and the commit
        if text.startswith("model user/tiny"):
            online.commit(KEY, "by somebody", {"README.md": b"---\n---\nmine"})

    with pytest.raises(OSError, match="changed while"):
        push(run_folder, "user/tiny", show=show)
    assert online.files(KEY)["README.md"].endswith(b"mine")


def test_without_a_token_the_message_says_what_to_do(online, run_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(PermissionError, match="hf auth login"):
        published(run_folder)
    assert not online.repos


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "", "user/ti ny"])
def test_a_repo_id_without_a_namespace_is_refused(run_folder, name):
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        push(run_folder, name)


def test_a_licence_that_the_hub_does_not_know_is_refused_before_anything(run_folder, online):
    with pytest.raises(ValueError, match=r"did you mean 'apache-2\.0'"):
        push(run_folder, "user/tiny", license="Apache2.0")
    assert not online.log


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        push(tmp_path / "absent", "user/tiny")
    with pytest.raises(FileNotFoundError, match="no model here"):
        push(tmp_path, "user/tiny")


def test_no_published_file_holds_a_secret_or_a_path_of_this_machine(online, run_folder):
    """The run's record is full of local paths; none of them, nor anything like them, may be in any file."""
    published(run_folder)
    for name, content in online.files(KEY).items():
        assert not find_private(content), f"{name}: {find_private(content)}"
        assert b"anna" not in content and str(run_folder).encode() not in content, name


SECRETS = {
    "Hugging Face Token": "hf_" + "Ab1" * 12,
    "GitHub Token": "ghp_" + "Ab1" * 12,
    "AWS Access Key": "AKIA" + "ABCDEFGH12345678",
    "API Key": "sk-" + "Ab1" * 12,
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Basic Auth Credentials": "https://anna:" + "secret@example.org/",
    "a path of a machine": "/ho" + "me/anna/videos",
    "the token in HF_TOKEN": "hub-" + "test-token",
}


def test_what_must_not_go_public_stops_the_upload_and_is_listed(online, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["code"]["packages"] = {f"package{i}": secret for i, secret in enumerate(SECRETS.values())}  # all in the card
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError) as caught:
        published(run)
    assert [what for what in SECRETS if f"README.md: {what} (" not in str(caught.value)] == []
    assert not any(secret in str(caught.value) for secret in SECRETS.values())  # the message cuts them short
    assert not online.repos


@pytest.mark.parametrize("what", SECRETS)
def test_each_kind_of_secret_is_found_by_itself(what, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hub-" + "test-token")
    assert [name for name, _ in find_private(f"text {SECRETS[what]} text".encode())] == [what]
    assert not find_private(b"https://huggingface.co/user/model, hf_hub_download, /dev/null, ./work/list.txt")


def test_one_client_s_results_are_never_published_as_another_model_s(online, run_folder, identity, tmp_path):
    """Two models side by side, as a consultant's disk has them: each push takes its own results alone."""
    run = shutil.copytree(run_folder, tmp_path / "client_a")
    theirs = tmp_path / "client_a" / "client_b"
    theirs.mkdir()
    result = {"metrics": {"text_to_video_R@1": 0.987}, "data": {"dataset": "client_b_secret", "split": "test"}}
    (theirs / "results.json").write_text(json.dumps({**result, "model": {**identity, "weights": "0" * 16}}))
    (theirs / "ranking.png").write_bytes(b"\x89PNG")
    shown = published(run)
    assert "results.json: left out" in shown and "holiday" not in shown.split("left out")[0]
    for name, content in online.files(KEY).items():
        assert b"client_b" not in content and b"98.7" not in content and "ranking" not in name, name


def test_pictures_of_the_run_and_of_its_evaluation_are_in_the_card(online, run_folder, identity, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    for folder in ("test", "elsewhere"):
        (run / folder).mkdir()
        (run / folder / "words_and_frames.png").write_bytes(b"\x89PNG " + folder.encode())
    (run / "passport.png").write_bytes(b"\x89PNG")
    data = {"dataset": "holiday", "split": "test"}
    result = {"metrics": {"text_to_video_R@1": 0.5}, "data": data, "model": identity}
    (run / "test" / "results.json").write_text(json.dumps(result))
    published(run)
    files = online.files(KEY)
    assert {name for name in files if name.endswith(".png")} == {"pictures/curves.png", "pictures/words_and_frames.png"}
    assert files["pictures/words_and_frames.png"].endswith(b"test")  # a folder without a result is not looked into
    card = files["README.md"].decode()
    assert "![Words and frames of the best match](pictures/words_and_frames.png)" in card
    assert "![Losses, hard negatives and validation recall over the steps](pictures/curves.png)" in card


def test_the_space_names_the_model_and_is_one_commit(online, run_folder):
    published(run_folder, space=True)
    files = online.files("spaces/user/tiny")
    clips = {f"examples/clip_{number}.mp4" for number in (1, 2, 3, 4)}
    assert set(files) == {"app.py", "README.md", "requirements.txt", "examples/captions.txt", *clips}
    assert len(files["examples/captions.txt"].decode().split("\n")) == 5
    assert "spaces/user/tiny" in online.files(KEY)["README.md"].decode()
    assert b'"user/tiny"' in files["app.py"] and not any(b"your-name" in content for content in files.values())
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and header["models"] == ["user/tiny"]


def test_a_corpus_needs_its_owner_s_licence(online, clips, tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "train").mkdir(parents=True)
    rows = []
    for name, path in clips.items():
        shutil.copy(path, corpus / "train" / path.name)
        rows.append(json.dumps({"file_name": path.name, "captions": [f"a {name} clip", "something moves"]}))
    (corpus / "train" / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="licence"):
        push(corpus, "user/clips")
    push(corpus, "user/clips", license="cc-by-4.0", show=lambda text: None)
    files = online.files("datasets/user/clips")
    assert set(files) == {"README.md", "train/metadata.jsonl", *(f"train/{path.name}" for path in clips.values())}
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert "| train | 3 | 6 |" in card


SPLIT = {"dataset": "msvd", "split": "train", "listed_videos": 1200, "videos": 1198, "missing_videos": 2,
         "missing": ["a", "b"], "captions": 48_000, "unreadable": [{"video_id": "c"}]}  # fmt: skip


def test_a_prepared_dataset_is_published_with_what_was_found_out(online, tmp_path):
    prepared = tmp_path / "prepared"
    (prepared / "frames").mkdir(parents=True)
    report = {"splits": {"train": SPLIT}, "words": {"paragraphs": 1198, "words": 9000}}
    (prepared / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="licence"):
        push(prepared, "user/msvd-prepared")
    push(prepared, "user/msvd-prepared", license="other", show=lambda text: None)
    card = online.files("datasets/user/msvd-prepared")["README.md"].decode()
    assert "| train | 1200 | 1198 | 2 | 1 | 48000 |" in card and "1198 training paragraphs" in card
    assert "Neither videos nor frames are part of it." in card and "cache_frames" not in card

    frames = {"codec": "jpeg", "num_frames": 12, "size": 224, "sampling": "fps"}
    (prepared / "frames" / "cache.json").write_text(json.dumps(frames))
    for hidden in (".env", ".cache/huggingface/x.metadata", "frames/.lock"):  # the second: of an earlier `hf download`
        (prepared / hidden).parent.mkdir(parents=True, exist_ok=True)
        (prepared / hidden).write_text("TOKEN=x")
    push(prepared, "user/msvd-prepared", license="other", show=lambda text: None)
    files = online.files("datasets/user/msvd-prepared")
    assert set(files) == {"README.md", "report.json", "frames/cache.json"}
    assert "12 per video (fps sampling), 224 pixels square, jpeg" in files["README.md"].decode()
