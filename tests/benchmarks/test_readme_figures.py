"""The pages' figures are those of the result files, each with its conditions; what was not measured is not there."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_figures as figures  # noqa: E402

DEMO = {
    "random": {"text_to_video_R@1": 0.0034},
    "before": {"text_to_video_R@1": 0.0067},
    "after": {"text_to_video_R@1": 0.4312, "gallery_size": 300},
    "near_miss": {"colour": 0.95, "digit": 0.9, "motion": 0.61, "order": 0.503},
    "seconds": {"videos": 30, "training": 250},
    "conditions": {"device": "x86_64 CPU", "cores": 2, "torch": "2.13.0", "load": 2.4},
}
DECODE = {
    "conditions": {"cpu": "x86_64", "threads": 1, "load_at_start": 0.4, "clips": "30 s at 25 frames/s"},
    "decode": {
        "240p gop 30": {"gop_skip": {"off": "0 of 12"}, "sequential": {"times_gop_skip": 1.31}},
        "240p gop 250": {"gop_skip": {"off": "1 of 12"}, "sequential": {"times_gop_skip": 2.0}},
    },
}


def block(folder: Path, **files) -> str:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return " ".join(figures.block(folder).split())


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_say_what_the_result_files_say(page):
    names = figures.PAGES[page]
    assert all((figures.RESULTS / name).is_file() for name in names or ())
    written = figures.filled(page, names)
    assert page.read_text(encoding="utf-8") == written, "run python benchmarks/readme_figures.py"


def test_a_page_shows_the_files_it_names(tmp_path):
    both = block(tmp_path, demo=DEMO, decode_cpu=DECODE)
    assert "(`demo.json`)" in both and "(`decode_cpu.json`)" in both
    alone = " ".join(figures.block(tmp_path, ("decode_cpu.json",)).split())
    assert "(`decode_cpu.json`)" in alone and "demo.json" not in alone


def test_every_kept_result_file_of_a_known_kind_has_its_line():
    written = figures.block(figures.RESULTS)
    for path in figures.RESULTS.glob("*.json"):
        known = any(path.match(pattern) for pattern in figures.LINES)
        assert (f"(`{path.name}`)" in " ".join(written.split())) == known, path.name


def test_the_demo_s_line_has_its_figures_and_conditions(tmp_path):
    said = block(tmp_path, demo=DEMO)
    assert (
        "Stages of `dmae demo`: videos 30 s, training 250 s." in said
        and "among 300 generated clips: 43.1 % after" in said
    )
    assert "0.7 % before, 0.3 % for random" in said and "order 50.3 %" in said
    assert said.endswith("x86_64 CPU, 2 cores, torch 2.13.0, load 2. (`demo.json`)")


def test_ways_that_were_not_measured_are_absent_and_wrong_frames_are_not_hidden(tmp_path):
    said = block(tmp_path, decode_cpu=DECODE)
    assert "reading on 1.3 to 2.0 times." in said and "OpenCV" not in said
    assert "got wrong: 1. x86_64, 1 thread, load 0." in said


def test_nothing_measured_gives_an_empty_block(tmp_path):
    assert block(tmp_path) == ""
    text = f"before\n{figures.BEGIN}\n- old\n{figures.END}\nafter\n"
    assert figures.with_block(text, "") == f"before\n{figures.BEGIN}\n{figures.END}\nafter\n"
    assert figures.with_block(text, "- a\n- b") == f"before\n{figures.BEGIN}\n- a\n- b\n{figures.END}\nafter\n"


@pytest.mark.parametrize("text", ["no markers", f"{figures.BEGIN} alone", f"{figures.BEGIN}{figures.END}" * 2])
def test_a_readme_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="exactly once"):
        figures.with_block(text, "- a")


def test_the_mutation_line_counts_what_changes_something(tmp_path):
    rooms = {
        "data": {"edits": 6, "caught": 2, "equivalent": 1, "survived": 1},
        "visuals": {"edits": 3, "caught": 3, "equivalent": 0, "survived": 0},
    }
    edits = {f"e{n}": {"kind": "by hand" if n < 5 else "dropped"} for n in range(9)}
    said = block(tmp_path, mutation={"score": 0.8333, "score_at_first": 0.5, "rooms": rooms, "edits": edits})
    assert "For the other 2 no test could be run" in said
    assert "Of 9 small wrong edits" in said and "(5 written by hand" in said and "notice 5; 1 change nothing" in said
    assert (
        "1 passed: 83.3 % (at least 50.0 % before tests" in said
        and "data 2/3, visuals 3/3" in said
        and "(`mutation.json`)" in said
    )
