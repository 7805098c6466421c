"""The whole model: switches, padding, TPM-CL, gradients, CLIP at step 0, SigLIP, saving, remote code, bad input."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.modeling_dmae.partial_order_dmae import mask_multiplier, select_tokens, token_weights, weighted_direction

ROWS = {
    "baseline": dict(textual_attention=False, visual_attention=False, loss="info_nce", partial_order=False),
    "neg_nce": dict(textual_attention=False, visual_attention=False, partial_order=False),
    "textual": dict(visual_attention=False, partial_order=False),
    "visual": dict(textual_attention=False, partial_order=False),
    "tpm": dict(textual_attention=False, visual_attention=False, loss="info_nce"),
    "all": {},
    "wti_patches": dict(interaction="wti", temporal_input="patch", patches_per_frame=2),
    "wti_sentence": dict(interaction="wti", text_granularity="sentence"),
    "mean": dict(interaction="mean"),
    "linear_pooled_eos": dict(word_weighting="linear", similarity_form="pooled", tpm_includes_eos=True),
    "gamma": dict(negative_weight=0.3, mask_ratio=0.2, partial_margin=0.2),
}


def tiny(seed=0, **overrides):
    torch.manual_seed(seed)
    return DMAEForTextVideoRetrieval(DMAEConfig.tiny(**overrides)).eval()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_every_parameter_it_has(row, tiny_batch):
    model = tiny(**ROWS[row])
    output = model(**tiny_batch)
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(output.logits_per_video, output.logits_per_text.T)
    if model.config.partial_order:
        parts = output.sentence_video_loss + output.words_video_loss + output.words_masked_loss
        torch.testing.assert_close(output.partial_order_loss, parts)
        torch.testing.assert_close(output.loss, output.contrastive_loss + output.partial_order_loss)


def test_preset_paper_is_as_printed():
    config = DMAEConfig.paper(max_frames=8)
    assert (config.temporal_init, config.similarity_form, config.mask_gradient) == ("random", "pooled", "none")
    assert (config.word_weighting, config.mask_duplicates, config.max_frames) == ("softmax", False, 8)


@pytest.mark.parametrize("temporal_input", ["frame", "patch"])
def test_padding_is_inert(temporal_input, tiny_batch):
    model = tiny(temporal_input=temporal_input, temporal_init="random", interaction="wti")
    before = model(**tiny_batch)
    hidden = ~tiny_batch["video_mask"]
    tiny_batch["pixel_values"][hidden] = float("nan")
    tiny_batch["input_ids"][tiny_batch["attention_mask"] == 0] = 77
    tiny_batch["word_weights"][~tiny_batch["word_mask"]] = 1e9
    after = model(**tiny_batch)
    torch.testing.assert_close(after.loss, before.loss)
    torch.testing.assert_close(after.logits_per_text, before.logits_per_text)


def test_wti_is_ti_at_step_0(tiny_batch):
    ti, wti = tiny(temporal_init="random"), tiny(temporal_init="random", interaction="wti")
    wti.load_state_dict(ti.state_dict(), strict=False)
    torch.testing.assert_close(wti(**tiny_batch).logits_per_text, ti(**tiny_batch).logits_per_text)


@pytest.mark.parametrize("gradient", ["straight_through", "none"])
def test_visual_predictor_learns_only_through_the_straight_mask(gradient, tiny_batch):
    model = tiny(temporal_init="random", mask_gradient=gradient)
    model(**tiny_batch).partial_order_loss.backward()
    gradients = [p.grad for p in model.visual_predictor.parameters()]
    if gradient == "none":
        assert gradients == []  # they are buffers
    else:
        assert all(g is not None and g.abs().max() > 0 for g in gradients)


def test_mask_gradient_none_survives_loading_and_trains_under_ddp(tmp_path, tiny_batch):
    """Every parameter that asks for a gradient gets one, after `from_pretrained` too: DDP needs it at step two."""
    model = tiny(mask_gradient="none", temporal_init="random")
    model.save_pretrained(tmp_path / "model")
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "model").requires_grad_(True)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(again)
        for _ in range(2):
            wrapped(**tiny_batch).loss.backward()
    finally:
        dist.destroy_process_group()
    assert not [name for name, p in again.named_parameters() if p.grad is None]
    trained = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "model", mask_gradient="straight_through")
    assert all(p.requires_grad for p in trained.visual_predictor.parameters())
    assert len(list(trained.visual_predictor.parameters())) == len(list(model.visual_predictor.buffers())) > 0


OPENAI_IDS = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)  # what their configurations say; their ids differ


@pytest.mark.parametrize("ids", [OPENAI_IDS, dict(bos_token_id=126, eos_token_id=127, pad_token_id=127)])
def test_default_word_mask_is_the_pieces_between_bos_and_the_end(ids):
    torch.manual_seed(0)
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1)
    text = dict(tower, vocab_size=128, max_position_embeddings=16, **ids)
    model = tiny(text_config=text, tpm_includes_eos=True)
    input_ids = torch.full((3, 16), 127)  # CLIP's tokenizer pads with its end token
    for row, words in enumerate([9, 1, 14]):
        input_ids[row, 0] = 126
        input_ids[row, 1 : words + 1] = torch.randint(0, 100, (words,))
    attended = torch.arange(16) < torch.tensor([11, 3, 16])[:, None]
    expected = torch.zeros(3, 16, dtype=torch.bool)
    expected[0, 1:10] = expected[1, 1:2] = expected[2, 1:15] = True
    with_end = expected.clone()
    with_end[torch.arange(3), torch.tensor([10, 2, 15])] = True
    for mask in (None, attended.long()):
        assert torch.equal(model.get_text_features(input_ids, mask).word_mask, expected)
        tokens = model.encode_pairs(input_ids, mask, pixel_values=torch.randn(3, 4, 3, 32, 32))[2]
        assert torch.equal(tokens.text_mask, with_end)


def test_a_text_cut_before_its_end_token_keeps_its_last_word():
    input_ids = torch.tensor([[0, 5, 6, 7], [0, 5, 1, 1]])
    attended = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mask = tiny().get_text_features(input_ids, attended).word_mask
    assert mask.tolist() == [[False, True, True, True], [False, True, False, False]]


def test_a_pair_with_one_token_has_no_triplet(tiny_batch):
    model = tiny()
    text, video, tokens = model.encode_pairs(**tiny_batch)
    losses, valid = model.partial_order_terms(text, video, tokens)
    assert losses.shape == valid.shape == (3, 3)
    assert valid.tolist() == [[True, True, False], [True, True, False], [True, True, False]]
    wider, _ = model.partial_order_terms(text, video, tokens, margin=1.6)
    torch.testing.assert_close(wider[valid], (losses + 1.0)[valid])  # no hinge is closed at δ = 0.6 here


def test_select_tokens_by_hand():
    weights = torch.tensor([[0.5, 0.05, 0.3, 0.15, 0.0], [0.7, 0.2, 0.1, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2, 0.0]])
    mask = torch.tensor([[True, True, True, True, False], [True, True, True, False, False], [True] * 4 + [False]])
    keep = select_tokens(weights, mask, 0.6)
    # cumulative .5 | .8: one masked. The top token alone passes τ: masked all the same (R9). Ties: lowest index.
    assert keep.tolist() == [
        [False, True, True, True, True],
        [False, True, True, True, True],
        [False, True, True, True, True],
    ]
    assert select_tokens(weights, mask, 0.9).tolist()[0] == [False, True, False, True, True]


def test_masking_never_profits_from_norm():
    """Both directions are unit vectors, so a masked text scores lower only for what it says (R10)."""
    torch.manual_seed(0)
    tokens, mask = torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool)
    weights = token_weights(torch.randn(4, 6), mask)
    factor = mask_multiplier(weights, select_tokens(weights, mask, 0.6), "none")
    for direction in (weighted_direction(tokens, weights), weighted_direction(tokens, weights * factor)):
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones(4))


def test_straight_through_has_slope_minus_one():
    weights = torch.tensor([[0.7, 0.3]], requires_grad=True)
    factor = mask_multiplier(weights, torch.tensor([[False, True]]), "straight_through")
    assert factor.tolist() == [[0.0, 1.0]]
    factor.sum().backward()
    assert weights.grad.tolist() == [[-1.0, -1.0]]


def clip_checkpoint(folder, size, patch, width, **vision):
    """A CLIP of a real family's shape (patch count, widths' ratio) with random weights, in the real format."""
    torch.manual_seed(0)
    tower = dict(num_hidden_layers=2, num_attention_heads=1)
    text = dict(tower, hidden_size=64, intermediate_size=256, vocab_size=100, max_position_embeddings=77)
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    vision = dict(tower, hidden_size=width, intermediate_size=2 * width, image_size=size, patch_size=patch)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()
    clip.save_pretrained(folder)
    return clip


@pytest.mark.parametrize(("patch", "width"), [(32, 96), (16, 96), (14, 128)], ids=["B/32", "B/16", "L/14"])
def test_zero_shot_is_clip_on_the_mean_frame(tmp_path, tiny_batch, patch, width):
    clip = clip_checkpoint(tmp_path, 224, patch, width)
    model = DMAEForTextVideoRetrieval.from_clip(tmp_path, interaction="mean", max_words=16, max_frames=4)
    tiny_batch["pixel_values"] = torch.randn(3, 4, 3, 224, 224)
    with torch.no_grad():
        logits = model(**tiny_batch).logits_per_text
        text = clip.get_text_features(tiny_batch["input_ids"], tiny_batch["attention_mask"]).pooler_output
        frames = clip.get_image_features(tiny_batch["pixel_values"].flatten(0, 1)).pooler_output.view(3, 4, -1)
        frames = frames / frames.norm(dim=-1, keepdim=True) * tiny_batch["video_mask"][..., None]
        video = frames.sum(1) / frames.sum(1).norm(dim=-1, keepdim=True)
        expected = clip.logit_scale.exp() * text / text.norm(dim=-1, keepdim=True) @ video.T
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_temporal_encoder_from_the_text_tower(tmp_path, tiny_batch):
    clip = clip_checkpoint(tmp_path, 32, 16, 64)
    model = DMAEForTextVideoRetrieval.from_clip(tmp_path, temporal_init="clip", temporal_layers=2, max_frames=4)
    assert torch.equal(model.temporal.positions.weight, clip.text_model.embeddings.position_embedding.weight[:4])
    assert torch.equal(model.temporal.blocks[1].fc1.weight, clip.text_model.encoder.layers[1].mlp.fc1.weight)
    model.save_pretrained(tmp_path / "saved")
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.temporal.positions.weight, model.temporal.positions.weight)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_towers_fit(tmp_path, tiny_batch, family):
    torch.manual_seed(0)
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    text = dict(tower, vocab_size=100, max_position_embeddings=16, projection_size=64)
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    vision = dict(tower, patch_size=16) | (dict(image_size=32) if family == "siglip" else dict(num_patches=4))
    config, model_class = {"siglip": (SiglipConfig, SiglipModel), "siglip2": (Siglip2Config, Siglip2Model)}[family]
    source = model_class(config(text_config=text, vision_config=vision)).eval()
    source.save_pretrained(tmp_path)
    model = DMAEForTextVideoRetrieval.from_clip(tmp_path, interaction="mean", temporal_input="patch", max_frames=4)
    assert (model.config.frame_size, model.config.patches_in_frame) == (32, 4)
    with torch.no_grad():
        sentence = source.get_text_features(tiny_batch["input_ids"]).pooler_output
        ours = model.get_text_features(**{k: v for k, v in tiny_batch.items() if "video" not in k and "pixel" not in k})
    torch.testing.assert_close(ours.sentence_embeds, sentence / sentence.norm(dim=-1, keepdim=True))
    plain = torch.tensor([[5, 6, 7, 1, *[1 if family == "siglip" else 0] * 12]])
    assert model.get_text_features(plain).word_mask.tolist() == [[True] * 3 + [False] * 13]  # neither has a BOS
    if family == "siglip":
        with torch.no_grad():
            frame = source.get_image_features(tiny_batch["pixel_values"][0]).pooler_output
        embeds = model.get_video_features(tiny_batch["pixel_values"][:1]).video_embeds[0]
        torch.testing.assert_close(embeds, frame / frame.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    trained = tiny(text_config=model.config.text_config, vision_config=model.config.vision_config)
    trained(**tiny_batch).loss.backward()


# Another value of every field, and what the field needs beside it to matter.
OTHER_VALUES = {
    "text_config": (dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=128), {}),
    "vision_config": (
        dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8),
        {},
    ),
    "projection_dim": (128, {}),
    "logit_scale_init_value": (1.0, {}),
    "max_words": (12, {}),
    "max_frames": (6, {}),
    "interaction": ("wti", {}),
    "similarity_form": ("pooled", {}),
    "text_granularity": ("words", {}),
    "word_weighting": ("linear", {}),
    "textual_attention": (False, {}),
    "visual_attention": (False, {}),
    "visual_top_k": (3, {}),
    "visual_scale": ("halved", {}),
    "content_weight": (3.0, {}),
    "irrelevant_words": (1, {}),
    "temporal_input": ("patch", {}),
    "temporal_layers": (2, {}),
    "temporal_init": ("random", {}),
    "patches_per_frame": (2, dict(temporal_input="patch")),
    "loss": ("info_nce", {}),
    "positive_weight": (0.5, {}),
    "negative_weight": (0.9, {}),
    "negative_margin": (2.0, dict(mask_duplicates=False)),
    "mask_duplicates": (False, {}),
    "partial_order": (False, {}),
    "partial_margin": (0.2, {}),
    "mask_ratio": (0.2, {}),
    "partial_weight": (0.5, {}),
    "mask_gradient": ("none", {}),
    "tpm_includes_eos": (True, {}),
    "margin_schedule": ("linear", {}),
    "partial_margin_start": (0.3, dict(margin_schedule="linear")),
    "initializer_range": (0.5, {}),
}


def test_every_field_of_the_configuration_changes_something(tiny_batch):
    """Weights, loss, gradient, or what the model's processor makes of a caption: a field without effect is a lie."""
    assert list(OTHER_VALUES) == DMAEConfig.field_names()
    tiny_batch |= {"video_ids": torch.tensor([1, 1, 2]), "caption_ids": torch.tensor([1, 2, 3])}
    silent = []
    for name, (value, also) in OTHER_VALUES.items():
        effects = [
            _effect(tiny_batch, **{"temporal_init": "random", **words}) for words in (also, {**also, name: value})
        ]
        if name == "temporal_init":
            effects[1] = _effect(tiny_batch, temporal_init="identity")
        if _same(*effects):
            silent.append(name)
    assert silent == []


