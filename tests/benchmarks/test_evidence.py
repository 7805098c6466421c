"""The study's arithmetic against slow references and planted effects; its towers and batches against the whole."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import evidence as study_of  # noqa: E402
import evidence_checkpoints  # noqa: E402
import evidence_design as design  # noqa: E402
import evidence_figures as figures  # noqa: E402
import evidence_forms as forms  # noqa: E402
import evidence_report as report  # noqa: E402
import evidence_run as running  # noqa: E402
import evidence_stats as arithmetic  # noqa: E402
import evidence_tables as tables  # noqa: E402
import evidence_towers as towers_of  # noqa: E402
import evidence_world as worlds  # noqa: E402

from dmae.modeling_dmae.vectors_dmae import unit  # noqa: E402

TRUE = {"negnce": 1.5, "ta": 0.0, "va": -8.0, "tpm": 0.5}
TINY = replace(
    design.WORLD,
    **{"train": 52, "validation_groups": 1, "validation_singles": 4, "test_groups": 2, "test_singles": 6},
)


def metrics_of(value: float) -> dict[str, float]:
    names = [f"{way}_{name}" for way in ("text_to_video", "video_to_text") for name in ("R@1", "R@5", "R@10", "rsum")]
    found = {
        **dict.fromkeys(names, value),
        "text_to_video_log_rank": -value / 50,
        "video_to_text_log_rank": -value / 50,
    }
    return found | {f"near_miss_{name}": 50.0 + value / 10 for name in tables.ATTRIBUTES}


def line_of(row, checkpoint, seed, value, part="factorial", level=None, settings=None):
    settings = settings or design.Settings()
    return {
        "key": f"{part}-{row.name}-{checkpoint}-{seed}", "preset": "cpu", "part": part, "row": row.name,
        "factors": row.factors, "checkpoint": checkpoint, "seed": seed, "level": level, "metrics": metrics_of(value),
        "split": "validation" if part == "tuning" else "test", "cpu_seconds": {"training": 1.0},
        "machine": "here", "settings": dict(vars(settings)),
    }  # fmt: skip


def factorial(noise: float, interaction: float = 0.0) -> list[dict]:
    """Lines of 12 blocks with planted effects; blocks differ a lot, rows within a block by `noise`."""
    rng, lines = np.random.default_rng(0), []
    for checkpoint, seed in itertools.product(range(4), range(3)):
        level = rng.normal(100, 20)
        for row in design.CELLS:
            value = level + sum(TRUE[name] for name, on in row.factors.items() if on)
            value += 2 * interaction * (row.factors["negnce"] and row.factors["va"]) + rng.normal(0, noise)
            lines.append(line_of(row, checkpoint, seed, value))
    return lines


def test_planted_effects_are_found_and_blocks_do_not_blur_them():
    effects = arithmetic.factorial_effects(factorial(noise=0.0), lambda m: m["text_to_video_rsum"])
    for name, true in TRUE.items():
        assert effects[name].effect == pytest.approx(true, abs=1e-9)
        assert effects[name].smallest_detectable < 1e-6
    assert effects["negnce x va"].effect == pytest.approx(0, abs=1e-9)
    turned = arithmetic.factorial_effects(factorial(0.0, interaction=3.0), lambda m: m["text_to_video_rsum"])
    assert turned["negnce x va"].effect == pytest.approx(3.0), "half of how much one changes the other's effect"
    assert turned["ta x va"].effect == pytest.approx(0, abs=1e-9)
    assert turned["negnce"].effect == pytest.approx(TRUE["negnce"] + 3.0)


def test_an_effect_is_the_mean_with_minus_the_mean_without():
    lines = factorial(noise=2.0)
    effect = arithmetic.factorial_effects(lines, lambda m: m["text_to_video_rsum"])["tpm"]
    on, off = (
        np.mean([line["metrics"]["text_to_video_rsum"] for line in lines if line["factors"]["tpm"] is is_on])
        for is_on in (True, False)
    )
    assert effect.effect == pytest.approx(on - off) and effect.blocks == 12


def test_an_unfinished_block_is_left_out():
    lines = factorial(noise=0.0)
    unfinished = [line for line in lines if not (line["checkpoint"] == 3 and line["seed"] == 2 and line["row"] == "va")]
    assert arithmetic.factorial_effects(unfinished, lambda m: m["text_to_video_rsum"])["va"].blocks == 11


def test_the_interval_is_students_and_the_power_is_right():
    values = np.random.default_rng(1).normal(0.3, 1.0, 12)
    found = arithmetic.estimate(values)
    reference = stats.ttest_1samp(values, 0)
    low, high = reference.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue))
    rng = np.random.default_rng(2)
    true = (
        arithmetic.estimate(rng.normal(0, 1, 200_000)).sd
        / np.sqrt(12)
        * (stats.t.ppf(0.975, 11) + stats.t.ppf(0.8, 11))
    )
    hits = [arithmetic.estimate(rng.normal(true, 1.0, 12)).p < 0.05 for _ in range(2000)]
    assert 0.77 < np.mean(hits) < 0.84
    with pytest.raises(ValueError, match="1 block"):
        arithmetic.estimate([1.0])


def test_one_more_block_lands_in_its_interval_as_often_as_it_says():
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(400):
        *known, new = rng.normal(3.0, 2.0, 6)
        low, high = arithmetic.next_block(known)
        inside += low <= new <= high
    assert 0.92 < inside / 400 < 0.98


def test_growth_compares_blocks_with_themselves():
    first = {(0, 0): 10.0, (1, 0): -10.0, (2, 0): 500.0}
    last = {(0, 0): 12.0, (1, 0): -7.0, (3, 0): -500.0}
    found = arithmetic.growth(first, last)
    assert (found.effect, found.blocks) == (2.5, 2)
    assert arithmetic.growth(first, {(3, 0): 1.0}) is None


def test_holm_is_never_below_p_nor_above_bonferroni_and_keeps_the_order():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert arithmetic.holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_tuning_picks_the_planted_setting_of_every_cell():
    """Visual attention wants the lower start scale, everything else the higher: the runs of half the cells show it."""
    rng, lines = np.random.default_rng(3), []
    for job in design.tuning_jobs():
        row = design.ROWS[job.row]
        value = 100 + (5 if (job.settings.start_scale == 40.0) == row.factors["va"] else 0) + rng.normal(0, 0.3)
        value += 2 if job.settings.tower_rate == 1e-3 else 0
        lines.append(line_of(row, 0, 100, value, "tuning", settings=job.settings))
    chosen = arithmetic.chosen_settings(lines, {row.name: row.factors for row in design.CELLS})
    assert len(chosen) == 16
    for row in design.CELLS:
        assert chosen[row.name].start_scale == (40.0 if row.factors["va"] else 100.0)
        assert chosen[row.name].tower_rate == 1e-3


def test_every_switch_is_on_in_half_of_the_cells_the_tuning_and_the_checkpoints():
    assert len({row.name for row in design.CELLS}) == 16
    tuned = [design.ROWS[job.row].factors for job in design.tuning_jobs()]
    for name in design.SWITCHES:
        assert sum(row.factors[name] for row in design.CELLS) == 8
        assert 2 * sum(factors[name] for factors in tuned) == len(tuned)
        assert sum(name in on for on in design.CHECKPOINT_SWITCHES) == 2


def test_every_row_is_a_model_and_is_compared_with_a_cell():
    for row in design.ROWS.values():
        towers_of.study_config(48, 6, 32, 700, **dict(row.model))
        assert row.tuned_as in {cell.name for cell in design.CELLS}
    assert set(design.AGAINST) == set(design.ROWS) - {cell.name for cell in design.CELLS}
    assert all(dial.row in design.ROWS and dial.base in design.ROWS for dial in design.DIALS.values())


def test_batches_keep_families_together_and_are_the_same_for_every_row():
    families = np.array([0] * 4 + [1] * 4 + list(range(2, 90)))
    batches = running.epoch_batches(families, 5, seed=3, epoch=0)
    again = running.epoch_batches(families, 5, seed=3, epoch=0)
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(batches, again))
    order = np.concatenate([rows for rows, _ in batches])
    assert len(set(order)) == len(order) == 96 and set(order) <= set(range(96))
    for family in (0, 1):
        places = np.flatnonzero(families[order] == family)
        assert places.max() - places.min() == 3
    other = running.epoch_batches(families, 5, seed=3, epoch=1)
    assert not (other[0][0] == batches[0][0]).all()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A tiny world through random towers, and the towers."""
    torch.manual_seed(0)
    config = towers_of.study_config(worlds.SIZE, worlds.FRAMES, worlds.WORDS, worlds.VOCABULARY)
    model = running.DMAEForTextVideoRetrieval(config)
    towers = evidence_checkpoints.towers_of(model)
    splits = worlds.load_world(TINY, tmp_path_factory.mktemp("world"))
    return running.see(splits, towers), towers


