"""Annotation files as people have them: what is read, and what is said of what cannot be."""

import json
import pickle
from collections import OrderedDict, defaultdict

import pytest

from dmae.data.clips import Clip
from dmae.data.files import (
    as_captions,
    column_of,
    find_file,
    optional_file,
    read_csv,
    read_json,
    read_json_lines,
    read_list,
    read_pickle,
    select,
)


def said(error, call, *given) -> str:
    with pytest.raises(error) as raised:
        call(*given)
    return str(raised.value)


def test_a_file_is_found_by_its_names_in_their_order_or_is_given_itself(tmp_path):
    for name in ("b.json", "a.csv"):
        (tmp_path / name).touch()
    assert find_file(tmp_path, "x.csv", "b.json", "a.csv") == tmp_path / "b.json"
    assert find_file(tmp_path / "a.csv", "x.csv", "y.json") == tmp_path / "a.csv"
    message = said(FileNotFoundError, find_file, tmp_path / "a.csv", "x.pkl", "y.json")
    assert message == f"{tmp_path / 'a.csv'}: is not x.pkl or y.json; give the folder that holds it"
    assert optional_file(tmp_path, "x.csv", "a.csv", "b.json") == tmp_path / "a.csv"
    assert optional_file(tmp_path, "x.csv") is None and optional_file(tmp_path / "a.csv", "a.csv") is None


def test_a_folder_without_the_file_tells_ten_of_what_it_holds(tmp_path):
    none_here = f"{tmp_path}: none of x.csv, y.csv is here; the folder holds "
    assert said(FileNotFoundError, find_file, tmp_path, "x.csv", "y.csv") == none_here + "nothing"
    for number in range(11):
        (tmp_path / f"{number:02d}").touch()
        shown = ", ".join(f"{n:02d}" for n in range(min(number + 1, 10))) + (", …" if number == 10 else "")
        assert said(FileNotFoundError, find_file, tmp_path, "x.csv", "y.csv") == none_here + shown
    missing = tmp_path / "nowhere"
    assert said(FileNotFoundError, find_file, missing, "x.csv").startswith(f"{missing}: no such annotation folder")


def test_json_and_lists_are_refused_by_file_and_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode("latin-1"))
    message = said(ValueError, read_list, path)
    assert message.startswith(f"{path}: not UTF-8 text (") and message.endswith("; save it as UTF-8")
    path.write_text('{"a": 1')
    message = said(ValueError, read_json, path)
    assert message.startswith(f"{path}: not valid JSON (") and message.endswith("; the download may be incomplete")
    path.write_text('{"a": 1}\n\n{"b"\n')
    message = said(ValueError, read_json_lines, path)
    assert message.startswith(f"{path}, line 3: not valid JSON (") and message.endswith("; one object per line")
    path.write_text('\n["a"]\n')
    assert said(ValueError, read_json_lines, path) == f"{path}, line 2: expected an object {{…}}, found list"
    path.write_text('{"a": "x\u2028y"}\n \n{"b": 2}', encoding="utf-8")
    assert read_json_lines(path) == [(1, {"a": "x\u2028y"}), (3, {"b": 2})]
    path.write_text("\n \n")
    assert said(ValueError, read_json_lines, path) == f"{path}: the file is empty"
    assert said(ValueError, read_list, path) == f"{path}: the list is empty"
    path.write_text("\ufeff b \n\n a\n", encoding="utf-8")
    assert read_list(path) == ["b", "a"]
    path.write_text(json.dumps([1, {"a": None}]))
    assert read_json(path) == [1, {"a": None}]


def test_tables_may_have_spaces_quotes_and_their_own_separator(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('path , caption\na.mp4, "one, two"\nb.mp4, "three\nfour"\n')
    rows = [(2, {"path": "a.mp4", "caption": "one, two"}), (4, {"path": "b.mp4", "caption": "three\nfour"})]
    assert read_csv(path, ("caption", "path")) == rows
    path.write_text("path;caption;said\na.mp4;one, two, three, four;x\n")
    assert read_csv(path) == [(2, {"path": "a.mp4", "caption": "one, two, three, four", "said": "x"})]
    assert said(ValueError, read_csv, path, ("path", "x", "y")) == (
        f"{path}: no column x, y; the first line has path, caption, said"
    )
    path.write_text("path\tcaption\na.mp4\tone, two; three\n")
    assert read_csv(path) == [(2, {"path": "a.mp4", "caption": "one, two; three"})]
    for row in ("a", "a,b,c"):
        path.write_text(f"path,caption\nx,y\n{row}\n")
        assert said(ValueError, read_csv, path) == f"{path}, line 3: expected 2 columns; quote texts with commas"
    path.write_text("path,caption\n")
    assert said(ValueError, read_csv, path) == f"{path}: no rows below the header"
    path.write_text("")
    assert said(ValueError, read_csv, path, ("path",)) == f"{path}: no column path; the first line has nothing"


def test_a_pickle_of_containers_is_read_and_a_name_of_code_is_told(tmp_path):
    path, content = tmp_path / "a.pkl", OrderedDict(a=[("x", {"y"})], b=defaultdict(list, c=[1.5]))
    path.write_bytes(pickle.dumps(content))
    assert read_pickle(path) == content
    path.write_bytes(pickle.dumps({"a": pytest.raises}))
    message = said(ValueError, read_pickle, path)
    assert message.startswith(f"{path}: refused as a caption file: it refers to _pytest.raises.raises; only containers")


def test_captions_are_texts_with_single_spaces():
    assert as_captions(" a\n dog ", "x") == ["a dog"] and as_captions(("a", " ", "b  c"), "x") == ["a", "b c"]
    for wrong in (3, None, [["a"]], {"a": 1}):
        assert said(ValueError, as_captions, wrong, "f, line 1") == (
            f"f, line 1: captions must be a text or a list of texts, found {wrong!r}"
        )
    assert column_of({"a": None}, "a", "x") is None
    assert said(ValueError, column_of, {"b": 1, 3: 2}, "a", "x") == "x: no 'a'; it has b, 3"
    assert said(ValueError, column_of, ["a"], "a", "x") == "x: no 'a'; it has list"


def test_ids_are_taken_once_in_order_and_those_without_captions_set_aside():
    captions = {"a": ["x"], "b": [], "c": ["y", "z"]}
    assert select(["c", "b", "a", "c", "d", "b"], captions, ".avi") == (
        [Clip("c", "c.avi", ["y", "z"]), Clip("a", "a.avi", ["x"])],
        [{"video_id": name, "video": f"{name}.avi", "reason": "no caption"} for name in "bd"],
    )
