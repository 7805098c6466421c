"""What is asked of the Hub, what its refusals become, and what counts as private on this very machine."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

import dmae.hub_cards.push as pushing
from dmae.hub_cards import corpus, leaderboard, licences, publish, scan, staging
from dmae.hub_cards.cards import Statement
from dmae.hub_cards.record import Source


def answered(status, kind=HfHubHTTPError):
    error = kind.__new__(kind)
    error.response = None if status is None else SimpleNamespace(status_code=status)
    return error


class Cut(Exception):
    """As the HTTP library says that a connection broke off."""


Cut.__module__ = "httpx._exceptions"
REFUSED = (PermissionError, "a/b: the Hub refused; log in with `hf auth login`, using a token that may write there")
AGAIN = "push again: it looks first at what is there, and sends only the rest"


def caused(error, kind=RuntimeError):
    made = kind("while uploading")
    made.__cause__ = error
    return made


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answered(401), REFUSED), (answered(403), REFUSED), (LocalTokenNotFoundError("none"), REFUSED),
        (caused(answered(403)), REFUSED),
        (answered(412), (OSError, "a/b changed while this upload was prepared; look at the new commit and push again")),
        (answered(402), (OSError, f"hub answered 402; {AGAIN}")),
        (answered(404), (OSError, f"hub answered 404; {AGAIN}")),
        (answered(413), (OSError, f"hub answered 413; {AGAIN}")),
        (Cut("reset"), (OSError, f"hub cannot be reached or broke off (reset); {AGAIN}")),
        (caused(Cut("reset")), (OSError, f"hub cannot be reached or broke off (reset); {AGAIN}")),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_that_says_what_to_do(error, expected):
    found = publish._explained(error, "a/b", "hub")
    assert (type(found), str(found)) == expected


@pytest.mark.parametrize(
    "error", [RuntimeError("ours"), caused(Cut("x"), ValueError), KeyError("x"), answered(None)], ids=str
)
def test_what_is_no_failure_of_the_hub_passes_unchanged(error):
    assert publish._explained(error, "a/b", "hub") is error


class Api:
    """The Hub's client: what it holds and what it was asked."""

    endpoint, asked, entries, failure = "https://hub", [], [], None

    def repo_info(self, repo_id, repo_type):
        if Api.failure:
            raise Api.failure
        return SimpleNamespace(sha="parent")

    def list_repo_tree(self, repo_id, repo_type, recursive):
        assert recursive is True
        return Api.entries

    def create_repo(self, *words, **named):
        Api.asked.append(("repo", words, named))

    def create_commit(self, repo_id, operations, **named):
        done = [(type(one).__name__, one.path_in_repo, getattr(one, "path_or_fileobj", None)) for one in operations]
        Api.asked.append(("commit", repo_id, done, named))
        return SimpleNamespace(oid="0123456789abcdef")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(Api, "asked", [])
    monkeypatch.setattr(Api, "entries", [])
    monkeypatch.setattr(Api, "failure", None)
    return Api


