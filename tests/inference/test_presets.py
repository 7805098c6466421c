"""The table of models, and queries in a script that a model does not know."""

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmae.cli import app
from dmae.inference.presets import DEFAULT, FAMILIES, PRESETS, preset_of, unfamiliar_script, warn_of_language
from dmae.modeling_dmae.towers_dmae import BACKBONES

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_says_what_is_known_and_where_from():
    shown = CliRunner().invoke(app, ["models", "--json"])
    rows = {row["name"]: row for row in json.loads(shown.stdout)}
    assert list(rows) == [preset.name for preset in PRESETS] and DEFAULT in rows
    results = ROOT / "benchmarks" / "results" / "backbones.json"  # no figure that is not in it
    measured = json.loads(results.read_text())["cpu_seconds_per_clip"] if results.is_file() else {}
    assert {name: row["cpu_seconds"] for name, row in rows.items()} == {name: measured.get(name) for name in rows}
    assert all(row["source"] for row in rows.values()) and all(row["family"] in FAMILIES for row in rows.values())
    assert set(FAMILIES) == set(BACKBONES)
    assert all(preset_of(preset.name) is preset for preset in PRESETS) and preset_of("user/model") is None
    table = CliRunner().invoke(app, ["models"]).stdout
    head, first, *_ = table.splitlines()
    assert head.split() == ["model", "parameters", "languages", "licence", "R@1", "CPU", "s", "/", "clip"]
    assert first.split()[:6] == [DEFAULT, "151", "M", "English", "MIT", "31.2"] and "more than 100" in table


@pytest.mark.parametrize(
    ("text", "languages", "script"),
    [
        ("a dog runs", "English", None),
        ("ein Hund läuft", "English", None),  # a script says no more
        ("собака бежит", "English", "CYRILLIC"),
        ("一只狗在跑", "English", "CJK"),
        ("一只狗在跑", "Chinese", None),
        ("собака бежит", "more than 100", None),
        ("12:30 !", "English", None),
        ("the dog Лайка", "English", None),  # a name in another script: most letters are known
        ("dogs собака", "English", "CYRILLIC"),
    ],
)
def test_a_script_the_model_does_not_know(text, languages, script, caplog):
    assert unfamiliar_script(text, languages) == script
    with caplog.at_level(logging.WARNING):
        warn_of_language(["a dog", text, text], languages)
    assert len(caplog.records) == (script is not None)
    if script:
        assert "the model knows English" in caplog.text and script.lower() in caplog.text
