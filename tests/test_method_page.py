"""docs/method.md is what code cites: every decision, section and equation cited is there; what pages name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
BELOW = ["modeling_dmae", "processing", "metrics", "inference", "data", "evaluation", "visuals"]
ROOMS = [*BELOW, "retrieval", "hub_cards", "training", "dmae", "benchmarks", "tests"]
DECISIONS = set(re.findall(r"\*\*R(\d+)\*\*", PAGE))
SECTIONS = set(re.findall(r"^## (\d+)\.", PAGE, re.M))
WALK = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.(?!jsonl?`)\w+)+)`", PAGE + WALK)))


def expanded(numbers: str) -> set[str]:
    """ "4-6, 9" -> {"4", "5", "6", "9"}"""
    found = set()
    for part in numbers.split(","):
        first, _, last = part.strip().partition("-")
        found |= {str(number) for number in range(int(first), int(last or first) + 1)}
    return found


EQUATIONS = {n for found in re.findall(r"^\| Eq\. (\d[\d, -]*\d|\d)", PAGE, re.M) for n in expanded(found)}


def cited(text: str) -> dict[str, set[str]]:
    equations = re.findall(r"Eq\. (\d+(?:(?:-|, )\d+)*)", text)
    return {
        "decisions": set(re.findall(r"(?<![\w@.\-])R(\d{1,2})\b(?!@)", text)) if "R@" not in text else set(),
        "sections": set(re.findall(r"method(?:\.md)? §(\d+)", text)),
        "equations": {number for found in equations for number in expanded(found)},
    }


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path != Path(__file__)]


def test_the_page_has_every_equation_decision_and_section():
    assert {str(n) for n in range(1, 22)} == EQUATIONS
    assert {str(n) for n in range(1, 16)} == DECISIONS
    assert {str(n) for n in range(1, 12)} == SECTIONS
    assert len(NAMED) > 60


def test_what_code_cites_is_on_the_page():
    there = {"decisions": DECISIONS, "sections": SECTIONS, "equations": EQUATIONS}
    wrong = []
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            for kind, found in cited(line).items():
                wrong += [f"{path.relative_to(ROOT)}:{number}: {kind} {n}" for n in sorted(found - there[kind])]
    assert not wrong, "\n".join(wrong)


def test_a_section_is_cited_with_its_page():
    """A bare § could be the paper's or this page's; "§ 3" of what, a reader would ask."""
    loose = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if "§" in re.sub(r"docs/method\.md §\d+(?:(?:, | and )§\d+)*", "", line)
    ]
    assert not loose, "\n".join(loose)


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_exists(name):
    parts = name.split(".")
    depth = next(n for n in range(len(parts), 0, -1) if (ROOT.joinpath(*parts[:n]).with_suffix(".py")).is_file())
    tree = ast.parse(ROOT.joinpath(*parts[:depth]).with_suffix(".py").read_text(encoding="utf-8"))
    for part in parts[depth:]:
        names = {}
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names[node.name] = node
            elif isinstance(node, ast.Assign):
                names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        assert part in names, f"{'.'.join(parts[:depth])} has no {part}"
        tree = names[part]
