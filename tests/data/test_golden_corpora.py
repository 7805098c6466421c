"""The same arguments go on giving the same corpus: see tests/golden/make_corpora.py; and files hold what is drawn."""

import importlib.util
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dmae.data import rendering
from dmae.data.moving_digits import corpus as digits
from dmae.data.moving_digits import frames as digit_frames
from dmae.data.moving_digits.scenes import Actor
from dmae.data.moving_digits.scenes import Scene as DigitScene
from dmae.data.moving_objects import captions as telling
from dmae.data.moving_objects import corpus as objects
from dmae.data.moving_objects import frames as drawing
from dmae.data.moving_objects import scenes
from dmae.data.moving_objects.scenes import Collection, Scene, Shot, Thing, World
from dmae.data.rendering import distinct, encode_clip, rendered_folder, with_overrides
from dmae.files import partial_name

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = {"train": 2, "validation_groups": 1, "test_groups": 1}


@pytest.fixture(scope="module")
def golden():
    spec = importlib.util.spec_from_file_location("make_corpora", GOLDEN / "make_corpora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["moving_digits.json", "moving_objects.json", "miniatures.json"])
def test_scenes_captions_and_annotation_files_are_those_of_before(golden, name):
    made = json.loads(json.dumps(golden.MADE[name]()))  # without tuples
    assert made == json.loads((GOLDEN / "corpora" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["moving_digits.png", "moving_objects.png", "miniatures.png"])
def test_pictures_are_those_of_before(golden, name):
    expected, found = np.asarray(Image.open(GOLDEN / "corpora" / name)).astype(int), golden.MADE[name]()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1, "another machine's sine may round otherwise, no more"


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 8
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def lines_of(split: Path) -> list[dict]:
    return [json.loads(line) for line in (split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def shown(monkeypatch):
    """What the bar is told: its words, then every step."""
    told = []

    class Bar:
        def __init__(self, *words):
            told.append(words)

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(rendering, "progress", Bar)
    return told


def test_every_file_of_moving_digits_shows_its_row(tmp_path, shown):
    partial_name(tmp_path / "c").mkdir()
    (partial_name(tmp_path / "c") / "train").mkdir()  # of a run that was killed
    folder = digits.render_moving_digits(tmp_path / "c", "tiny", seed=3, num_workers=1, **SMALL)
    assert folder == tmp_path / "c" and not partial_name(folder).exists()
    world = with_overrides("MovingDigits", digits.PRESETS, "tiny", SMALL)
    clips = 0
    for number, split in enumerate(digit_frames.HANDWRITING):
        rows = list(digits._split_rows(split, world, np.random.default_rng([3, number])))
        assert lines_of(folder / split) == [row for _, row in rows]
        for index, (scene, row) in enumerate(rows):
            rng = np.random.default_rng([3, number, index, 7])
            expected, found = (
                digit_frames.scene_frames(scene, split, world, rng),
                decoded(folder / split / row["file_name"]),
            )
            assert found.shape == expected.shape and np.abs(found - expected.astype(int)).mean() < 12
        clips += len(rows)
    assert shown == [(clips, "rendering", "clips"), *[1] * clips]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == digits.corpus_card(world, 3) and "2 training videos, 1 validation and 1 test groups" in card
    manifest = (folder / "corpus.json").read_text(encoding="utf-8")
    assert manifest.startswith('{\n "name": "MovingDigits",\n "version": 1,\n "seed": 3,\n') and manifest[-2:] == "}\n"


def test_every_file_of_moving_objects_shows_its_row(tmp_path, shown):
    options = SMALL | {"validation_singles": 0, "test_singles": 1, "near_misses": 0.0, "seconds": 1.0}
    folder = objects.render_moving_objects(tmp_path / "c", "tiny", seed=3, num_workers=1, **options)
    world = with_overrides("MovingObjects", objects.PRESETS, "tiny", options)
    clips = objects.corpus_clips(world, 3)
    for split, made in clips.items():
        assert lines_of(folder / split) == json.loads(json.dumps([clip.row() for clip in made]))
        for clip in made:
            expected = drawing.scene_frames(clip.scene, world, list(clip.seed))
            found = decoded(folder / split / f"{clip.video_id}.mp4")
            assert found.shape == expected.shape == (8, 48, 48, 3)
            assert np.abs(found - expected.astype(int)).mean() < 12
    assert len(shown) == 1 + sum(map(len, clips.values()))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == objects.corpus_card(world, 3) and "48 pixels, 1 s at 8 frames per second, seed 3." in card
    manifest = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    assert manifest["world"]["shots"] == list(world.shots)
    assert {name: manifest[name] for name in ("name", "version", "seed")} == {
        "name": "MovingObjects", "version": 1, "seed": 3
    }  # fmt: skip


def test_a_clip_has_its_pixels_a_key_frame_a_dozen_and_its_rate(tmp_path):
    frames = np.zeros((30, 32, 48, 3), dtype=np.uint8)
    frames[:, :, :24] = (200, 30, 60)
    encode_clip(tmp_path / "a.mp4", frames, 8)
    found = decoded(tmp_path / "a.mp4")
    assert found.shape == frames.shape and np.abs(found - frames.astype(int)).mean() < 6
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [n for n, frame in enumerate(container.decode(video=0)) if frame.key_frame] == [0, 12, 24]


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    def fill(folder):
        folder.mkdir()
        (folder / "clip").write_text("x")

    manifest = {"name": "MovingDigits", "sizes": (1, 2)}
    for _ in range(2):  # a tuple is a list once it is written
        assert rendered_folder(tmp_path / "c", manifest, "the card", fill) == tmp_path / "c"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["README.md", "clip", "corpus.json"]
    with pytest.raises(ValueError, match="c already holds another MovingDigits corpus; remove it or choose another"):
        rendered_folder(tmp_path / "c", manifest | {"sizes": (1, 3)}, "the card", fill)
    (tmp_path / "c" / "corpus.json").unlink()
    with pytest.raises(ValueError, match="c already holds something else; remove it"):
        rendered_folder(tmp_path / "c", manifest, "the card", fill)
    assert (tmp_path / "c" / "clip").read_text() == "x"


def test_unknown_presets_and_parameters_list_the_known(tmp_path):
    with pytest.raises(ValueError) as raised:
        with_overrides("X", {"a": World(), "b": World()}, "c", {})
    assert str(raised.value) == "X has no preset 'c'; choose one of a, b"
    with pytest.raises(ValueError, match="X has no parameter 'aa'; it has filler, irrelevant, "):
        with_overrides("X", {"a": World()}, "a", {"zz": 1, "aa": 2, "size": 3})
    assert with_overrides("X", {"a": World(), "b": World(size=7)}, "b", {"fps": 3}) == World(size=7, fps=3)
    assert distinct(lambda: "", 0) == []


def failing(job):
    raise OSError(28, "No space left on device")


def test_the_first_error_of_a_worker_ends_the_drawing(shown, monkeypatch):
    asked = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, workers):
            asked.append(workers)
            super().__init__(1)

        def shutdown(self, wait=True, *, cancel_futures=False):
            asked.append(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(rendering, "ProcessPoolExecutor", Pool)
    with pytest.raises(OSError, match="No space left"):
        rendering.draw_clips(failing, [1, 2], 3)
    assert shown == [(2, "rendering", "clips")]
    assert asked[:2] == [3, True], "what waits is not drawn any more"
    asked.clear()
    rendering.draw_clips(print, [], None)
    assert asked[0] == os.cpu_count()


def thing(noun: str, motion: str = "still", colour: str = "red") -> Thing:
    return Thing(noun, colour, "plain", motion)


def test_a_clip_has_room_for_as_many_shots_as_slots():
    names = ["cat", "sun", "moon", "star", "cow", "cup", "pen"]
    full = Scene(tuple(Shot((thing(name),)) for name in names[:6]))
    for draw in range(20):
        segments = drawing.timeline(full, World(irrelevant=0.9), np.random.default_rng(draw))
        assert [(part.first, part.last, part.shot) for part in segments] == [(n, n + 1, n) for n in range(6)]
    with pytest.raises(ValueError, match=r"^a clip has room for 6 shots, not 7$"):
        drawing.timeline(Scene(tuple(Shot((thing(name),)) for name in names)), World(), np.random.default_rng(0))


def test_a_world_without_another_scene_says_so(monkeypatch):
    scene = Scene((Shot((thing("cat"),)),))
    monkeypatch.setattr(scenes, "random_scene", lambda world, rng: scene)
    seen, rng = Collection(), np.random.default_rng(0)
    assert scenes.unused_scene(World(), rng, seen) is scene
    with pytest.raises(ValueError, match="MovingObjects: 2000 draws gave no unused scene; ask for fewer videos"):
        scenes.unused_scene(World(), rng, seen)
    with pytest.raises(ValueError, match="another scene shows all of this one: Scene"):
        telling.facts_apart(scene, telling.Truth([scene, scene]), None, rng, 0.5)


def test_one_scene_is_in_another_where_its_shots_are_there_in_order():
    cat, sun, cup = (Shot((thing(name),)) for name in ("cat", "sun", "cup"))
    pair = Shot((thing("cat"), thing("sun")), "row")
    for shots, part, there in [
        ((cat, sun, cup), (cat, cup), True), ((cat, sun, cup), (cup, cat), False), ((cat,), (cat, cat), False),
        ((cat, cat), (cat, cat), True), ((pair, cup), (sun, cup), True), ((sun,), (pair,), False),
        ((pair,), (pair,), True), ((pair,), (Shot(pair.things, "column"),), False), ((cat,), (cat, sun), False),
    ]:  # fmt: skip
        assert scenes.contains(Scene(shots), Scene(part)) == there
    seen = Collection()
    assert seen.add(Scene((cat, sun))) and not seen.add(Scene((sun,))) and not seen.add(Scene((cat, cup, sun)))
    assert seen.add(Scene((sun, cat))) and seen.add(Scene((cup,))) and not seen.add(Scene((cup, cat)))


def test_what_is_told_twice_is_shown_twice():
    cat, sun = (Shot((thing(name),)) for name in ("cat", "sun"))
    told, other = (telling.ToldShot((telling.ToldThing(name, None, None, None),), None) for name in ("cat", "sun"))
    for facts, shots, true in [
        ((told,), (cat,), True), ((told, told), (cat,), False), ((told, told), (cat, sun, cat), True),
        ((told, other), (sun, cat), False), ((told, other), (cat, cat, sun), True), ((other,), (cat,), False),
    ]:  # fmt: skip
        assert telling.holds(facts, Scene(shots)) == true


def test_scenes_differ_in_one_attribute_or_in_none_that_has_a_name():
    one, two, three = thing("cat"), thing("sun"), thing("cup")
    row, base = Shot((one, two), "row"), Scene((Shot((one,)), Shot((two,)), Shot((three,))))
    for left, right, name in [
        (base, base, None),
        (base, Scene(base.shots[:2]), None),
        (Scene((Shot((one,)),)), Scene((Shot((thing("cat", "up"),)), Shot((two,)))), None),
        (base, Scene((base.shots[1], base.shots[0], base.shots[2])), "order"),
        (base, Scene((base.shots[1], base.shots[2], base.shots[0])), None),
        (Scene((row,)), Scene((Shot((two, one), "row"),)), "place"),
        (Scene((row,)), Scene((Shot((two, one), "column"),)), None),
        (Scene((row,)), Scene((Shot((one, two), "column"),)), None),
        (Scene((row,)), Scene((Shot((one,)),)), None),
        (Scene((row,)), Scene((Shot((one, three), "row"),)), "object"),
        (Scene((row,)), Scene((Shot((three, thing("pen")), "row"),)), None),
        (Scene((Shot((one,)),)), Scene((Shot((thing("cat", "up"),)),)), "motion"),
        (Scene((Shot((one,)),)), Scene((Shot((thing("cat", "up", "blue"),)),)), None),
        (base, Scene((Shot((thing("cat", "up"),)), Shot((thing("sun", "up"),)), Shot((three,)))), None),
    ]:
        assert scenes.differing_attribute(left, right) == scenes.differing_attribute(right, left) == name


def test_digits_differ_in_one_attribute_or_in_none_that_has_a_name():
    red, blue, cyan = Actor("red", 1, "up"), Actor("blue", 2, "down"), Actor("cyan", 3, "left")
    base = DigitScene((red, blue, cyan))
    for other, name in [
        (base, None),
        (DigitScene((red, blue)), None),
        (DigitScene((Actor("red", 1, "left"), blue)), None),
        (DigitScene((Actor("red", 1, "left"), blue, cyan), "together"), None),
        (DigitScene((red, blue, cyan), "together"), None),
        (DigitScene((blue, red, cyan)), "order"),
        (DigitScene((blue, cyan, red)), None),
        (DigitScene((Actor("red", 1, "left"), blue, cyan)), "motion"),
        (DigitScene((red, blue, Actor("cyan", 4, "left"))), "digit"),
        (DigitScene((Actor("white", 1, "left"), blue, cyan)), None),
    ]:
        assert digits.differing_attribute(base, other) == digits.differing_attribute(other, base) == name
