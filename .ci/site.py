"""Hooks of the documentation site: a reference page per room, and links that leave docs/ lose only their target."""

import re
import runpy
from pathlib import Path
from unittest import mock

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_config(config):
    """Pages that the list in mkdocs.yml does not name, and the reference, follow it."""
    named = set(re.findall(r"[\w/]+\.md", str(config["nav"])))
    docs = Path(config["docs_dir"])
    others = [page.relative_to(docs).as_posix() for page in sorted(docs.rglob("*.md"))]
    config["nav"] += [page for page in others if page not in named]
    config["nav"].append({"Reference": [{room: f"reference/{room}.md"} for room in rooms()]})
    return config


def rooms() -> dict[str, list[str]]:
    """{room: its modules, as they are imported}"""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    found: dict[str, list[str]] = {}
    for package, folder in setup.call_args.kwargs["package_dir"].items():
        names = sorted(path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_"))
        room = package.split(".")[1] if package.count(".") and "commands" not in package else "dmae"
        found.setdefault(room, []).extend(f"{package}.{name}" for name in names)
    return found


def on_files(files, config):
    """reference/<room>.md: every module of the room, from its docstrings."""
    for room, modules in rooms().items():
        content = f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        files.append(File.generated(config, f"reference/{room}.md", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """A page links to files of the repository; the site has no such pages, so there the words stay, as code."""
    return LINK.sub(lambda found: found.group(1) if "`" in found.group(1) else f"`{found.group(1)}`", markdown)
