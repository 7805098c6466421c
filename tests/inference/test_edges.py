"""Where a model comes from and what a machine is called: names, revisions, devices, versions, exported files."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmae.inference import adapters, conditions, export, identity, loading, progress
from dmae.inference.presets import DEFAULT, check_name
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings

# ---------------------------------------------------------------------- conditions


def test_versions_and_the_commit_are_those_of_this_code(monkeypatch):
    asked = []

    def git(command, **named):
        asked.append((command, named))
        if answers[0] is None:
            raise subprocess.CalledProcessError(128, command)
        return SimpleNamespace(stdout=answers.pop(0))

    def version(name):
        if name == "spacy":
            raise conditions.importlib.metadata.PackageNotFoundError(name)
        return f"1.{name}"

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("platform.python_version", lambda: "3.x")
    monkeypatch.setattr(subprocess, "run", git)
    answers = [" abc\n", "\n"]
    found = conditions.code_version()
    versions = {name: f"1.{name}" for name in conditions.PACKAGES} | {"spacy": None}
    assert found == {"python": "3.x", "packages": versions, "git": {"commit": "abc", "dirty": False}}
    told = {"cwd": Path(conditions.__file__).resolve().parent, "capture_output": True, "text": True, "check": True}
    changes = ["git", "status", "--porcelain", "--untracked-files=no"]
    assert asked == [(["git", "rev-parse", "HEAD"], told), (changes, told)]
    answers = ["abc", " M a.py"]
    assert conditions.code_version()["git"] == {"commit": "abc", "dirty": True}
    answers = [None]
    assert conditions.code_version()["git"] is None


def test_the_machine_is_named_by_what_it_has(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"gpu {index}")
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    for name, cpu in (("", "arm64"), ("Xeon", "Xeon")):
        monkeypatch.setattr("platform.processor", lambda name=name: name)
        assert conditions.hardware(torch.device("cpu")) == {
            "device": "cpu", "gpus": ["gpu 0", "gpu 1"], "cpu": cpu, "threads_per_process": 3,
        }  # fmt: skip


# ---------------------------------------------------------------------- adapters


def test_an_adapter_is_told_by_its_file_and_loaded_onto_its_base(monkeypatch, tmp_path, make_model):
    made = make_model(interaction="wti")
    made.config.save_pretrained(tmp_path)
    assert adapters.adapter_settings(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json, so this is no adapter"):
        adapters.load_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base"}')
    assert adapters.adapter_settings(tmp_path) == {"base_model_name_or_path": "a/base"}
    asked, merged = [], SimpleNamespace(logit_scale=torch.zeros(()), training=True)
    merged.eval = lambda: setattr(merged, "training", False) or merged
    peft = SimpleNamespace(merge_and_unload=lambda: merged)
    peft.PeftModel = SimpleNamespace(from_pretrained=lambda *words, **named: asked.append((words, named)) or peft)
    monkeypatch.setitem(sys.modules, "peft", peft)
    monkeypatch.setattr(adapters, "_base_model", lambda base, config, options: (base, config.model_type, options))
    configuration = "dmae.modeling_dmae.configuration_dmae.DMAEConfig.from_pretrained"
    made.config.logit_scale_init_value = 3.5
    monkeypatch.setattr(configuration, lambda name, **named: asked.append(((name,), named)) or made.config)
    monkeypatch.setattr(
        adapters, "adapter_settings", lambda *words: asked.append(words) or {"base_model_name_or_path": "b"}
    )
    found = adapters.load_adapter(tmp_path, dtype="d")
    base = ("b", "dmae", {"dtype": "d"})
    assert found is merged and not merged.training and merged.logit_scale == 3.5
    assert asked == [(tmp_path, None), ((tmp_path,), {}), ((base, str(tmp_path)), {})]
    asked.clear()
    adapters.load_adapter("c/d", "v1")
    at = {"revision": "v1"}
    assert asked == [("c/d", "v1"), (("c/d",), at), ((("b", "dmae", {}), "c/d"), at)]
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"c/d is an adapter; loading it needs peft: pip install 'dmae\[peft\]'"):
        adapters.load_adapter("c/d")


def test_the_base_of_an_adapter_may_be_a_whole_model(model, model_folder):
    below = adapters._base_model(str(model_folder), model.config, {"dtype": torch.bfloat16})
    assert below.dtype is torch.bfloat16 and below.config.interaction == model.config.interaction


# ---------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{}/empty", "{}/empty is a folder without config.json, so it holds no model"),
        ("{}/none", "{}/none: no such model folder"), ("./none", "./none: no such model folder"),
        (".none", ".none: no such model folder"), ("a/b/c", "a/b/c: no such model folder"),
        ("a/b", None), ("name", None), ("{}/whole", None), ("{}/adapter", None),
    ],
)  # fmt: skip
def test_a_name_that_is_plainly_no_model_is_refused(tmp_path, monkeypatch, name, said):
    for folder, file in (("empty", "x"), ("whole", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    monkeypatch.chdir(tmp_path)
    if said is None:
        return check_name(name.format(tmp_path))
    with pytest.raises(FileNotFoundError) as refused:
        check_name(name.format(tmp_path))
    assert str(refused.value) == said.format(tmp_path)


def test_other_kinds_and_places_of_models_are_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    said = f"{tmp_path} is a 'bert' model; give a DMAE model or a dual encoder (clip, metaclip_2, "
    with pytest.raises(ValueError) as refused:
        loading.load_model_and_processor(tmp_path)
    assert str(refused.value).startswith(said) and str(refused.value).endswith("): see `dmae models`")
    neither = f"model '{tmp_path}' is neither a folder here nor a model that could be read from the Hub or its cache; "
    neither += "check the name and the network, or give a local folder with --model"
    for kind in ("dmae", "clip"):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        asked = []

        def absent(*words, asked=asked):
            asked.append(words)
            raise OSError("no weights")

        monkeypatch.setattr(loading, "_load_dmae" if kind == "dmae" else "_load_clip", absent)
        with pytest.raises(OSError) as refused:
            loading.load_model_and_processor(tmp_path, max_frames=3)
        assert str(refused.value) == f"{neither} (no weights)" and asked == [(str(tmp_path), None, {"max_frames": 3})]
    import logging

    hub = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(hub, "level", 23)

    def unreachable(name, revision):
        assert (name, revision, hub.level) == (str(tmp_path), "v", logging.ERROR)
        raise OSError("offline")

    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", unreachable)
    with pytest.raises(OSError) as refused:
        loading._config_values(str(tmp_path), "v")
    assert str(refused.value) == neither and hub.level == 23


def test_devices_and_precisions_are_what_can_be_used(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert loading.resolve_device("auto") == name
    assert loading.resolve_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"^device 'nosuch' is not usable here \(.*\); try cpu$"):
        loading.resolve_device("nosuch")
    assert loading.dtype_of("bfloat16", "cpu") is torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype 'half' is not a choice; valid: auto, float32, bfloat16"):
        loading.dtype_of("half", "cpu")


def test_the_model_that_is_meant_is_the_named_one_then_the_index_s_then_the_default(monkeypatch):
    built = {"name": "b", "revision": "v", "weights": "w"}
    assert loading.named(None, built) is built and loading.named(None, {**built, "key_frames": True})["key_frames"]
    plain = {"revision": None, "key_frames": False}
    assert loading.named("a", built) == {"name": "a", **plain} and loading.named("a", None) == {"name": "a", **plain}
    assert loading.named(None, None) == {"name": DEFAULT, **plain}
    assert loading.named("a", {**built, "key_frames": True})["key_frames"] is True
    assert loading.named("a", None, fast=True)["key_frames"] is True
    asked = []
    monkeypatch.setattr(
        loading, "load_model_and_processor", lambda *words, **named: asked.append((words, named)) or ("m", "p")
    )
    monkeypatch.setattr(loading, "with_key_frames", lambda processor: f"key frames of {processor}")
    assert loading.load_described(built, device="cpu") == ("m", "p")
    assert loading.load_described({**built, "key_frames": True}) == ("m", "key frames of p")
    assert asked[0] == (("b",), {"revision": "v", "device": "cpu"})


def test_a_loaded_clip_is_scored_as_clip_was(monkeypatch):
    asked, config = [], SimpleNamespace(max_frames=5, processor_words=lambda: {"word_weighting": "linear", "x": 1})

    def made(name):
        return lambda *words, **named: asked.append((name, words, named)) or SimpleNamespace(config=config)

    monkeypatch.setattr("dmae.modeling_dmae.modeling_dmae.DMAEForTextVideoRetrieval.from_clip", made("model"))
    monkeypatch.setattr("dmae.modeling_dmae.modeling_dmae.DMAEForTextVideoRetrieval.from_pretrained", made("whole"))
    monkeypatch.setattr("dmae.processing.processing_dmae.DMAEProcessor.from_clip", made("processor"))
    monkeypatch.setattr("dmae.processing.processing_dmae.DMAEProcessor.from_pretrained", made("saved"))
    zero_shot = {"interaction": "mean", "temporal_layers": 0, "partial_order": False}
    loading._load_clip("a", None, {"temporal_layers": 2, "max_frames": 5})
    words = {"num_frames": 5, "word_weighting": "linear", "x": 1}
    assert asked == [
        ("model", ("a",), {**zero_shot, "temporal_layers": 2, "max_frames": 5}),
        ("processor", ("a",), {"hub": {}, **words}),
    ]  # fmt: skip
    asked.clear()
    loading._load_clip("a", "v", {})
    assert asked[0] == ("model", ("a",), {**zero_shot, "revision": "v"}) and asked[1][2]["hub"] == {"revision": "v"}
    asked.clear()
    monkeypatch.setattr(loading, "adapter_settings", lambda name, revision: revision == "adapter")
    monkeypatch.setattr(loading, "load_adapter", made("adapter"))
    loading._load_dmae("a", "v", {"max_frames": 5})
    loading._load_dmae("a", "adapter", {})
    kinds = [(kind, words, named.get("revision")) for kind, words, named in asked]
    assert kinds == [
        ("whole", ("a",), "v"), ("saved", ("a",), "v"),
        ("adapter", ("a", "adapter"), None), ("saved", ("a",), "adapter"),
    ]  # fmt: skip
    assert asked[0][2] == {"revision": "v", "dtype": torch.float32, "max_frames": 5}
    assert asked[2][2] == {"dtype": torch.float32}
    asked.clear()
    for kind in ("dmae", "clip"):
        monkeypatch.setattr(loading, "_config_values", lambda name, revision, kind=kind: {"model_type": kind})
        loading.load_processor("a", "v", config, word_weighting="uniform")
    assert asked == [
        ("saved", ("a",), {"revision": "v", "word_weighting": "uniform"}),
        ("processor", ("a",), {"hub": {"revision": "v"}, **words, "word_weighting": "uniform"}),
    ]  # fmt: skip


def test_eight_bits_are_for_a_cpu_and_for_the_vision_tower_alone(make_model):
    model = make_model(interaction="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loading.in_8_bits(model)
    kinds = {type(part).__module__ for part in model.vision_model.modules()}
    assert any("quantized.dynamic" in kind for kind in kinds)
    assert not any("quantized" in type(part).__module__ for part in model.text_model.modules())
    elsewhere = SimpleNamespace(parameters=lambda: iter([torch.empty(1, device="meta")]))
    with pytest.raises(ValueError, match="int8 is computed on a CPU"):
        loading.in_8_bits(elsewhere)


# ---------------------------------------------------------------------- identity


def test_a_file_is_known_by_its_place_and_times_once_it_is_old_enough(tmp_path, monkeypatch):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    assert identity.model_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert identity.model_file(str(tmp_path), "none") is None and identity.model_file("a/b/c d", "config.json") is None
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda *words, **named: asked.append((words, named)) or ("/cached" if words[0] == "a/b" else object()),
    )
    assert identity.model_file("a/b", "x", "v") == Path("/cached") and identity.model_file("c/d", "x") is None
    assert asked[0] == (("a/b", "x"), {"revision": "v"})
    stats = [(tmp_path / name).stat() for name in ("model.safetensors", "config.json")]
    changed = max(stat.st_ctime for stat in stats)
    clock = SimpleNamespace(time=lambda: changed + 1.9)
    monkeypatch.setattr(identity, "time", clock)
    assert identity.weights_stamp(str(tmp_path)) is None, "it may change again within the clock's tick"
    clock.time = lambda: changed + 2.5
    assert json.loads(identity.weights_stamp(str(tmp_path))) == [
        [str(tmp_path.resolve() / name), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        for name, stat in zip(("model.safetensors", "config.json"), stats)
    ]
    (tmp_path / "config.json").unlink()
    assert identity.weights_stamp(str(tmp_path)) is None


def test_a_machine_remembers_the_latest_hashes_and_survives_a_broken_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "dmae" / "weights.json"
    assert identity.known_weights("s") is None and identity.known_weights(None) is None
    for number in range(66):
        identity.remember_weights(f"s{number}", f"w{number}")
    identity.remember_weights(None, "w")
    kept = json.loads(file.read_text())
    assert list(kept.items()) == [(f"s{number}", f"w{number}") for number in range(2, 66)]
    assert file.read_text().startswith('{\n "s2": "w2",') and identity.known_weights("s65") == "w65"
    before = file.stat().st_ino
    identity.remember_weights("s65", "w65")
    assert file.stat().st_ino == before, "written although nothing changed"
    identity.remember_weights("s65", "other")
    assert identity.known_weights("s65") == "other"
    for broken in ("{", "[1]"):
        file.write_text(broken)
        assert identity.known_weights("s65") is None
    monkeypatch.setattr(identity.files, "fault", lambda point, path: (_ for _ in ()).throw(OSError("read only")))
    identity.remember_weights("s1", "w1")
    assert file.read_text() == "[1]"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert identity._memory_file() == tmp_path / "home" / ".cache" / "dmae" / "weights.json"


def test_a_hash_is_the_same_tomorrow():
    """An index knows its model by it: computed otherwise, every index there is would be refused."""
    config = SimpleNamespace(**dict.fromkeys(identity.SCORED), text_config=SimpleNamespace(hidden_act="gelu"))
    config.vision_config = SimpleNamespace(model_type="clip_vision_model", image_size=16, patch_size=8)
    config.visual_scale, config.merge_tokens, config.interaction = "printed", 0, "wti"
    weights = {"b.weight": torch.tensor([[1.0, -2.5]]), "a.bias": torch.tensor([0.1]), "logit_scale": torch.tensor(3.0)}
    model = SimpleNamespace(config=config, state_dict=lambda: weights)
    assert identity.weights_hash(model) == "2ecd0e4bc745f8e7"
    sampler = SimpleNamespace(to_dict=lambda: {"size": 16, "auto_map": {"AutoProcessor": "a--b.c"}, "fps": None})
    assert identity.processor_hash(SimpleNamespace(feature_extractor=sampler)) == "c43ca24ed0dfca83"


def test_hashes_are_remembered_in_a_folder_that_is_new(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    for stamp in ("one", "two"):
        identity.remember_weights(stamp, f"of {stamp}")
    assert [identity.known_weights(stamp) for stamp in ("one", "two", "three", None)] == [
        "of one",
        "of two",
        None,
        None,
    ]


def test_key_frames_are_taken_by_a_sampler_of_the_same_settings(processor):
    plain = processor.feature_extractor
    try:
        keyed = loading.with_key_frames(processor).feature_extractor
        settings = {name: getattr(plain, name) for name in plain.field_names()}
        assert {name: getattr(keyed, name) for name in settings} == {**settings, "key_frames": True}
    finally:
        processor.feature_extractor = plain
    assert not plain.key_frames, "the sampler of others is as it was"


def test_what_trains_only_is_in_no_hash_and_all_else_is(make_model, processor):
    model = make_model(interaction="wti")
    before = identity.weights_hash(model)
    assert len(before) == 16 and identity.weights_hash(model.bfloat16()) == before
    with torch.no_grad():
        model.logit_scale.add_(1)
    assert identity.weights_hash(model) == before
    for change in ({"max_words": 3}, {"merge_tokens": 2}, {"visual_scale": "other"}, {"word_weighting": "none"}):
        ((name, value),) = change.items()
        usual = getattr(model.config, name)
        setattr(model.config, name, value)
        assert identity.weights_hash(model) != before, name
        setattr(model.config, name, usual)
    model.config.vision_config.num_attention_heads += 1
    assert identity.weights_hash(model) != before
    model.config.name_or_path, model.config._commit_hash = "a/b", "c" * 40
    described = identity.describe_model(model, processor)
    assert (described["name"], described["revision"]) == ("a/b", "c" * 40) and "key_frames" not in described
    model.config.name_or_path = ""
    assert identity.describe_model(model, processor)["name"] == "(in memory)"
    keyed = SimpleNamespace(feature_extractor=processor.feature_extractor.replaced(key_frames=True))
    assert identity.describe_model(model, keyed)["key_frames"] is True


# ---------------------------------------------------------------------- export


def test_both_towers_and_the_settings_of_their_scores_are_written(make_model, monkeypatch, tmp_path):
    model, saved = make_model(interaction="wti").bfloat16().train(), []
    monkeypatch.setattr(export, "exported_program", lambda tower, inputs: (type(tower).__name__, list(inputs)))
    monkeypatch.setattr("torch.export.save", lambda program, path: saved.append((program, path)))
    out = tmp_path / "new" / "out"
    names = {
        "text": ["input_ids", "attention_mask", "word_mask", "word_weights"], "video": ["pixel_values", "video_mask"],
    }  # fmt: skip
    for _ in range(2):
        written = export.export_towers(model, out, "torch")
    assert written == [out / "text.pt2", out / "video.pt2", out / "similarity.json"]
    towers = {"text": "TextTower", "video": "VideoTower"}
    assert saved[:2] == [((towers[side], names[side]), out / f"{side}.pt2") for side in names]
    assert not model.training and model.dtype is torch.float32
    config = model.config
    about = {"interaction": "wti", "similarity_form": config.similarity_form}
    about |= {"text_granularity": config.text_granularity, "max_words": config.max_words}
    about |= {"max_frames": config.max_frames, "frame_size": config.frame_size, "logit_scale": model.logit_scale.item()}
    assert (out / "similarity.json").read_text() == json.dumps(about, indent=1) + "\n"
    graphs = []
    monkeypatch.setitem(sys.modules, "onnxscript", SimpleNamespace())
    monkeypatch.setattr("torch.onnx.export", lambda *words, **named: graphs.append((words, named)))
    assert export.export_towers(model, out)[:2] == [out / "text.onnx", out / "video.onnx"]
    for (program, named), side, kind in zip(graphs, names, (TextEmbeddings, VideoEmbeddings), strict=True):
        outputs = [f"{side}.{name}" for name in kind.names()]
        assert program == ((towers[side], names[side]),) and named == {
            "f": out / f"{side}.onnx", "input_names": names[side], "output_names": outputs, "dynamo": True,
            "verbose": False,
        }  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"ONNX files need their tools: pip install 'dmae\[export\]'"):
        export.export_towers(model, out)
    with pytest.raises(ValueError, match="form='tflite' is not a choice; valid: torch, onnx"):
        export.export_towers(model, tmp_path / "x", "tflite")
    assert not (tmp_path / "x").exists()


def test_example_inputs_are_a_sentence_of_words_between_two_marks():
    text = SimpleNamespace(eos_token_id=7, vocab_size=9)
    config = SimpleNamespace(max_words=4, max_frames=3, frame_size=5, text_config=text)
    made = export.example_inputs(config, 2)
    assert made["text"]["input_ids"].tolist() == [[7, 3, 3, 7]] * 2
    assert made["text"]["attention_mask"].tolist() == [[1] * 4] * 2
    assert made["text"]["word_mask"].tolist() == [[False, True, True, False]] * 2
    assert made["text"]["word_weights"].tolist() == [[0.0, 1.0, 1.0, 0.0]] * 2
    assert made["video"]["pixel_values"].shape == (2, 3, 3, 5, 5) and not made["video"]["pixel_values"].any()
    assert made["video"]["video_mask"].tolist() == [[True] * 3] * 2
    for wanted, last in (([1, 2], 1), (None, 1), (0, 1), (20, 8)):
        text.eos_token_id = wanted
        assert export.example_inputs(config, 1)["text"]["input_ids"][0, 0] == last


# ---------------------------------------------------------------------- progress


def test_a_terminal_sees_a_bar_and_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with progress.progress(3, "d") as advance:
        advance()
        advance(2, 5)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress(4, "looking [b]", "clips") as advance:
        clock.now += 0.5
        advance(1)
        advance(2, 1240)
    shown = capsys.readouterr()
    assert shown.out == "" and "looking [b]" in shown.err and "3/4 (1,240 moments)" in shown.err
    assert "6.0 clips/s" in shown.err


def test_a_job_is_told_by_lines_now_and_then_and_at_its_end(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def lines(total, *steps):
        with progress.progress(total, "d") as advance:
            for seconds, count in steps:
                clock.now += seconds
                advance(count)
        return capsys.readouterr().err.splitlines()

    assert lines(9, (9.5, 1)) == [] and lines(2, (1, 2)) == []
    assert lines(9, (10, 1), (5, 1)) == [
        "d: 1/9 videos, 0.1 videos/s, about 80 s left", "d: 2/9 videos, 0.1 videos/s, about 52 s left",
    ]  # fmt: skip
    assert lines(2, (10, 2)) == ["d: 2/2 videos, 0.2 videos/s, took 10 s"]
    assert lines(None, (20, 4), (5, 1)) == ["d: 4 videos, 0.2 videos/s", "d: 5 videos, 0.2 videos/s"]
    assert lines(5, (10, 0), (2, 3))[0] == "d: 0/5 videos, 0.0 videos/s"


def test_the_hash_of_weights_is_not_of_the_order_in_which_settings_are_listed(model, monkeypatch):
    """Indexes keep it: a list in another order must not refuse those that are there."""
    before = identity.weights_hash(model)
    monkeypatch.setattr(identity, "SCORED", tuple(reversed(identity.SCORED)))
    assert identity.weights_hash(model) == before
