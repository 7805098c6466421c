"""`dmae models`."""

import json
from dataclasses import asdict

import typer


def models(as_json: bool = typer.Option(False, "--json", help="Print the table as JSON.")) -> None:
    """The models that are known to fit: size, languages, licence, published zero-shot score, cost of a clip on a CPU.

    Any CLIP, MetaCLIP 2, Chinese-CLIP, AltCLIP or SigLIP2 checkpoint can be given as `--model`; these were looked at.
    """
    from dmae.inference.presets import PRESETS

    if as_json:
        typer.echo(json.dumps([asdict(preset) for preset in PRESETS], indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "parameters", "languages", "licence", "R@1", "CPU s / clip", "", box=None)
    for preset in PRESETS:
        recall = "-" if preset.recall is None else f"{preset.recall:.1f}"
        cost = "-" if preset.cpu_seconds is None else f"{preset.cpu_seconds:.1f}"
        facts = (f"{preset.parameters} M", preset.languages, preset.licence, recall, cost, preset.note)
        table.add_row(preset.name, *facts)
    Console(width=None if Console().is_terminal else 160).print(table)
    typer.echo("R@1: published zero-shot text-to-video on MSR-VTT 1k-A, where one is known; sources with --json.")
