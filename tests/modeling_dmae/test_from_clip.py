"""CLIP and SigLIP checkpoints in their true format: zero-shot scores, the temporal encoder, the towers that fit."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval


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
def test_siglip_towers_fit(tmp_path, tiny_batch, family, tiny_model):
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
    trained = tiny_model(text_config=model.config.text_config, vision_config=model.config.vision_config)
    trained(**tiny_batch).loss.backward()


# Another value of every field, and what the field needs beside it to matter.
