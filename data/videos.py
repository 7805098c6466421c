"""From the name an annotation gives a video to a file under the videos folder, never outside it."""

import os
from pathlib import Path, PurePosixPath

from dmae.data.listing import VIDEO_EXTENSIONS


class VideoFolder:
    """The files below `root`, listed once. `find(name)` -> path, or a `VideoNotFound` that says why not.

    A name is looked up as it stands and, unless `exact`, in any subfolder, then with a further or another extension
    (`a.3gp` is `a.3gp.mp4`, or `a.mp4`): public video sets are stored flat or in subfolders and are often converted.
    Links are followed only below `root`.
    """

    def __init__(self, root: str | Path):
        if not Path(root).is_dir():
            raise FileNotFoundError(f"{root}: no such videos folder")
        self.root = Path(root).resolve()
        self._by_name: dict[str, str] = {}
        self._by_stem: dict[str, str] = {}
        self._by_bare_stem: dict[str, str] = {}  # without any extension: a.3gp.mp4 is a
        for path in self._walk():
            name = os.path.basename(path)
            self._by_name.setdefault(name, path)
            if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS:
                self._by_stem.setdefault(video_stem(name), path)
                while (stem := video_stem(name)) != name:
                    name = stem
                self._by_bare_stem.setdefault(name, path)
        if not self._by_name:
            raise FileNotFoundError(f"{root}: the videos folder is empty")

    def _walk(self):
        """Files, the shallowest first, so that a copy in a deeper folder never shadows the usual place."""
        levels = []
        for folder, _, names in os.walk(self.root):
            depth = folder.count(os.sep)
            levels += [(depth, folder, preference(name), name) for name in names]
        for _, folder, _, name in sorted(levels):
            yield os.path.join(folder, name)

    def find(self, name: str, exact: bool = False) -> Path:
        """The file of `name` (a relative path). Raises VideoNotFound with the reason: outside, missing, empty."""
        if is_outside(name):
            raise VideoNotFound(f"refused: {name!r} leads outside {self.root}; write it relative to that folder")
        path = self.root / name
        if not os.path.lexists(path):
            base = PurePosixPath(name).name
            stem = video_stem(base)
            ways = [(self._by_name, base), (self._by_stem, base), (self._by_stem, stem), (self._by_bare_stem, stem)]
            path = None if exact else next((by[key] for by, key in ways if key in by), None)
        if path is None:
            raise VideoNotFound(f"no file {name} below {self.root}")
        return self._checked(Path(path))

    def _checked(self, path: Path) -> Path:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.root):
            raise VideoNotFound(
                f"refused: the link {path} leads outside {self.root}; give the folder that holds the files"
            )
        if not real.is_file():
            raise VideoNotFound(f"{path} is {'a folder' if real.is_dir() else 'a broken link'}, not a video file")
        if real.stat().st_size == 0:
            raise VideoNotFound(f"{path} is empty (0 bytes)")
        return path


class VideoNotFound(ValueError):
    """A listed video that cannot be used; the message is the reason that goes into the report."""


def is_outside(name: str) -> bool:
    """True for absolute names and names with `..` (links are judged where they lead)."""
    return Path(name).is_absolute() or ".." in PurePosixPath(name).parts


def video_stem(name: str) -> str:
    """The name without its extension: a video extension or a bare final dot, as LSMDC's ids are full of dots."""
    stem, extension = os.path.splitext(name)
    return stem if extension == "." or extension.lower() in VIDEO_EXTENSIONS else name


def preference(name: str) -> tuple[int, str]:
    """Among files that differ in their extension only: the order of VIDEO_EXTENSIONS, then the alphabet."""
    extension = os.path.splitext(name)[1].lower()
    return (VIDEO_EXTENSIONS.index(extension) if extension in VIDEO_EXTENSIONS else len(VIDEO_EXTENSIONS), name)


def open_error(path: str | Path) -> str | None:
    """Why `path` is no video (its header cannot be read, or it has no picture stream), or None. Decodes nothing."""
    import av

    try:
        with av.open(str(path)) as container:
            return None if container.streams.video else "has no video stream"
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"is no readable video ({error})"
