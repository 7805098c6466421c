"""The temporal encoder, head by head and number by number, and what it takes over from a text tower."""

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import PairTokens
from dmae.modeling_dmae.temporal_dmae import TemporalBlock, TemporalEncoder, strongest_patches


def test_a_block_is_its_equations():
    """x + attention(LN x) over valid tokens, then x + MLP(LN x) with QuickGELU; each head has its own part."""
    torch.manual_seed(0)
    block, x = TemporalBlock(8, 2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    normed = block.layer_norm1(x)
    q, k, v = block.q_proj(normed), block.k_proj(normed), block.v_proj(normed)
    attended = torch.zeros_like(x)
    for row in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            logits = (q[row, :, head] @ k[row, :, head].T / 2).masked_fill(~mask[row], float("-inf"))
            attended[row, :, head] = logits.softmax(-1) @ v[row, :, head]
    y = x + block.out_proj(attended)
    hidden = block.fc1(block.layer_norm2(y))
    torch.testing.assert_close(block(x, mask), y + block.fc2(hidden * torch.sigmoid(1.702 * hidden)))
    assert block.q_proj.init_std == 8**-0.5 == block.fc1.init_std and block.fc2.init_std == 32**-0.5
    assert not hasattr(block.layer_norm1, "init_std") and block.fc1.out_features == 32


def test_an_encoder_adds_its_blocks_to_the_tokens_and_keeps_the_first_of_each_frame():
    torch.manual_seed(0)
    words = {"temporal_init": "random", "temporal_input": "patch", "patches_per_frame": 2, "temporal_layers": 2}
    encoder = TemporalEncoder(DMAEConfig.tiny(**words))
    assert (len(encoder.blocks), encoder.positions.weight.shape, encoder.blocks[0].heads) == (2, (20, 64), 1)
    tokens, mask = torch.randn(2, 6, 64), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    places = torch.tensor([[0, 2, 3, 5, 6, 9]]).expand(2, -1)
    x = tokens + encoder.positions.weight[places]
    for block in encoder.blocks:
        x = block(x, mask)
    expected = nn.functional.normalize((tokens + x)[:, [0, 3]], dim=-1)
    torch.testing.assert_close(encoder(tokens, mask, places), expected)
    started = [name for name, module in encoder.named_modules() if getattr(module, "starts_at_zero", False)]
    still = TemporalEncoder(DMAEConfig.tiny(**{**words, "temporal_init": "identity"}))
    at_zero = [name for name, module in still.named_modules() if getattr(module, "starts_at_zero", False)]
    assert started == []
    assert at_zero == ["positions", "blocks.0.out_proj", "blocks.0.fc2", "blocks.1.out_proj", "blocks.1.fc2"]


def test_a_text_tower_is_copied_whole_and_positions_only_where_it_has_them_all():
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1, vocab_size=16)
    source = CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=5))
    for tensor in source.parameters():
        nn.init.normal_(tensor)
    for frames, copied in ((4, True), (5, True), (6, False)):
        encoder = TemporalEncoder(DMAEConfig.tiny(temporal_init="random", temporal_layers=1, max_frames=frames))
        encoder.copy_text_tower(source)
        layer, block = source.encoder.layers[0], encoder.blocks[0]
        parts = {"layer_norm1": layer.layer_norm1, "layer_norm2": layer.layer_norm2}
        parts |= {"fc1": layer.mlp.fc1, "fc2": layer.mlp.fc2}
        parts |= {name: getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, part in parts.items():
            assert torch.equal(getattr(block, name).weight, part.weight), name
            assert torch.equal(getattr(block, name).bias, part.bias), name
        rows = source.embeddings.position_embedding.weight[:frames]
        assert (encoder.positions.weight.shape == rows.shape and torch.equal(encoder.positions.weight, rows)) is copied


def test_all_patches_are_kept_where_no_fewer_are_asked_for():
    tokens = torch.randn(2, 3, 5, 4)
    for keep in (None, 4, 9):
        kept, places = strongest_patches(tokens, keep)
        assert kept is tokens and torch.equal(places, torch.arange(5).expand(2, 3, 5))
    kept, places = strongest_patches(tokens, 3)
    assert kept.shape == (2, 3, 4, 4) and places.shape == (2, 3, 4)


def test_a_pair_has_a_triplet_from_two_tokens_on():
    """With one token nothing would be left of the masked side."""
    mask = torch.tensor([[False, False, False], [True, False, False], [True, True, False], [True, True, True]])
    nothing = torch.zeros(0)
    tokens = PairTokens(nothing, mask, nothing, nothing, mask.flip(0), nothing)
    assert tokens.has_triplet.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]]
