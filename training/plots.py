"""curves.png: losses, share of hard negatives and validation recall over the steps, from metrics.jsonl."""

from pathlib import Path

from dmae.training.record import read_metrics

PANELS = {
    "loss": ("loss", "contrastive", "partial_order"),
    "hard negatives, share of all negatives": ("hard_negative_share",),
    "recall on the validation split": (
        "text_to_video_R@1",
        "text_to_video_R@10",
        "video_to_text_R@1",
        "video_to_text_R@10",
    ),
}


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw what `metrics` holds; panels without a value are left out, a log without any draws nothing."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    rows = read_metrics(metrics)
    panels = {title: names for title, names in PANELS.items() if any(name in row for row in rows for name in names)}
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(
                    *zip(*points),
                    label=name.replace("_to_", "→").replace("_", " "),
                    marker="." if len(points) < 30 else "",
                )
        axes.set(title=title, xlabel="step", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(picture, dpi=120)
