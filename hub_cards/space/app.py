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
MAX_CLIPS, MAX_SENTENCES, MAX_CHARACTERS, MAX_UPLOAD = 8, 5, 300, "64mb"
STYLE = """
.found h3 {margin: 1.2em 0 .4em} .found ol {list-style: none; padding: 0; margin: 0}
.found li {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6em .8em; margin: .5em 0}
.found .bar {background: var(--color-accent); height: 6px; border-radius: 3px; margin: .4em 0}
.found .row {display: flex; justify-content: space-between; gap: 1em; flex-wrap: wrap}
.found .scroll {overflow-x: auto} .found table {border-collapse: collapse; font-size: .85em}
.found th, .found td {padding: 3px 6px; text-align: center; border: 0} .found th[scope=row] {text-align: right}
.found td {color: #111; border-radius: 4px} .found img {width: 64px; height: 64px; border-radius: 4px; display: block}
.found caption {text-align: left; padding: .4em 0} .found summary {cursor: pointer}
"""

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
        try:
            clips.append(processor(videos=path, return_timestamps=True, return_tensors="pt"))
            names.append(os.path.basename(path))
        except ValueError as error:  # one unreadable clip does not lose the others
            problems.append(f"{os.path.basename(path)} was left out: {str(error).replace(path, 'the file')}")
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
    sections = [
        section(line, scores[i], [clip_map(output, words, times, strips, i, j) for j in range(len(names))], names)
        for i, line in enumerate(lines)
    ]
    return f"<div class='found'>{notes}{''.join(sections)}</div>"


def section(sentence: str, scores: torch.Tensor, maps: list[tuple[str, str]], names: list[str]) -> str:
    """One sentence: the clips in order of their score, the best one with its map open."""
    low, high = min(scores.min().item(), 0.0), max(scores.max().item(), 1e-6)
    items = []
    for place, j in enumerate(scores.argsort(descending=True, stable=True).tolist()):
        moment, table = maps[j]
        width = 100 * (scores[j].item() - low) / (high - low)
        items.append(
            f"<li><div class='row'><strong>{place + 1}. {html.escape(names[j])}</strong>"
            f"<span>score {scores[j]:.3f} · best at {moment}</span></div>"
            f"<div class='bar' style='width:{width:.0f}%' aria-hidden='true'></div>"
            f"<details {'open' if place == 0 else ''}><summary>Words and frames</summary>{table}</details></li>"
        )
    return f"<h3>“{html.escape(sentence)}”</h3><ol>{''.join(items)}</ol>"


def clip_map(output, words, times, strips, i: int, j: int) -> tuple[str, str]:
    """(moment of the best frame, table of words x frames) for sentence i and clip j."""
    rows, columns = words["word_mask"][i], output.video_mask[j]
    cells = output.word_frame_similarities[i, j][rows][:, columns].numpy()
    weights = output.word_weights[i][rows].numpy()
    stamps = [f"{int(t // 60)}:{t % 60:04.1f}" for t in times[j][columns].tolist()]
    pieces = [processor.tokenizer.decode([token]).strip(" Ġ") for token in words["input_ids"][i][rows].tolist()]
    shades = (cells - cells.min()) / max(np.ptp(cells), 1e-6)
    header = "".join(
        f"<th scope='col'><img src='{strip}' alt='frame at {stamp}'>{stamp}</th>"
        for strip, stamp in zip(strips[j], stamps)
    )
    body = "".join(
        f"<tr><th scope='row'>{html.escape(piece)} <small>{weight:.0%}</small></th>"
        + "".join(f"<td style='background:hsl(45 95% {96 - 46 * s:.0f}%)'>{v:.2f}</td>" for v, s in zip(row, shade))
        + "</tr>"
        for piece, weight, row, shade in zip(pieces, weights, cells, shades)
    )
    caption = "How well each word fits each frame (cosine); beside the word, its weight in the sentence."
    table = f"<table><caption>{caption}</caption><tr><td></td>{header}</tr>{body}</table>"
    return stamps[int((weights[:, None] * cells).sum(0).argmax())], f"<div class='scroll'>{table}</div>"


def thumbnails(pixels: torch.Tensor) -> list[str]:
    """(F,3,H,W) normalised frames -> data addresses of small pictures."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (sampler.image_mean, sampler.image_std))
    pictures = []
    for frame in ((pixels * std + mean) * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(frame).resize((96, 96)).save(buffer, "JPEG", quality=80)
        pictures.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return pictures


with gr.Blocks(title="Find the clip") as demo:
    gr.Markdown(f"# Find the clip\nUpload a few clips and describe what you are looking for. Model: `{MODEL}`.")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            files = gr.File(label=f"Clips, up to {MAX_CLIPS}", file_count="multiple", file_types=["video"])
            sentences = gr.Textbox(label="Sentences, one per line", lines=3, max_lines=MAX_SENTENCES, autofocus=True)
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=3, min_width=320):
            found = gr.HTML("<p>The clips appear here, best first.</p>", label="Result", elem_id="found")
    gr.on([button.click, sentences.submit], search, [files, sentences], found, concurrency_limit=1)

if __name__ == "__main__":
    demo.launch(max_file_size=MAX_UPLOAD, css=STYLE)
