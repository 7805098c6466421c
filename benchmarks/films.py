"""Embedding videos on a CPU, from file to index: windows whose frames are embedded once, against the other ways.

    python benchmarks/films.py --folder /tmp/embedding     # writes benchmarks/results/films_cpu.json
    … --trained outputs/demo/model --corpus outputs/demo/corpus/test    # adds a trained model's recall to that file

Films of a minute are made here and cut into windows of 10 s every 5 s, 12 frames each; the towers are ViT-B/32 with
random weights, which cost what trained ones cost. The ways:

    each window alone     what an index cost before: every window is decoded, and its frames embedded, by itself
    windows together      `dmae index`: a frame that lies in several windows is embedded once
    … --dtype int8        the vision tower's products in 8 bits
    … --fast              key frames only
    sentence-transformers its SentenceTransformer over the pictures of each window, decoded as it says (its CLIP takes
                          pictures): one vector per picture, their mean per window
    clip-retrieval's loop OpenCV reads all frames one after the other, PIL resizes, batches go through the tower

`busy` is the share of both cores' time in use: CPU seconds of this process and its workers over 2 x wall seconds. The
recall of the ways that change embeddings is that of the top 10 among the windows, of float32 over all frames, with
the windows' own mean frames as queries, in which each window's own row is left out.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import av
import numpy as np
import torch
import transformers

from dmae.inference.embedding import encode_texts, encode_videos
from dmae.inference.loading import load_model_and_processor
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.windows import WindowPlan

RESULTS = Path(__file__).parent / "results" / "films_cpu.json"
SECONDS, RATE, WIDTH, HEIGHT, GOP = 60, 25, 640, 360, 50
WINDOW, STRIDE = 10.0, 5.0


def write_film(path: Path, seed: int) -> None:
    """Scenes of five seconds, each a texture that drifts, so that windows differ."""
    rng = np.random.default_rng(seed)
    options = {"preset": "veryfast", "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * RATE):
            if number % (5 * RATE) == 0:
                cells = int(rng.integers(4, 40))
                coarse = rng.integers(0, 255, (HEIGHT // cells + 8, WIDTH // cells + 8, 3), np.uint8)
                scene = coarse.repeat(cells, 0).repeat(cells, 1)
            left = number % (5 * RATE) // 2
            image = np.ascontiguousarray(scene[:HEIGHT, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


def clip_folder(folder: Path) -> Path:
    """A CLIP ViT-B/32 with random weights, its tokenizer a stand-in, as a checkpoint that every library reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
        words = Tokenizer(models.WordLevel({**vocabulary, "<|startoftext|>": 27, "<|endoftext|>": 28}, "a"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **names)
        CLIPModel(CLIPConfig()).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessor().save_pretrained(folder)
    return folder


class Meter:
    """Wall seconds, CPU seconds of this process and of its ended workers, and the share of two cores in use."""

    def __enter__(self):
        self.started, self.cpu = time.perf_counter(), self._cpu()
        return self

    def __exit__(self, *error):
        self.wall, self.cpu = time.perf_counter() - self.started, self._cpu() - self.cpu

    @staticmethod
    def _cpu() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    def row(self, films: int) -> dict:
        busy = self.cpu / (2 * self.wall)
        return {"films_per_second": films / self.wall, "wall_s": self.wall, "cpu_s": self.cpu, "busy": busy}


def indexed(films: Path, output: Path, model: Path, **options) -> tuple[dict, torch.Tensor]:
    """`dmae index`, loading included in neither; the mean frame of every window."""
    shutil.rmtree(output, ignore_errors=True)
    loaded = load_model_and_processor(model, dtype="float32")
    with Meter() as meter:
        index_videos(films, output, loaded, WindowPlan(WINDOW, STRIDE), **options)
    index = VideoIndex.open(output)
    video = index.snapshot.gather(np.arange(len(index)))
    means = torch.einsum("bf,bfd->bd", video.frame_weights, video.attended_embeds.float())
    names = [(row["video_id"], row["start"]) for row in index.rows()]
    order = sorted(range(len(names)), key=names.__getitem__)
    return meter.row(len(list(films.iterdir()))) | {"rows": len(index)}, unit(means[order])


def alone(films: Path, model: Path) -> dict:
    loaded = load_model_and_processor(model, dtype="float32")
    plan, paths = WindowPlan(WINDOW, STRIDE), sorted(films.iterdir())
    items = [
        # the window as its own file to the encoder, so that nothing is shared
        {"video_id": f"{path.stem}@{start}", "video": path.open("rb"), "start": start, "end": end}
        for path in paths
        for start, end in plan.cut((0.0, SECONDS))
    ]
    with Meter() as meter:
        encode_videos(*loaded, items, num_workers=0)
    return meter.row(len(paths)) | {"rows": len(items)}


def pictures_of(path: Path, start: float, end: float, sampler) -> list:
    from PIL import Image

    frames = sampler.decode(str(path), start, end).frames
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]


def sentence_transformers_way(films: Path, model: Path, sampler) -> dict:
    from sentence_transformers import SentenceTransformer, models

    network = SentenceTransformer(modules=[models.CLIPModel(str(model))], device="cpu")
    paths, rows = sorted(films.iterdir()), 0
    with Meter() as meter:
        for path in paths:
            for start, end in WindowPlan(WINDOW, STRIDE).cut((0.0, SECONDS)):
                network.encode(pictures_of(path, start, end, sampler), show_progress_bar=False).mean(0)
                rows += 1
    return meter.row(len(paths)) | {"rows": rows}


