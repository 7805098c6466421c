"""Every snippet of README, CONTRIBUTING and docs/ is run on a desk with tiny models, or at least its words are checked.

What stands before a fence says how, as a Markdown comment that nobody sees:

    <!-- snippet: minutes -->             takes minutes or another machine: its options are checked, it is not run
    <!-- snippet: hub -->                 needs the Hub, a server, …: likewise
    <!-- snippet: run by tests/… -->      that test runs the page
    <!-- snippet: the reader's system --> installs things there: not looked at
    <!-- setup: captions = ["a dog"] -->  Python that a snippet takes for granted
"""

import os
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"((?:<!-- (?:snippet|setup): .*? -->\n)*)^```(\S*)[^\n]*\n(.*?)^```", re.M | re.S)
SHOWN = {"text", "json", "yaml", "html", "toml", "ini", "nginx", "dockerfile"}  # not run
ELSEWHERE = {
    "git",
    "cd",
    "hf",
    "export",
    "docker",
    "sudo",
    "systemctl",
    "curl",
    "source",
    "pre-commit",
    "torchrun",
    "sbatch",
}
SERVING = {"serve", "watch"}  # commands that do not end


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    code: str
    how: str  # "run", "minutes", "hub", "run by …"
    setup: str


def snippets(path: Path) -> list[Snippet]:
    text, found = path.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        comments, language, code = match.groups()
        how = re.findall(r"<!-- snippet: (.*?) -->", comments)
        setup = "\n".join(re.findall(r"<!-- setup: (.*?) -->", comments))
        line = text.count("\n", 0, match.start(2)) + 1
        page = path.relative_to(ROOT).as_posix()
        found.append(Snippet(page, line, language, code, how[0] if how else "run", setup))
    return found


ALL = [snippet for page in PAGES for snippet in snippets(page)]


def lines(code: str) -> list[list[str]]:
    """The commands of a bash snippet as words, comments left out."""
    joined = code.replace("\\\n", " ")
    return [words for line in joined.split("\n") for words in [shlex.split(line, comments=True)] if words]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, model_folder, clips, tokenizer, miniature) -> Path:
    """A reader's folder: a demo that has run, an index, some videos, and what the Hub would give, tiny and random."""
    from dmae.retrieval.indexing import index_videos

    desk = tmp_path_factory.mktemp("desk")
    for folder in ("my_videos", "Videos", "outputs/demo/corpus/test"):
        (desk / folder).mkdir(parents=True)
        for path in sorted(clips.iterdir())[:4]:
            shutil.copy(path, desk / folder / path.name)
    shutil.copy(clips / "clip05.mp4", desk / "my_videos/old.mp4")
    shutil.copy(clips / "clip00.mp4", desk / "clip.mp4")
    shutil.copy(clips / "clip01.mp4", desk / "new.mp4")
    shutil.copytree(model_folder, desk / "outputs/demo/model")
    (desk / "queries.txt").write_text("a red square\na green circle\n", encoding="utf-8")
    shutil.copy(desk / "queries.txt", desk / "captions.txt")
    for target in ("outputs/demo/index", "my.index"):
        index_videos(desk / "outputs/demo/corpus/test", desk / target, str(desk / "outputs/demo/model"))
    write_clip_model(desk / "openai/clip-vit-base-patch32", tokenizer)
    for name, folder, below in (("msrvtt-full", "MSRVTT", "annotations"), ("didemo", "DiDeMo", ".")):
        made = miniature(name)
        shutil.copytree(made.annotations, desk / folder / below, dirs_exist_ok=True)
        shutil.copytree(made.videos, desk / folder / "videos")
    (desk / "training").symlink_to(ROOT / "training")
    return desk


def write_clip_model(folder: Path, tokenizer) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1, projection_dim=64)
    ids = dict(vocab_size=len(tokenizer), max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    vision = dict(tower, image_size=32, patch_size=16)
    CLIPModel(CLIPConfig(text_config={**tower, **ids}, vision_config=vision, projection_dim=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_every_fence_says_what_it_is():
    unknown = [f"{s.page}:{s.line}: ```{s.language}" for s in ALL if s.language not in {"bash", "python", *SHOWN}]
    assert not unknown, "\n".join(unknown)
    assert len(ALL) > 20


def test_readme_shows_python_before_line_30():
    assert min(s.line for s in ALL if s.page == "README.md" and s.language == "python") < 30


def test_pages_run_elsewhere_name_a_test_that_reads_them():
    for snippet in ALL:
        if snippet.how.startswith("run by "):
            assert Path(snippet.page).name in (ROOT / snippet.how.removeprefix("run by ")).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "snippet",
    [s for s in ALL if s.language == "bash" and s.how != "the reader's system"],
    ids=lambda s: f"{s.page}:{s.line}",
)
def test_the_words_of_a_command_are_known(snippet):
    """Options that were renamed, recipes and scripts that moved, extras that are gone."""
    for words in lines(snippet.code):
        check_words(words)


def check_words(words: list[str]) -> None:
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]  # VARIABLE=value before a command
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "dmae":
        import typer

        from dmae.cli import app

        group = typer.main.get_command(app)
        if arguments and not arguments[0].startswith("-"):
            assert arguments[0] in group.commands, f"dmae has no {arguments[0]}"
            if "--help" not in arguments:
                group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    elif program == "accelerate":
        from dmae.training.recipe_file import find_recipe
        from dmae.training.run import parse

        words = " ".join(arguments)
        launched = re.search(r"-m dmae train (.*)|training/run\.py (.*)", words)
        find_recipe(parse(shlex.split(launched.group(1) or launched.group(2))).config)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(arguments) <= set(targets)
    elif "install" in words:
        with mock.patch("setuptools.setup") as setup:
            runpy.run_path(str(ROOT / "setup.py"))
        for extras in re.findall(r"(?:dmae|\.)\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(setup.call_args.kwargs["extras_require"])
    elif program.startswith("python"):
        script = [word for word in arguments if word.endswith(".py")][:1]
        modules = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-m"]
        assert all((ROOT / name).is_file() for name in script)
        for name in modules:
            file = ROOT / name.removeprefix("dmae.").replace(".", "/")
            assert (
                name in ("venv", "pip", "build")
                or file.with_suffix(".py").is_file()
                or (file / "__main__.py").is_file()
            )
    else:
        assert program in ELSEWHERE, f"{program}: add it to ELSEWHERE if it is a program of the reader's"


@pytest.mark.parametrize("page", sorted({s.page for s in ALL}))
def test_snippets_run_as_written(page, desk, monkeypatch):
    """In order, with the names that earlier snippets of the page made."""
    from typer.testing import CliRunner

    from dmae.cli import app

    monkeypatch.chdir(desk)
    monkeypatch.setenv("HOME", str(desk))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict = {}
    for snippet in (s for s in ALL if s.page == page and s.how == "run"):
        exec(snippet.setup, names)
        if snippet.language == "python":
            exec(compile(snippet.code, f"{page}:{snippet.line}", "exec"), names)
        for words in lines(snippet.code) if snippet.language == "bash" else []:
            words = [os.path.expanduser(word) for word in words]
            if words[0] == "dmae" and words[1] not in SERVING:
                done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
                assert done.exit_code == 0, f"{page}:{snippet.line}: {shlex.join(words)}\n{done.output}"
            elif words[:2] == ["python", "-m"] and words[2].startswith("dmae."):
                with mock.patch("sys.argv", words[2:]):
                    runpy.run_module(words[2], run_name="__main__")