@torch.no_grad()
def test_stored_states_and_upper_blocks_are_the_whole_towers(seen):
    """The study's shortcut changes no embedding but by the rounding of states to float16."""
    world, towers = seen
    words = dict(design.ROWS["negnce+ta+va+tpm"].model)
    short = running.build_model(words, towers, world.words, 50.0, seed=4).eval()
    whole = running.build_model(words, towers, world.words, 50.0, seed=4).eval()
    plain = running.build_towers(towers, **words)
    whole.vision_model, whole.text_model = plain.vision_model, plain.text_model
    rows, split = np.arange(6), world.splits["test"]
    batch = world.batch("test", rows, np.zeros_like(rows))
    texts = {name: split.texts[name][:6, 0] for name in ("input_ids", "attention_mask", "word_mask", "word_weights")}
    pixels = towers_of.as_pixels(split.frames[:6].reshape(-1, *split.frames.shape[2:])).unflatten(0, (6, -1))
    true = whole(**{**texts, "pixel_values": pixels, "video_mask": batch["video_mask"]})
    found = short(**batch)
    for name in ("text_embeds", "video_embeds"):
        torch.testing.assert_close(getattr(found, name), getattr(true, name), atol=3e-3, rtol=0)
    real = texts["word_mask"]  # what stands at padding is read by nobody
    torch.testing.assert_close(found.word_embeds[real], true.word_embeds[real], atol=3e-3, rtol=0)
    torch.testing.assert_close(found.logits_per_text, true.logits_per_text, atol=0.3, rtol=0)


