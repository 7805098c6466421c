"""A leaderboard: the results that model cards state in their metadata, one table for each dataset and split."""

import math
from collections.abc import Iterable
from pathlib import Path

from dmae.hub_cards.record import DIRECTIONS, LABELS, METRICS
from dmae.visuals.pages import write_page

NUMBER_ONE = "text_to_video_R@1"


def write_leaderboard(models: Iterable[str], page: Path) -> list[str]:
    """Write the page; returns a line for each model without results. Raises ValueError where none has any."""
    tables: dict[tuple[str, str], dict[tuple[str, str], dict]] = {}
    silent = []
    for model in dict.fromkeys(models):
        found = results_of(model)
        if not found:
            silent.append(f"{model}: its card states no text-to-video results; left out")
        for (dataset, split, how), metrics in found.items():
            tables.setdefault((dataset, split), {})[model, how] = metrics
    if not tables:
        raise ValueError(f"none of the cards states a result: {'; '.join(silent) or 'no model was given'}")
    columns = [f"{side}_{name}" for side in DIRECTIONS for name in METRICS]
    shown = [
        {"title": f"{dataset}, {split} split", "rows": ranked(rows, columns)}
        for (dataset, split), rows in sorted(tables.items())
    ]
    heads = [LABELS.get(name, name) for _ in DIRECTIONS for name in METRICS]
    write_page(
        page,
        "leaderboard.html",
        title="Leaderboard",
        tables=shown,
        sides=list(DIRECTIONS.values()),
        heads=heads,
        width=len(METRICS),
    )
    return silent


def results_of(model: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """(dataset, split, post-processing or "") -> {metric: percent or rank} of a card, here or on the Hub."""
    from huggingface_hub import ModelCard

    file = Path(model) / "README.md"
    if Path(model).is_dir() and not file.is_file():
        raise FileNotFoundError(f"{model}: no README.md here; `dmae push` writes one")
    card = ModelCard.load(file if file.is_file() else model, ignore_metadata_errors=True)
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for result in getattr(card.data, "eval_results", None) or []:
        value = result.metric_value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            key = str(result.dataset_name), str(result.dataset_split or "?"), str(result.metric_config or "")
            found.setdefault(key, {})[str(result.metric_type)] = float(value)
    return {key: metrics for key, metrics in found.items() if NUMBER_ONE in metrics}


def ranked(rows: dict[tuple[str, str], dict], columns: list[str]) -> list[dict]:
    """The rows by their text-to-video R@1; post-processed ones come after, as they saw the whole test set."""
    order = sorted(rows, key=lambda key: (bool(key[1]), -rows[key][NUMBER_ONE], key))
    return [
        {
            "model": model,
            "how": how,
            "cells": ["" if (value := rows[model, how].get(name)) is None else f"{value:.1f}" for name in columns],
        }
        for model, how in order
    ]
