"""A page to try a DMAE model: upload clips, type sentences, see which clip fits best, when, and why.

DMAE_MODEL=your-name/your-model python app.py
"""

import base64
import html
import io
import os

import gradio as gr
import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

MODEL = os.environ.get("DMAE_MODEL", "your-name/your-model")
KEEP_SECONDS = int(os.environ.get("DMAE_KEEP_SECONDS", "1800"))  # uploads older than this are deleted
EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "examples")
MAX_CLIPS, MAX_SENTENCES, MAX_CHARACTERS, MAX_UPLOAD = 8, 5, 300, "64mb"
# Uploads that are playlists could name other files; only self-contained containers are opened.
CONTAINERS = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "))
STYLE = """
.found h3 {margin: 1.4em 0 .4em} .found h3:first-child {margin-top: 0}
.found ol {list-style: none; padding: 0; margin: 0}
.found li {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .7em .9em; margin: .5em 0}
.found li:first-child {border-color: var(--color-accent)}
.found .hit {display: flex; gap: .9em; align-items: center} .found .facts {flex: 1; min-width: 0}
.found .row {display: flex; justify-content: space-between; gap: .1em 1em; flex-wrap: wrap}
.found strong {overflow-wrap: anywhere} .found .row span {font-variant-numeric: tabular-nums; opacity: .8}
.found .bar {background: var(--color-accent); height: 6px; min-width: 6px; border-radius: 3px; margin-top: .5em}
.found details {margin-top: .5em} .found summary {cursor: pointer; width: max-content}
.found p.note {margin: .4em 0; font-size: .85em; opacity: .8}
.found img {border-radius: 4px; display: block; margin: 0 auto} .found .hit img {width: 72px; height: 72px; margin: 0}
.found .scroll {overflow-x: auto}
.found table {border-collapse: separate; border-spacing: 2px; font-size: .8em; margin: 0}
.found table, .found thead, .found tbody, .found tr, .found th, .found td {border: 0 !important; background: none}
.found th, .found td {padding: 3px; text-align: center; font-variant-numeric: tabular-nums; font-weight: 400}
.found th[scope=row] {text-align: right; white-space: nowrap; padding-right: 8px; font-weight: 600}
.found th[scope=row] small {font-weight: 400; opacity: .75} .found td {border-radius: 4px; min-width: 3.2em}
.found th img {width: 48px; height: 48px; margin-bottom: 2px} .found th.best {font-weight: 700}
.found th.best img {outline: 3px solid var(--color-accent); outline-offset: -1px}
"""
# A screen reader says what appears in the result; Gradio has no option for it.
ANNOUNCE = "() => document.getElementById('found').setAttribute('aria-live', 'polite')"

