"""What `--dry_run` prints, whole: splits, steps, parameters, memory, differences from the paper."""

from types import SimpleNamespace

import pytest
import torch

from dmae.training import plan
from dmae.training.build import build_model, build_processor, load_splits
from dmae.training.config import config_from_dict
from dmae.training.memory import Memory


@pytest.fixture
def recipe(tiny, miniature, tmp_path):
    made = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", max_steps=-1)
    made["training"] |= {"freeze": ["text_model"], "clip_learning_rate": 1e-5, "gradient_accumulation_steps": 2}
    return made


def test_a_plan_in_full(recipe, monkeypatch, tmp_path):
    built = []

    def build(config, processor):
        built.append(config.training.torch_compile)
        return build_model(config, processor)

    monkeypatch.setattr(plan, "build_model", build)
    recipe["training"]["torch_compile"] = True
    config = config_from_dict(recipe)
    splits = load_splits(config)
    model = build_model(
        config.model_copy(update={"training": config.training.model_copy(update={"torch_compile": False})}),
        build_processor(config, splits),
    )
    count = lambda parts: sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in parts) / 1e6  # noqa: E731
    text = count(["text_model"])
    clip = count(["vision_model", "text_projection", "visual_projection", "logit_scale"])
    new = sum(p.numel() for p in model.parameters()) / 1e6 - text - clip
    lines = plan.describe(config).split("\n")
    memory = next(line for line in lines if line.startswith("memory"))
    lines.remove(memory)
    parameters = lines.pop(3)
    assert set(parameters.removeprefix("parameters  ").split(", ")) == {
        f"{clip:.2f} M at clip_learning_rate 1e-05", f"{new:.2f} M at learning_rate 0.001", f"{text:.2f} M frozen",
    }  # fmt: skip
    assert lines == [
        f"recipe      {config.source}",
        "train       12 videos, 36 captions",
        "validation  4 videos, 12 captions",
        "batches     4 pairs over 1 processes",
        "negatives   3 for each pair in each direction; the 2 batches of a step do not add to them",
        "steps       4 over 2 epochs of 12 pairs",
        f"output      {tmp_path / 'out'}",
        "paper       has no results on videofolder; nothing to differ from",
    ]
    assert built == [False], "a plan compiles nothing"
    assert memory.endswith("activations of 4 pairs and gradients; torch.compile may change that")


def test_a_plan_of_a_variant_without_validation(recipe, tmp_path):
    recipe["training"] |= {"freeze": [], "gradient_accumulation_steps": 1, "clip_learning_rate": None, "max_steps": 5}
    recipe["data"]["validation_split"] = None
    config = config_from_dict(recipe).model_copy(update={"variant": "small"})
    text = plan.describe(config)
    assert text.startswith(f"recipe      {config.source}, variant small\ntrain       12 videos")
    assert "\nvalidation  none: the last model is taken\n" in text and "frozen" not in text
    assert "\nnegatives   3 for each pair in each direction\nsteps       5 over 2 epochs of 12 pairs\n" in text


def test_memory_in_words():
    options = lambda **words: SimpleNamespace(training=SimpleNamespace(**words))  # noqa: E731
    memory = Memory(2**30, 2**31, 3 * 2**29, 5 * 2**28)
    head = "memory      about 4.25 GiB per process at its peak, beside the program itself: weights 1.00, moments 2.00, "
    head += "gradients 1.50, and at the highest 1.25 for inputs, activations of "
    for chunk, compiled, tail in (
        (None, False, "8 pairs and gradients"),
        (2, False, "2 pairs and gradients"),
        (9, True, "8 pairs and gradients; torch.compile may change that"),
    ):
        told = plan._describe_memory(memory, options(gradient_cache_chunk=chunk, torch_compile=compiled), 8)
        assert told == head + tail


