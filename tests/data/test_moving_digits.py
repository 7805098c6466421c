"""MovingDigits: what the captions and the recorded near misses promise is true of the scenes and the files."""

import itertools
import json
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest

from dmae.data.moving_digits.captions import NUMBERS, VERBS, write_captions
from dmae.data.moving_digits.corpus import render_moving_digits
from dmae.data.moving_digits.frames import HANDWRITING, scene_frames
from dmae.data.moving_digits.scenes import (
    ATTRIBUTES,
    MOTIONS,
    PRESETS,
    Actor,
    Corpus,
    Scene,
    changed,
    differing_attribute,
    random_scene,
)
from dmae.evaluation.near_misses import near_miss_accuracy


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return render_moving_digits(tmp_path_factory.mktemp("digits") / "corpus", preset="tiny", seed=3, num_workers=1)


def rows_of(split):
    return [json.loads(line) for line in (split / "metadata.jsonl").read_text().splitlines()]


def scene_of(row):
    return Scene(tuple(Actor(**actor) for actor in row["actors"]), row["arrangement"])


def test_every_row_has_its_clip_and_the_clip_plays(corpus):
    for split in HANDWRITING:
        for row in rows_of(corpus / split):
            with av.open(str(corpus / split / row["file_name"])) as container:
                assert container.streams.video[0].codec_context.name == "h264"
                frames = sum(1 for _ in container.decode(video=0))
            assert 16 <= frames <= 20, "2 to 2.5 s at 8 frames per second"


def test_test_captions_are_unique_and_training_captions_vary(corpus):
    test = [row["captions"] for row in rows_of(corpus / "test")]
    assert all(len(captions) == 1 for captions in test)
    assert len({captions[0] for captions in test}) == len(test)
    assert all(len(set(row["captions"])) == 5 for row in rows_of(corpus / "train"))


def test_every_test_video_has_a_near_miss_that_differs_in_exactly_the_recorded_attribute(corpus):
    rows = {row["video_id"]: row for row in rows_of(corpus / "test")}
    for row in rows.values():
        assert row["near_misses"]
        for near in row["near_misses"]:
            one, other = scene_of(row), scene_of(rows[near["video_id"]])
            assert plain_difference(one, other) == [near["attribute"]]
    pairs = {(row["video_id"], *near.values()) for row in rows.values() for near in row["near_misses"]}
    assert {(b, a, name) for a, b, name in pairs} == pairs, "being a near miss is mutual"


def plain_difference(one, other):
    """The attributes that differ, written without the generator's own comparison."""
    if Counter(one.actors) == Counter(other.actors):
        return ["order"] if one.actors != other.actors else []
    return [
        name
        for a, b in zip(one.actors, other.actors, strict=True)
        for name in ("colour", "digit", "motion")
        if getattr(a, name) != getattr(b, name)
    ]


def test_captions_state_the_facts_of_the_scene():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = random_scene(Corpus(), rng)
        (caption,) = write_captions(scene, rng, 1, 0.5)
        places = []
        for actor in scene.actors:
            nouns = (f"{actor.colour}{noun} {NUMBERS[actor.digit]}" for noun in ("", " number", " digit"))
            fact = [f"{noun} {verb}" for noun in nouns for verb in VERBS[actor.motion]]
            found = [caption.find(text) for text in fact if text in caption]
            assert found, f"{actor} is not in {caption!r}"
            places.append(min(found))
        if scene.arrangement == "sequence":
            assert places == sorted(places), f"{caption!r} tells the order wrongly"


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_changed_scene_differs_in_that_attribute_only(attribute):
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = random_scene(Corpus(actors=(0.0, 0.5, 0.5), together=0.0), rng)
        assert differing_attribute(scene, changed(scene, attribute, Corpus(), rng)) == attribute


def test_order_means_nothing_for_digits_shown_together():
    actors = (Actor("red", 1, "up"), Actor("blue", 2, "down"))
    one, other = Scene(actors, "together"), Scene(actors[::-1], "together")
    assert one.key == other.key
    assert differing_attribute(one, other) is None