@torch.no_grad()
def clip_retrieval_way(films: Path, model: Path) -> dict:
    """clip-video-encode's loop in short: every frame is read, one a second is kept, resized by PIL, embedded."""
    import cv2
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPModel

    network, prepare = CLIPModel.from_pretrained(model).eval(), CLIPImageProcessor.from_pretrained(model)
    paths = sorted(films.iterdir())
    with Meter() as meter:
        for path in paths:
            capture, kept, number = cv2.VideoCapture(str(path)), [], 0
            while True:
                good, frame = capture.read()
                if not good:
                    break
                if number % RATE == 0:
                    kept.append(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
                number += 1
            for start in range(0, len(kept), 32):
                network.get_image_features(**prepare(kept[start : start + 32], return_tensors="pt"))
    return meter.row(len(paths)) | {"rows": len(paths)}


def recall(means: torch.Tensor, reference: torch.Tensor, top_k: int = 10) -> dict:
    """Share of the reference's top 10 neighbours of every window that is found, and the change of the cosines."""
    left_out = torch.eye(len(reference), dtype=torch.bool)
    mine, true = ((rows @ reference.T).masked_fill(left_out, -2) for rows in (means, reference))
    shares = [np.isin(a, b).mean() for a, b in zip(true.topk(top_k).indices.numpy(), mine.topk(top_k).indices.numpy())]
    return {
        "recall@10": float(np.mean(shares)),
        "score_change": float((mine - true).abs().mean()),
        "spread_of_scores": float(true[~left_out].std()),
    }


def trained(model: Path, corpus: Path, output: Path) -> dict:
    """Of a trained model's captions: how much of float32's top 10 the quicker ways keep, and their R@1."""
    lines = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    loaded = load_model_and_processor(model, dtype="float32")
    texts = encode_texts(*loaded, [line["captions"][0] for line in lines])
    scores, found = {}, {}
    for name, way in {"float32": {}, "int8": {"dtype": "int8"}, "key frames": {"fast": True}}.items():
        shutil.rmtree(output, ignore_errors=True)
        index_videos(corpus, output, load_model_and_processor(model, dtype="float32"), num_workers=0, **way)
        index = VideoIndex.open(output)
        names = [row["video_id"] for row in index.rows()]
        order = np.array(sorted(range(len(names)), key=names.__getitem__))
        gold = np.array([sorted(names).index(line["video_id"]) for line in lines])
        scores[name] = similarity(texts, index.snapshot.gather(order), index.config)
        first = scores[name].argmax(1).numpy()
        top, true = (s.topk(10).indices.numpy() for s in (scores[name], scores["float32"]))
        found[name] = {
            "recall@10": float(np.mean([np.isin(a, b).mean() for a, b in zip(true, top)])),
            "score_change": float((scores[name] - scores["float32"]).abs().mean()),
            "text_to_video_R@1": float((first == gold).mean()),
        }
    return {"clips": len(lines), "spread_of_scores": float(scores["float32"].std()), "ways": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dmae_embedding")
    parser.add_argument("--films", type=int, default=3)
    parser.add_argument("--trained", type=Path, help="a trained model: its recall alone is measured and added")
    parser.add_argument("--corpus", type=Path, help="with --trained: a folder of clips with metadata.jsonl")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if args.trained:
        record = before | {"trained": trained(args.trained, args.corpus, args.folder / "trained")}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
        return
    films = args.folder / "films"
    films.mkdir(parents=True, exist_ok=True)
    for number in range(args.films):
        path = films / f"film{number}.mp4"
        if not path.exists():
            write_film(path, number)
    model = clip_folder(args.folder / "clip")
    sampler = load_model_and_processor(model, dtype="float32")[1].feature_extractor
    ways, output = {"each window alone": alone(films, model)}, args.folder / "index"
    ways["windows together"], reference = indexed(films, output, model)
    ways["windows together, int8"], means = indexed(films, output, model, dtype="int8")
    ways["windows together, int8"] |= recall(means, reference)
    ways["windows together, key frames"], means = indexed(films, output, model, fast=True)
    ways["windows together, key frames"] |= recall(means, reference)
    ways["windows together, key frames, int8"], means = indexed(films, output, model, fast=True, dtype="int8")
    ways["windows together, key frames, int8"] |= recall(means, reference)
    ways["sentence-transformers"] = sentence_transformers_way(films, model, sampler)
    ways["clip-retrieval's loop"] = clip_retrieval_way(films, model)
    for way in ways.values():
        way["times_each_window_alone"] = ways["each window alone"]["wall_s"] / way["wall_s"]
    record = {
        "films": f"{args.films} of {SECONDS} s, {WIDTH}x{HEIGHT}, {RATE} frames/s, a key frame every {GOP}, H.264",
        "windows": f"{WINDOW:g} s every {STRIDE:g} s, 12 frames each; clip-retrieval's loop: one frame a second",
        "tower": "ViT-B/32, random weights",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "sentence_transformers": __import__("sentence_transformers").__version__,
        "processor": platform.machine(),
        "ways": ways,
    }
    record |= {"trained": before["trained"]} if "trained" in before else {}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
