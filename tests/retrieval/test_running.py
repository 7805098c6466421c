"""A search asks the server of its index, and nobody else."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dmae.retrieval import running

RESULT = {"video_id": "a", "path": "/a.mp4", "score": 0.5, "start": 1.0, "end": 2.0, "reasons": ["seen at 0:01"]}
RESULT |= {"missing": False}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"id": "mine"}))
    return tmp_path


@pytest.fixture
def answering():
    """A server that answers with `answering.index`, and notes what it was asked."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append((self.path, self.headers.get("Authorization")))
            body = json.dumps({"results": [RESULT]} if server.status == 200 else {"detail": "no such row"}).encode()
            self.send_response(server.status)
            self.send_header(running.INDEX_HEADER, server.index)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    server.asked, server.index, server.status = [], "mine", 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_note_is_its_owners_and_leads_to_the_answer(folder, answering):
    running.announce(folder, "0.0.0.0", answering.server_port, "secret-token-1")
    assert (folder / running.FILE).stat().st_mode & 0o777 == 0o600
    assert running.running(folder).ask("a dog & a cat", top_k=2) == [RESULT]
    assert answering.asked == [("/api/search?q=a+dog+%26+a+cat&top_k=2", "Bearer secret-token-1")]
    running.withdraw(folder)
    assert not (folder / running.FILE).exists() and running.running(folder) is None


def test_another_index_on_the_port_is_no_answer(folder, answering):
    running.announce(folder, "127.0.0.1", answering.server_port, None)
    answering.index = "another"
    with pytest.raises(running.NotAnswering, match="another index"):
        running.running(folder).ask("a dog")


def test_a_refusal_is_told_as_it_is(folder, answering):
    running.announce(folder, "127.0.0.1", answering.server_port, None)
    answering.status = 400
    with pytest.raises(ValueError, match="no such row"):
        running.running(folder).ask("a dog")


@pytest.mark.parametrize(
    "change", ["readable by others", "another index", "another machine", "copied", "damaged", "nonsense"]
)
def test_a_note_that_may_not_be_ours_is_passed_over(folder, change):
    running.announce(folder, "127.0.0.1", 1, None)
    path = folder / running.FILE
    note = json.loads(path.read_text())
    texts = {
        "another machine": json.dumps(note | {"machine": "elsewhere"}),
        "copied": json.dumps(note | {"folder": "/elsewhere"}),
        "damaged": "{",
        "nonsense": "[1]",
    }
    if change == "readable by others":
        path.chmod(0o644)
    elif change == "another index":
        (folder / "manifest.json").write_text(json.dumps({"id": "built anew"}))
    else:
        path.write_text(texts[change])
    assert running.running(folder) is None


def test_the_token_goes_to_no_other_process(folder, answering):
    """After a kill, anyone may listen on the port."""
    running.announce(folder, "127.0.0.1", answering.server_port, "secret-token-1")
    path = folder / running.FILE
    note = json.loads(path.read_text())
    for gone in ({"pid": 2**22 + 1}, {"began": "1"}):
        path.write_text(json.dumps(note | gone))
        with pytest.raises(running.NotAnswering, match="has ended"):
            running.running(folder).ask("a dog")
    assert answering.asked == []


COMMAND = "import sys, dmae.cli; dmae.cli.app(standalone_mode=False); print('torch' in sys.modules, file=sys.stderr)"


def test_the_command_is_answered_without_torch_and_says_when_a_server_is_gone(folder, answering):
    def search(*options):
        command = [sys.executable, "-c", COMMAND, "search", str(folder), "a dog", *options]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )

    running.announce(folder, "127.0.0.1", answering.server_port, None)
    table, lines = search(), search("--json")
    assert table.stdout == "0.500\t0:01-0:02\tseen at 0:01\t/a.mp4\n" and table.stderr == "False\n"
    assert json.loads(lines.stdout) == {"query": "a dog", "results": [RESULT]}
    answering.status = 503
    gone = search()
    assert "names a server, but" in gone.stderr and "searching here" in gone.stderr
    assert gone.returncode == 1 and "damaged manifest" in gone.stderr  # it went on to search itself
