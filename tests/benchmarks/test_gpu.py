"""The GPU script: a piece with a result is not run again, a failed one is, other code makes all of them new."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The script, with pieces that take no time."""
    spec = importlib.util.spec_from_file_location("gpu_afternoon", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_afternoon", module)
    spec.loader.exec_module(module)
    script = tmp_path / "piece.py"
    script.write_text("import pathlib, sys\nprint('ran')\nif len(sys.argv) > 2: sys.exit(3)\n"
                      "pathlib.Path(sys.argv[1]).write_text('[1]')\n")  # fmt: skip
    pieces = [
        module.Piece("good", "", f"{script} {{out}}", 1),
        module.Piece("bad", "", f"{script} {{out}} fails", 1),
        module.Piece("absent", "", f"{script} {{out}}", 1, ("no_such_package",)),
    ]
    monkeypatch.setattr(module, "PIECES", pieces)
    return module


def call(gpu, results, monkeypatch, capsys, *options) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--results", str(results), *options])
    assert gpu.main() == 1  # one fails, one cannot run
    return [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]


def test_pieces_are_done_once_for_each_code(gpu, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    absent = "left out: no_such_package not installed"
    assert call(gpu, results, monkeypatch, capsys) == ["done", "failed with 3", absent]
    record = json.loads((results / "good.json").read_text())
    assert record["results"] == [1] and record["printed"] == "ran\n" and record["command"].endswith("piece.py OUT")
    assert json.loads((results / "bad.json").read_text())["status"] == "failed with 3"
    assert call(gpu, results, monkeypatch, capsys) == ["has its result", "failed with 3", absent]
    monkeypatch.setattr(gpu, "code_hash", lambda: "other")
    assert call(gpu, results, monkeypatch, capsys)[0] == "done"
    assert call(gpu, results, monkeypatch, capsys, "--minutes", "0.1") == [
        "has its result", "left for the next call: no time", absent
    ]  # fmt: skip


def test_the_hash_is_of_the_python_files(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    hashes = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.txt", "3"), (".venv/c.py", "4"), ("room/d.py", "5")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        hashes.append(gpu.code_hash())
    assert len(set(hashes)) == 3 and hashes[1] == hashes[2] == hashes[3]
