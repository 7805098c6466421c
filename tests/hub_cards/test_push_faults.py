"""`dmae push` struck at any point: the local folder is untouched, the repository old or new, the next push works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmae.hub_cards.push import push

HARNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "faults" / "push.py"
pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="forks"), pytest.mark.timeout(900)]


def struck(tmp_path, *options) -> list[dict]:
    command = [sys.executable, HARNESS, "--no-result", "--progress", tmp_path / "progress", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert done.returncode == 0, f"{[line for line in lines if line['verdict'] != 'ok']}\n{done.stderr[-2000:]}"
    return lines


def test_a_push_that_is_struck_leaves_old_or_new(tmp_path):
    lines = struck(tmp_path, "--scenarios", "corpus-new", "--most", "6")
    assert len(lines) >= 5 and len({line["point"] for line in lines}) >= 3


@pytest.mark.parametrize("path, status", [("/lfs/", 403), ("/preupload/", 403), ("/commit/", 403)])
def test_a_refusal_at_any_request_is_one_line(online, clips, tmp_path, path, status):
    """A large file's refusal comes wrapped in an exception of another kind."""
    online.repos.clear()
    online.blobs.clear()
    (tmp_path / "red.mp4").write_bytes(clips["red"].read_bytes())
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "red.mp4", "text": "a red clip"}))
    online.fail[path] = [status]
    with pytest.raises(PermissionError, match="the Hub refused"):
        push(tmp_path, "user/clips", license="mit", show=lambda text: None)
    online.fail.clear()


def test_a_broken_connection_is_one_line(online, clips, tmp_path, monkeypatch):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"text": "no clip"}))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot be reached"):
        push(tmp_path, "user/clips", license="mit", show=lambda text: None)


@pytest.mark.slow
def test_strikes_at_many_points_of_corpora_and_models(tmp_path):
    assert len(struck(tmp_path, "--most", "40")) >= 90


@pytest.mark.slow
def test_the_harness_notices_an_upload_in_parts(tmp_path):
    """Two commits instead of one: what lies between them is neither the old nor the new state."""
    program = f"""
import sys
sys.path.insert(0, {str(HARNESS.parent)!r})
import push
def in_parts(self, kind, fresh):
    self.push = lambda source, kind, fault=None, whole=self.push: (parts(), whole(source, kind, fault))[1]
    def parts():
        if self.hub.strike:
            self.hub.create("datasets/user/corpus")
            self.hub.commit("datasets/user/corpus", "half", {{"README.md": b"half"}})
    states = self.prepare(kind, fresh)
    return [(1, "kill_before")], states
push.Bench.strikes = in_parts
print(push.run([("corpus", True)], None)["kill_before"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=800, check=True)
    assert "mixed" in done.stdout
