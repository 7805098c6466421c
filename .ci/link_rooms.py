"""Lay out the rooms as they are installed, as links below build/rooms/dmae, for tools that read code without running.

    python .ci/link_rooms.py

`setup.py` installs the top-level folders as `dmae.<folder>`; a type checker, an editor or a documentation builder sees
only files, and finds no `dmae.training` in `dmae/`. New files appear by themselves, a new folder after another call.
"""

import runpy
import shutil
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "rooms" / "dmae"


def main() -> None:
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    rooms = setup.call_args.kwargs["package_dir"]
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for entry in (ROOT / rooms["dmae"]).iterdir():
        if entry.name != "__pycache__":
            (TREE / entry.name).symlink_to(entry)
    for package, folder in rooms.items():
        link = TREE.parent.joinpath(*package.split("."))
        if not link.exists():  # dmae.training.recipes lies in dmae.training, which is linked whole
            link.symlink_to(ROOT / folder, target_is_directory=True)
    print(f"linked {TREE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
