"""PNG pictures for records and cards: the curves of a run, and the words and frames of a match."""

from pathlib import Path

from dmae.files import new_file
from dmae.visuals.matches import Match

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


def plot_curves(rows: list[dict], picture: Path) -> None:
    """Draw the rows of a metrics log; panels without a value are left out, a log without any draws nothing."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

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
    with new_file(picture) as partial:
        figure.savefig(partial, dpi=120, format="png")


def plot_words_and_frames(caption: str, match: Match, picture: Path) -> None:
    """The word-frame products of one match under its frames; a ring marks each word's best frame."""
    from matplotlib.figure import Figure

    words, frames = match.products.shape
    figure = Figure(figsize=(1.1 * frames + 1.2, 0.28 * words + 1.8), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=[1, 0.28 * words])
    strip = match.frames.permute(2, 0, 3, 1).flatten(1, 2)  # (F,3,H,W) -> (H, F·W, 3): the frames side by side
    top.imshow(strip.numpy(), aspect="auto")
    top.set_axis_off()
    top.set_title(f"“{caption}”", fontsize=10)
    shade = below.imshow(match.products, aspect="auto", cmap="cividis")
    below.scatter(match.products.argmax(1), range(words), s=40, facecolors="none", edgecolors="#e66101", linewidths=2)
    below.set_xticks(range(frames), [f"{seconds:.1f} s" for seconds in match.timestamps])
    below.set_yticks(range(words), match.words)
    figure.colorbar(shade, ax=below, shrink=0.8)
    with new_file(picture) as partial:
        figure.savefig(partial, dpi=110, format="png")