def test_one_commit_on_what_was_looked_at(api, tmp_path):
    (tmp_path / "README.md").write_text("---\ntitle: x\nsdk: gradio\n---\n")
    same = SimpleNamespace(path="same", blob_id=publish._object_id(tmp_path / "README.md", 40), lfs=None, size=1)
    large = SimpleNamespace(path="old_dmae.py", blob_id="x", lfs=SimpleNamespace(sha256="y" * 64), size=7)
    api.entries = [same, large, SimpleNamespace(path="a folder")]
    files, shown = {"README.md": tmp_path / "README.md", "same": tmp_path / "README.md"}, []
    commit = publish.publish(files, "a/b", repo_type="space", private=True, show=shown.append, message="m")
    assert commit.oid == "0123456789abcdef" and shown == [
        "space a/b:\n  + README.md  (29 B)\n  - old_dmae.py  (7 B)\n  = same  (29 B)\n1 of 3 files to upload, 29 B",
        "published: https://hub/spaces/a/b at 0123456789ab",
    ]  # fmt: skip
    readme = str(tmp_path / "README.md")
    done = [("CommitOperationAdd", "README.md", readme), ("CommitOperationDelete", "old_dmae.py", None)]
    assert api.asked == [
        ("repo", ("a/b",), {"repo_type": "space", "private": True, "exist_ok": True, "space_sdk": "gradio"}),
        ("commit", "a/b", done, {"commit_message": "m", "repo_type": "space", "parent_commit": "parent"}),
    ]  # fmt: skip
    api.asked.clear()
    asked = []
    answers = {"n": False, "y": True}
    for typed in answers:
        publish.publish(files, "a/b", show=shown.append, confirm=lambda text, t=typed: asked.append(text) or answers[t])
    assert asked == ["Publish these 2 changes as a/b?"] * 2 and len(api.asked) == 2
    assert api.asked[0][2]["space_sdk"] is None and shown[3] == "nothing was sent"
    assert shown[-1] == "published: https://hub/a/b at 0123456789ab"
    publish.publish({"same": tmp_path / "README.md"}, "a/b", dry_run=True, show=shown.append)
    assert shown[-1] == "a dry run: nothing was sent"
    api.entries = [same]
    assert publish.publish({"same": tmp_path / "README.md"}, "a/b", show=shown.append) is None
    assert shown[-1] == "nothing to send: the repository has all of it" and len(api.asked) == 2
    (tmp_path / "README.md").write_text("no sdk")
    with pytest.raises(ValueError, match="the card of a Space names its sdk"):
        publish._space_sdk(tmp_path / "README.md")


def test_a_repository_that_cannot_be_seen_is_new_in_a_dry_run_alone(api, tmp_path):
    (tmp_path / "a").write_text("x")
    shown = []
    api.failure = Cut("no network")
    assert publish.publish({"a": tmp_path / "a"}, "a/b", dry_run=True, show=shown.append) is None
    assert shown[0].endswith(f"({api.failure}); {AGAIN}; without it every file counts as new")
    assert shown[1].startswith("model a/b (to be created):\n  + a  (1 B)")
    with pytest.raises(OSError, match="https://hub cannot be reached"):
        publish.publish({"a": tmp_path / "a"}, "a/b", show=shown.append)
    api.failure = answered(404, RepositoryNotFoundError)
    assert publish.publish({"a": tmp_path / "a"}, "a/b", show=shown.append).oid
    assert api.asked[-1][3]["parent_commit"] is None
    for wrong in ("b", "a/b/c", "a b/c"):
        with pytest.raises(ValueError, match="give NAMESPACE/NAME"):
            publish.publish({}, wrong)


def test_what_is_private_is_never_sent_and_a_broken_upload_says_what_to_do(api, tmp_path, monkeypatch):
    (tmp_path / "a").write_text("see /home/zyx_nobody/notes")
    with pytest.raises(ValueError, match="would go public"):
        publish.publish({"a": tmp_path / "a"}, "a/b", show=pytest.fail)
    assert api.asked == []
    (tmp_path / "a").write_text("x")
    for call, made in (("create_repo", 0), ("create_commit", 1)):
        with monkeypatch.context() as patch:

            def broken(*words, **named):
                raise Cut("reset")

            patch.setattr(Api, call, broken)
            with pytest.raises(OSError, match=rf"^https://hub cannot be reached or broke off \(reset\); {AGAIN}$"):
                publish.publish({"a": tmp_path / "a"}, "a/b", show=lambda text: None)
            assert len(api.asked) == made


