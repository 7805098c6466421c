"""An index follows its folder: new, renamed and deleted files, without being asked."""

import os
import shutil
import threading
import time

import pytest

from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.watching import watch


@pytest.mark.parametrize("poll", [0.0, 0.1])
def test_files_are_followed(clips, tmp_path, model, processor, poll):
    videos, output, updates = tmp_path / "videos", tmp_path / "index", []
    videos.mkdir()
    shutil.copy(clips / "clip00.mp4", videos / "a.mp4")

    between_updates = threading.Lock()  # a file that goes while an update looks at it may be embedded once more

    def update():
        with between_updates:
            updates.append(index_videos(videos, output, (model, processor), num_workers=0, prune=True))

    def until(ids):
        while not updates or sorted(VideoIndex.open(output).video_ids) != ids:
            assert follower.is_alive()
            time.sleep(0.02)

    stop = threading.Event()
    follower = threading.Thread(target=watch, args=(videos, update, stop), kwargs={"settle": 0.05, "poll": poll})
    follower.start()
    try:
        until(["a"])
        with between_updates:
            shutil.copy(clips / "clip01.mp4", videos / "b.mp4")
        until(["a", "b"])
        with between_updates:
            os.rename(videos / "a.mp4", videos / "c.mp4")
        until(["b", "c"])
        with between_updates:
            (videos / "b.mp4").unlink()
        until(["c"])
        (videos / "note.txt").write_text("nothing to do with videos")
    finally:
        stop.set()
        follower.join()
    assert sum(summary.embedded for summary in updates) == 2
