"""Word weights: tags on raw captions, TF-IDF against scikit-learn, spans onto pieces, and life in workers."""

import importlib.util
import json
import math
import multiprocessing
import pickle
import random
import subprocess
import sys
import textwrap
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import spacy
from datasets import Dataset
from datasets.fingerprint import Hasher
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from spacy.training import Example

import dmae.processing.words_dmae as words_dmae
from dmae.processing.words_dmae import BUNDLED, BoundedCache, WordTagger, WordWeigher, piece_weights

CAPTIONS = Path(__file__).with_name("captions.txt")
ODD = [
    "",
    "  two   spaces\tand a tab ",
    "a girl's dog can't catch the ball!",
    "😀 two 👩‍👩‍👧 wave 🏳️‍🌈",
    "un café très célèbre",
    "cafe\u0301 with a combining accent",
    "一只猫在睡觉",
    "x" * 5000,
    "http://example.com/a?b=c (watch it) -- 3d/2d #fun @home",
    "line one\nline two",
]


@pytest.fixture(scope="module")
def weigher():
    return WordWeigher()


def marked_captions():
    """captions.txt -> (caption, set of the start offsets of its content words) pairs."""
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pieces = line.split("*")
            starts = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces) - 1)]
            yield "".join(pieces), set(starts)


def agreement(weigher, pairs):
    """Share of words (tokens with a letter) whose content-or-not is as marked."""
    pairs = list(pairs)
    right = total = 0
    for (text, gold), words in zip(pairs, weigher.content_words([text for text, _ in pairs])):
        judged = [(start in gold) == content for start, end, content in words if any(map(str.isalpha, text[start:end]))]
        right, total = right + sum(judged), total + len(judged)
    return right / total


def test_content_words_gives_every_token_with_its_place(weigher):
    text = "A man plays the guitar, and a dog sleeps."
    spans = weigher.content_words([text])[0]
    assert " ".join(text[a:b] for a, b, _ in spans) == "A man plays the guitar , and a dog sleeps ."
    assert [text[a:b] for a, b, content in spans if content] == ["man", "plays", "guitar", "dog", "sleeps"]