def test_every_kind_of_source_goes_where_it_belongs_and_gives_its_commit(monkeypatch, tmp_path):
    published = []

    def publish_(files, repo_id, **options):
        published.append((files, repo_id, options))
        return f"commit {len(published)}"

    monkeypatch.setattr(pushing, "publish", publish_)
    for name in ("stage_metric", "stage_dataset", "stage_model", "stage_space"):

        def stage(*words, name=name):
            assert name == "stage_space" or next(word for word in words if str(word).endswith("files")).is_dir()
            return (name, *(word.name if isinstance(word, Path) else word for word in words))

        monkeypatch.setattr(staging, name, stage)
    monkeypatch.setattr(pushing, "is_corpus", lambda path: path.name == "corpus")
    options = {"private": True, "dry_run": True, "show": print}
    assert pushing.push("metric", "a/b", **options) == "commit 1"
    assert pushing.push("a/corpus", "a/b", license="mit", confirm=len, **options) == "commit 2"
    more = {"license": "mit", "datasets": ["c/d"], "results": ("r",)}
    assert pushing.push("run", "a/b", **more, **options) == "commit 3"
    assert pushing.push("run", "a/b", **more, space=True, **options) == "commit 4"
    assert published == [
        (("stage_metric", "files", "a/b"), "a/b", {"repo_type": "space", **options}),
        (("stage_dataset", "corpus", "files", "a/b", "mit", print), "a/b",
         {"repo_type": "dataset", "confirm": len, **options}),
        (("stage_model", "run", "files", "a/b", Statement("mit", ("c/d",), False), ("r",), print), "a/b", options),
        (("stage_model", "run", "files", "a/b", Statement("mit", ("c/d",), True), ("r",), print), "a/b", options),
        (("stage_space", "space", "a/b"), "a/b", {"repo_type": "space", **options}),
    ]  # fmt: skip
    for wrong in ({"repo_id": "b"}, {"repo_id": "a/b", "datasets": ("d",)}, {"repo_id": "a/b", "license": "nosuch"}):
        with pytest.raises(ValueError, match=r"NAMESPACE/NAME|no word of the Hub"):
            pushing.push("run", **wrong)
    assert len(published) == 5


# ---------------------------------------------------------------------- private


def private(text):
    return scan.find_private(text.encode())


@pytest.fixture
def machine(monkeypatch):
    """machine(login, host, token) -> of another user on another machine."""

    def be(login="zyxanna", host="zyx-box", token=""):
        monkeypatch.setattr("getpass.getuser", lambda: login)
        monkeypatch.setattr("socket.gethostname", lambda: host)
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(Path, "home", lambda: Path("/zyx+houses/anna"))

    return be


def test_this_machine_s_own_names_are_private(machine, monkeypatch):
    machine(token="zyxtoken")
    assert private("see /zyx+houses/anna/x") == [("this machine's home folder", "/zyx+houses/…")]
    assert private("see /zyxxhouses/anna/x") == []
    name, host, token = "this machine's user name", "this machine's name", "the token in HF_TOKEN"
    assert private("E/zyxanna/x") == [(name, "/zyxanna/…")] and private("zyxanna@x") == [(name, "zyxanna@…")]
    assert private("the zyxanna they know, xzyxanna@y, zyxanna.de") == []
    assert private("on zyx-box.") == [(host, "zyx-box…")] and private("my-zyx-box zyx-box-2") == []
    assert private("zyxtoken!") == [(token, "zyxtoken…")]
    machine(login="admin", host="zyxbo", token="zyxtoke")
    assert private("E/admin/x admin@x zyxbo zyxtoke") == []
    machine(login="", host="localhost")
    assert private("E//x @x localhost") == []
    machine(host="zyxbox")
    assert private("zyxbox") == [(host, "zyxbox…")]
    for error in (OSError, KeyError):

        def nobody(error=error):
            raise error("no such user")

        monkeypatch.setattr("getpass.getuser", nobody)
        assert scan._login() == ""


def test_what_is_found_is_cut_short_and_said_once():
    token = "hf_" + "Ab1" * 12
    assert private(f"{token} {token}") == [("Hugging Face Token", "hf_Ab1Ab1Ab1…")]
    assert scan._text("é".encode()) == "é"
    assert scan._text(b"\xff" + b"a" * 12 + b"\xff" + b"b" * 11) == "a" * 12 + "\n" + "a" * 12, "in either reading"


# ---------------------------------------------------------------------- corpora, tables, licences