def test_a_run_trains_the_last_blocks_and_leaves_the_trunk(seen):
    world, towers = seen
    row = design.ROWS["negnce+ta+va+tpm"]
    job = design.Job("tuning", row.name, 0, 1, design.Settings())
    model, trace = running.fine_tune(row, job, towers, world, epochs=1)
    kept = evidence_checkpoints.with_upper_blocks(towers, model)
    changed = {
        name for name, value in kept["vision_model"].items() if not torch.equal(value, towers["vision_model"][name])
    }
    assert changed and all(name.startswith(("encoder.layers.2", "post_layernorm")) for name in changed)
    assert len(trace) == 1 and np.isfinite(trace[0]["loss"])
    result = running.measures(running.score(model, row, world, "test"), world.splits["test"])
    assert {"text_to_video_rsum", "video_to_text_log_rank", "near_miss_object"} <= set(result)


def test_the_large_preset_starts_and_a_row_is_run_again(seen, tmp_path, monkeypatch, capsys):
    """All that `--preset gpu` does but for its size: tuned, sealed, opened; then one row again lands where it was."""
    world, towers = seen
    monkeypatch.setattr(study_of, "load_checkpoint", lambda number, folder: towers)
    monkeypatch.setattr(study_of, "load_world", lambda wanted, folder: world.splits)
    monkeypatch.setattr(running, "EPOCHS", 1)
    monkeypatch.setitem(study_of.PRESETS["gpu"], "seeds", 1)
    study = study_of.Study(tmp_path / "evidence.jsonl", tmp_path, "gpu")
    first = design.tuning_jobs()[0]
    study.do([first])
    with pytest.raises(SystemExit, match="1 of 32 tuning runs"):
        study.settings()
    settings = dict.fromkeys(design.ROWS, design.Settings())
    monkeypatch.setattr(study, "settings", lambda: settings)
    jobs = study_of.factorial_jobs(settings, design.WORLD, 3)
    study.do([job for job in jobs if job.checkpoint == 0 and job.row in ("baseline", "negnce")])
    assert [line["part"] for line in study.lines()] == ["tuning"], "test scores are sealed"
    study.read_test()
    assert [line["preset"] for line in study.lines()] == ["gpu"] * 7
    with pytest.raises(SystemExit, match="nothing may be tuned"):
        study.refuse_after_reading()
    capsys.readouterr()
    study_of.again(study, "negnce", 0, 1, design.WORLD)
    said = capsys.readouterr().out.splitlines()
    values = [line.split() for line in said if "recorded" in line]
    assert len(values) > 20 and all(now == then for _, now, _, then in values)
    assert "2 other blocks" in said[-1] and ("inside" in said[-1] or "OUTSIDE" in said[-1])


