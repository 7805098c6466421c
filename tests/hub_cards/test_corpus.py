"""`dmae push CORPUS` sends what its metadata names and known cards, after asking; nothing else of the disk."""

import json
import os
import shutil

import pytest

from dmae.hub_cards.corpus import corpus_files
from dmae.hub_cards.push import push
from dmae.hub_cards.scan import find_private, refuse_private

KEY = "datasets/user/clips"
PEM = b"-----BEGIN OPENSSH PRIVATE " + b"KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"


@pytest.fixture
def hub(hub):
    """With nothing on it."""
    hub.repos.clear()
    hub.log.clear()
    return hub


@pytest.fixture
def corpus(clips, tmp_path):
    """A corpus with what lies about on a disk: nothing of that is named by a row."""
    corpus = tmp_path / "corpus"
    (corpus / "train").mkdir(parents=True)
    rows = []
    for name, path in clips.items():
        shutil.copy(path, corpus / "train" / path.name)
        rows.append({"file_name": path.name, "captions": [f"a {name} clip"]})
    write(corpus, rows)
    (corpus / "LICENSE").write_text("the owner's terms")
    (corpus / "passwords.kdbx").write_bytes(b"\x03\xd9\xa2\x9a" * 8)
    (corpus / "train" / "optimizer.pt").write_bytes(b"PK")
    (corpus / "train" / "id_rsa.mp4").write_bytes(PEM)
    (corpus / "train" / "unlisted.mp4").write_bytes((corpus / "train" / "red.mp4").read_bytes())
    (tmp_path / "private.mp4").write_bytes((corpus / "train" / "red.mp4").read_bytes())
    (corpus / "train" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    (corpus / "elsewhere").symlink_to(tmp_path)
    return corpus


def write(corpus, rows):
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (corpus / "train" / "metadata.jsonl").write_text(text, encoding="utf-8")


def rows_of(corpus) -> list[dict]:
    return [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().split("\n")]


NAMED = {"train/metadata.jsonl", "train/red.mp4", "train/green.mp4", "train/blue.mp4", "LICENSE"}


def test_only_what_metadata_names_is_sent_and_the_rest_is_named(online, corpus):
    shown = []
    push(corpus, "user/clips", license="cc-by-4.0", show=shown.append)
    assert set(online.files(KEY)) == NAMED | {"README.md"}
    left = next(text for text in shown if text.startswith("left out"))
    for name in ("passwords.kdbx", "train/optimizer.pt", "train/id_rsa.mp4", "train/link.mp4", "elsewhere"):
        assert name in left


def test_a_csv_names_its_files_too(corpus):
    (corpus / "train" / "metadata.jsonl").unlink()
    (corpus / "train" / "metadata.csv").write_text("\ufefffile_name,text\nred.mp4,a red clip\n", encoding="utf-8")
    assert set(corpus_files(corpus)[0]) == {"train/metadata.csv", "train/red.mp4", "LICENSE"}


@pytest.mark.parametrize("column", ["file_name", "path", "video", "thumbnail_file_name", "file_names"])
def test_every_column_that_names_files_counts(corpus, column):
    write(corpus, [{column: ["red.mp4"] if column == "file_names" else "red.mp4", "text": "a\u2028clip"}])
    assert set(corpus_files(corpus)[0]) == {"train/metadata.jsonl", "train/red.mp4", "LICENSE"}


def test_a_cell_that_names_nothing_names_no_file(corpus):
    """Blank, absent and no text: `file_names` lists may have holes."""
    write(corpus, [{"file_name": "red.mp4", "text": "a", "mask_file_name": " ", "more_file_names": [None, "", 3]}])
    assert set(corpus_files(corpus)[0]) == {"train/metadata.jsonl", "train/red.mp4", "LICENSE"}


OUTSIDE = {
    "a link": ("link.mp4", "leads out"),
    "dots": ("../../private.mp4", "leads out"),
    "a linked folder": ("../elsewhere/private.mp4", "leads out"),
    "absolute": (None, "leads out"),
    "missing": ("gone.mp4", "not there"),
    "a key": ("id_rsa.mp4", "no video"),
    "a vault": ("../passwords.kdbx", "no video"),
    "a pipe": ("pipe.mp4", "no regular file"),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_rows_that_name_what_is_no_part_of_the_corpus_are_refused(online, corpus, tmp_path, kind):
    os.mkfifo(corpus / "train" / "pipe.mp4")
    name, reason = OUTSIDE[kind]
    write(corpus, [*rows_of(corpus), {"file_name": name or str(tmp_path / "private.mp4"), "text": "x"}])
    with pytest.raises(ValueError, match=reason):
        push(corpus, "user/clips", license="cc-by-4.0", show=lambda text: None)
    assert not online.repos


def test_a_link_inside_the_corpus_is_sent_as_a_file(online, corpus):
    (corpus / "train" / "again.mp4").symlink_to("red.mp4")
    write(corpus, [*rows_of(corpus), {"file_name": "again.mp4", "text": "x"}])
    push(corpus, "user/clips", license="cc-by-4.0", show=lambda text: None)
    files = online.files(KEY)
    assert files["train/again.mp4"] == files["train/red.mp4"]


def test_a_metadata_file_that_is_itself_a_link_out_is_refused(corpus, tmp_path):
    os.rename(corpus / "train" / "metadata.jsonl", tmp_path / "metadata.jsonl")
    (corpus / "train" / "metadata.jsonl").symlink_to(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match="leads out"):
        corpus_files(corpus)


def test_the_list_is_shown_and_nothing_goes_without_a_yes(online, corpus):
    said = []

    def ask(question):
        said.append(question)
        return False

    assert push(corpus, "user/clips", license="cc-by-4.0", show=said.append, confirm=ask) is None
    assert not online.repos
    assert said[-1] == "nothing was sent" and "Publish these 6 changes as user/clips?" in said[-2]
    assert all(f"+ {name}  (" in said[-3] for name in NAMED)


@pytest.mark.slow
def test_the_command_asks_and_scripts_say_yes(hub, corpus, dmae, tmp_path):
    command = ["push", corpus, "--repo-id", "user/clips", "--license", "cc-by-4.0"]
    environment = hub.environment(tmp_path)
    assert "give --yes" in dmae(command, environment, expect=1) and not hub.repos
    assert "published: " in dmae([*command, "--yes"], environment)
    assert set(hub.files(KEY)) == NAMED | {"README.md"}


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1", "cp1252"]
PRIVATE = {
    "Hugging Face Token": "hf_" + "Ab1" * 12,
    "AWS Access Key": "AKIA" + "ABCDEFGH12345678",
    "Private Key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "Slack Token": "xoxb-" + "1234567890-abcdefghij",
    "Google API Key": "AIza" + "Sy" * 17 + "x",
    "Stripe Access Key": "sk_" + "live_" + "a1" * 12,
    "Basic Auth Credentials": "https://anna:" + "secret@example.org/",
    "a file: address": "file:///" + "home/anna/clip.mp4",
    "a path of a Windows machine": "D:\\\\" + "clients\\\\acme",
} | {
    f"a path of a machine ({root})": f"/{root}/anna/disk"
    for root in ("home", "data", "media", "Volumes", "mnt", "srv", "scratch", "Users", "nas")
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("what", PRIVATE)
def test_private_text_is_found_in_every_encoding(what, encoding):
    content = f"é text {PRIVATE[what]} text é".encode(encoding)
    assert what.partition(" (")[0] in {name for name, _ in find_private(content)}


@pytest.mark.parametrize("text", ["C:\\videos", "C:\\new\\cut", "c:\\\\Users\\\\x"])
def test_windows_paths_plain_and_escaped(text):
    assert [name for name, _ in find_private(f"see {text} there".encode())] == ["a path of a Windows machine"]


@pytest.mark.parametrize(
    "text",
    ["https://host/data/x", "./data/x", "docs/media/x", "A:\\nfirst", '{"a": "Q:\\n"}', "and/or", "s3://bucket/data/x",
     "http://localhost:8000/media/x", "a task-oriented-dialogue-with-many-parts", "/dev/null", "hf_hub_download"],
)  # fmt: skip
def test_what_is_no_secret_passes(text):
    assert find_private(text.encode()) == []


@pytest.mark.parametrize("at", [100, 2**24 - 20, 2**24 + 5, 3 * 2**24 - 7])
def test_the_whole_file_is_read(tmp_path, at):
    """Behind the first block, across two blocks, and inside what looks like weights or a video."""
    content = bytearray(b"\x00\x01\xff\xfe" * (3 * 2**22))
    secret = PRIVATE["Hugging Face Token"].encode()
    content[at : at + len(secret)] = secret
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="Hugging Face Token"):
        refuse_private({"clip.mp4": path})


def test_a_clip_s_own_tags_are_read(tmp_path, clips):
    """A title that a camera or an editor wrote into the file travels with it."""
    import av

    path = tmp_path / "tagged.mp4"
    with av.open(str(clips["red"])) as source, av.open(str(path), "w") as target:
        target.metadata["comment"] = "/media/anna/client/cut.mp4"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    refuse_private({"red.mp4": clips["red"]})
    with pytest.raises(ValueError, match="a path of a machine"):
        refuse_private({"tagged.mp4": path})
