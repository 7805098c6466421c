"""Each family of towers gives what transformers' own model gives, on tiny random checkpoints of the true format."""

import pytest
import torch
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    MetaClip2Config,
    MetaClip2Model,
)

from dmae import DMAEForTextVideoRetrieval

TOWER = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(TOWER, image_size=32, patch_size=16)
WORDS = dict(TOWER, vocab_size=100, max_position_embeddings=40)
# family: (configuration, model, text configuration, ids of BOS/CLS, EOS/SEP and padding)
FAMILIES = {
    "metaclip_2": (
        MetaClip2Config,
        MetaClip2Model,
        WORDS | dict(bos_token_id=0, eos_token_id=2, pad_token_id=1),
        (0, 2, 1),
    ),
    "altclip": (AltCLIPConfig, AltCLIPModel, WORDS | dict(project_dim=48, type_vocab_size=1), (0, 2, 1)),
    "chinese_clip": (ChineseCLIPConfig, ChineseCLIPModel, WORDS, (90, 91, 0)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_those_of_transformers(family, tmp_path):
    config_class, model_class, text, (first, end, padding) = FAMILIES[family]
    torch.manual_seed(0)
    source = model_class(config_class(text_config=text, vision_config=VISION, projection_dim=64)).eval()
    source.save_pretrained(tmp_path)
    model = DMAEForTextVideoRetrieval.from_clip(tmp_path, interaction="mean", max_words=12, max_frames=4)
    input_ids = torch.full((3, 12), padding)
    for row, words in enumerate([9, 4, 1]):
        input_ids[row, 0], input_ids[row, words + 1] = first, end
        input_ids[row, 1 : words + 1] = torch.randint(5, 80, (words,))
    attended = torch.arange(12) < torch.tensor([11, 6, 3])[:, None]
    frames = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        sentence = source.get_text_features(input_ids, attended.long()).pooler_output
        image = source.get_image_features(frames).pooler_output
        texts = model.get_text_features(input_ids, attended.long())
        embeds = model.get_video_features(frames[:, None]).video_embeds[:, 0]
    torch.testing.assert_close(texts.sentence_embeds, sentence / sentence.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(embeds, image / image.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    expected = torch.zeros(3, 12, dtype=torch.bool)
    for row, words in enumerate([9, 4, 1]):
        expected[row, 1 : words + 1] = True
    assert torch.equal(texts.word_mask, expected)
    assert torch.equal(model.get_text_features(input_ids).word_mask, expected)
    model.save_pretrained(tmp_path / "saved")
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(again.get_text_features(input_ids, attended.long()).word_embeds, texts.word_embeds)
    trained = DMAEForTextVideoRetrieval.from_clip(tmp_path, temporal_input="patch", max_words=12, max_frames=1)
    batch = dict(input_ids=input_ids, attention_mask=attended.long(), pixel_values=frames[:3, None])
    trained.train()(**batch).loss.backward()
    assert not [
        name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None and "pooler" not in name
    ]