def _effect(batch, **words) -> dict:
    """What a configuration makes: weights, a training step's loss and gradient, and what it asks of its processor."""
    model = tiny(**words).train()
    model.progress = 0.5
    seen = {f"weight {name}": value.clone() for name, value in model.state_dict().items()}
    cut = {
        name: value[:, : model.config.max_words] if value.shape[1:] == (16,) else value for name, value in batch.items()
    }
    frames = model.config.max_frames
    for name in ("pixel_values", "video_mask"):
        cut[name] = torch.cat([cut[name], cut[name].new_zeros(3, frames - 4, *cut[name].shape[2:])], 1)
    model(**cut)
    loss = model(**cut).loss  # the second batch meets what the memory kept of the first
    loss.backward()
    seen |= {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    return seen | {"loss": loss.detach(), "processor": model.config.processor_words()}


def _same(one: dict, other: dict) -> bool:
    if one.keys() != other.keys() or one["processor"] != other["processor"]:
        return False
    return all(
        value.shape == other[name].shape and torch.equal(value, other[name])
        for name, value in one.items()
        if name != "processor"
    )


def test_the_margin_follows_training_and_is_refused_where_nobody_says_how_far_it_is(tiny_batch):
    model = tiny(margin_schedule="linear", partial_margin_start=0.1).train()
    with pytest.raises(ValueError, match=r"set model\.progress, from 0\.0 to 1\.0"):
        model(**tiny_batch)
    assert model(**tiny_batch, return_loss=False).loss is None
    losses = []
    for model.progress in (0.0, 0.5, 1.0):
        losses.append(model(**tiny_batch).partial_order_loss)
    constant = [tiny(partial_margin=margin).train()(**tiny_batch).partial_order_loss for margin in (0.1, 0.35, 0.6)]
    torch.testing.assert_close(losses, constant)
    model.progress = None
    torch.testing.assert_close(model.eval()(**tiny_batch).partial_order_loss, constant[2])


def test_save_and_load(tmp_path, tiny_batch):
    model = tiny(interaction="wti", temporal_init="random", max_frames=4)
    model.save_pretrained(tmp_path)
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path)
    plain = [name for name in DMAEConfig.field_names() if name not in ("text_config", "vision_config")]
    assert [getattr(again.config, name) for name in plain] == [getattr(model.config, name) for name in plain]
    torch.testing.assert_close(again(**tiny_batch).loss, model(**tiny_batch).loss, rtol=0, atol=0)


