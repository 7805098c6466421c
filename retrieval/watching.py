"""`dmae watch`: an index that follows a folder as files come, change, move and go."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from dmae.data.listing import METADATA_FILES, VIDEO_EXTENSIONS
from dmae.retrieval.spoken import SIDECARS

SETTLE_SECONDS = 5.0  # a file that is being copied changes all the time: wait until it is quiet
LONGEST_WAIT = 300.0  # … but not for ever, where something is always written
OURS = ("created", "modified", "moved", "deleted", "closed")


def watch(
    folder: Path, update: Callable[[], None], stop: threading.Event, settle: float = SETTLE_SECONDS, poll: float = 0.0
) -> None:
    """Call `update()` at once, and after every burst of changes under `folder`, until `stop` is set.

    poll: seconds between looks, for network drives, which send no word of changes; 0: the system tells. An update that
    raises ends the watch; what is to be survived is handled by `update`.
    """
    changed = threading.Event()
    observer = PollingObserver(timeout=poll) if poll else Observer()
    observer.schedule(_Handler(changed), str(folder), recursive=True)
    observer.start()
    try:
        update()
        while not stop.is_set():
            if changed.wait(timeout=0.2):
                _settled(changed, stop, settle)
                if not stop.is_set():
                    update()
    finally:
        observer.stop()
        observer.join()


def _settled(changed: threading.Event, stop: threading.Event, settle: float) -> None:
    """Return once nothing has changed for `settle` seconds."""
    began = time.monotonic()
    while changed.is_set() and not stop.is_set() and time.monotonic() - began < LONGEST_WAIT:
        changed.clear()
        stop.wait(settle)
    changed.clear()


class _Handler(FileSystemEventHandler):
    """Notes events of what an index is made from: videos, their subtitles, lists, and folders."""

    def __init__(self, changed: threading.Event):
        self.changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = [Path(str(path)) for path in (event.src_path, event.dest_path) if path]
        telling = any(path.suffix.lower() in (*VIDEO_EXTENSIONS, *SIDECARS) for path in paths)
        named = any(path.name in METADATA_FILES for path in paths)
        if event.event_type in OURS and (telling or named or (event.is_directory and event.event_type != "modified")):
            self.changed.set()