@pytest.mark.parametrize("text", ODD)
def test_spans_cover_any_text_in_order(weigher, text):
    spans = weigher.content_words([text])[0]
    covered = "".join(text[a:b] for a, b, _ in spans)
    assert "".join(covered.split()) == "".join(text.split())
    assert all(a < b for a, b, _ in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_a_name_is_a_noun_and_an_auxiliary_is_no_verb(weigher):
    """R15, on gold tags through a pipeline that copies them: which tags count is decided here, not by accuracy."""
    gold = {"Obama": "PROPN", "dog": "NOUN", "runs": "VERB", "red": "ADJ"}
    other = {"is": "AUX", "quickly": "ADV", "he": "PRON", "two": "NUM", "the": "DET", "in": "ADP", "!": "PUNCT"}
    text = " ".join([*gold, *other])
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    for word, tag in {**gold, **other}.items():
        ruler.add([[{"ORTH": word}]], {"POS": tag})
    spans = WordTagger.from_pipeline(nlp).content_words([text])[0]
    assert [text[start:end] for start, end, content in spans if content] == list(gold)
    assert weigher.tagger.content_words(["Barack Obama sings"])[0] == [(0, 6, True), (7, 12, True), (13, 18, True)]


def test_captions_are_tagged_right(weigher):
    """Captions written and marked for this test; see captions.txt for the rules."""
    pairs = list(marked_captions())
    assert len(pairs) >= 300
    assert agreement(weigher, pairs) > 0.96
    assert agreement(weigher, [(text.lower(), gold) for text, gold in pairs]) > 0.96


def test_batch_and_order_do_not_change_a_caption(weigher):
    texts = [text for text, _ in marked_captions()][:60] + ODD
    alone = [WordWeigher(tagger=weigher.tagger).content_words([text])[0] for text in texts]
    assert WordWeigher(tagger=weigher.tagger).content_words(texts) == alone
    assert weigher.content_words(texts[::-1] + texts) == alone[::-1] + alone


def random_paragraphs(count, seed=0):
    shuffled = random.Random(seed)
    words = ["a", "the", "dog", "runs", "Man", "man", "x", "red", "ball", "over", "i", "plays", "'s", "3"]
    return [" ".join(shuffled.choices(words, k=shuffled.randint(1, 25))) + "." for _ in range(count)]


def test_tfidf_picks_the_words_that_scikit_learn_picks(weigher):
    """The oracle is TfidfTransformer without smoothing, its idf less the 1 it adds, over spaCy's tokens."""
    paragraphs = random_paragraphs(80)
    tokens = spacy.blank("en")

    def terms(text):
        return [t.lower_ for t in tokens(text) if not t.is_punct]

    vectorizer = CountVectorizer(analyzer=terms)
    counts = vectorizer.fit_transform(paragraphs)
    idf = TfidfTransformer(smooth_idf=False).fit(counts).idf_ - 1
    vocabulary = vectorizer.get_feature_names_out()
    found = WordWeigher(irrelevant_words=5, tagger=weigher.tagger).fit(paragraphs).irrelevant(paragraphs)
    for row, lowest in zip(counts.toarray(), found):
        scores = {word: n * i for word, n, i in zip(vocabulary, row, idf) if n}
        assert len(lowest) == min(5, len(scores) // 2)
        rest = set(scores) - lowest
        assert all(scores[out] <= scores[kept] + 1e-12 for out in lowest for kept in rest)


def test_frequencies_are_counted_as_by_hand_and_paragraphs_without_words_are_refused(weigher):
    paragraphs = [*random_paragraphs(600), "", "..."]  # more than one chunk of the tagger
    expected = Counter()
    for terms in weigher.tagger.terms(paragraphs):
        expected.update(set(terms))
    fresh = WordWeigher(tagger=weigher.tagger).fit(paragraphs)
    assert (fresh.paragraphs, fresh.frequency) == (602, expected) and list(fresh.frequency) == sorted(expected)
    assert all(type(count) is int for count in fresh.frequency.values())  # written to JSON
    with pytest.raises(ValueError, match="none of the 2 paragraphs holds a word"):
        WordWeigher(tagger=weigher.tagger).fit(["", "..."])


def test_tfidf_by_hand(weigher):
    """Ties go by the alphabet, one-letter words count, punctuation does not, at most half of the distinct words."""
    fresh = WordWeigher(irrelevant_words=2, tagger=weigher.tagger)
    fresh.fit(["a cat, a dog.", "a cat!", "the zebra."])
    assert (fresh.paragraphs, fresh.frequency) == (3, {"a": 2, "cat": 2, "dog": 1, "the": 1, "zebra": 1})
    # tf·ln(N/df): a 2·ln 1.5 = .81, cat ln 1.5 = .41, dog ln 3 = 1.10: one of the three distinct words may go
    assert fresh.irrelevant(["A cat, a dog.", "zebra the, unseen yak"]) == [{"cat"}, {"the", "unseen"}]
    assert fresh.irrelevant(["cat", "", "..."]) == [frozenset()] * 3


def test_weights_are_p_times_q(weigher):
    fresh = WordWeigher(content_weight=3.0, irrelevant_words=1, tagger=weigher.tagger)
    fresh.fit(["a dog runs. a dog sleeps.", "a man sings", "the man"])
    text = "a dog runs."
    assert fresh.weights([text]) == [[(0, 1, 1.0), (2, 5, 3.0), (6, 10, 3.0), (10, 11, 1.0)]]
    assert fresh.weights([text], ["a dog runs. a dog sleeps."])[0][0] == (0, 1, 0.0)
    assert fresh.weights(["A dog runs."], ["a dog runs. a dog sleeps."])[0][0] == (0, 1, 0.0)  # found lower-cased


def test_piece_weights_against_a_map_of_characters():
    """The reference paints each character with its word's number and asks every piece for the first it meets."""
    shuffled = random.Random(1)
    for _ in range(300):
        cuts = sorted(shuffled.sample(range(40), 2 * shuffled.randint(0, 8)))
        words = [(a, b, shuffled.random()) for a, b in zip(cuts[::2], cuts[1::2])]
        paint = {i: weight for a, b, weight in words for i in range(a, b)}
        starts = [shuffled.randrange(40) for _ in range(12)]
        pieces = [(a, a + shuffled.randint(1, 6)) for a in starts]
        expected = [next((paint[i] for i in range(a, b) if i in paint), 1.0) for a, b in pieces]
        assert piece_weights(pieces, words) == expected


def test_cache_is_bounded_and_keeps_the_latest():
    cache, asked = BoundedCache(3), []

    def double(keys):
        asked.extend(keys)
        return [2 * key for key in keys]

    assert cache.many([1, 2, 1, 3, 4, 5], double) == [2, 4, 2, 6, 8, 10]
    assert len(cache) == 3 and asked == [1, 2, 3, 4, 5]
    cache.many([3], double)  # now the latest, so 4 goes first
    assert cache.many([6, 5, 3], double) == [12, 10, 6]
    assert asked == [1, 2, 3, 4, 5, 6]


def test_a_full_vocabulary_is_dropped_without_a_trace(weigher, monkeypatch):
    texts = [text for text, _ in marked_captions()]
    expected = weigher.content_words(texts)
    fresh = WordWeigher(tagger=pickle.loads(pickle.dumps(weigher.tagger)))
    at_first = len(fresh.tagger._built().vocab)
    monkeypatch.setattr(words_dmae, "VOCABULARY_LIMIT", at_first + 100)
    for i in range(0, len(texts), 80):  # four batches of about 300 new words each
        assert fresh.content_words(texts[i : i + 80]) == expected[i : i + 80]
        assert len(fresh.tagger._pipeline.vocab) < at_first + 500


def test_threads_share_a_weigher(weigher):
    texts = [text for text, _ in marked_captions()]
    expected = WordWeigher(tagger=weigher.tagger).content_words(texts)
    fresh = WordWeigher(tagger=pickle.loads(pickle.dumps(weigher.tagger)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: fresh.content_words(texts[i % 50 :]), range(80)))
    assert all(rows == expected[i % 50 :] for i, rows in enumerate(found))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_weigh_alike(weigher, method):
    texts = ["a dog chases two cats", "she sings"]
    expected = weigher.weights(texts)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(weigher.weights, (texts,)) == expected


def test_fingerprint_ignores_what_has_been_weighed(weigher):
    before, size = Hasher.hash(weigher), len(pickle.dumps(weigher))
    weigher.content_words(["a caption that was never seen before"])
    assert Hasher.hash(weigher) == before and len(pickle.dumps(weigher)) == size
    assert Hasher.hash(WordWeigher()) == Hasher.hash(WordWeigher())
    assert Hasher.hash(WordWeigher(irrelevant_words=4)) != before


def test_datasets_map_with_workers_and_a_stable_cache(weigher, tmp_path):
    texts = [text for text, _ in marked_captions()][:40]
    data = Dataset.from_dict({"text": texts})
    data.save_to_disk(tmp_path / "data")

    def weigh(rows):
        return {"weights": [[weight for *_, weight in words] for words in weigher.weights(rows["text"])]}

    fingerprints, rows = [], []
    for num_proc in (None, 2):
        weighed = Dataset.load_from_disk(tmp_path / "data").map(weigh, batched=True, num_proc=num_proc)
        fingerprints.append(weighed._fingerprint), rows.append(weighed["weights"][:])
    assert rows[0] == rows[1] == [[weight for *_, weight in words] for words in weigher.weights(texts)]
    assert fingerprints[0] == fingerprints[1]


def tiny_pipeline():
    """A user's own pipeline: a tagger trained to call `blorp` a noun and `zing` a verb, beside a component to drop."""
    nlp = spacy.blank("en")
    nlp.add_pipe("morphologizer")
    nlp.add_pipe("ner")
    gold = {"words": ["the", "blorp", "zing"], "pos": ["DET", "NOUN", "VERB"], "entities": ["O", "O", "O"]}
    example = Example.from_dict(nlp.make_doc("the blorp zing"), gold)
    nlp.initialize(lambda: [example])
    for _ in range(30):
        nlp.update([example])
    return nlp


def test_a_pipeline_of_ones_own_replaces_the_bundled_tagger(tmp_path):
    tiny_pipeline().to_disk(tmp_path / "mine")
    weigher = WordWeigher(tagger=tmp_path / "mine")
    assert [content for *_, content in weigher.content_words(["the blorp zing"])[0]] == [False, True, True]
    (tmp_path / "saved").mkdir()
    weigher.save_pretrained(tmp_path / "saved")
    again = WordWeigher(tagger=tmp_path / "saved")
    assert again.content_words(["the blorp zing"]) == weigher.content_words(["the blorp zing"])
    assert "[components.ner]" not in (tmp_path / "saved" / "word_tagger.cfg").read_text()


def test_saved_table_is_plain_json_and_comes_back(weigher, tmp_path):
    fresh = WordWeigher(irrelevant_words=3, tagger=weigher.tagger).fit(["the café 😀", "the dog"])
    fresh.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "word_frequencies.json").read_text(encoding="utf-8")) == {
        "paragraphs": 2,
        "frequency": fresh.frequency,
    }

    def fetch(name):
        return tmp_path / name if (tmp_path / name).exists() else None

    again = WordWeigher.from_files(fetch, fresh.to_dict())
    assert pickle.dumps(again) == pickle.dumps(fresh)
    WordWeigher(tagger=weigher.tagger).save_pretrained(tmp_path)
    assert fetch("word_frequencies.json") is None  # an unfitted weigher leaves no stale table behind
    (tmp_path / "word_tagger.bin").unlink()
    with pytest.raises(FileNotFoundError, match="uniform"):
        WordWeigher.from_files(fetch, fresh.to_dict())


