"""One file never stops the rest: odd names are indexed and found, what cannot be read is named, lies cost little."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from dmae.data.sources import find_videos
from dmae.inference.guarded import ENDED, in_worker
from dmae.processing.sources_dmae import DecodeLimits, VideoDecodeError
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.timeline import read_timeline, windows_of
from dmae.retrieval.windows import WindowPlan

ODD_NAMES = [
    b"Holiday [dQw4w9WgXcQ].mp4",
    b"[red]about.mp4",
    b"-o.mp4",
    b"a\nb.mp4",
    "line\u2028and\u0085next.mp4".encode(),
    b"caf\xe9 \xff.mp4",
    b"100%03d :smile: *.mp4",
]


@pytest.fixture
def odd_folder(tmp_path, clips):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate(ODD_NAMES):
        os.link(clips / f"clip{number:02d}.mp4", os.path.join(os.fsencode(folder), name))
    return folder


def run(videos, output, model_folder, **options):
    return index_videos(videos, output, str(model_folder), num_workers=0, batch_size=4, **options)


def test_any_name_is_indexed_and_found_today_and_next_time(odd_folder, tmp_path, model_folder):
    (odd_folder / "bad\u2028name.mp4").write_bytes(b"no video")
    first = run(odd_folder, tmp_path / "index", model_folder)
    second = run(odd_folder, tmp_path / "index", model_folder)
    assert (first.embedded, second.embedded, second.unchanged) == (7, 0, 7)
    assert [len(summary.skipped) for summary in (first, second)] == [1, 1]
    found = VideoIndex.open(tmp_path / "index").search("a red square", top_k=20)[0]
    assert {os.path.basename(os.fsencode(hit.path)) for hit in found} == set(ODD_NAMES)
    listing = odd_folder / "listed.jsonl"
    names = [os.fsdecode(name) for name in ODD_NAMES]
    lines = [json.dumps({"file_name": name}, ensure_ascii="caf" in name) for name in names]
    listing.write_text("\n".join(lines), encoding="utf-8")
    assert len(find_videos(listing)[0]) == len(ODD_NAMES)


def test_names_and_queries_are_never_markup(odd_folder, tmp_path, model_folder):
    run(odd_folder, tmp_path / "index", model_folder)
    command = [sys.executable, "-m", "dmae", "search", str(tmp_path / "index"), "[/about] :smile:", "--top-k", "9"]
    environment = {**os.environ, "COLUMNS": "300", "PYTHONIOENCODING": ""}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for shown in (
        b"Holiday [dQw4w9WgXcQ]",
        b"[red]about.mp4",
        b"a\\nb",
        b"line\\u2028",
        b"caf\xe9 \xff.mp4",  # the bytes that the name is
    ):
        assert shown in done.stdout
    answer = subprocess.run([*command, "--json"], capture_output=True, env=environment, check=True).stdout
    paths = [hit["path"] for hit in json.loads(answer)["results"]]
    assert {os.path.basename(os.fsencode(path)) for path in paths} == set(ODD_NAMES)


def test_what_cannot_be_read_is_skipped_by_name(tmp_path, clips, model_folder, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    os.link(clips / "clip00.mp4", folder / "good.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "broken.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "one.mp4").symlink_to(folder / "two.mp4")
    (folder / "two.mp4").symlink_to(folder / "one.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "sub").mkdir()
    (folder / "sub" / "again").symlink_to(folder)  # a folder inside itself
    (folder / "locked").mkdir()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):  # root may read every folder
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for _ in range(2):
        summary = run(folder, tmp_path / "index", model_folder)
        assert summary.videos == 1
        reasons = {os.path.basename(entry["path"]): entry["error"] for entry in summary.skipped}
        assert reasons == {
            "pipe.mp4": "a named pipe, not a file",
            "broken.mp4": "a link that leads nowhere",
            "one.mp4": "Too many levels of symbolic links",
            "two.mp4": "Too many levels of symbolic links",
            "device.mp4": "a device, not a file",
            "locked": "the folder cannot be read (Permission denied)",
        }


# ---------------------------------------------------------------------- lengths that are no lengths


def lying_about_duration(source, target, seconds: float):
    """The video as Matroska whose header claims another length (a 64-bit float of milliseconds)."""
    with av.open(str(source)) as original, av.open(str(target), "w") as container:
        copy_packets(original, container)
    data = bytearray(target.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", 1000 * seconds)
    target.write_bytes(data)
    return target


def copy_packets(source, container):
    stream = container.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(source.streams.video[0]):
        if packet.dts is not None:
            packet.stream = stream
            container.mux(packet)


def test_a_header_that_lies_about_its_length_costs_nothing(tmp_path, clips, model_folder):
    folder = tmp_path / "videos"
    folder.mkdir()
    os.link(clips / "clip01.mp4", folder / "good.mp4")
    lie = lying_about_duration(clips / "clip00.mp4", folder / "lie.mkv", 3e9)
    with av.open(str(lie)) as container:
        assert container.duration / av.time_base > 1e6, "the header does not lie: nothing is tested"
    summary = run(folder, tmp_path / "index", model_folder)
    assert (summary.rows, summary.skipped) == (2, [])
    windows = list(windows_of({}, read_timeline(str(lie)), WindowPlan(1, 0.5)))
    assert [window["start"] for window in windows] == [0, 0.5, 1]


def test_one_frame_after_a_century_makes_no_windows_between(tmp_path, make_clip):
    with av.open(str(tmp_path / "gap.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for number, milliseconds in enumerate([*range(0, 20_000, 500), 3 * 10**9]):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), "rgb24")
            frame.pts, frame.time_base = milliseconds // 100, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    windows = list(windows_of({}, read_timeline(str(tmp_path / "gap.mkv")), WindowPlan()))
    assert 3 <= len(windows) <= 8
    assert windows[-1]["end"] > 2e6 and [window["last"] for window in windows] == [False] * (len(windows) - 1) + [True]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_file_that_starts_late_ends_with_its_last_frame(tmp_path, suffix):
    """Matroska's length is measured from 0: with the start on top of it, seconds without frames would be windows."""
    with av.open(str(tmp_path / f"late.{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, "rgb24")
            frame.pts, frame.time_base = 50 + number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    timeline = read_timeline(str(tmp_path / f"late.{suffix}"))
    assert (timeline.start, timeline.end) == pytest.approx((5.0, 8.0), abs=0.001)
    assert timeline.times is None and timeline.facts == {"duration": 3.0}
    windows = list(windows_of({}, timeline, WindowPlan(2, 1)))
    np.testing.assert_allclose([(window["start"], window["end"]) for window in windows], [(5, 7), (6, 8)], atol=0.001)


def test_a_header_without_a_length_is_cut_by_its_packets(tmp_path, make_clip):
    """As a browser's recorder writes it, or a camera that lost power."""
    make_clip(tmp_path / "whole.mkv", seed=1, seconds=8)
    with av.open(str(tmp_path / "whole.mkv")) as source, open(tmp_path / "live.mkv", "wb") as target:

        class Pipe:  # no seek: the length cannot be filled in at the end
            def write(self, data):
                return target.write(data)

        with av.open(Pipe(), "w", format="matroska") as container:
            copy_packets(source, container)
    with av.open(str(tmp_path / "live.mkv")) as container:
        assert container.duration is None, "the header tells its length: nothing is tested"
    timeline = read_timeline(str(tmp_path / "live.mkv"))
    assert (timeline.start, round(timeline.end, 1)) == (0, 8)


def test_a_latin_1_title_hides_no_windows(tmp_path, make_clip, model_folder):
    folder = tmp_path / "videos"
    folder.mkdir()
    make_clip(tmp_path / "plain.mp4", seed=1, seconds=5)
    with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(folder / "title.mp4"), "w") as container:
        container.metadata["title"] = "Cafe in Orleans"
        copy_packets(source, container)
    data = (folder / "title.mp4").read_bytes()
    assert data.count(b"Cafe in Orleans") == 1
    (folder / "title.mp4").write_bytes(data.replace(b"Cafe in Orleans", "Café in Orléans".encode("latin-1")))
    assert run(folder, tmp_path / "index", model_folder, window=WindowPlan(2, 1)).rows == 4


@pytest.mark.parametrize(
    "error", [EOFError("no more"), MemoryError(), av.error.PatchWelcomeError(1, "patch"), TypeError("odd")]
)
def test_no_exception_of_one_file_ends_the_run(tmp_path, clips, model_folder, monkeypatch, error):
    opened = av.open

    def open_or_fail(file, *arguments, **options):
        if "clip03" in str(file):
            raise error
        return opened(file, *arguments, **options)

    monkeypatch.setattr(av, "open", open_or_fail)
    summary = run(clips, tmp_path / "index", model_folder)
    assert summary.videos == 11 and [entry["video_id"] for entry in summary.skipped] == ["clip03"]


# ---------------------------------------------------------------------- workers that die


class Trouble:
    """Squares numbers; 3 kills its process, 5 never ends."""

    cpu_seconds = 0.2

    def __call__(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        while number == 5:
            pass
        if number == 7:
            raise VideoDecodeError("seven")
        return number * number


def test_a_worker_that_dies_or_hangs_costs_only_its_item():
    results = [sample for batch in in_worker(Trouble(), iter(range(12)), 2, 1) for sample in batch]
    assert [item for item, _, _ in results] == list(range(12))
    errors = {item: error for item, _, error in results if error is not None}
    assert errors == {3: ENDED, 5: ENDED, 7: "seven"}
    assert all(value == item * item for item, value, error in results if error is None)


def test_an_iterator_is_read_no_further_than_the_workers_need():
    asked = []
    numbers = (asked.append(number) or number for number in range(10**9))
    batches = in_worker(Trouble(), (number + 100 for number in numbers), 2, 1)
    next(batches)
    assert len(asked) <= 8
    batches.close()


def test_bounds_hold_for_reading_lengths_too(clips):
    with pytest.raises(VideoDecodeError, match="max_packets=3"):
        read_timeline(str(clips / "clip00.mp4"), DecodeLimits(max_packets=3))


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    began = time.thread_time()
    with pytest.raises(VideoDecodeError, match="is not a file"):
        read_timeline(str(tmp_path / "pipe.mp4"))
    assert time.thread_time() - began < 5