def test_many_wrong_rows_are_named_up_to_ten(tmp_path):
    assert corpus.describe_left_out(list("abcdefghij")).endswith("names them: a, b, c, d, e, f, g, h, i, j")
    assert corpus.describe_left_out(list("abcdefghijkl")).endswith("h, i, j and 2 more")
    for count, last in ((10, "clip9.mp4: the metadata names it, and it is not there"), (12, "and 2 more")):
        rows = "".join(f'{{"file_name": "clip{number}.mp4"}}\n' for number in range(count))
        (tmp_path / "metadata.jsonl").write_text(rows)
        with pytest.raises(ValueError, match="not published, because of these files") as refused:
            corpus.corpus_files(tmp_path)
        _, *lines = str(refused.value).splitlines()
        assert (len(lines), lines[-1].strip()) == (min(count, 11), last)


def test_a_stream_of_packets_is_a_video_and_texts_may_stand_beside(tmp_path):
    stream = bytearray(200)
    for name, at in (("a.ts", 0), ("b.m2ts", 4)):
        packets = stream.copy()
        packets[at] = packets[at + 188] = ord("G")
        (tmp_path / name).write_bytes(packets)
    half = stream.copy()
    half[0] = ord("G")
    (tmp_path / "c.ts").write_bytes(half)
    (tmp_path / "d.SRT").write_text("words")
    found = {path.name: corpus._refused(path, tmp_path, False) for path in tmp_path.iterdir()}
    assert found == {"a.ts": "", "b.m2ts": "", "c.ts": "by its first bytes no video, sound or picture", "d.SRT": ""}
    assert corpus._refused(tmp_path / "c.ts", tmp_path, True) == ""


def test_a_corpus_is_what_has_metadata_or_was_prepared_and_is_no_model(tmp_path):
    assert not corpus.is_corpus(tmp_path) and corpus.is_prepared(tmp_path) is False
    (tmp_path / "report.json").write_text('{"other": 1}')
    assert not corpus.is_corpus(tmp_path)
    (tmp_path / "report.json").write_text('{"splits": {}}')
    assert corpus.is_corpus(tmp_path) and corpus.is_prepared(tmp_path)
    (tmp_path / ".hidden").touch()
    (tmp_path / "z").touch()
    (tmp_path / "data_a.json").write_text("{}")
    (tmp_path / "LICENSE").touch()
    chosen, left = corpus.corpus_files(tmp_path)
    assert chosen == {name: tmp_path / name for name in ("LICENSE", "data_a.json", "report.json")}
    assert left == ["z", ".hidden"]
    (tmp_path / "config.json").touch()
    assert not corpus.is_corpus(tmp_path)


def test_a_leaderboard_s_page_has_the_numbers_that_cards_state(monkeypatch, tmp_path):
    def one(split, name, value, how=None):
        return SimpleNamespace(
            dataset_name="d", dataset_split=split, metric_type=name, metric_value=value, metric_config=how
        )

    r1, mean = "text_to_video_R@1", "video_to_text_mean_rank"
    stated = {
        "a": [one("test", r1, 40), one("test", mean, 7.25), one("test", "text_to_video_R@5", True)],
        "b": [one(None, r1, 50.0), one("test", r1, float("nan")), one("test", mean, "3"), one("test", r1, 61.0, "DSL")],
        "c": [one("test", mean, 3.0)],
    }
    monkeypatch.setattr(
        "huggingface_hub.ModelCard.load",
        lambda name, ignore_metadata_errors: SimpleNamespace(data=SimpleNamespace(eval_results=stated[name])),
    )
    written = []
    monkeypatch.setattr(leaderboard, "write_page", lambda *words, **named: written.append((words, named)))
    said = leaderboard.write_leaderboard(["a", "b", "c", "a"], tmp_path / "page.html")
    assert said == ["c: its card states no text-to-video results; left out"]
    (((page, template), named),) = written
    assert (page, template) == (tmp_path / "page.html", "leaderboard.html")
    nothing = [""] * 11
    heads = ["R@1", "R@5", "R@10", "rsum", "median rank", "mean rank"]
    assert named == {
        "title": "Leaderboard", "sides": ["text → video", "video → text"], "heads": heads * 2, "width": 6,
        "tables": [
            {"title": "d, ? split", "rows": [{"model": "b", "how": "", "cells": ["50.0", *nothing]}]},
            {"title": "d, test split", "rows": [
                {"model": "a", "how": "", "cells": ["40.0", *nothing[1:], "7.2"]},
                {"model": "b", "how": "DSL", "cells": ["61.0", *nothing]},
            ]},
        ],
    }  # fmt: skip
    with pytest.raises(ValueError, match="none of the cards states a result: no model was given"):
        leaderboard.write_leaderboard([], tmp_path / "page.html")


