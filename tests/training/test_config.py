"""A recipe says exactly what is run: unknown words and wrong values are refused with the remedy, overrides win."""

import pytest
import yaml

from dmae.training.config import RunConfig, config_from_dict, dataset_location, load_config, recipes_folder
from dmae.training.run import overrides, parse

SHIPPED = sorted(path for path in recipes_folder().glob("*.yaml") if path.name != "base.yaml")


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", ["baseline", "dmae_ti", "dmae_wti"])
def test_every_recipe_loads_in_every_variant(path, variant):
    config = load_config(path, [f"variant={variant}"])
    assert config.model["interaction"] == ("wti" if variant == "dmae_wti" else "ti")
    assert config.model["partial_order"] is (variant != "baseline")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_recipe_shows_its_command(path):
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"dmae train --config training/recipes/{path.name}" in header


def test_every_value_of_the_base_recipe_is_explained():
    lines = (recipes_folder() / "base.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if line.startswith("  ") and ":" in line and not line.startswith("    ")]
    bare = [line.split(":")[0].strip() for line in values if "#" not in line]
    assert len(values) > 35 and bare == []


def test_unknown_words_name_the_nearest(recipe):
    path = recipe("training: {train_batch_size: 8, learning_rat: 1}")
    with pytest.raises(ValueError, match="unknown key 'learning_rat'; did you mean 'learning_rate'"):
        load_config(path)
    with pytest.raises(ValueError, match="unknown key 'interactoin'; did you mean 'interaction'"):
        load_config(recipe("model: {interactoin: ti}"))
    with pytest.raises(ValueError, match="unknown key 'modle'"):
        load_config(recipe("modle: {}"))
    with pytest.raises(ValueError, match="no variant 'dmea_ti'; did you mean 'dmae_ti'"):
        load_config(recipe("variant: dmea_ti\nvariants: {dmae_ti: {}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {train_batch_size: eight}", "train_batch_size is 'eight': expected a valid integer"),
        ("training: {train_batch_size: true}", "is True: expected a valid integer"),
        ("training: {train_batch_size: 0}", "is 0: expected greater than 0"),
        ("training: {train_batch_size: 8, optim: sgd}", "is 'sgd': expected 'adamw' or 'adam'"),
        ("training: {}", "set one of training.train_batch_size"),
        ("training: {train_batch_size: 8, per_device_train_batch_size: 8}", "set one of training.train_batch_size"),
        ("training: {train_batch_size: 8, bf16: true, fp16: true}", "choose one"),
        ("training: {train_batch_size: 8, gradient_cache_chunk: 2, gradient_accumulation_steps: 2}", "set gradient_"),
        ("training: {train_batch_size: 8, metric_for_best_model: R@1}", "metric_for_best_model"),
        ("data: {max_skipped_share: 5}\ntraining: {train_batch_size: 8}", "is 5: expected less than or equal to 1"),
        ("training: {train_batch_size: 8, warmup_ratio: 3}", "warmup_ratio is 3: expected less than or equal to 1"),
        ("training: {train_batch_size: 8, adam_beta1: .nan}", "adam_beta1 is nan: expected a finite number"),
        ("training: {train_batch_size: 8, lora: {r: 4, targets: [q]}}", "unknown key 'targets'; did you mean 'target'"),
        ("data: {num_workers: -1}\ntraining: {seed: a}", "num_workers is -1.*; training.seed is 'a'"),
        ("training: {seed: 1, seed: 2}", r"key given twice: \['seed'\]"),
        ("training: {1: a, 1: b, x: 1, x: 2}", r"not valid YAML: key given twice: \['1', 'x'\]"),
        ("training: {? [a] : 1, ? [a] : 2}", "not valid YAML: key given twice"),
        ("training: {? [a] : 1, ? [b] : 2}", "(?s)not valid YAML.*found unhashable key"),
        (
            "variant: v\nvariants: {v: {trainig: {seed: 1}}}",
            "variant v: unknown key 'trainig'; did you mean 'training'",
        ),
        ("- a list", "a recipe is a mapping"),
        ("training: [1]", "expected a mapping"),
        ("model: {from_clip: a, from_pretrained: b}\ntraining: {train_batch_size: 8}", "choose one"),
        ("base: recipe.yaml", "round in a circle"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_wrong_values_are_refused(recipe, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(recipe(text))


def test_a_section_that_is_left_empty_is_at_its_defaults(recipe):
    config = load_config(recipe("model:\nprocessor:\ndata:\nvariant:\nvariants:\ntraining: {train_batch_size: 8}"))
    whole = RunConfig.model_validate({"training": {"train_batch_size": 8}, "source": config.source})
    assert config == whole and config.variant is None
    with pytest.raises(ValueError, match=r"^.*recipe\.yaml: set one of training\.train_batch_size"):
        load_config(recipe("training:"))
    with pytest.raises(ValueError, match=r"^config: set one of training\.train_batch_size"):
        config_from_dict({"training": {}})


def test_a_missing_recipe_names_the_folder_of_recipes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        load_config(tmp_path / "none.yaml")


def test_precedence_base_file_variant_override(recipe):
    recipe("model: {max_words: 10, max_frames: 10}\ntraining: {train_batch_size: 8, seed: 1}", "low.yaml")
    path = recipe("base: low.yaml\nmodel: {max_words: 11}\nvariant: v\nvariants: {v: {model: {interaction: wti}}}")
    config = load_config(path, ["training.seed=7", "model.text_config.hidden_size=64", "training.learning_rate=1e-3"])
    assert config.model == {"max_words": 11, "max_frames": 10, "interaction": "wti", "text_config": {"hidden_size": 64}}
    assert (config.training.seed, config.training.learning_rate) == (7, 1e-3)


def test_a_recipe_that_comes_along_goes_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config("msvd").to_dict() == load_config(recipes_folder() / "msvd.yaml").to_dict()
    listed = "The ones that come along: activitynet, base, didemo"
    for name in ("msvdd.yaml", "msvdd"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such recipe; did you mean msvd\? {listed}"):
            load_config(name)
    (tmp_path / "mine.yaml").write_text("base: msvd\ntraining: {seed: 7}")
    mine = load_config("mine.yaml")
    assert mine.data.name == "msvd" and mine.training.seed == 7
    (tmp_path / "mine.yaml").write_text("base: msvdd.yaml")
    with pytest.raises(FileNotFoundError, match=r"msvdd\.yaml: no such recipe; did you mean msvd"):
        load_config("mine.yaml")
    with pytest.raises(FileNotFoundError, match=f"no such recipe; {listed}"):
        load_config("somewhere/else.yaml")


def test_an_override_that_is_no_yaml_is_named(recipe):
    with pytest.raises(ValueError, match=r"--set training\.freeze=\[a: .* is not valid YAML"):
        load_config(recipe("training: {train_batch_size: 8}"), ["training.freeze=[a"])


@pytest.mark.parametrize("text", ["training.seed", "seed=1", "trainig.seed=1"])
def test_malformed_overrides_show_the_form(recipe, text):
    with pytest.raises(ValueError, match=r"write section\.key=value"):
        load_config(recipe("training: {train_batch_size: 8}"), [text])


def test_the_resolved_configuration_is_a_recipe_again():
    config = load_config(recipes_folder() / "moving_digits.yaml", ["training.seed=5"])
    again = config_from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    assert again.to_dict() | {"source": None} == config.to_dict() | {"source": None}


@pytest.mark.parametrize("spelling", [str, lambda word: word.replace("_", "-")], ids=["as Trainer", "as hf"])
def test_command_line_options_override_the_recipe(spelling):
    """Both spellings, and every option that stands for a word of the recipe."""
    words = {"output_dir": "out", "max_steps": 3, "resume_from_checkpoint": "last", "gradient_cache_chunk": 4}
    words |= {"gradient_accumulation_steps": 2, "save_total_limit": 7}
    given = {f"training.{name}": value for name, value in words.items()} | {"variant": "baseline"}
    command = [part for name, value in words.items() for part in (f"--{spelling(name)}", str(value))]
    options = parse(["--config", "c.yaml", "--set", "model.interaction=wti", "--variant", "baseline", *command])
    assert overrides(options)[0] == "model.interaction=wti"
    assert {
        name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in overrides(options)[1:])
    } == given


def test_a_model_that_brings_its_words_is_given_no_others(tiny, tmp_path):
    made = tiny.tiny_recipe(tmp_path, tmp_path)
    made["processor"] = {"words": "prepared"}
    assert config_from_dict(made).processor.words == "prepared"
    made["model"] = {"from_pretrained": "folder"}
    with pytest.raises(
        ValueError, match=r"processor\.words: model\.from_pretrained brings its own word table; leave it out"
    ):
        config_from_dict(made)
    made["processor"], made["model"] = {}, {"from_pretrained": "folder", "from_clip": "clip"}
    with pytest.raises(ValueError, match=r"model\.from_clip and model\.from_pretrained are both set; choose one"):
        config_from_dict(made)


def test_a_recipe_says_where_its_dataset_is_unless_it_is_said_otherwise(recipe):
    path = str(recipe("data: {name: msvd, annotations: A, videos: V, holdout: 3}\ntraining: {train_batch_size: 4}"))
    found = dataset_location(path, "B")
    assert (found.name, found.annotations, found.videos, found.holdout) == ("msvd", "B", "V", 3)
    found = dataset_location(path, None, "W")
    assert (found.name, found.annotations, found.videos, found.holdout) == ("msvd", "A", "W", 3)
    found = dataset_location("msvd", "B", "W")
    assert (found.name, found.annotations, found.videos) == ("msvd", "B", "W")