def test_bundled_tagger_is_small_and_states_where_it_comes_from():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 4 * 2**20
    assert "CC BY-SA 4.0" in (BUNDLED / "README.md").read_text()
    bundled = WordTagger.load(BUNDLED)
    assert bundled._built().meta["license"] == "CC BY-SA 4.0"
    assert "CC BY-SA 4.0" in bundled.config  # so that it travels with every saved processor


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda w: w.content_words("one string"), "list of strings"),
        (lambda w: w.content_words(["fine", 3]), "text 1 is int"),
        (lambda w: w.content_words(["fine", "bad \udcff byte"]), "text 1 is not valid Unicode"),
        (lambda w: w.weights(["a", "b"], ["only one"]), "2 texts but 1 paragraphs"),
        (lambda w: w.weights(["a"], ["a"]), r"fit\(paragraphs\)"),
        (lambda w: WordWeigher(content_weight=0), "content_weight=0"),
        (lambda w: WordWeigher(content_weight=math.nan), "content_weight=nan"),
        (lambda w: WordWeigher(irrelevant_words=-1), "irrelevant_words=-1"),
    ],
)
def test_mistakes_are_named(weigher, act, message):
    with pytest.raises(ValueError, match=message):
        act(weigher)


def test_an_unknown_pipeline_is_named_with_the_remedy():
    with pytest.raises(OSError, match="python -m spacy download no_such_pipeline"):
        WordWeigher(tagger="no_such_pipeline")


