"""LoRA and the running mean of the weights: what is trained, what is saved, and that a run goes on with them."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from dmae import DMAEForTextVideoRetrieval, DMAEProcessor
from dmae.inference.identity import weights_hash
from dmae.inference.loading import load_model_and_processor
from dmae.training.adapters import add_adapters, save_adapter, trainable, without_adapters
from dmae.training.config import config_from_dict
from dmae.training.loop import train

LORA = {"r": 3, "target": ["q_proj", "v_proj"]}


@pytest.fixture
def adapted(make_model):
    """(a tiny model, the same with adapters whose B is no longer 0)"""
    plain, model = make_model(seed=1), make_model(seed=1)
    add_adapters(model, **LORA)
    return plain, model


def frames(model, count: int = 3) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(2, count, 3, side, side, generator=torch.Generator().manual_seed(0))


def attended(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().get_video_features(pixel_values=frames(model)).attended_embeds


def test_adapters_begin_as_nothing_and_train_alone_in_the_towers(adapted):
    plain, model = adapted
    assert torch.equal(attended(model), attended(plain))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_towers = {name for name in trained if name.startswith(("text_model", "vision_model"))}
    assert in_towers and all(".lora_" in name for name in in_towers)
    layers = plain.config.text_config.num_hidden_layers + plain.config.vision_config.num_hidden_layers
    assert len(in_towers) == layers * 2 * 2  # q and v, A and B
    assert {"logit_scale"} | {name for name in trained if name.startswith("temporal")} <= trained
    assert not trained & {"text_projection.weight", "visual_projection.weight"}


def test_the_merged_copy_scores_the_same_without_peft(adapted):
    plain, model = adapted
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    merged = without_adapters(model)
    assert set(merged.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(attended(merged), attended(model), atol=1e-5, rtol=1e-4)
    assert (attended(merged) - attended(plain)).abs().max() > 1e-3, "else nothing is shown"
    assert any(".lora_B" in name for name, _ in model.named_parameters()), "the original keeps its adapters"
    assert hasattr(model.text_model, "peft_config") and not hasattr(merged.text_model, "peft_config")
    assert not hasattr(merged.vision_model, "peft_config"), "transformers would save it as an adapter"


def test_a_target_that_is_nowhere_is_refused(make_model):
    with pytest.raises(ValueError, match=r"training\.lora\.target: no query; there are .*q_proj"):
        add_adapters(make_model(), r=2, target=["query"])


def test_without_peft_it_is_said_how_to_get_it(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"^training\.lora needs peft; install it: pip install 'dmae\[peft\]'$"):
        add_adapters(make_model(), r=2)


def test_an_adapter_is_written_as_peft_reads_it(make_model, tmp_path):
    """Beside a base model: what it goes on, where, how large; the temperature, which peft has no place for."""
    model = make_model(interaction="wti")
    add_adapters(model, **LORA)
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
    began = model.config.logit_scale_init_value
    for _ in range(2):  # the second one into a folder that is there
        save_adapter(model, "someone/clip", tmp_path / "runs" / "adapter")
    settings = json.loads((tmp_path / "runs/adapter/adapter_config.json").read_text())
    expected = {
        "base_model_name_or_path": "someone/clip",
        "inference_mode": True,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "modules_to_save": ["temporal", "fc_text", "fc_video"],
        "peft_type": "LORA",
        "r": 3,
        "target_modules": r"(text_model|vision_model)\..*\.(q_proj|v_proj)",
    }
    assert {name: settings[name] for name in expected} == expected
    weights, state = load_file(tmp_path / "runs/adapter/adapter_model.safetensors"), model.state_dict()
    parts = ("temporal", "fc_text", "fc_video")
    kept = {name for name in state if ".lora_" in name or name.split(".")[0] in parts}
    assert {name for name in state if ".lora_" in name} < kept and len(kept) > len(parts)
    written = {f"base_model.model.{name.replace('.default.', '.')}": state[name] for name in kept}
    assert weights.keys() == written.keys() and all(torch.equal(weights[name], written[name]) for name in written)
    assert json.loads((tmp_path / "runs/adapter/config.json").read_text())["logit_scale_init_value"] == 1.25
    assert model.config.logit_scale_init_value == began != 1.25


def test_what_learns_is_counted_in_numbers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    assert trainable(model) == (4 + 8 + 2, 12 + 4 + 8 + 2)


@pytest.mark.parametrize("words", [{"lora": LORA}, {"ema": 0.5}], ids=str)
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(miniature, tiny, tmp_path, words):
    videos, whole, stopped = miniature("videofolder").videos, tmp_path / "whole", tmp_path / "stopped"
    train(tiny.tiny_config(videos, whole, save_steps=1, save_total_limit=9, max_steps=4, **words))
    (stopped).mkdir()
    (whole / "checkpoint-2").rename(stopped / "checkpoint-2")
    more = {"save_steps": 1, "save_total_limit": 9, "max_steps": 4, "resume_from_checkpoint": "last"}
    train(tiny.tiny_config(videos, stopped, **more, **words))
    assert json.loads((stopped / "run.json").read_text())["resumed_at_step"] == 2
    tiny.assert_same_weights(whole / "last", stopped / "last")
    record = json.loads((whole / "run.json").read_text())
    assert (record["trained_parameters"] < record["parameters"]) == ("lora" in words)
    for name in ("best", "last"):  # merged, or the mean: the hash is that of what lies in the folder
        assert record[name]["weights"] == weights_hash(load_model_and_processor(whole / name, device="cpu")[0])
    model = DMAEForTextVideoRetrieval.from_pretrained(whole / "last")
    assert not any("lora" in name or "n_averaged" in name for name, _ in model.named_parameters())


def test_a_run_leaves_the_merged_model_and_the_adapter(miniature, tiny, tmp_path, make_model, processor):
    """Both score alike; the record names the hash of both; the folder loads in sentence-transformers too."""
    make_model(max_frames=4).save_pretrained(tmp_path / "base")
    plain = {"max_words": processor.max_words, "word_weighting": "uniform"}  # no table of words to be fitted
    DMAEProcessor(processor.tokenizer, processor.feature_extractor, **plain).save_pretrained(tmp_path / "base")
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", max_steps=2, lora=LORA)
    recipe["model"] = {"from_pretrained": str(tmp_path / "base")}
    recipe["processor"] = {}
    train(config_from_dict(recipe))
    whole, _ = load_model_and_processor(tmp_path / "out" / "best", device="cpu")
    adapter, _ = load_model_and_processor(tmp_path / "out" / "best" / "adapter", device="cpu")
    assert torch.equal(attended(whole), attended(adapter))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert weights_hash(whole) == weights_hash(adapter) == record["best"]["weights"]
    sizes = [
        (tmp_path / "out" / "best" / name).stat().st_size
        for name in ("model.safetensors", "adapter/adapter_model.safetensors")
    ]
    assert sizes[1] < sizes[0] / 2 and record["trained_parameters"] < record["parameters"] / 2
    assert (tmp_path / "out" / "best" / "modules.json").is_file() and (tmp_path / "out/last/sentence_dmae.py").is_file()


def test_the_saved_mean_is_the_running_mean_of_the_weights(miniature, tiny, tmp_path, monkeypatch):
    """mean <- decay * mean + (1 - decay) * weights after every step, from the weights after the first."""
    from dmae.training.loop import Run

    seen, step = [], Run._train_batch

    def watched(self, *arguments):
        result = step(self, *arguments)
        seen.append({name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()})
        return result

    monkeypatch.setattr(Run, "_train_batch", watched)
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", max_steps=3, ema=0.75)
    recipe["data"]["validation_split"] = None
    train(config_from_dict(recipe))
    mean = seen[0]
    for weights in seen[1:]:
        mean = {name: 0.75 * mean[name] + 0.25 * weights[name] for name in mean}
    saved = tiny.weights(tmp_path / "out" / "last")
    assert len(seen) == 3 and max((saved[name] - mean[name]).abs().max() for name in saved) < 1e-6
    assert max((saved[name] - seen[-1][name]).abs().max() for name in saved) > 1e-5
