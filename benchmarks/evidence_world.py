"""The study's data: a MovingObjects world as arrays. Clips as uint8 frames, captions as the model's own batch keys.

Frames are what the corpus's generator draws at the sampled times, before H.264: the study is about similarity and
losses, and decoding 10,000 clips a world would cost more than training on them. Everything is stored once per world
under outputs/evidence and read again by later runs.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dmae.data.moving_objects.captions import draw_facts, say
from dmae.data.moving_objects.corpus import SPLITS, corpus_clips
from dmae.data.moving_objects.frames import scene_frames
from dmae.data.moving_objects.scenes import World, random_scene
from dmae.files import new_file
from dmae.processing.processing_dmae import DMAEProcessor
from dmae.processing.words_dmae import WordWeigher
from dmae.training.tokenizer import train_bpe_tokenizer

SIZE, FRAMES, WORDS, VOCABULARY = 48, 6, 32, 700
POSE = 0.25  # at 1, towers as small as the study's do not learn 74 shapes in minutes
# First what things are called alone, because colours are so much easier that shapes would never be learned; then one
# thing and a full caption; then what the clips show.
STILLS = {
    "noun": World(shots=(1.0,), irrelevant=0.0, pairs=0.0, filler=0.0, pose=POSE),
    "single": World(shots=(1.0,), irrelevant=0.0, pairs=0.0, telling=0.95, filler=0.0, pose=POSE),
    "mixed": World(shots=(1.0,), irrelevant=0.0, pose=POSE),
}
UNTOLD = {"noun": ("colour", "texture", "motion"), "single": ("motion",), "mixed": ("motion",)}
TEXT_KEYS = ("input_ids", "attention_mask", "word_mask", "word_weights")


@dataclass
class Split:
    """N videos and their captions (C each, one in validation and test). Texts are indexed [video, caption]."""

    frames: np.ndarray  # (N,F,size,size,3) uint8
    texts: dict[str, torch.Tensor]  # (N,C,T)
    families: np.ndarray  # (N,)
    near_misses: list[tuple[int, int, str]]  # (video, its near miss, attribute)

    def __len__(self) -> int:
        return len(self.frames)


def stored(folder: Path, name: str, key: dict, make) -> dict[str, np.ndarray]:
    """The arrays `make()` returns, kept in `folder` under the name and a hash of `key`."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    path = folder / f"{name}-{digest}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arrays = make()
        with new_file(path) as partial, open(partial, "wb") as file:  # two runs at once never share one
            np.savez(file, **arrays)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def load_world(world: World, folder: Path, seed: int = 0) -> dict[str, Split]:
    """Train, validation and test of a world, drawn on first use."""
    world = replace(world, size=SIZE, pose=POSE)
    key = {**asdict(world), "seed": seed, "frames": FRAMES, "words": WORDS, "version": 1}
    arrays = stored(folder, "world", key, lambda: _world_arrays(world, seed, folder))
    return {split: _split_of(arrays, split) for split in SPLITS}


def _split_of(arrays: dict[str, np.ndarray], split: str) -> Split:
    part = {name.removeprefix(f"{split}."): value for name, value in arrays.items() if name.startswith(f"{split}.")}
    near = [(int(i), int(j), str(name)) for i, j, name in zip(*(part[f"near_{k}"] for k in ("of", "is", "in")))]
    texts = {name: torch.from_numpy(part[name]) for name in TEXT_KEYS}
    return Split(part["frames"], texts, part["families"], near)


def _world_arrays(world: World, seed: int, folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    clips_of = corpus_clips(world, seed)
    processor = text_processor(folder)
    processor.word_weigher.fit([" . ".join(clip.captions) for clip in clips_of["train"]])
    for split, clips in clips_of.items():
        place = {clip.video_id: index for index, clip in enumerate(clips)}
        near = [(index, place[other], name) for index, clip in enumerate(clips) for other, name in clip.near_misses]
        frames = [scene_frames(clip.scene, world, list(clip.seed), FRAMES, SIZE) for clip in clips]
        arrays |= {
            f"{split}.frames": np.stack(frames),
            f"{split}.families": np.array([clip.family for clip in clips]),
            f"{split}.near_of": np.array([of for of, _, _ in near], dtype=np.int64),
            f"{split}.near_is": np.array([other for _, other, _ in near], dtype=np.int64),
            f"{split}.near_in": np.array([name for _, _, name in near], dtype="U16"),
        }
        texts = encode_captions(processor, [clip.captions for clip in clips], with_paragraphs=split == "train")
        arrays |= {f"{split}.{name}": value for name, value in texts.items()}
    return arrays


def encode_captions(processor, captions: list[tuple[str, ...]], with_paragraphs: bool) -> dict[str, np.ndarray]:
    """{key: (N,C,T)}. Training captions know their paragraph, so q marks irrelevant words; queries do not (R3)."""
    flat = [text for group in captions for text in group]
    paragraphs = [" . ".join(group) for group in captions for _ in group] if with_paragraphs else None
    batch = processor(text=flat, paragraphs=paragraphs, return_tensors="np")
    return {name: batch[name].reshape(len(captions), -1, WORDS) for name in TEXT_KEYS}


def text_processor(folder: Path) -> DMAEProcessor:
    """One tokenizer for all worlds, trained on captions with every filler in them."""
    rng = np.random.default_rng(5)
    world = World(shots=(0.4, 0.3, 0.3))
    texts = [say(draw_facts(random_scene(world, rng), rng, 0.9), rng, 0.7) for _ in range(4000)]
    tokenizer = train_bpe_tokenizer(texts, VOCABULARY, WORDS)
    return DMAEProcessor(tokenizer, word_weigher=WordWeigher(), max_words=WORDS)


def load_stills(name: str, count: int, folder: Path, seed: int = 1) -> dict[str, np.ndarray]:
    """Pictures with captions for pretraining: a frame of a one-shot scene, motion untold. `name`: one of `STILLS`."""
    key = {"kind": name, "count": count, "seed": seed, "size": SIZE, "words": WORDS, "version": 2}
    return stored(folder, f"stills-{name}", key, lambda: _still_arrays(name, count, seed, folder))


def _still_arrays(kind: str, count: int, seed: int, folder: Path) -> dict[str, np.ndarray]:
    rng, world = np.random.default_rng([seed, 99]), STILLS[kind]
    frames, captions = [], []
    for index in range(count):
        scene = random_scene(world, rng)
        frames.append(scene_frames(scene, world, [seed, 98, index], 1, SIZE)[0])
        facts = without(draw_facts(scene, rng, world.telling), UNTOLD[kind])
        captions.append((say(facts, rng, world.filler),))
    texts = encode_captions(text_processor(folder), captions, with_paragraphs=False)
    return {"frames": np.stack(frames), **{name: value[:, 0] for name, value in texts.items()}}


def without(facts, untold: tuple[str, ...]):
    """The same facts but for some attributes of things: motion, which a still does not show, or all but the noun."""
    return tuple(
        shot._replace(things=tuple(thing._replace(**dict.fromkeys(untold)) for thing in shot.things)) for shot in facts
    )