model = AutoModel.from_pretrained(MODEL, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
sampler = processor.feature_extractor
sampler.max_pixels, sampler.max_seconds_to_scan = 4096 * 2304, 1800.0


def search(files: list[str] | None, sentences: str) -> str:
    """Uploaded files and one sentence per line -> the ranking of the clips for every sentence, as HTML."""
    lines = [line.strip() for line in (sentences or "").splitlines() if line.strip()]
    if not files or not lines:
        raise gr.Error("Add at least one clip and one sentence.")
    if len(files) > MAX_CLIPS or len(lines) > MAX_SENTENCES or max(map(len, lines)) > MAX_CHARACTERS:
        raise gr.Error(f"At most {MAX_CLIPS} clips, {MAX_SENTENCES} sentences and {MAX_CHARACTERS} characters each.")
    names, clips, problems = [], [], []
    for path in files:
        name = os.path.basename(path)
        try:
            clips.append(read(path))
            names.append(name)
        except ValueError as error:  # one unreadable clip does not lose the others
            problems.append(f"Left out: {str(error).replace(path, name)}.")
    if not clips:
        raise gr.Error(" ".join(problems))
    frames = {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}
    times = frames.pop("timestamps")
    try:
        words = processor(text=lines, return_tensors="pt")
    except ValueError as error:
        raise gr.Error(str(error)) from error
    with torch.inference_mode():
        output = model(**words, **frames, return_loss=False, output_explanation=True)
        scores = output.logits_per_text / model.logit_scale.exp()
    notes = "".join(f"<p role='alert'>{html.escape(problem)}</p>" for problem in problems)
    strips = [thumbnails(pixels[mask]) for pixels, mask in zip(frames["pixel_values"], frames["video_mask"])]
    if output.video_mask.shape[1] == 1 < times.shape[1]:  # one vector of a whole window: its middle frame stands for it
        middle = [len(strip) // 2 for strip in strips]
        strips = [[strip[at]] for strip, at in zip(strips, middle)]
        times = torch.stack([row[at] for row, at in zip(times, middle)])[:, None]
    sections = [
        section(line, scores[i], [clip_map(output, words, times, strips, i, j) for j in range(len(names))], names)
        for i, line in enumerate(lines)
    ]
    return f"<div class='found'>{notes}{''.join(sections)}</div>"


def read(path: str):
    """One clip -> its frames, (1,F,3,H,W), with their times; ValueError for what is no video."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not any(start[at : at + len(magic)] == magic for at, magic in CONTAINERS):
        raise ValueError(f"{path}: is not an MP4, MOV, MKV, WebM or AVI file")
    return processor(videos=path, return_timestamps=True, return_tensors="pt")


def section(sentence: str, scores: torch.Tensor, maps: list[tuple[str, str, str]], names: list[str]) -> str:
    """One sentence: the clips in order of their score, the best one with its map open. Bars start at 0 or below."""
    low, high = min(scores.min().item(), 0.0), max(scores.max().item(), 1e-6)
    items = []
    for place, j in enumerate(scores.argsort(descending=True, stable=True).tolist()):
        moment, picture, table = maps[j]
        width = 100 * (scores[j].item() - low) / (high - low)
        items.append(
            f"<li><div class='hit'><img src='{picture}' alt='frame at {moment}'><div class='facts'>"
            f"<div class='row'><strong>{place + 1}. {html.escape(names[j])}</strong>"
            f"<span>score {scores[j]:.3f} · best at {moment}</span></div>"
            f"<div class='bar' style='width:{width:.0f}%' aria-hidden='true'></div></div></div>"
            f"<details {'open' if place == 0 else ''}><summary>Words and frames</summary>{table}</details></li>"
        )
    return f"<h3>“{html.escape(sentence)}”</h3><ol>{''.join(items)}</ol>"


def clip_map(output, words, times, strips, i: int, j: int) -> tuple[str, str, str]:
    """(moment of the best frame, its picture, table of words x frames) for sentence i and clip j."""
    rows, columns = words["word_mask"][i], output.video_mask[j]
    cells = output.word_frame_similarities[i, j][rows][:, columns].numpy()
    weights = output.word_weights[i][rows].numpy()
    stamps = [f"{int(t // 60)}:{t % 60:04.1f}" for t in times[j][columns].tolist()]
    pieces = [processor.tokenizer.decode([token]).strip(" Ġ") for token in words["input_ids"][i][rows].tolist()]
    shades = (cells - cells.min()) / max(np.ptp(cells), 1e-6)
    best = int((weights[:, None] * cells).sum(0).argmax())
    header = "".join(
        f"<th scope='col'{' class=best' if f == best else ''}><img src='{strip}' alt='frame at {stamp}'>{stamp}</th>"
        for f, (strip, stamp) in enumerate(zip(strips[j], stamps))
    )
    body = "".join(
        f"<tr><th scope='row'>{html.escape(piece)} <small>{weight:.0%}</small></th>"
        + "".join(f"<td style='{colours(share)}'>{value:.2f}</td>" for value, share in zip(row, shade))
        + "</tr>"
        for piece, weight, row, shade in zip(pieces, weights, cells, shades)
    )
    note = "How well each word fits each frame; beside the word, its weight in the sentence. Outlined: the best frame."
    region = "<div class='scroll' role='region' tabindex='0' aria-label='Words and frames'>"
    table = f"<table><thead><tr><td></td>{header}</tr></thead><tbody>{body}</tbody></table>"
    return stamps[best], strips[j][best], f"<p class='note'>{note}</p>{region}{table}</div>"


def colours(share: float) -> str:
    """The style of a cell between the map's smallest value (0, pale) and its largest (1, deep blue)."""
    return f"background:hsl(226 75% {96 - 58 * share:.0f}%);color:{'#fff' if share > 0.5 else '#111'}"


def thumbnails(pixels: torch.Tensor) -> list[str]:
    """(F,3,H,W) normalised frames -> data addresses of small pictures."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (sampler.image_mean, sampler.image_std))
    pictures = []
    for frame in ((pixels * std + mean) * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(frame).resize((96, 96)).save(buffer, "JPEG", quality=80)
        pictures.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return pictures


def examples() -> tuple[list[str], str]:
    """(clips, a sentence for each, one per line) of the folder `examples`; nothing where there is none."""
    try:
        with open(os.path.join(EXAMPLES, "captions.txt"), encoding="utf-8") as file:
            captions = [line.strip() for line in file if line.strip()][:MAX_SENTENCES]
    except FileNotFoundError:
        return [], ""
    clips = [os.path.join(EXAMPLES, name) for name in sorted(os.listdir(EXAMPLES)) if name.endswith(".mp4")]
    return clips[:MAX_CLIPS], "\n".join(captions[:2])


INTRODUCTION = f"""# Find the clip
Upload a few clips and describe what you are looking for. Model: [`{MODEL}`](https://huggingface.co/{MODEL}).

A **score** says how well a clip fits a sentence, compared with the other clips: it has no unit and is no probability,
scores of different sentences do not compare, and one clip is always the best, even when none fits. Uploads are used for
the search only and deleted within {KEEP_SECONDS * 2 // 60} minutes.
"""

with gr.Blocks(title="Find the clip", delete_cache=(max(KEEP_SECONDS, 1), KEEP_SECONDS)) as demo:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            files = gr.File(label=f"Clips, up to {MAX_CLIPS}", file_count="multiple", file_types=["video"])
            sentences = gr.Textbox(label="Sentences, one per line", lines=3, max_lines=MAX_SENTENCES)
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=4, min_width=320):
            found = gr.HTML("<p>The clips appear here, best first.</p>", label="Result", elem_id="found")
    shown, captions = examples()
    if shown:
        gr.Examples(
            [[shown, captions]], [files, sentences], label="No clips at hand? Four drawn ones with two sentences"
        )
    gr.on([button.click, sentences.submit], search, [files, sentences], found, concurrency_limit=1)

if __name__ == "__main__":
    demo.launch(max_file_size=MAX_UPLOAD, css=STYLE, js=ANNOUNCE)
