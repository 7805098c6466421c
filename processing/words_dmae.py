"""Textual attention's word weights (Algorithm 1): part of speech and TF-IDF, found on the raw caption by spaCy.

A word's weight is p·q: `p = content_weight` (η) for nouns, names, verbs and adjectives, else 1; `q = 0` for the
`irrelevant_words` (k) lowest TF-IDF words of the caption's paragraph (all captions of its video joined), else 1.
At inference a query has no paragraph, so q = 1 (R3). Words are character spans of the raw caption; the processor hands
their weights to the tokenizer's pieces through character offsets (`piece_weights`), because pieces cannot be tagged.

scikit-learn counts in how many paragraphs a word occurs. The product `tf · ln(N/df)` is taken here: scikit-learn's idf
adds 1, so that words of every paragraph keep a weight; it passes over words it was not fitted on, where a caption's
unseen word is the rarest; and its token pattern drops one-letter words, of which "a" is the one to be found.
"""

import importlib.util
import json
import math
import os
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

CONTENT_TAGS = frozenset({"NOUN", "PROPN", "VERB", "ADJ"})  # R15: a name is a noun; AUX is no verb
CONFIG_FILE, WEIGHTS_FILE, TABLE_FILE = "word_tagger.cfg", "word_tagger.bin", "word_frequencies.json"
BUNDLED = Path(__file__).with_name("tagger")
CACHED_CAPTIONS = 65_536  # about 60 MB of spans when full; each loader worker has its own
CACHED_PARAGRAPHS = 16_384
VOCABULARY_LIMIT = 100_000  # spaCy remembers every word it has ever seen, about 0.5 kB each
CHUNK = 256  # texts per tagger batch


class WordTagger:
    """A spaCy pipeline as plain data (`config` text, `weights` bytes), built on first use: safe to pickle and to hash.

    Only what tags parts of speech is kept; a larger pipeline's parser, entity recogniser and lemmatizer are left out.
    """

    def __init__(self, config: str, weights: bytes):
        self.config, self.weights = config, weights
        self._pipeline, self._lock = None, threading.Lock()

    @classmethod
    def load(cls, source: str | os.PathLike) -> "WordTagger":
        """From a folder that `save` wrote, or what `spacy.load` accepts: `en_core_web_sm`, a pipeline's folder."""
        folder = Path(source)
        if (folder / CONFIG_FILE).is_file():
            return cls((folder / CONFIG_FILE).read_text(encoding="utf-8"), (folder / WEIGHTS_FILE).read_bytes())
        try:
            pipeline = import_spacy().load(source, exclude=["parser", "ner", "lemmatizer", "senter"])
        except OSError as error:
            raise OSError(
                f"{source}: neither a folder with {CONFIG_FILE} nor an installed spaCy pipeline. Leave `tagger` out "
                f"for the bundled one, or install it with: python -m spacy download {source}"
            ) from error
        return cls.from_pipeline(pipeline)

    @classmethod
    def from_pipeline(cls, pipeline) -> "WordTagger":
        return cls(pipeline.config.to_str(), pipeline.to_bytes())

    def save(self, folder: str | os.PathLike) -> None:
        Path(folder, CONFIG_FILE).write_text(self.config, encoding="utf-8")
        Path(folder, WEIGHTS_FILE).write_bytes(self.weights)

    def __getstate__(self):
        return {"config": self.config, "weights": self.weights}

    def __setstate__(self, state):
        self.__init__(**state)

    def content_words(self, texts: list[str]) -> list[list[tuple[int, int, bool]]]:
        """Per text one `(start, end, is_content)` per spaCy token."""
        with self._lock:
            docs = self._built().pipe(texts, batch_size=CHUNK)
            return [[(t.idx, t.idx + len(t), t.pos_ in CONTENT_TAGS) for t in doc] for doc in docs]

    def terms(self, texts: list[str]) -> list[list[str]]:
        """Per text its lower-cased tokens without punctuation and white space; tokenised only, nothing is tagged."""
        with self._lock:
            docs = map(self._built().make_doc, texts)
            return [[t.lower_ for t in doc if not (t.is_punct or t.is_space)] for doc in docs]

    def _built(self):
        if self._pipeline is None or len(self._pipeline.vocab) > VOCABULARY_LIMIT:
            spacy = import_spacy()
            config = spacy.util.load_config_from_str(self.config)
            pipeline = spacy.util.get_lang_class(config["nlp"]["lang"]).from_config(config)
            self._pipeline = pipeline.from_bytes(self.weights)
        return self._pipeline


