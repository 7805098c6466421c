"""What the training loop adds up to: the same steps written out by hand, and the records beside what was saved."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from dmae import DMAEForTextVideoRetrieval, DMAEProcessor
from dmae.evaluation.scoring import encode_split, similarity_matrix
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics
from dmae.training.build import build_model, build_processor, load_splits, make_schedule
from dmae.training.config import config_from_dict
from dmae.training.examples import TrainingExamples, to_model_inputs
from dmae.training.loop import train
from dmae.training.record import read_metrics

STEPS, RATE, CLIP_RATE = 4, 3e-3, 1e-3


@pytest.fixture(scope="module")
def trained(miniature, tiny, tmp_path_factory):
    """Four steps over one and a third epochs with every option at a value that no default has."""
    output = tmp_path_factory.mktemp("plain") / "out"
    words = {"max_steps": STEPS, "seed": 7, "learning_rate": RATE, "clip_learning_rate": CLIP_RATE}
    words |= {"max_grad_norm": 0.05, "weight_decay": 0.5, "warmup_ratio": 0.5, "lr_scheduler_type": "linear"}
    words |= {"adam_beta1": 0.7, "adam_beta2": 0.9, "adam_epsilon": 1e-3, "freeze": ["text_projection"]}
    words |= {"logging_steps": 2, "save_steps": 1, "save_total_limit": 1}
    words |= {"train_batch_size": None, "per_device_train_batch_size": 4}
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, output, **words)
    # above the bound, so that the first step has something to clamp
    recipe["model"] |= {"logit_scale_init_value": 4.7, "margin_schedule": "linear", "partial_margin_start": 0.0}
    config = config_from_dict(recipe)
    return config, train(config)


def by_hand(config):
    """(model, processor, the losses, the rates) of the same run as plain lines."""
    set_seed(7)
    splits = load_splits(config)
    processor = build_processor(config, splits)
    model = build_model(config, processor)
    model.text_projection.weight.requires_grad_(False)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            clip = name.split(".")[0] in ("text_model", "vision_model", "visual_projection", "logit_scale")
            groups.setdefault((CLIP_RATE if clip else RATE, 0.5 if parameter.dim() > 1 else 0.0), []).append(parameter)
    parts = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    optimizer = torch.optim.AdamW(parts, betas=(0.7, 0.9), eps=1e-3)
    full = [group["lr"] for group in optimizer.param_groups]
    rows = splits.train.dataset.to_list()
    schedule, examples = make_schedule(config, rows, 1), TrainingExamples(rows, processor)
    batches = [batch for epoch in range(2) for batch in schedule.batches(epoch)]
    losses, rates = [], []
    for step, batch in enumerate(batches[:STEPS]):
        share = step / 2 if step < 2 else (STEPS - step) / 2  # up for two steps, down for two
        for group, rate in zip(optimizer.param_groups, full):
            group["lr"] = rate * share
        model.progress = step / STEPS
        inputs = to_model_inputs(examples.collate(examples.__getitems__(batch)), processor.feature_extractor)
        loss = model(**inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        losses.append(loss.item())
        rates.append(RATE * share)
    return model, losses, rates


def test_the_loop_is_the_plain_loop(trained, tiny):
    config, result = trained
    torch.manual_seed(0)
    model, losses, rates = by_hand(config)
    saved, expected = tiny.weights(result.output_dir / "last"), model.state_dict()
    assert max((saved[name] - expected[name]).abs().max() for name in saved) < 1e-6
    assert expected["logit_scale"] <= math.log(100) + 1e-6 < 4.7
    rows = [row for row in read_metrics(result.output_dir / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [2, 3, 4]  # every second, and the ends of the epoch and of the run
    means = [sum(losses[:2]) / 2, losses[2], losses[3]]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-5)
    assert [row["epoch"] for row in rows] == [0.667, 1.0, 1.333]
    # what is logged is the rate of the step to come
    assert [row["learning_rate"] for row in rows] == pytest.approx([*rates[2:], 0.0])


def test_the_record_has_the_options_of_the_run_and_the_sizes_of_its_model(trained):
    _, result = trained
    record = json.loads((result.output_dir / "run.json").read_text())
    assert (record["seed"], record["global_batch"], record["total_steps"], record["samples"]) == (
        7,
        4,
        STEPS,
        4 * STEPS,
    )
    model = DMAEForTextVideoRetrieval.from_pretrained(result.output_dir / "last")
    frozen = model.text_projection.weight.numel()
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert (record["parameters"], record["trained_parameters"]) == (whole, whole - frozen)
    assert [path.name for path in result.output_dir.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert record["last"]["epoch"] == 1.333


def test_the_metrics_of_the_best_model_are_those_that_it_has(trained):
    """Loaded from its folder and scored on the validation split with every caption a query."""
    config, result = trained
    best = json.loads((result.output_dir / "run.json").read_text())["best"]
    rows = load_splits(config).validation.dataset.to_list()
    folder = result.output_dir / "best"
    model, processor = DMAEForTextVideoRetrieval.from_pretrained(folder), DMAEProcessor.from_pretrained(folder)
    split = encode_split(Accelerator(cpu=True), model, processor, rows, 3, 0, "validation")
    assert (best["videos"], best["texts"]) == (len(rows), sum(len(row["captions"]) for row in rows))
    found = retrieval_metrics(similarity_matrix(split.texts, split.videos, model.config), split.gold)
    assert best["metrics"] == pytest.approx(found) and result.metrics == best["metrics"]
