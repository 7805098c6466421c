"""transformers' `Trainer` trains, evaluates, selects and counts R@K; adapters are saved, loaded and merged."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from dmae import DMAEForTextVideoRetrieval, retrieval_metrics
from dmae.evaluation.scoring import similarity_matrix
from dmae.inference import loading
from dmae.inference.adapters import load_adapter
from dmae.inference.identity import weights_hash
from dmae.inference.loading import load_model_and_processor
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.training.adapters import add_adapters, save_adapter, trainable, without_adapters
from dmae.training.trainer import ModelUpkeep, collator, metrics_over_the_split

CAPTIONS = ["a red square moves left", "a green circle moves up", "the sky is blue", "two dogs run", "a red square"]


@pytest.fixture(scope="module")
def rows():
    """Five captions of four videos: the last is a second one of the first video."""
    random = np.random.default_rng(0)
    clips = [random.integers(0, 256, (3, 40, 40, 3), np.uint8) for _ in range(4)]
    return [{"caption": text, "video": clips[i % 4], "video_id": 70 + i % 4} for i, text in enumerate(CAPTIONS)]


def arguments(folder, **more):
    return TrainingArguments(
        output_dir=str(folder),
        remove_unused_columns=False,
        label_names=["video_ids"],
        per_device_train_batch_size=5,
        per_device_eval_batch_size=2,
        num_train_epochs=3,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )


def test_the_trainer_trains_evaluates_and_keeps_the_best(tmp_path, rows, make_model, processor):
    model = make_model(margin_schedule="linear", max_frames=processor.feature_extractor.num_frames)
    model.logit_scale.data.fill_(4.6)  # near the bound, so that a step may cross it
    options = dict(
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss"
    )
    trainer = Trainer(
        model,
        arguments(tmp_path, **options),
        data_collator=collator(processor),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=metrics_over_the_split(model.config),
        callbacks=[ModelUpkeep],
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(logged) == 3 and all(entry["eval_loss"] > 0 for entry in logged)
    assert model.logit_scale.exp() <= 100.001 and model.progress == 1.0
    assert not torch.equal(before["text_projection.weight"], model.state_dict()["text_projection.weight"])
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert torch.equal(best["text_projection.weight"], model.text_projection.weight)

    metrics = trainer.evaluate()
    with torch.no_grad():
        whole = model.eval()(**collator(processor)(rows))  # the split as one batch, and not two at a time
    texts = TextEmbeddings(whole.text_embeds, whole.word_embeds, whole.word_weights, whole.word_mask)
    videos = VideoEmbeddings(whole.video_embeds, whole.attended_embeds, whole.frame_weights, whole.video_mask)[:4]
    expected = retrieval_metrics(similarity_matrix(texts, videos, model.config), np.array([0, 1, 2, 3, 0]))
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_the_processor_s_with_the_videos_ids(rows, processor):
    batch = collator(processor)(rows[2:])
    expected = processor(
        text=[row["caption"] for row in rows[2:]], videos=[row["video"] for row in rows[2:]], return_tensors="pt"
    )
    assert batch.keys() == {*expected.keys(), "video_ids"} and batch["video_ids"].tolist() == [72, 73, 70]
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_video_with_several_captions_is_scored_once(make_model):
    """By the embeddings of its first row, in the order of the ids, which need not be that of the rows."""
    random, model = np.random.default_rng(3), make_model()
    text = [random.normal(size=(4, 8)), random.normal(size=(4, 5, 8)), np.full((4, 5), 0.2), np.ones((4, 5), bool)]
    video = [
        random.normal(size=(4, 3, 8)),
        random.normal(size=(4, 3, 8)),
        np.full((4, 3), 1 / 3),
        np.ones((4, 3), bool),
    ]
    found = metrics_over_the_split(model.config)(
        SimpleNamespace(predictions=(*text, *video), label_ids=np.array([9, 4, 9, 6]))
    )
    texts = TextEmbeddings.of([torch.from_numpy(array) for array in text])
    videos = VideoEmbeddings.of([torch.from_numpy(array[[1, 3, 0]]) for array in video])
    assert found == retrieval_metrics(similarity_matrix(texts, videos, model.config), np.array([2, 0, 2, 1]))


def test_a_trainer_of_no_or_one_step_is_at_its_end():
    for steps in (0, 1):
        model = SimpleNamespace(clamp_logit_scale=lambda: None)
        ModelUpkeep().on_step_end(None, SimpleNamespace(global_step=1, max_steps=steps), None, model=model)
        assert model.progress == 1.0


def test_without_labels_there_is_a_loss_all_the_same(tmp_path, rows, make_model, processor):
    model = make_model(max_frames=processor.feature_extractor.num_frames)
    options = arguments(tmp_path)
    options.label_names = None
    trainer = Trainer(model, options, data_collator=collator(processor), eval_dataset=rows[:4])
    assert trainer.evaluate()["eval_loss"] > 0


def test_adapters_train_save_merge_and_load(tmp_path, rows, make_model, processor):
    base = make_model(max_frames=processor.feature_extractor.num_frames, interaction="wti")
    base.save_pretrained(tmp_path / "base")
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    model = base
    add_adapters(model, r=2)
    learns, all_of_them = trainable(model)
    assert learns < all_of_them / 2
    Trainer(model, arguments(tmp_path / "run"), data_collator=collator(processor), train_dataset=rows).train()
    batch = collator(processor)(rows)
    expected = model.eval()(**batch).logits_per_text
    save_adapter(model, str(tmp_path / "base"), tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[2] for name in weights if ".lora_" not in name} == {"temporal", "fc_text", "fc_video"}
    assert not torch.equal(model.logit_scale, frozen["logit_scale"]), "else nothing is shown of the temperature"

    torch.testing.assert_close(load_adapter(tmp_path / "adapter")(**batch).logits_per_text, expected)
    loaded, _ = load_model_and_processor(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(loaded(**batch).logits_per_text, expected)
    whole = without_adapters(model)
    assert weights_hash(whole) == weights_hash(load_adapter(tmp_path / "adapter")), "records would not know it"
    whole.save_pretrained(tmp_path / "whole")
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(again(**batch).logits_per_text, expected)
    name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(again.state_dict()[name], frozen[name])
    assert torch.equal(again.state_dict()["text_projection.weight"], frozen["text_projection.weight"])
    with pytest.raises(FileNotFoundError, match="this is no adapter"):
        load_adapter(tmp_path / "whole")


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path, rows, make_model, processor, monkeypatch):
    """docs/how_to/trainer.md from top to end, with a tiny model in the place of CLIP."""
    page = (Path(__file__).resolve().parents[2] / "docs/how_to/trainer.md").read_text(encoding="utf-8")
    model = make_model(max_frames=processor.feature_extractor.num_frames)
    model.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_model_and_processor", lambda *name, **words: (model, processor))
    names = {"rows": rows, "validation_rows": rows}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(code.replace("openai/clip-vit-base-patch32", str(tmp_path / "base")), names)
    assert any("eval_text_to_video_R@1" in entry for entry in names["trainer"].state.log_history)
    assert (tmp_path / "outputs/whole/model.safetensors").is_file()
    assert load_adapter(tmp_path / "outputs/adapter").config.model_type == "dmae"