def test_remote_code_in_a_fresh_process(tmp_path, tiny_batch):
    """What AutoModel loads from a saved folder is whole: no import of this package, the same numbers."""
    DMAEConfig.register_for_auto_class()
    DMAEForTextVideoRetrieval.register_for_auto_class("AutoModel")
    model = tiny(interaction="wti")
    model.save_pretrained(tmp_path / "model")
    torch.save((tiny_batch, model(**tiny_batch).logits_per_text.detach()), tmp_path / "batch.pt")
    code = f"""
import sys, torch
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
try:
    import dmae; raise SystemExit("the package can be imported")
except ImportError: pass
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
batch, expected = torch.load({str(tmp_path / "batch.pt")!r})
assert "transformers_modules" in type(model).__module__
torch.testing.assert_close(model(**batch).logits_per_text, expected)
print("same")
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("same")


def test_explanation_on_request(tiny_batch):
    model = tiny()
    assert model(**tiny_batch).word_frame_similarities is None
    output = model(**tiny_batch, output_explanation=True)
    assert output.word_frame_similarities.shape == (3, 3, 16, 4)
    assert not (output.masked_words & ~output.word_mask).any()
    assert output.masked_words.any(1).all()
    torch.testing.assert_close(output.word_weights.sum(1), torch.ones(3))


def test_other_counts_and_batches_of_one(tiny_batch):
    model = tiny()
    text = {k: v[:1] for k, v in tiny_batch.items() if k not in ("pixel_values", "video_mask")}
    video = {k: tiny_batch[k] for k in ("pixel_values", "video_mask")}
    assert model(**text, **video).loss is None
    single = model(**{k: v[:1] for k, v in tiny_batch.items()})
    assert single.contrastive_loss.item() == 0.0
    single.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_clamp_logit_scale():
    model = tiny()
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_models_stay_close(dtype, tiny_batch):
    model = tiny(temporal_init="random")
    exact = model(**tiny_batch).logits_per_text / model.logit_scale.exp()
    output = model.to(dtype)(**tiny_batch)
    assert torch.isfinite(output.loss)
    assert (output.logits_per_text / model.logit_scale.float().exp() - exact).abs().max() < 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(interaction="tti"), "did you mean 'ti'.*'wti'"),
        (dict(interactoin="ti"), "did you mean 'interaction'"),
        (dict(mask_ratio=1.0), "mask_ratio"),
        (dict(max_words=99), "exceeds the text tower's 32 positions"),
        (dict(visual_top_k=0), "visual_top_k=0"),
        (dict(patches_per_frame=9), "a frame has 4 patches"),
        (dict(temporal_init="clip"), "intermediate_size is 128 and must be 256"),
        (dict(partial_order="yes"), "True or False"),
        (dict(text_config={"model_type": "clop"}), "unknown to transformers"),
    ],
)
def test_bad_configurations_say_what_is_valid(words, message):
    with pytest.raises(ValueError, match=message):
        DMAEConfig.tiny(**words)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b["word_mask"].__setitem__(1, False), "word_mask: row 1 of 3"),
        (lambda b: b["video_mask"].__setitem__(2, False), "video_mask: row 2 of 3"),
        (lambda b: b["pixel_values"][0].fill_(float("nan")), "video_embeds: row 0 of 3"),
        (lambda b: b.update(word_mask=b["word_mask"][:, :5]), "word_mask is"),
        (lambda b: b.update(pixel_values=b["pixel_values"][:, :2], video_mask=b["video_mask"][:, :2]), "max_frames=4"),
    ],
)
def test_bad_batches_are_named(spoil, message, tiny_batch):
    spoil(tiny_batch)
    with pytest.raises(ValueError, match=message):
        tiny()(**tiny_batch)


# ---------------------------------------------------------------------- one side alone, states, names


def text_side(batch):
    return {name: value for name, value in batch.items() if name not in ("pixel_values", "video_mask")}


def test_one_side_alone_gives_its_embeddings(tiny_batch):
    model = tiny()
    whole = model(**tiny_batch)
    texts = model(**text_side(tiny_batch))
    videos = model(pixel_values=tiny_batch["pixel_values"], video_mask=tiny_batch["video_mask"])
    for alone, names in [(texts, ("text_embeds", "word_embeds", "word_weights")), (videos, ("attended_embeds",))]:
        assert alone.loss is None and alone.logits_per_text is None
        for name in names:
            torch.testing.assert_close(alone[name], whole[name])
    assert texts.video_embeds is None and videos.text_embeds is None
    for arguments, message in [
        ({}, "nothing to encode: give input_ids"),
        ({"pixel_values": tiny_batch["pixel_values"], "output_explanation": True}, "output_explanation=True is about"),
        ({**tiny_batch, "pixel_values_videos": tiny_batch["pixel_values"]}, "two names of one input"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**arguments)


def test_frames_by_their_other_name(tiny_batch):
    model = tiny()
    expected = model(**tiny_batch)
    frames = tiny_batch.pop("pixel_values")
    assert torch.equal(model(**tiny_batch, pixel_values_videos=frames).logits_per_text, expected.logits_per_text)
    again = model.get_video_features(pixel_values_videos=frames, video_mask=tiny_batch["video_mask"])
    assert torch.equal(again.attended_embeds, expected.attended_embeds)
    as_tuple = model.get_video_features(frames, tiny_batch["video_mask"], return_dict=False)
    assert torch.equal(as_tuple[1], expected.attended_embeds)


def test_states_of_the_towers_on_request(tiny_batch):
    model = tiny()
    assert model(**tiny_batch).text_model_output is None
    with pytest.raises(ValueError, match=r"set_attn_implementation\('eager'\)"):
        model(**tiny_batch, output_attentions=True)
    model.set_attn_implementation("eager")
    output = model(**tiny_batch, output_attentions=True, output_hidden_states=True)
    frames = int(tiny_batch["video_mask"].sum())
    assert [tuple(state.shape) for state in output.text_model_output.hidden_states] == [(3, 16, 64)] * 3
    assert [tuple(state.shape) for state in output.vision_model_output.attentions] == [(frames, 1, 5, 5)] * 2
    text = model.get_text_features(**text_side(tiny_batch), output_hidden_states=True)
    assert torch.equal(text.hidden_states[-1], output.text_model_output.hidden_states[-1])
    assert text.attentions is None and text[:1].hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(**tiny_batch).vision_model_output.hidden_states) == 3