class BoundedCache:
    """The `size` most recently used values; may be shared by threads."""

    def __init__(self, size: int):
        self.size, self._values, self._lock = size, OrderedDict(), threading.Lock()

    def __len__(self):
        return len(self._values)

    def many(self, keys: list, compute) -> list:
        """One value per key; `compute(distinct missing keys)` gives theirs, in order."""
        with self._lock:
            known = {key: self._values[key] for key in keys if key in self._values}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            known.update(zip(missing, compute(missing)))
        with self._lock:
            for key, value in known.items():
                self._values[key] = value
                self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)
        return [known[key] for key in keys]


class WordWeigher:
    """Weighs the words of captions by part of speech (p) and TF-IDF (q); see the module's docstring.

    Args:
        content_weight: η > 0, the p of nouns, names (a proper noun is a noun), verbs and adjectives (2 in the paper).
            Auxiliaries and the copula are no verbs.
        irrelevant_words: k ≥ 0, how many lowest TF-IDF words of a paragraph get q = 0 (5 in the paper).
        tagger: None for the bundled tagger, else a spaCy pipeline's name or folder, or a `WordTagger`.

    Raises ImportError where spaCy is not installed, OSError for an unknown `tagger`, ValueError for bad settings.
    """

    def __init__(self, content_weight: float = 2.0, irrelevant_words: int = 5, tagger=None):
        if not 0 < content_weight < math.inf:
            raise ValueError(f"content_weight={content_weight}: must be above 0; 1 switches part of speech off")
        if irrelevant_words < 0:
            raise ValueError(f"irrelevant_words={irrelevant_words}: must be 0 (none) or more")
        require_spacy()
        self.content_weight = float(content_weight)
        self.irrelevant_words = int(irrelevant_words)
        # told by its method, not its class: remote code brings its own copy of the class
        loaded = hasattr(tagger, "content_words")
        self.tagger: Any = tagger if loaded else WordTagger.load(BUNDLED if tagger is None else tagger)
        self.paragraphs = 0  # N
        self.frequency: dict[str, int] = {}  # df: in how many paragraphs a word occurs
        self._forget()

    def _forget(self):
        self._captions, self._lowest = BoundedCache(CACHED_CAPTIONS), BoundedCache(CACHED_PARAGRAPHS)

    def __getstate__(self):
        # without the caches: what has been weighed so far must change neither a fingerprint nor what workers receive
        return {name: value for name, value in self.__dict__.items() if name not in ("_captions", "_lowest")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()

    def content_words(self, texts: list[str]) -> list[list[tuple[int, int, bool]]]:
        """Per text one `(start, end, is_content)` per spaCy token, punctuation included: characters of the raw text.

        Content is what is tagged NOUN, PROPN, VERB or ADJ (R15).
        """
        return self._captions.many(checked_texts(texts), self.tagger.content_words)

    def fit(self, paragraphs: list[str]) -> "WordWeigher":
        """Counts in how many paragraphs (one per training video: its captions joined) each word occurs.

        Raises ImportError where scikit-learn is not installed, ValueError where no paragraph holds a word.
        """
        paragraphs = checked_texts(paragraphs)
        chunks = (paragraphs[i : i + CHUNK] for i in range(0, len(paragraphs), CHUNK))
        terms = (found for chunk in chunks for found in self.tagger.terms(chunk))
        counter = import_scikit_learn().CountVectorizer(analyzer=list, binary=True)  # the terms as they come
        try:
            counts = counter.fit_transform(terms).sum(axis=0)
        except ValueError as error:
            raise ValueError(f"none of the {len(paragraphs)} paragraphs holds a word") from error
        self.paragraphs = len(paragraphs)
        self.frequency = {word: int(counts[0, column]) for word, column in sorted(counter.vocabulary_.items())}
        self._forget()
        return self

    def irrelevant(self, paragraphs: list[str]) -> list[frozenset[str]]:
        """Per paragraph its k words with the lowest `tf · ln(N/df)`, at most half of its distinct words.

        Ties are alphabetical. A word that `fit` has not seen counts as df = 1, the rarest. ValueError before `fit`.
        """
        if not self.paragraphs:
            raise ValueError("TF-IDF needs the training paragraphs: call fit(paragraphs) before passing paragraphs")
        return self._lowest.many(checked_texts(paragraphs), self._lowest_terms)

    def _lowest_terms(self, paragraphs: list[str]) -> list[frozenset[str]]:
        lowest = []
        for terms in self.tagger.terms(paragraphs):
            counts = Counter(terms)
            tfidf = {w: n * math.log(self.paragraphs / self.frequency.get(w, 1)) for w, n in counts.items()}
            ranked = sorted(counts, key=lambda word: (tfidf[word], word))
            lowest.append(frozenset(ranked[: min(self.irrelevant_words, len(ranked) // 2)]))
        return lowest

    def weights(self, texts: list[str], paragraphs: list[str] | None = None) -> list[list[tuple[int, int, float]]]:
        """Per text one `(start, end, p·q)` per spaCy token; q = 1 everywhere without `paragraphs` (R3)."""
        if paragraphs is not None and len(paragraphs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(paragraphs)} paragraphs: give one paragraph per text")
        irrelevant = [frozenset()] * len(texts) if paragraphs is None else self.irrelevant(paragraphs)
        return [
            [
                (start, end, 0.0 if text[start:end].lower() in skip else self.content_weight if content else 1.0)
                for start, end, content in words
            ]
            for text, words, skip in zip(texts, self.content_words(texts), irrelevant)
        ]

    def to_dict(self) -> dict:
        return {"content_weight": self.content_weight, "irrelevant_words": self.irrelevant_words}

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the tagger and, once fitted, the TF-IDF table; the settings stand in the processor's own file."""
        self.tagger.save(folder)
        if self.paragraphs:
            table = {"paragraphs": self.paragraphs, "frequency": self.frequency}
            Path(folder, TABLE_FILE).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
        else:
            Path(folder, TABLE_FILE).unlink(missing_ok=True)  # of an earlier save into the same folder

    @classmethod
    def from_files(cls, fetch, settings: dict) -> "WordWeigher":
        """Rebuilds what `save_pretrained` wrote; `fetch(name)` is a file's local path, or None where there is none."""
        config, weights, table = map(fetch, (CONFIG_FILE, WEIGHTS_FILE, TABLE_FILE))
        if not (config and weights):
            raise FileNotFoundError(
                f"the processor's {CONFIG_FILE} or {WEIGHTS_FILE} is missing: write it again with save_pretrained, or "
                'load it with word_weighting="uniform"'
            )
        tagger = WordTagger(Path(config).read_text(encoding="utf-8"), Path(weights).read_bytes())
        weigher = cls(**settings, tagger=tagger)
        if table:
            saved = json.loads(Path(table).read_text(encoding="utf-8"))
            weigher.paragraphs, weigher.frequency = saved["paragraphs"], saved["frequency"]
        return weigher


def piece_weights(pieces: list[tuple[int, int]], words: list[tuple[int, int, float]]) -> list[float]:
    """The weight of the first word each piece touches, 1 where it touches none; spans in characters, words in order."""
    ends = [end for _, end, _ in words]
    weights = []
    for start, end in pieces:
        i = bisect_right(ends, start)
        weights.append(words[i][2] if i < len(words) and words[i][0] < end else 1.0)
    return weights


def checked_texts(texts: list[str]) -> list[str]:
    """The same texts as a list, or a ValueError that names the one that is no text (or cannot be written as UTF-8)."""
    if isinstance(texts, str):
        raise ValueError(f"expected a list of strings, got one string: {texts!r:.80}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {i} is {type(text).__name__}, not a string: {text!r:.80}")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"text {i} is not valid Unicode (it holds a lone surrogate): {text!r:.80}")
    return list(texts)


def require_spacy() -> None:
    if importlib.util.find_spec("spacy") is None:
        raise ImportError(
            'word weights need spaCy: pip install "spacy>=3.8". To do without them choose word_weighting="uniform".'
        )


def import_spacy():
    # no import statement: transformers would require spaCy for loading this file, for the uniform choice too
    require_spacy()
    return importlib.import_module("spacy")


def import_scikit_learn():
    """`sklearn.feature_extraction.text`, needed to fit and never to load or to weigh."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("fitting word frequencies needs scikit-learn: pip install scikit-learn")
    return importlib.import_module("sklearn.feature_extraction.text")