def test_no_line_of_the_dials_figure_is_cut_off(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, docs, name: drawn.append(figure))
    effect = arithmetic.estimate([1.0, 2.0, 3.0])
    figures.plot_dials({name: [(0.0, effect, effect), (1.0, effect, effect)] for name in design.DIALS}, tmp_path)
    (figure,) = drawn
    figure.draw_without_rendering()
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
            others = [other for other in figure.axes if other is not axes and other.axison]
            assert not any(box.overlaps(other.xaxis.label.get_window_extent()) for other in others), text


def test_measures_count_ranks_ties_and_near_misses():
    split = worlds.Split(np.zeros((3, 1)), {}, np.arange(3), [(0, 1, "colour"), (1, 0, "colour"), (2, 0, "object")])
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1], [0.3, 0.0, 0.3]])
    found = running.measures(scores, split)
    assert found["text_to_video_log_rank"] == pytest.approx(np.mean(np.log([1, 2, 1.5])), abs=1e-4)
    assert (found["near_miss_colour"], found["near_miss_object"]) == (50.0, 50.0)


def test_the_authors_form_adds_half_of_the_best_frames_neighbour():
    torch.manual_seed(0)
    text = forms.TextEmbeddings(
        unit(torch.randn(2, 8)), unit(torch.randn(2, 3, 8)), torch.full((2, 3), 1 / 3), torch.ones(2, 3).bool()
    )
    frames = unit(torch.randn(2, 4, 8))
    video = forms.VideoEmbeddings(frames, frames, torch.full((2, 4), 0.25), torch.ones(2, 4).bool())
    found = forms.authors_similarity(text, video, None)
    for a, b in itertools.product(range(2), range(2)):
        total = 0.0
        for tokens in (text.word_embeds[a], text.sentence_embeds[a][None]):
            products = tokens @ frames[b].T
            forward = 0.0
            for row in products:
                j = int(row.argmax())
                others = [n for n in range(4) if n != j]
                n = max(others, key=lambda k: float(frames[b, j] @ frames[b, k]))
                forward += float(row[j] + 0.5 * (frames[b, j] @ frames[b, n]) * row[n]) / len(tokens)
            total += (forward + float(products.max(0).values.mean())) / 2
        assert float(found[a, b]) == pytest.approx(total / 2, abs=1e-5)


