"""What a run is built of is what its recipe says: accelerator, splits, batches, processor, model."""

import json
from types import SimpleNamespace

import pytest
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.training import build
from dmae.training.build import build_model, build_processor, global_batch_size, make_accelerator, make_schedule
from dmae.training.config import config_from_dict


@pytest.fixture
def recipe(tiny, miniature, tmp_path):
    return tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out")


def noted(given: list, **attributes):
    """Stands for a maker: notes what it is called with and gives an object with `attributes`."""
    return lambda *arguments, **words: given.append((*arguments, words)) or SimpleNamespace(**attributes)


# ---- accelerator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "precision"), [({}, None), ({"bf16": True}, "bf16"), ({"fp16": True}, "fp16")])
def test_accelerate_is_given_the_recipe_s_words(said, precision, recipe, tmp_path, monkeypatch):
    """None leaves the precision to `accelerate launch`."""
    given = []
    monkeypatch.setattr(build, "Accelerator", noted(given, distributed_type=DistributedType.NO))
    monkeypatch.setattr(build, "get_available_trackers", lambda: ["tensorboard", "wandb"])
    trackers = ["wandb"] if said else []
    recipe["training"] |= {"gradient_accumulation_steps": 3, "report_to": trackers, **said}
    make_accelerator(config_from_dict(recipe))
    ((words,),) = given
    (parallel,), project = words.pop("kwargs_handlers"), words.pop("project_config")
    assert words == {"mixed_precision": precision, "gradient_accumulation_steps": 3, "log_with": trackers or None}
    assert parallel.to_kwargs() == {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    assert (project.project_dir, project.logging_dir) == (str(tmp_path / "out"), str(tmp_path / "out" / "tensorboard"))


def test_a_tracker_that_there_is_not_and_parameters_in_pieces_are_refused(recipe, monkeypatch):
    monkeypatch.setattr(build, "get_available_trackers", lambda: ["tensorboard"])
    recipe["training"]["report_to"] = ["tensorboard", "wandb", "aim"]
    told = r"^training\.report_to: aim, wandb is unknown to Accelerate or not installed$"
    with pytest.raises(ValueError, match=told):
        make_accelerator(config_from_dict(recipe))
    recipe["training"]["report_to"] = ["tensorboard"]
    monkeypatch.setattr(build, "Accelerator", noted([], distributed_type=DistributedType.FSDP))
    with pytest.raises(ValueError, match="FSDP keeps parameters in pieces"):
        make_accelerator(config_from_dict(recipe))


def test_a_process_that_trains_twice_may_change_its_precision(recipe):
    try:
        for bf16, precision in ((False, "no"), (True, "bf16"), (False, "no")):
            recipe["training"]["bf16"] = bf16
            assert make_accelerator(config_from_dict(recipe)).mixed_precision == precision
    finally:
        AcceleratorState._reset_state()


# ---- splits and batches -----------------------------------------------------------------------------------------


def test_every_split_is_asked_for_where_the_recipe_says(monkeypatch, recipe):
    asked = []

    videos = lambda name, words: name  # noqa: E731

    def load(name, *places, **words):
        asked.append((name, *places, words))
        return SimpleNamespace(
            dataset={"video_id": [words.get("split", name)], "video": [videos(name, words)]}, report={}
        )

    monkeypatch.setattr(build, "load_dataset", load)
    monkeypatch.setattr(build, "mixed", lambda first, others: first)
    where = {"annotations": "A", "videos": "V", "holdout": 3}
    more = {"name": "msvd", "annotations": "B", "videos": "W", "split": "test"}
    recipe["data"] |= {"name": "didemo", "train_split": "most", "validation_split": "rest", **where, "mix": [more]}
    with pytest.raises(ValueError, match=r"^1 videos, e\.g\. 'didemo', are in both training and rest"):
        build.load_splits(config_from_dict(recipe))
    first, second = ("didemo", {"split": "most", **where}), ("msvd", "B", "W", "test", {})
    assert asked == [first, second, ("didemo", {"split": "rest", **where})]
    recipe["data"]["validation_split"] = None
    assert build.load_splits(config_from_dict(recipe)).validation is None and asked[3:] == [first, second]
    recipe["data"] |= {"validation_split": "most", "mix": []}
    with pytest.raises(ValueError, match=r"^1 videos, e\.g\. 'most', are in both"):
        build.load_splits(config_from_dict(recipe))
    recipe["data"] |= {"validation_split": "rest", "mix": [more]}
    videos = lambda name, words: words.get("split", name)  # noqa: E731
    build.load_splits(config_from_dict(recipe))  # as is right for others
    recipe["data"]["mix"], videos = [], lambda name, words: name  # one file in two splits of one set: clips of it
    assert build.load_splits(config_from_dict(recipe)).validation.dataset["video_id"] == ["rest"]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_smallest_batch_has_two_pairs_and_one_for_every_process(world):
    def size(of_all, of_each):
        words = SimpleNamespace(train_batch_size=of_all, per_device_train_batch_size=of_each)
        return global_batch_size(SimpleNamespace(training=words), world)

    smallest = max(2, world)
    assert size(smallest, None) == smallest and size(None, 2) == 2 * world and size(7, None) == 7
    for of_all, of_each in ((smallest - 1, None), (None, None)):
        with pytest.raises(
            ValueError, match=f"^a global batch of {of_all or 0} on {world} processes: .* needs 2 pairs"
        ):
            size(of_all, of_each)


def test_a_batch_may_be_all_videos_and_no_more(recipe):
    rows = [{"captions": ["a"], "set": number % 2} for number in range(4)]
    assert make_schedule(config_from_dict(recipe), rows, 1).weights is None
    with pytest.raises(ValueError, match=r"^a batch of 4 pairs needs as many videos, .* there are 3; .* to 3 or less$"):
        make_schedule(config_from_dict(recipe), rows[:3], 1)
    recipe["data"] |= {"weight": 2.0, "mix": [{"name": "msvd", "weight": 0.5}]}
    schedule = make_schedule(config_from_dict(recipe), rows, 1)
    assert (schedule.weights, schedule.shards) == ([2.0, 0.5, 2.0, 0.5], None)
    del rows[2]["set"]  # without it: of the first
    assert make_schedule(config_from_dict(recipe), rows, 1).weights == [2.0, 0.5, 2.0, 0.5]


# ---- processor and model ----------------------------------------------------------------------------------------


def checkpoint(folder, kind: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return str(folder)


def test_a_checkpoint_s_processor_is_given_the_recipe_s_words(recipe, monkeypatch, tmp_path):
    """A video tower has its own frames; a checkpoint of this project its own weigher too."""
    given, words = [], {"max_words": 9, "word_weighting": "tf_idf"}
    monkeypatch.setattr(build.DMAEProcessor, "from_clip", noted(given))
    monkeypatch.setattr(build.DMAEProcessor, "from_pretrained", noted(given))
    monkeypatch.setattr(build, "_word_weigher", lambda config, splits: "fitted" if splits == "splits" else None)
    recipe["processor"] = {"sampling": "segment_random"}
    names = {kind: checkpoint(tmp_path / kind, kind) for kind in ("clip", "dmae")}
    video = next(iter(build.VIDEO_MODELS))
    names[video] = checkpoint(tmp_path / f"a-{video}", video)
    weighing = {"content_weight": 3.0, "irrelevant_words": 2}

    def made(**model):
        recipe["model"] = model
        build_processor(config_from_dict(recipe), "splits")
        return given.pop()

    clip, frames = names["clip"], {"sampling": "segment_random", "num_frames": 12}
    assert made(from_clip=clip) == (clip, {"word_weigher": "fitted", **frames})
    assert made(from_clip=clip, max_frames=5, **words) == (
        clip, {"word_weigher": "fitted", **words, **frames, "num_frames": 5},
    )  # fmt: skip
    uniform = {"word_weighting": "uniform"}
    assert made(from_clip=clip, **uniform) == (clip, {"word_weigher": None, **uniform, **frames})
    assert made(from_clip=clip, textual_attention=False) == (clip, {"word_weigher": None, **uniform, **frames})
    assert made(from_clip=clip, textual_attention=True) == made(from_clip=clip)
    assert made(from_clip=names[video], max_frames=5) == (names[video], {"word_weigher": "fitted"})
    assert made(from_pretrained=names["dmae"], **words, **weighing, max_frames=5) == (
        names["dmae"], {**words, **weighing},
    )  # fmt: skip
    for model, size in (({}, 300), ({"vision_config": {}}, None)):
        recipe["processor"]["vocab_size"] = size
        with pytest.raises(ValueError, match=r"^model: set from_clip \(a CLIP checkpoint\)"):
            made(**model)


@pytest.mark.parametrize("words", [{}, {"max_words": 9, "max_frames": 5, "word_weighting": "uniform"}])
def test_a_new_model_s_processor_is_made_of_the_training_captions(words, recipe, monkeypatch):
    """As long as the recipe says, or as the model's own configuration does where it says nothing."""
    made, default = [], DMAEConfig()
    monkeypatch.setattr(build, "DMAEProcessor", lambda *given, **more: made.append((*given, more)))
    monkeypatch.setattr(build, "FrameSampler", lambda **given: given)
    monkeypatch.setattr(build, "train_bpe_tokenizer", lambda texts, *sizes: ([*texts], *sizes))
    monkeypatch.setattr(build, "_word_weigher", lambda config, splits: "fitted" if splits is both else None)
    both = build.Splits(SimpleNamespace(dataset={"captions": [["a", "b"], ["c"]]}), None)
    recipe["model"] = {"vision_config": {"image_size": 20}, **words}
    build_processor(config_from_dict(recipe), both)
    most = words.get("max_words", default.max_words)
    frames = {"size": 20, "sampling": "uniform", "num_frames": words.get("max_frames", default.max_frames)}
    more = {name: value for name, value in words.items() if name == "word_weighting"} | {"max_words": most}
    assert made == [((["a", "b", "c"], 300, most), frames, None if words else "fitted", more)]


def test_words_are_counted_over_the_training_paragraphs_or_not_at_all(recipe, monkeypatch):
    made = []

    class Weigher:
        def __init__(self, **words):
            made.append(words)

        def fit(self, paragraphs):
            return [self, paragraphs]

    monkeypatch.setattr(build, "WordWeigher", Weigher)
    splits = SimpleNamespace(train=SimpleNamespace(paragraphs=lambda: "paragraphs"))
    recipe["processor"]["tagger"] = "another"
    recipe["model"] = {"content_weight": 3.0}
    for fit in (True, False):
        recipe["processor"]["fit_words"] = fit
        found = build._word_weigher(config_from_dict(recipe), splits)
        assert (found[1] == "paragraphs") if fit else isinstance(found, Weigher)
    assert made == [{"tagger": "another", "content_weight": 3.0}] * 2


def test_a_prepared_folder_is_read_with_the_recipe_s_settings(monkeypatch, tmp_path, caplog):
    asked = []

    def read(where, settings):
        asked.append(([where(name) for name in ("here", "absent")], settings))
        return SimpleNamespace(paragraphs=counted)

    monkeypatch.setattr(build.WordWeigher, "from_files", read)
    (tmp_path / "here").touch()
    for counted in (0, 12, 11):
        call = lambda: build._prepared_weigher(tmp_path, {"irrelevant_words": 2}, 12)  # noqa: E731
        if not counted:
            told = r"has a tagger and no word table; run `dmae prepare` with --words$"
            with pytest.raises(ValueError, match=told):
                call()
            continue
        assert call().paragraphs == counted and len(caplog.records) == (counted != 12)
    assert caplog.messages == [f"{tmp_path}: words were counted over 11 videos, training has 12"]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "here").touch()
    build._prepared_weigher(tmp_path, {}, 11)
    here = [tmp_path / "here", None]
    assert asked == [(here, {"irrelevant_words": 2})] * 3 + [([tmp_path / "words" / "here", None], {})]


@pytest.mark.parametrize("source", ["from_clip", "from_pretrained"])
def test_a_checkpoint_s_model_is_given_the_recipe_s_words(source, recipe, monkeypatch, make_model):
    given, attention, model = [], [], make_model()
    monkeypatch.setattr(model, "set_attn_implementation", attention.append)
    monkeypatch.setattr(
        build.DMAEForTextVideoRetrieval, source, lambda *names, **words: given.append((*names, words)) or model
    )
    for said in ({}, {"attn_implementation": "eager"}):
        recipe["model"] = {source: "there", "loss": "info_nce", **said}
        assert build_model(config_from_dict(recipe), None) is model and model.training
    words = [{"attn_implementation": kind} if source == "from_pretrained" else {} for kind in ("sdpa", "eager")]
    assert given == [("there", {"loss": "info_nce", **more}) for more in words] and attention == ["sdpa", "eager"]


def test_compiled_checkpointed_and_adapted_where_the_recipe_says_so(recipe, monkeypatch, make_model):
    model, compiled, checkpointed, adapted, given = make_model().eval(), [], [], [], []
    towers = {name: getattr(model, name) for name in ("text_model", "vision_model", "temporal")}
    for name, tower in towers.items():
        monkeypatch.setattr(tower, "compile", lambda name=name: compiled.append(name))
    monkeypatch.setattr(model, "gradient_checkpointing_enable", lambda **words: checkpointed.append(words))
    monkeypatch.setattr(build, "add_adapters", noted(adapted))
    monkeypatch.setattr(build, "DMAEForTextVideoRetrieval", lambda config: model)
    monkeypatch.setattr(build, "_with_vocabulary", lambda words, processor: given.append((words, processor)) or {})
    build_model(config_from_dict(recipe), None)
    assert not compiled + checkpointed + adapted and model.training and given == [(recipe["model"], None)]
    recipe["training"] |= {"gradient_checkpointing": True, "torch_compile": True, "lora": {"r": 3, "dropout": 0.5}}
    build_model(config_from_dict(recipe), None)
    assert compiled == [*towers] and checkpointed == [{"gradient_checkpointing_kwargs": {"use_reentrant": False}}]
    assert adapted == [(model, {"r": 3, "target": ["q_proj", "v_proj"], "alpha": None, "dropout": 0.5})]


def test_a_new_text_tower_has_its_tokenizer_s_words_unless_the_recipe_has_others(processor):
    words = {"loss": "info_nce", "text_config": {"hidden_size": 32, "max_position_embeddings": 40}}
    ids = {f"{kind}_token_id": getattr(processor.tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = {"vocab_size": len(processor.tokenizer), **ids, "hidden_size": 32, "max_position_embeddings": 40}
    assert build._with_vocabulary(words, processor) == {"loss": "info_nce", "text_config": text}
    assert words["text_config"] == {"hidden_size": 32, "max_position_embeddings": 40}
    assert build._with_vocabulary({}, processor)["text_config"]["max_position_embeddings"] == processor.max_words
    assert ids["bos_token_id"] != ids["eos_token_id"]


def test_a_launcher_s_shards_are_refused_by_the_accelerator_that_was_made(recipe, monkeypatch):
    """The environment is looked at before anything of Accelerate is made."""
    made = []
    monkeypatch.setattr(build, "Accelerator", lambda **words: made.append(words) or Accelerator(cpu=True))
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    with pytest.raises(ValueError, match="PARALLELISM_CONFIG_TP_SIZE=2"):
        make_accelerator(config_from_dict(recipe))
    assert made == []
