"""`dmae demo`, the whole line on the smallest corpus: every stage, what it leaves, stopping and going on."""

import base64
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from dmae import VideoIndex
from dmae.cli import app
from dmae.evaluation.near_misses import read_rows
from dmae.files import partial_name
from dmae.training.checkpoints import checkpoints
from dmae.training.record import read_metrics
from dmae.visuals.demo_report import write_report

pytestmark = pytest.mark.timeout(1800)  # seconds of work, but on every core at once
STAGES = [
    "videos:",
    "training from random weights",
    "scoring",
    "reloaded by remote code",
    "index:",
    "writing the report",
]
STEPS = 60  # of a run that is interrupted after two: more than it can take before Ctrl-C reaches it
RANKS = ["R@1", "R@5", "R@10", "median_rank", "mean_rank", "rsum"]


class Cards(HTMLParser):
    """What a report shows: [(query, [(kinds, bytes of the clip), …]), …] in order."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.in_query = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        self.in_query = tag == "h2" and "query" in classes
        if tag == "figure":
            self.found[-1][1].append([classes, None])
        if tag == "video":
            kind, content = attributes["src"].split(",", 1)
            assert kind == "data:video/mp4;base64"
            self.found[-1][1][-1][1] = base64.b64decode(content)

    def handle_data(self, data):
        if self.in_query:
            self.found.append((data.strip("“”"), []))
            self.in_query = False


def test_all_stages_ran_and_left_whole_results(finished_demo):
    output, said = finished_demo
    places = [said.index(stage) for stage in STAGES]
    assert places == sorted(places)
    rows = read_rows(output / "corpus" / "test")
    assert all((output / "corpus" / "test" / row["file_name"]).stat().st_size for row in rows)
    assert json.loads((output / "run" / "run.json").read_text())["status"] == "finished"
    assert "auto_map" in json.loads((output / "model" / "config.json").read_text())
    assert set(VideoIndex.open(output / "index").video_ids) == {row["video_id"] for row in rows}
    assert not list(output.rglob("*.partial")) and not list(output.rglob("*.tmp"))


def test_metrics_json_has_the_agreed_form(finished_demo):
    output, _ = finished_demo
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics) == ["random", "before", "after", "near_miss"]
    size = len(read_rows(output / "corpus" / "test"))
    for row in ("random", "before", "after"):
        assert metrics[row]["gallery_size"] == size
        for side in ("text_to_video", "video_to_text"):
            values = [metrics[row][f"{side}_{name}"] for name in RANKS]
            assert 0 <= values[0] <= values[1] <= values[2] <= 1 and 1 <= values[3] <= size and 1 <= values[4] <= size
            assert values[5] == pytest.approx(sum(values[:3]))
    assert set(metrics["near_miss"]) == {"colour", "digit", "motion", "order"}
    assert all(0 <= share <= 1 for share in metrics["near_miss"].values())
    scores = np.load(output / "scores.npy")
    first = float(np.mean(scores.argmax(1) == np.arange(size)))
    assert metrics["after"]["text_to_video_R@1"] == pytest.approx(first), "the printed model is the saved one"


def test_the_report_shows_the_clips_that_the_index_finds(finished_demo):
    output, _ = finished_demo
    split = output / "corpus" / "test"
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org", ""), "the page stands alone"
    assert "data:image/png;base64," in page
    owner = {row["captions"][0]: row["video_id"] for row in read_rows(split)}
    index = VideoIndex.open(output / "index")
    queries = Cards(page).found
    assert len(queries) == 5
    for query, cards in queries:
        hits = [hit.video_id for hit in index.search(query, top_k=5)[0]]
        assert [content for _, content in cards] == [(split / f"{name}.mp4").read_bytes() for name in hits]
        assert ["right" in kinds for kinds, _ in cards] == [name == owner[query] for name in hits]


def test_green_is_the_true_clip_and_orange_its_near_misses(finished_demo, tmp_path):
    output, _ = finished_demo
    shutil.copytree(output / "corpus", tmp_path / "corpus")
    rows = read_rows(tmp_path / "corpus" / "test")
    base = rows[0]
    near = {item["video_id"] for item in base["near_misses"]}
    listed = [rows[-1], base, *(row for row in rows if row["video_id"] in near)]
    results = [{"video_id": row["video_id"], "path": row["file_name"], "score": 1.0} for row in listed]
    metrics = json.loads((output / "metrics.json").read_text())
    write_report(tmp_path, metrics, [{"query": "a <b> c", "row": base, "results": results}], rows)
    page = (tmp_path / "report.html").read_text()
    ((query, cards),) = Cards(page).found
    kinds = [kind for kind, _ in cards]
    assert kinds == [[], ["right"], *([["near"]] * len(near))] and near
    assert query == "a <b> c" and page.count("near miss: ") == len(near)
    assert "figure.right { border-color: var(--right); }" in page and "--right: #1a9850" in page


def test_another_corpus_in_the_same_folder_is_refused(finished_demo):
    output, _ = finished_demo
    before = (output / "corpus" / "corpus.json").read_bytes()
    result = CliRunner().invoke(app, ["demo", "--preset", "ablation", "--output-dir", str(output)])
    assert result.exit_code == 1 and "already holds another MovingDigits corpus" in result.stderr
    assert (output / "corpus" / "corpus.json").read_bytes() == before


@pytest.mark.slow
def test_running_again_skips_what_exists(finished_demo, start, demo_of):
    output, _ = finished_demo
    kept = [output / name for name in ("corpus/corpus.json", "model/model.safetensors", "run/run.json", "metrics.json")]
    before = [path.stat().st_mtime_ns for path in kept]
    again = start(*demo_of(output))
    assert again.process.wait(800) == 0, again.text
    assert "training from random weights" not in again.text and "scoring" not in again.text
    assert "17 videos, 0 embedded now" in again.text
    assert [path.stat().st_mtime_ns for path in kept] == before


@pytest.mark.slow
def test_ctrl_c_in_training_and_the_same_command_again_goes_on(finished_demo, start, demo_of, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished_demo[0] / "corpus", output / "corpus")
    command = start(*demo_of(output, steps=STEPS))
    command.wait_for(lambda: len(checkpoints(output / "run")) >= 2)
    assert command.interrupt() == 130
    assert "interrupted; finished work is kept" in command.text
    assert not (output / "model").exists() and not (output / "metrics.json").exists()
    reached = int(checkpoints(output / "run")[-1].name.split("-")[1])
    assert reached < STEPS
    again = start(*demo_of(output, steps=STEPS))
    assert again.process.wait(800) == 0, again.text
    assert f"going on from {checkpoint_name(again.text)}" in again.text
    steps = [entry["step"] for entry in read_metrics(output / "run" / "metrics.jsonl") if "loss" in entry]
    assert steps == list(range(1, STEPS + 1)), "every step once"


def checkpoint_name(text: str) -> str:
    return text.split("going on from ", 1)[1].split(",", 1)[0]


@pytest.mark.slow
def test_half_a_model_folder_is_not_taken_as_whole(finished_demo, start, demo_of, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished_demo[0], output, ignore=shutil.ignore_patterns("index"))
    whole = (output / "model" / "model.safetensors").read_bytes()
    partial = partial_name(output / "model")
    (output / "model").rename(partial)  # killed while the last file was copied
    (partial / "model.safetensors").write_bytes(whole[:1000])
    (output / "metrics.json").unlink()
    again = start(*demo_of(output))
    assert again.process.wait(800) == 0, again.text
    assert (output / "model" / "model.safetensors").read_bytes() == whole
    assert not partial.exists()
