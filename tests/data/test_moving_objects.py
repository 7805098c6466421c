"""MovingObjects: what captions and recorded near misses promise is true of the scenes, the dials turn, files play."""

import itertools
import json
from dataclasses import replace

import av
import numpy as np
import pytest

from dmae.data.moving_objects import corpus as making
from dmae.data.moving_objects import frames as drawing
from dmae.data.moving_objects.captions import Truth, draw_facts, holds, say
from dmae.data.moving_objects.corpus import corpus_clips, render_moving_objects
from dmae.data.moving_objects.frames import SLOTS, scene_frames, timeline
from dmae.data.moving_objects.scenes import (
    ATTRIBUTES,
    PRESETS,
    Scene,
    Shot,
    Thing,
    World,
    changed,
    contains,
    differing_attribute,
    possible_changes,
    random_scene,
)
from dmae.data.moving_objects.vocabulary import HEDGES, MOTIONS, OBJECTS, OPENINGS, TEXTURES

SMALL = replace(PRESETS["tiny"], train=60, test_groups=8, test_singles=20)


@pytest.fixture(scope="module")
def clips():
    return corpus_clips(SMALL, seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return render_moving_objects(tmp_path_factory.mktemp("objects") / "corpus", preset="tiny", seed=3, num_workers=1)


def test_no_scene_shows_all_of_another(clips):
    scenes = [clip.scene for split in clips.values() for clip in split]
    for one, other in itertools.permutations(scenes, 2):
        assert not contains(one, other)


def test_captions_say_only_what_is_shown(clips):
    for clip in itertools.chain(*clips.values()):
        nouns = {thing.noun for shot in clip.scene.shots for thing in shot.things}
        for caption in clip.captions:
            words = caption.replace(",", "").split()
            assert {word for word in words if word in OBJECTS} <= nouns, caption


def test_a_test_caption_is_true_of_its_own_video_alone(clips, monkeypatch):
    """Facts are drawn again with `say` watched, so that what each caption states is known."""
    told = {}
    monkeypatch.setattr(making, "say", _recording(told))
    again = corpus_clips(SMALL, seed=3)
    assert again == clips
    for split in ("validation", "test"):
        scenes = [clip.scene for clip in again[split]]
        for index, clip in enumerate(again[split]):
            facts = told[clip.captions[0]]
            assert [k for k, scene in enumerate(scenes) if holds(facts, scene)] == [index]
    for clip in again["train"]:
        family = [other.scene for other in again["train"] if other.family == clip.family]
        for caption in clip.captions:
            assert sum(holds(told[caption], scene) for scene in family) == 1


def _recording(told):
    def recorded(facts, rng, filler):
        text = say(facts, rng, filler)
        told[text] = facts
        return text

    return recorded


def test_the_index_of_truths_agrees_with_looking_at_every_scene(clips):
    scenes = [clip.scene for clip in clips["train"]]
    truth, rng = Truth(scenes), np.random.default_rng(0)
    for scene in scenes:
        facts = draw_facts(scene, rng, 0.4)
        true_of = [k for k, other in enumerate(scenes) if holds(facts, other)]
        assert truth.of(facts) == true_of
        assert truth.of(facts, set(range(0, len(scenes), 2))) == [k for k in true_of if k % 2 == 0]


def test_a_video_of_which_little_can_be_said_repeats_its_captions():
    """Without filler, where all must be told, only the motion's verbs differ: asking for more would never end."""
    base = Thing("envelope", "white", "plain", "up")
    others = [replace(base, **{name: value}) for name, value in
              (("colour", "red"), ("texture", "striped"), ("motion", "still"))]  # fmt: skip
    family = [Scene((Shot((thing,)),)) for thing in (base, *others)]
    world, rng = replace(SMALL, filler=0.0), np.random.default_rng(4)
    captions = making._captions(family[0], Truth(family), {0, 1, 2, 3}, world, rng)
    assert len(captions) == world.captions == 5
    assert set(captions) == {f"a plain white envelope {verb}" for verb in MOTIONS["up"]}


def test_order_and_place_decide_whether_facts_hold():
    one, two = Thing("cat", "red", "plain", "up"), Thing("anchor", "blue", "plain", "still")
    scene = Scene((Shot((one,)), Shot((two,))))
    beside = Scene((Shot((one, two), "row"),))
    rng = np.random.default_rng(0)
    everything = draw_facts(scene, rng, 1.0)
    assert holds(everything, scene) and not holds(everything, Scene(scene.shots[::-1]))
    placed = draw_facts(beside, rng, 1.0)
    assert holds(placed, beside) and not holds(placed, Scene((Shot((two, one), "row"),)))
    assert not holds(placed, Scene((Shot((one, two), "column"),)))


def test_recorded_near_misses_differ_in_exactly_their_attribute(clips):
    by_id = {clip.video_id: clip for clip in clips["test"]}
    found = set()
    for clip in clips["test"]:
        for other, attribute in clip.near_misses:
            assert differing_attribute(clip.scene, by_id[other].scene) == attribute
            found.add(attribute)
    assert found == set(ATTRIBUTES)


def test_a_change_changes_what_it_says():
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = random_scene(World(shots=(0.3, 0.4, 0.3)), rng)
        for attribute in possible_changes(scene):
            assert differing_attribute(scene, changed(scene, attribute, rng)) == attribute


def test_filler_says_nothing_and_follows_its_dial():
    rng = np.random.default_rng(2)
    scene = random_scene(World(), rng)
    facts = draw_facts(scene, rng, 1.0)
    bare = [say(facts, rng, 0.0) for _ in range(50)]
    full = [say(facts, rng, 1.0) for _ in range(50)]
    assert not any(words.strip() in text for text in bare for words in (*OPENINGS, *HEDGES))
    assert all(any(text.startswith(words) for words in OPENINGS) for text in full)
    assert min(len(text.split()) for text in full) > min(len(text.split()) for text in bare) + 2


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_title_cards_take_their_share_of_the_time(share):
    rng = np.random.default_rng(3)
    world = World(irrelevant=share, shots=(0.5, 0.5))
    parts = [timeline(random_scene(world, rng), world, rng) for _ in range(400)]
    cards = [sum(p.last - p.first for p in segments if p.shot is None) / SLOTS for segments in parts]
    assert abs(np.mean(cards) - share) < 0.03
    for segments in parts:
        assert [p.first for p in segments] == [0, *(p.last for p in segments[:-1])] and segments[-1].last == SLOTS
        shown = [p.shot for p in segments if p.shot is not None]
        assert shown == sorted(set(shown))


def test_families_are_the_share_of_training_videos_that_the_dial_says():
    for share in (0.0, 0.5, 1.0):
        train = corpus_clips(replace(SMALL, near_misses=share), seed=1)["train"]
        sizes = np.bincount([clip.family for clip in train])
        assert len(train) == SMALL.train and (sizes == 4).sum() * 4 == round(share * SMALL.train / 4) * 4


def test_what_is_captioned_is_what_is_seen():
    """Colour, motion and place can be measured in the frames."""
    still = replace(SMALL, irrelevant=0.0, frozen=0.0, noise=0.0, pose=0.0, size=64)
    red, blue = Thing("square", "red", "plain", "still"), Thing("square", "blue", "plain", "still")
    rows = scene_frames(Scene((Shot((red, replace(blue, noun="circle")), "row"),)), still, [0], 4).astype(float)
    redness = rows[..., 0] - rows[..., 2]
    assert redness[:, :, :32].max() > 80 and redness[:, :, 32:].min() < -80
    rising = scene_frames(Scene((Shot((replace(red, motion="up"),)),)), still, [0], 6).astype(float)
    heights = [np.argwhere(frame[..., 0] - frame[..., 2] > 80)[:, 0].mean() for frame in rising]
    assert all(np.diff(heights) < -1)
    growing = scene_frames(Scene((Shot((replace(red, motion="growing"),)),)), still, [0], 6).astype(float)
    assert all(np.diff([(frame[..., 0] - frame[..., 2] > 80).sum() for frame in growing]) > 0)
    frozen = scene_frames(Scene((Shot((replace(red, motion="up"),)),)), replace(still, frozen=1.0), [0], 6)
    assert (frozen[2:] == frozen[2]).all() and not (frozen[0] == frozen[1]).all()


def test_textures_differ_inside_the_glyph():
    still = replace(SMALL, irrelevant=0.0, noise=0.0, pose=0.0, size=96)
    spread = {}
    for texture in TEXTURES:
        picture = scene_frames(Scene((Shot((Thing("square", "white", texture, "still"),)),)), still, [4], 1)[0]
        spread[texture] = picture[36:60, 36:60].astype(float).std()
    assert spread["plain"] < 20 < min(spread["striped"], spread["spotted"])


def test_every_object_is_a_glyph_of_its_own():
    """A code point that the font lacks would be drawn as the same empty box."""
    masks = {noun: drawing._glyph(noun) for noun in OBJECTS}
    missing = drawing._letter_mask(chr(0x10FFFD))
    assert len(OBJECTS) >= 60
    for one, other in itertools.combinations(masks, 2):
        assert np.abs(masks[one] - masks[other]).mean() > 0.01, (one, other)
    assert all(np.abs(mask - missing).mean() > 0.01 for mask in masks.values())


def test_the_tagger_knows_the_words():
    """The premise of textual attention: objects, colours and verbs of motion count as content words."""
    from dmae.processing.words_dmae import WordWeigher

    texts, wanted = [], []
    for noun in OBJECTS:
        texts.append(f"in this clip a red {noun} rises above a blue circle")
        wanted.append(noun)
    found = 0
    for text, noun, words in zip(texts, wanted, WordWeigher().content_words(texts)):
        content = {text[start:end] for start, end, is_content in words if is_content}
        found += noun in content and {"red", "blue"} <= content
    assert found >= 0.95 * len(texts)
    verbs = [f"a red cat {verb.split()[0]}" for forms in MOTIONS.values() for verb in forms]
    tagged = WordWeigher().content_words(verbs)
    assert np.mean([words[-1][2] for words in tagged]) > 0.85


def test_files_play_and_are_the_same_again(corpus, tmp_path):
    rows = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == PRESETS["tiny"].train
    with av.open(str(corpus / "train" / rows[0]["file_name"])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 48)
        assert sum(1 for _ in container.decode(video=0)) == 24
    assert render_moving_objects(corpus, preset="tiny", seed=3) == corpus, "left as it is"
    with pytest.raises(ValueError, match="another MovingObjects corpus"):
        render_moving_objects(corpus, preset="tiny", seed=4)


@pytest.mark.parametrize("wrong, message", [({"preset": "huge"}, "no preset 'huge'"), ({"fillers": 1}, "'fillers'")])
def test_unknown_words_are_refused_by_name(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        render_moving_objects(tmp_path / "x", **wrong)
    assert not list(tmp_path.iterdir())