def test_a_memory_extends_rows_and_columns_and_one_of_none_is_the_loss_without():
    """A batch after another scores like the first rows and columns of the matrix of both."""
    torch.manual_seed(1)
    ids, log_scale = torch.arange(7), torch.tensor(10.0).log()
    words, frames = unit(torch.randn(7, 3, 8)), unit(torch.randn(7, 4, 8))
    text = (unit(torch.randn(7, 8)), words, torch.full((7, 3), 1 / 3), torch.ones(7, 3).bool())
    video = (frames, frames, torch.full((7, 4), 0.25), torch.ones(7, 4).bool())
    losses = {}
    for name in ("memory of 0", "memory of 256"):
        model = torch.nn.Module()
        model.config = towers_of.study_config(48, 6, 32, 700, loss="neg_nce", visual_attention=False)
        objective = forms.OBJECTIVES[name](model)
        for rows in (slice(4, 7), slice(0, 4)):
            objective.inputs = {"input.video_ids": ids[rows]}
            pairs = (kind(*(part[rows] for part in parts)) for kind, parts in
                     ((forms.TextEmbeddings, text), (forms.VideoEmbeddings, video)))  # fmt: skip
            losses[name] = objective.contrast(*pairs, log_scale, ids[rows], ids[rows])["contrastive"]
    whole = forms.similarity(forms.TextEmbeddings(*text), forms.VideoEmbeddings(*video), model.config)
    hard, expected = forms.hard_negatives(whole), 0.0
    for scores, mask in ((whole, hard), (whole.T, hard.T)):
        logits = 10 * scores[:4]
        push = -torch.log(1 - logits.softmax(1))[mask[:4]]
        expected += (torch.nn.functional.cross_entropy(logits, ids[:4]) + 0.5 * push.mean()) / 2
    torch.testing.assert_close(losses["memory of 256"], expected)
    torch.testing.assert_close(losses["memory of 0"], forms.contrastive_loss(whole[:4, :4], 10.0, model.config))


def test_the_report_says_what_the_lines_say(tmp_path):
    results = tmp_path / "results" / "evidence.jsonl"
    results.parent.mkdir()
    tuning = [
        line_of(design.ROWS[job.row], 0, 100, 90.0 + k % 5, "tuning", settings=job.settings)
        for k, job in enumerate(design.tuning_jobs())
    ]
    lines = tuning + factorial(noise=0.5)
    dial = design.DIALS["margin"]
    for level, seed, (row, gain) in itertools.product((0.05, 0.6), range(3), ((dial.base, 0), (dial.row, 2))):
        lines.append(line_of(design.ROWS[row], 0, seed, 100 + gain + 0.1 * seed * gain, "margin", level))
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "docs").mkdir()
    page = report.write_report(results, tmp_path / "docs").read_text()
    effects = json.loads((results.parent / "effects.json").read_text())
    assert effects["va"]["effect"] == pytest.approx(-8.0, abs=0.5)
    assert {"effect", "low", "high", "smallest_detectable"} <= set(effects["va"])
    assert "**visual attention**: costs" in page and "**textual attention**: no effect shown" in page
    assert "in 12 complete blocks" in page and "Not run: δ 0.02" in page
    assert "334,144 parameters" in page and "## Each part in a line" in page
    for picture in ("evidence_effects", "evidence_dials"):
        assert (tmp_path / "docs" / "images" / f"{picture}.png").stat().st_size > 5000


def test_no_report_before_the_test_split_is_read(tmp_path):
    path = tmp_path / "evidence.jsonl"
    path.write_text(json.dumps(line_of(design.CELLS[0], 0, 100, 1.0, "tuning")) + "\n")
    with pytest.raises(SystemExit, match="--read-test first"):
        report.write_report(path, tmp_path)