def test_a_licence_far_from_any_is_refused_without_a_guess():
    with pytest.raises(ValueError) as refused:
        licences.check_licence("zzzzqqqq")
    assert str(refused.value).startswith("--license 'zzzzqqqq' is no word of the Hub; valid ones: ")


# ---------------------------------------------------------------------- staging


def test_an_adapter_s_few_files_and_its_card_are_staged(monkeypatch, tmp_path):
    place, folder, shown = tmp_path / "best" / "adapter", tmp_path / "out", []
    place.mkdir(parents=True)
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "config.json", "optimizer.pt"):
        (place / name).write_text(name)
    processor = SimpleNamespace(save_pretrained=lambda to: (to / "processor_config.json").write_text("p"))
    monkeypatch.setattr(staging, "adapter_settings", lambda path: {"base_model_name_or_path": "a/base"})
    monkeypatch.setattr(staging, "load_adapter", lambda path: ("model", path))
    monkeypatch.setattr(staging.DMAEProcessor, "from_pretrained", lambda path: processor)
    monkeypatch.setattr(staging, "describe_model", lambda *words: words)
    source = Source(place, left_out=["another's"])
    asked = []
    monkeypatch.setattr(staging, "find_source", lambda *words: asked.append(words) or source)
    monkeypatch.setattr(staging, "model_card", lambda *words, **named: asked.append((words, named)) or "the card")
    files = staging.stage_model(tmp_path / "best" / "adapter", folder, "a/b", Statement("mit"), ("r",), shown.append)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "processor_config.json"]
    assert files == {name: folder / name for name in names} and shown == ["another's"]
    assert (folder / "README.md").read_text() == "the card" and (folder / "config.json").read_text() == "config.json"
    model = ("model", place)
    assert asked[0] == (place.parent, (model, processor), ("r",))
    assert asked[1] == ((source, model, "a/b", Statement("mit"), []), {"adapter_of": "a/base"})
    monkeypatch.setattr(staging, "adapter_settings", lambda path: {"base_model_name_or_path": str(tmp_path)})
    with pytest.raises(ValueError, match=rf"the adapter's base is '{tmp_path}', a folder, .* model in {place.parent}"):
        staging.stage_model(place, folder, "a/b")


def test_an_upload_by_transformers_is_made_whole_and_leaves_people_s_cards(monkeypatch, tmp_path):
    added = []
    monkeypatch.setattr(staging, "_add_card", lambda *words, **named: added.append((words, named)))
    monkeypatch.setattr(staging, "find_source", lambda *words: ("source", *words))
    monkeypatch.setattr(staging, "describe_model", lambda *words: words)
    monkeypatch.setattr(staging.DMAEProcessor, "from_pretrained", lambda path: ("processor", path))
    folder, home = tmp_path / "going", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "config.json").write_text('{"b": 1, "a": 2}')
    model = SimpleNamespace(name_or_path="")
    for card, ours in ((None, True), ("# mine", False), ("x [More Information Needed] y", True)):
        if card:
            (folder / "README.md").write_text(card)
        staging.finish_upload(model, folder, "a/b")
        (words, named) = added.pop()
        assert words == (model, Source(folder), folder, "a/b", Statement()) and named == {"write_card": ours}
    text = (folder / "config.json").read_text()
    assert text.startswith('{\n  "a": 2,\n  "b": 1,\n  "custom_pipelines": {\n') and text.endswith("}\n")
    model.name_or_path = str(home)
    staging.finish_upload(model, folder, "a/b")
    assert added.pop()[0][1] == Source(folder), "no model lies there"
    (home / "config.json").touch()
    staging.finish_upload(model, folder, "a/b")
    assert added.pop()[0][1] == ("source", home, (model, ("processor", home)))