def test_without_spacy_the_error_names_the_command():
    script = """
        import sys
        sys.modules["spacy"] = None  # what Python itself records for a module that cannot be imported
        from dmae.processing.words_dmae import WordWeigher
        try:
            WordWeigher()
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert 'pip install "spacy>=3.8"' in done.stdout and "uniform" in done.stdout


def test_a_cache_is_asked_once_for_what_it_lacks_and_keeps_its_size_exactly():
    cache, asked = BoundedCache(2), []
    assert cache.many(["a", "b"], lambda keys: asked.append(keys) or [key * 2 for key in keys]) == ["aa", "bb"]
    assert asked == [["a", "b"]] and len(cache) == 2
    assert cache.many(["b", "a", "b"], pytest.fail) == ["bb", "aa", "bb"], "nothing is missing: nothing is computed"
    assert cache.many([], pytest.fail) == []
    assert cache.many(["c"], lambda keys: ["cc"]) == ["cc"] and list(cache._values) == ["a", "c"]
    assert cache.many(["x", "y", "z"], lambda keys: keys) == ["x", "y", "z"] and list(cache._values) == ["y", "z"]


def test_settings_are_numbers_at_their_bounds_and_words_as_they_are_found(weigher, tmp_path):
    fresh = WordWeigher(2.5, 3, weigher.tagger)
    assert fresh.to_dict() == {"content_weight": 2.5, "irrelevant_words": 3} and fresh.paragraphs == 0
    assert WordWeigher(1, 0, weigher.tagger).to_dict() == {"content_weight": 1.0, "irrelevant_words": 0}
    assert type(WordWeigher(1, 0, weigher.tagger).content_weight) is float
    assert WordWeigher().to_dict() == {"content_weight": 2.0, "irrelevant_words": 5}
    assert fresh.tagger is weigher.tagger, "a tagger that is loaded is taken as it is"
    with pytest.raises(ValueError, match="content_weight=inf: must be above 0; 1 switches part of speech off"):
        WordWeigher(content_weight=math.inf)
    with pytest.raises(ValueError, match=r"irrelevant_words=-1: must be 0 \(none\) or more"):
        WordWeigher(irrelevant_words=-1)
    none = WordWeigher(irrelevant_words=0, tagger=weigher.tagger).fit(["a dog", "a cat"])
    assert none.irrelevant(["a dog a dog"]) == [frozenset()]
    assert weigher.tagger.terms(["A  Dog's, tail!\n", ""]) == [["a", "dog", "'s", "tail"], []]
    (tmp_path / "copy").mkdir()
    weigher.tagger.save(tmp_path / "copy")
    again = WordTagger.load(tmp_path / "copy")
    assert (again.config, again.weights) == (weigher.tagger.config, weigher.tagger.weights)
    assert pickle.loads(pickle.dumps(again)).__getstate__() == again.__getstate__()


def test_what_was_weighed_is_forgotten_where_the_counts_change(weigher):
    fresh = WordWeigher(irrelevant_words=1, tagger=weigher.tagger).fit(["a dog", "a cat", "the bird"])
    assert fresh.irrelevant(["a the dog"]) == [{"a"}]
    assert fresh.fit(["the dog", "the cat", "a bird"]) is fresh
    assert fresh.irrelevant(["a the dog"]) == [{"the"}]


def test_texts_are_refused_by_their_place():
    assert words_dmae.checked_texts(("é", "a")) == ["é", "a"]
    for texts, message in (
        ("one", "expected a list of strings, got one string: 'one'"),
        (["a", None], "text 1 is NoneType, not a string: None"),
        (["a", "b\udcff"], "text 1 is not valid Unicode (it holds a lone surrogate): 'b\\udcff'"),
    ):
        with pytest.raises(ValueError) as raised:
            words_dmae.checked_texts(texts)
        assert str(raised.value) == message


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        ("spacy", WordWeigher, 'word weights need spaCy: pip install "spacy>=3.8". To do without them choose word_we'),
        ("spacy", words_dmae.import_spacy, 'word weights need spaCy: pip install "spacy>=3.8". To do without them'),
        ("sklearn", words_dmae.import_scikit_learn, "fitting word frequencies needs scikit-learn: pip install scikit"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_command(monkeypatch, package, call, message):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(ImportError) as raised:
        call()
    assert str(raised.value).startswith(message)