@pytest.mark.parametrize("motion", MOTIONS)
def test_digits_move_as_their_caption_says(motion):
    rng = np.random.default_rng(2)
    corpus = Corpus(distractors=0.0, noise=0.0, digit_size=(0.4, 0.4))
    frames = scene_frames(Scene((Actor("white", 8, motion),)), "train", corpus, rng).astype(float)
    mass = (frames - frames.min(axis=(1, 2), keepdims=True)).sum(-1)
    grid = np.arange(mass.shape[1])
    x = (mass.sum(1) * grid).sum(1) / mass.sum((1, 2))
    y = (mass.sum(2) * grid).sum(1) / mass.sum((1, 2))
    right, down, growth = x[-1] - x[0], y[-1] - y[0], mass[-1].sum() / mass[0].sum()
    expected = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0)}.get(motion, (0, 0, 0))
    seen = (np.sign(right) * (abs(right) > 10), np.sign(down) * (abs(down) > 10), 0)
    assert seen == expected
    assert (growth > 1.5, growth < 0.67) == (motion == "growing", motion == "shrinking")


def test_splits_use_different_handwriting():
    spans = sorted(HANDWRITING.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_same_arguments_same_bytes_and_nothing_is_rendered_twice(corpus, tmp_path):
    again = render_moving_digits(tmp_path / "again", preset="tiny", seed=3, num_workers=2)
    for file in sorted(path.relative_to(corpus) for path in corpus.rglob("*.*")):
        assert (again / file).read_bytes() == (corpus / file).read_bytes(), file
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    render_moving_digits(again, preset="tiny", seed=3)
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*")}


def test_another_corpus_in_the_way_is_refused_and_kept(corpus):
    before = (corpus / "corpus.json").read_text()
    with pytest.raises(ValueError, match="another MovingDigits corpus"):
        render_moving_digits(corpus, preset="tiny", seed=4)
    assert (corpus / "corpus.json").read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"speed": 3}, "no parameter 'speed'"),
        ({"colours": 2}, "more colours"),
        ({"colours": 4, "digits": (0, 1, 2, 3), "actors": (1.0,)}, "too few different scenes"),
    ],
)
def test_bad_parameters_are_refused_and_leave_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        render_moving_digits(tmp_path / "corpus", **{"preset": "demo", **changes})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_rendering_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmae.data.moving_digits.corpus.draw_clips", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render_moving_digits(tmp_path / "corpus", preset="tiny", num_workers=1, train=2, test_groups=1)
    assert list(tmp_path.iterdir()) == []


def test_datasets_reads_the_folder(corpus):
    import datasets

    loaded = datasets.load_dataset("json", data_files=str(corpus / "test" / "metadata.jsonl"), split="train")
    assert set(loaded.column_names) >= {"file_name", "video_id", "captions", "near_misses"}


def test_near_miss_accuracy_counts_wins_and_halves_ties():
    rows = [
        {
            "video_id": "a",
            "near_misses": [{"video_id": "b", "attribute": "digit"}, {"video_id": "c", "attribute": "order"}],
        },
        {"video_id": "b", "near_misses": [{"video_id": "a", "attribute": "digit"}]},
        {"video_id": "c", "near_misses": [{"video_id": "a", "attribute": "order"}]},
    ]
    scores = np.array([[3.0, 1.0, 3.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert near_miss_accuracy(scores, rows) == {"digit": 0.5, "order": 0.75}


def test_presets_are_valid():
    for name, corpus in PRESETS.items():
        assert abs(sum(corpus.actors) - 1) < 1e-9, name
        assert replace(corpus) == corpus


def test_rendering_touches_no_folder_of_the_users(tmp_path):
    """Only a name with this project's mark is cleared before and after; `corpus.rendering` may be anybody's."""
    (tmp_path / "corpus.rendering").mkdir()
    (tmp_path / "corpus.rendering" / "thesis.txt").write_text("mine")
    render_moving_digits(tmp_path / "corpus", preset="tiny", num_workers=1)
    assert (tmp_path / "corpus.rendering" / "thesis.txt").read_text() == "mine"
