"""`dmae export`."""

from pathlib import Path

import typer


def export(
    model: str = typer.Option(
        ..., "--model", "-m", help="A DMAE folder or Hub id, an adapter's folder, or a CLIP model."
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the two graphs and what their scores need."),
    form: str = typer.Option("onnx", "--form", help="onnx: files for onnxruntime; torch: torch.export programs."),
) -> None:
    """Write both towers as graphs that run without this package: `text` and `video`, and how their outputs are scored.

    Example: `dmae export --model outputs/run/best -o exported/`
    """
    if form == "onnx":
        from dmae.extras import require

        require("export")
    from dmae.inference.export import export_towers
    from dmae.inference.loading import load_model_and_processor

    loaded, _ = load_model_and_processor(model, device="cpu", dtype="float32")
    for path in export_towers(loaded, output, form):
        typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB", err=True)
