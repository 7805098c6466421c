"""Which subtitle files are a video's, and what is read from them."""

import pytest

from dmae.retrieval import spoken
from dmae.retrieval.spoken import Cue, Sidecars, read_cues


def test_the_subtitles_of_a_video_are_named_after_it(tmp_path):
    """In any case, with or without a language, in the order of their names; a folder is no file, whatever its name."""
    for name in ("film.srt", "film.en.VTT", "film.de.ass", "FILM.srt", "film.txt", "other.ssa", ".srt", ".en.srt"):
        (tmp_path / name).write_text("")
    (tmp_path / "film.fr.srt").mkdir()
    sidecars = Sidecars()
    of = lambda name: [path.name for path in sidecars.of(tmp_path / name)]  # noqa: E731
    assert of("film.mp4") == ["film.de.ass", "film.en.VTT", "film.srt"]
    assert (of("film.en.mkv"), of("FILM.mp4"), of("other.mp4"), of("none.mp4")) == (
        ["film.en.VTT"], ["FILM.srt"], ["other.ssa"], [],
    )  # fmt: skip
    assert of(".en.mp4") == [".en.srt"] and sidecars.of(str(tmp_path / "film.mp4")) == sidecars.of(tmp_path / "film.x")
    (tmp_path / "late.srt").write_text("")
    assert of("late.mp4") == [], "each folder is listed once"
    assert Sidecars().of(tmp_path / "late.mp4") == [tmp_path / "late.srt"]
    assert Sidecars().of(tmp_path / "no folder" / "film.mp4") == []


SRT = """1
00:00:01,500 --> 00:00:02,250
{\\an8}<i>One</i>  <b>and</b>
two\\Nthree

2
00:00:03,000 --> 00:00:04,000
<i> </i>

3
01:00:05,000 --> 01:00:06,000
four

4
01:00:07,000 --> 01:00:08,000
five
"""


def test_what_is_said_has_its_seconds_and_no_marks(tmp_path, monkeypatch):
    (tmp_path / "a.srt").write_text(SRT)
    said = [Cue(1.5, 2.25, "One and two three"), Cue(3605.0, 3606.0, "four"), Cue(3607.0, 3608.0, "five")]
    assert read_cues(str(tmp_path / "a.srt")) == read_cues(tmp_path / "a.srt") == said
    for most, left in ((3, said), (2, said[:2]), (0, [])):
        monkeypatch.setattr(spoken, "MAX_CUES", most)
        assert read_cues(tmp_path / "a.srt") == left, "a cue without words is none of them"


@pytest.mark.parametrize("content", [None, b"", b"\0\1\2" * 100])
def test_what_cannot_be_read_says_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "a.srt").write_bytes(content)
    assert read_cues(tmp_path / "a.srt") == []
