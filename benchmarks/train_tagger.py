"""Train the bundled part-of-speech tagger on UD English-EWT, and measure it on text it has not seen.

    python benchmarks/train_tagger.py --treebank DIR                  # trains (a few CPU minutes), then measures
    python benchmarks/train_tagger.py --treebank DIR --measure-only   # measures processing/tagger as it is

DIR holds en_ewt-train.conllu and en_ewt-dev.conllu. Training reads the train file only: every tenth of its documents
selects the epoch. The dev file and the captions of tests/processing/captions.txt are read only to be measured on.
Each training sentence is seen twice, as printed and lower-cased without punctuation: captions are written both ways.
Writes `processing/tagger/word_tagger.{cfg,bin}` and `benchmarks/results/tagger.json`.
"""

import argparse
import json
import os
import platform
import random
import time
from pathlib import Path
from typing import NamedTuple

import spacy
from spacy.training import Example
from spacy.util import fix_random_seed, minibatch
from thinc.api import Adam
from thinc.schedules import warmup_linear

from dmae.processing.words_dmae import CONTENT_TAGS, WordTagger

ROOT = Path(__file__).resolve().parents[1]
TAGGER = ROOT / "processing" / "tagger"
CAPTIONS = ROOT / "tests" / "processing" / "captions.txt"
RESULTS = ROOT / "benchmarks" / "results" / "tagger.json"
WIDTH, DROPOUT, LEARNING_RATE, BATCH = 64, 0.2, 0.003, 48
EMBEDDING = {
    "@architectures": "spacy.MultiHashEmbed.v2",
    "width": WIDTH,  # 96 is no better here and half as fast; rows cost no time
    "attrs": ["NORM", "PREFIX", "SUFFIX", "SHAPE"],
    "rows": [5000, 1000, 2500, 1000],
    "include_static_vectors": False,
}
ENCODER = {
    "@architectures": "spacy.MaxoutWindowEncoder.v2",
    "width": WIDTH,
    "window_size": 1,
    "maxout_pieces": 3,
    "depth": 3,
}
TOK2VEC = {"@architectures": "spacy.Tok2Vec.v2", "embed": EMBEDDING, "encode": ENCODER}
META = {
    "name": "dmae_word_tagger",
    "version": "1.0",
    "description": "Universal part-of-speech tags for English captions",
    "license": "CC BY-SA 4.0",
    "sources": [
        {
            "name": "UD English-EWT",
            "author": "The Universal Dependencies consortium; Silveira et al. 2014",
            "license": "CC BY-SA 4.0",
            "url": "https://universaldependencies.org/treebanks/en_ewt",
        }
    ],
}
NOTICE = """\
# Part-of-speech tagger of dmae, trained on UD English-EWT, the Universal Dependencies English Web Treebank
# (The Universal Dependencies consortium; Silveira et al. 2014, https://universaldependencies.org/treebanks/en_ewt).
# This file and word_tagger.bin are licensed CC BY-SA 4.0: https://creativecommons.org/licenses/by-sa/4.0/
"""


class Sentence(NamedTuple):
    """One gold sentence: its words, whether a space follows each, their tags, and the document it stands in."""

    words: list[str]
    spaces: list[bool]
    tags: list[str]
    document: str

    @property
    def text(self) -> str:
        return "".join(word + " " * space for word, space in zip(self.words, self.spaces)).rstrip()

    def caption_like(self) -> "Sentence":
        """The same sentence lower-cased and without its punctuation; what the punctuation joined is set apart."""
        words, spaces, tags = [], [], []
        for word, space, tag in zip(self.words, self.spaces, self.tags):
            if tag == "PUNCT":
                spaces[-1:] = [True] * len(spaces[-1:])
            else:
                words.append(word.lower()), spaces.append(space), tags.append(tag)
        return Sentence(words, spaces, tags, self.document)


def caption_like(sentences: list[Sentence]) -> list[Sentence]:
    return [sentence for sentence in map(Sentence.caption_like, sentences) if sentence.words]


def read_conllu(path: Path) -> list[Sentence]:
    """Sentences of a CoNLL-U file. Inside a multi-word token ("don't" = do + n't) no space separates the words."""
    sentences = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        words, spaces, tags, document, joined = [], [], [], "", {}
        for line in block.splitlines():
            if line.startswith("# sent_id"):
                document = line.split("=")[1].strip().rsplit("-", 1)[0]
            if line.startswith("#"):
                continue
            index, word, _, tag, *_, misc = line.split("\t")
            space = "SpaceAfter=No" not in misc
            if "-" in index:
                first, last = map(int, index.split("-"))
                joined |= {i: False for i in range(first, last)} | {last: space}
            elif "." not in index:
                words.append(word), tags.append(tag), spaces.append(joined.get(int(index), space))
        sentences.append(Sentence(words, spaces, tags, document))
    return sentences


def read_captions(path: Path) -> list[Sentence]:
    """Captions with a star before each noun, name, verb and adjective, split as spaCy splits; the rest is tagged X."""
    sentences, split = [], spacy.blank("en")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pieces = line.split("*")
            starts = {sum(map(len, pieces[: i + 1])) for i in range(len(pieces) - 1)}
            tokens = split.make_doc("".join(pieces))
            tags = ["PUNCT" if t.is_punct else "NOUN" if t.idx in starts else "X" for t in tokens]
            words, spaces = [t.text for t in tokens], [bool(t.whitespace_) for t in tokens]
            sentences.append(Sentence(words, spaces, tags, document="captions"))
    return sentences


