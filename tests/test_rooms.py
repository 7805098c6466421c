"""The rooms import one another only as CONTRIBUTING.md draws it, and what travels to the Hub is portable."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOUND = {"modeling_dmae", "processing", "metrics"}  # they import no other room, not even dmae.files
BELOW_RETRIEVAL = BOUND | {"inference", "data", "visuals"}
MAY_IMPORT = {
    "modeling_dmae": set(),
    "processing": set(),
    "metrics": set(),
    "inference": {"modeling_dmae", "processing"},
    "data": {"processing", "inference.progress"},
    "visuals": BOUND | {"inference"},
    "evaluation": BELOW_RETRIEVAL,
    "retrieval": BELOW_RETRIEVAL,
    "hub_cards": BOUND | {"inference", "data", "visuals", "retrieval"},
    "training": BELOW_RETRIEVAL | {"evaluation", "retrieval", "hub_cards"},
    "benchmarks": BELOW_RETRIEVAL | {"evaluation", "retrieval", "hub_cards", "training", "dmae"},
    "dmae": BELOW_RETRIEVAL | {"evaluation", "retrieval", "hub_cards", "training"},
}
ROOMS = set(MAY_IMPORT)
ANYONE = {"dmae.files", "dmae.__version__"}  # anyone who does not travel to the Hub
HUB_BOUND = ["modeling_dmae", "processing", "metrics/text_video_retrieval"]
HUB_FILES = [
    "hub_cards/handler.py",
    "hub_cards/pipeline_dmae.py",
    "hub_cards/sentence_dmae.py",
    "hub_cards/space/app.py",
]


def imported_modules(path: Path, root: Path = ROOT) -> list[str]:
    """Every module and name that a file imports, relative imports as the absolute ones they are."""
    package = ["dmae", *path.relative_to(root).parent.parts]
    package = package[1:] if package[1:2] == ["dmae"] else package
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names += [module] + [f"{module}.{alias.name}" for alias in node.names]
    return names


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "dmae" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in ROOMS else "dmae"


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def may_import(room: str, module: str) -> bool:
    target, allowed = room_of(module), MAY_IMPORT[room]
    if target in (None, room) or target in allowed:
        return True
    if any(f"{module}.".startswith(f"dmae.{part}.") for part in allowed if "." in part):
        return True
    return room not in BOUND and any(f"{module}.".startswith(f"{name}.") for name in ANYONE)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_they_may(room):
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files(room)
        for module in imported_modules(path)
        # `from dmae import files` names the bare package first; what it takes from there is judged by itself
        if module != "dmae" and not may_import(room, module)
    ]
    assert not wrong, "\n".join(wrong)


def test_relative_imports_are_walked_too(tmp_path):
    """A relative import upward is the same arrow as the absolute one."""
    (tmp_path / "processing").mkdir()
    file = tmp_path / "processing" / "x.py"
    file.write_text("from ..retrieval.index import VideoIndex\nfrom .words import w\n")
    found = imported_modules(file, tmp_path)
    assert "dmae.retrieval.index" in found and "dmae.processing.words" in found


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_no_bare_room_imports(folder):
    """A bare `import processing` from the checkout root would load every class twice."""
    bare = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files(folder)
        for module in imported_modules(path)
        if module.split(".")[0] in ROOMS - {"dmae"}
    ]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("folder", HUB_BOUND)
def test_hub_bound_rooms_are_flat_and_self_contained(folder):
    wrong = []
    for path in (ROOT / folder).glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"\s*from\s+\.", line) and not re.match(r"\s*from \.\w+ import ", line):
                wrong.append(f"{path.name}: {line.strip()}")
            if re.match(r"\s*(from|import)\s+dmae\b", line):
                wrong.append(f"{path.name}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_files_never_import_the_package(name):
    assert not [m for m in imported_modules(ROOT / name) if m.split(".")[0] == "dmae"]


def test_setup_maps_every_room():
    import runpy
    from unittest import mock

    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    packages = setup.call_args.kwargs["package_dir"]
    for room in ROOMS - {"benchmarks"}:
        for init in (ROOT / room).rglob("__init__.py"):
            folder = init.parent.relative_to(ROOT).as_posix()
            assert folder in packages.values(), f"setup.py does not map {folder}"


def test_torchvision_is_named_nowhere_as_a_requirement():
    for name in ["setup.py", "constraints.txt"]:
        assert "torchvision" not in (ROOT / name).read_text()


def test_type_checkers_see_the_public_names_where_they_are():
    """`dmae` imports them on first use, by a table; what stands under TYPE_CHECKING must be the same."""
    tree = ast.parse((ROOT / "dmae" / "__init__.py").read_text(encoding="utf-8"))
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_PUBLIC")
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    assert {line.names[0].name: line.module for line in checked.body} == ast.literal_eval(table)