def test_lost_videos_in_words():
    missing = [{"video_id": f"v{number}", "reason": "no such file"} for number in range(5)]
    report = {"split": "train", "listed_videos": 20}
    lines = plan._describe_lost(SimpleNamespace(missing=missing, report=report), 0.1)
    assert lines[:4] == [
        *[f"  missing   v{n}: no such file" for n in range(3)],
        "  missing   2 more; `dmae prepare` names them all",
    ]
    assert len(lines) == 5 and lines[4].startswith(
        "  REFUSED   5 of 20 train videos are lost: 5 missing (first: v0: no such file);"
    )
    assert plan._describe_lost(SimpleNamespace(missing=missing[:3], report=report), 0.5) == lines[:3]
    four = plan._describe_lost(SimpleNamespace(missing=missing[:4], report=report), 0.5)
    assert four == [*lines[:3], "  missing   1 more; `dmae prepare` names them all"]
    sizes = {"videos": 3, "captions": 7, "published_videos": [], "missing_videos": 0}
    assert plan._describe_split(sizes) == "3 videos, 7 captions"
    more = {**sizes, "published_videos": [10, 12], "missing_videos": 2}
    assert plan._describe_split(more) == "3 videos, 7 captions, 2 missing (published: 10 or 12)"


def test_nothing_differs_from_the_paper_where_all_is_the_paper_s():
    config = SimpleNamespace(
        data=SimpleNamespace(name="msvd"),
        to_dict=lambda: {
            section: {name.split(".")[1]: value for name, value in plan.PAPER.items() if name.startswith(section)}
            for section in ("data", "training")
        },
    )
    words = {
        name.split(".")[1]: value for name, value in {**plan.PAPER, **plan.SHORT}.items() if name.startswith("model")
    }
    model = SimpleNamespace(to_dict=lambda: words)
    assert plan.differences_from_paper(config, model, 128) == ["differs     from the paper in nothing that it states"]
    assert plan.differences_from_paper(config, model, 64) == ["differs     global batch 64 (paper: 128)"]
    words["max_words"] = 77
    assert plan.differences_from_paper(config, model, 128) == ["differs     model.max_words 77 (paper: 32)"]


@pytest.mark.parametrize("word", ["from_clip", "from_pretrained"])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(word, recipe, tmp_path):
    recipe["model"] = {word: str(tmp_path / "clpi")}
    with pytest.raises(FileNotFoundError, match=r"clpi: no such model folder$"):
        plan.describe(config_from_dict(recipe))


def test_memory_is_that_of_the_largest_share_of_a_batch(recipe, monkeypatch):
    asked = []

    def estimate(*words):
        asked.append(words[-2:])
        return Memory(1, 1, 1, 1)

    one = plan.make_accelerator(config_from_dict(recipe))
    monkeypatch.setattr(plan, "make_accelerator", lambda config: SimpleNamespace(num_processes=3, device=one.device))
    monkeypatch.setattr(plan, "estimate", estimate)
    text = plan.describe(config_from_dict(recipe))
    assert asked == [(2, 3)] and "batches     4 pairs over 3 processes" in text and "activations of 2 pairs" in text


def test_frames_have_clip_s_size_where_a_new_tower_does_not_say_its_own(recipe):
    del recipe["model"]["vision_config"]["image_size"]
    config = config_from_dict(recipe)
    assert build_processor(config, load_splits(config)).feature_extractor.size == 224


def test_parameters_are_counted_to_the_last_one(recipe):
    """A hundredth of a million is shown: 4,999 are none of it, and 5,001 in two are one."""
    config = config_from_dict(recipe)

    def told(*sizes: int) -> list[str]:
        weights = [(f"temporal.{number}", torch.zeros(size, requires_grad=True)) for number, size in enumerate(sizes)]
        frozen = torch.zeros(14_000)
        parameters = lambda: [*(weight for _, weight in weights), frozen]  # noqa: E731
        model = SimpleNamespace(named_parameters=lambda: [*weights, ("text_model.a", frozen)], parameters=parameters)
        return plan._describe_parameters(model, config)

    for sizes, shown in (((4999,), "0.00"), ((2500, 2499), "0.00"), ((2501, 2500), "0.01")):
        assert told(*sizes) == [f"parameters  {shown} M at learning_rate 0.001, 0.01 M frozen"]