def examples(pipeline, sentences: list[Sentence]) -> list[Example]:
    """spaCy tokenises the raw text, as at run time; its aligner carries the gold tags over where the tokens agree."""
    both = sentences + caption_like(sentences)
    gold = [{"words": s.words, "spaces": s.spaces, "pos": s.tags} for s in both]
    return [Example.from_dict(pipeline.make_doc(s.text), g) for s, g in zip(both, gold)]


def accuracy(tagger: WordTagger, sentences: list[Sentence], punctuation: bool, only: str | None = None) -> float:
    """Share of gold words that are rightly told to be content (`CONTENT_TAGS`) or not, each judged at its first letter.

    `only` counts the words of one gold tag: for PROPN, the share of names that are found.
    """
    right = total = 0
    for sentence, found in zip(sentences, tagger.content_words([s.text for s in sentences])):
        predicted = {i: content for start, end, content in found for i in range(start, end)}
        position = 0
        for word, space, tag in zip(sentence.words, sentence.spaces, sentence.tags):
            if (punctuation or tag != "PUNCT") and only in (None, tag):
                right += predicted[position] == (tag in CONTENT_TAGS)
                total += 1
            position += len(word) + space
    return right / total


def new_pipeline():
    pipeline = spacy.blank("en")
    pipeline.add_pipe("morphologizer", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": TOK2VEC}})
    pipeline.meta.update(META)
    return pipeline


def compact(pipeline) -> WordTagger:
    """The trained weights in a fresh pipeline, without the words that training left in the vocabulary."""
    fresh, weights = new_pipeline(), pipeline.get_pipe("morphologizer").to_bytes(exclude=["vocab"])
    fresh.get_pipe("morphologizer").from_bytes(weights, exclude=["vocab"])
    tagger = WordTagger.from_pipeline(fresh)
    return WordTagger(NOTICE + tagger.config, tagger.weights)  # the notice travels with every saved processor


def train(sentences: list[Sentence], epochs: int, seed: int) -> WordTagger:
    """The epoch that tags the held-back documents best, mean of both forms; weights are running averages."""
    fix_random_seed(seed)
    held_back = set(sorted({s.document for s in sentences})[::10])
    selection = [s for s in sentences if s.document in held_back]
    pipeline = new_pipeline()
    items = examples(pipeline, [s for s in sentences if s.document not in held_back])
    schedule = warmup_linear(LEARNING_RATE, 200, epochs * len(items) // BATCH)
    optimizer = Adam(schedule, L2=0.01, grad_clip=1.0, use_averages=True)
    pipeline.initialize(lambda: items, sgd=optimizer)
    best, best_score, shuffled = None, 0.0, random.Random(seed)
    for epoch in range(1, epochs + 1):
        shuffled.shuffle(items)
        for batch in minibatch(items, BATCH):
            pipeline.update(batch, sgd=optimizer, drop=DROPOUT)
            optimizer.step_schedules()
        with pipeline.use_params(optimizer.averages):
            tagger = compact(pipeline)
        score = sum(accuracy(tagger, form, True) for form in (selection, caption_like(selection))) / 2
        print(f"epoch {epoch} of {epochs}: {score:.4f} on held-back training documents", flush=True)
        if score > best_score:
            best, best_score = tagger, score
    return best


def measure(tagger: WordTagger, treebank: Path) -> dict:
    gold, captions = read_conllu(treebank / "en_ewt-dev.conllu"), read_captions(CAPTIONS)
    texts = list({s.text: None for s in captions + caption_like(gold)})
    tagger.content_words(texts[:10])  # builds the pipeline
    rounds = []  # the tagger itself, past the weigher's cache; the fastest round, as other work only slows one
    for _ in range(7):
        wall, cpu = time.perf_counter(), time.process_time()
        tagger.content_words(texts)
        rounds.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = map(min, zip(*rounds))
    return {
        "task": "noun, proper noun, verb or adjective, or not; share of gold words",
        "ewt_dev": {
            "sentences": len(gold),
            "as_printed": accuracy(tagger, gold, punctuation=True),
            "as_printed_without_punctuation_marks": accuracy(tagger, gold, punctuation=False),
            "lower_cased_unpunctuated": accuracy(tagger, caption_like(gold), punctuation=False),
            "names_as_printed": accuracy(tagger, gold, punctuation=False, only="PROPN"),
            "names_lower_cased_unpunctuated": accuracy(tagger, caption_like(gold), punctuation=False, only="PROPN"),
        },
        "captions": {
            "source": "tests/processing/captions.txt, written and marked for this project",
            "captions": len(captions),
            "words": sum(tag != "PUNCT" for s in captions for tag in s.tags),
            "as_written": accuracy(tagger, captions, punctuation=False),
            "lower_cased_unpunctuated": accuracy(tagger, caption_like(captions), punctuation=False),
        },
        "speed": {
            "texts": len(texts),
            "mean_words": sum(len(text.split()) for text in texts) / len(texts),
            "texts_per_cpu_second": len(texts) / cpu,
            "texts_per_second": len(texts) / wall,
            "load_average": os.getloadavg()[0],
        },
        "bytes": len(tagger.config) + len(tagger.weights),
        "conditions": {"spacy": spacy.__version__, "python": platform.python_version(), "machine": platform.machine()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--treebank", type=Path, required=True, help="folder of the .conllu files")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-only", action="store_true", help="do not train")
    args = parser.parse_args()
    if not args.measure_only:
        train(read_conllu(args.treebank / "en_ewt-train.conllu"), args.epochs, args.seed).save(TAGGER)
    results = json.dumps(measure(WordTagger.load(TAGGER), args.treebank), indent=2)
    RESULTS.write_text(results + "\n", encoding="utf-8")
    print(results)


if __name__ == "__main__":
    main()
