"""Tokens that are merged: one by one as a loop does it, and without effect where those that merge are equal."""

import pytest
import torch
from torch import nn
from transformers import AltCLIPVisionConfig, ChineseCLIPVisionConfig, CLIPVisionConfig

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.modeling_dmae.merging_dmae import assignment, merge_tokens, merged_blocks

VISION = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, image_size=32)


def tiny(**words) -> DMAEForTextVideoRetrieval:
    torch.manual_seed(0)
    words = {"vision_config": dict(VISION, patch_size=8), "temporal_input": "patch", **words}
    return DMAEForTextVideoRetrieval(DMAEConfig.tiny(temporal_init="random", **words)).eval()


def by_hand(states: list, sizes: list[float], merge: int) -> tuple[list, list[float], list[int]]:
    """One frame, token by token: (P,D), (P) -> states, sizes, and where each of the P went."""
    first, second = range(1, len(states), 2), range(2, len(states), 2)
    cosine = nn.functional.cosine_similarity
    partner = {a: max(second, key=lambda b: float(cosine(states[a], states[b], dim=0))) for a in first}
    close = sorted(first, key=lambda a: -float(cosine(states[a], states[partner[a]], dim=0)))
    groups = {token: [token] for token in range(len(states)) if token not in close[:merge]}
    for token in close[:merge]:
        groups[partner[token]].append(token)
    new_sizes = [sum(sizes[i] for i in group) for group in groups.values()]
    new = [sum(states[i] * sizes[i] for i in group) / size for group, size in zip(groups.values(), new_sizes)]
    where = {token: place for place, group in enumerate(groups.values()) for token in group}
    return new, new_sizes, [where[token] for token in range(len(states))]


@pytest.mark.parametrize(("count", "merge"), [(10, 3), (10, 4), (17, 1), (3, 1)])
def test_merging_is_what_a_loop_over_tokens_does(count, merge):
    torch.manual_seed(count)
    states, sizes = torch.randn(4, count, 8), torch.randint(1, 5, (4, count)).float()
    joins = assignment(states, merge)
    merged, totals = merge_tokens(states, sizes, joins)
    for row in range(4):
        wanted, wanted_sizes, where = by_hand(list(states[row]), sizes[row].tolist(), merge)
        torch.testing.assert_close(merged[row], torch.stack(wanted))
        assert totals[row].tolist() == wanted_sizes
        assert joins[row].argmax(0).tolist() == where
    assert joins[:, 0, 0].all() and (joins[:, 0].sum(-1) == 1).all()  # CLS stays, alone and first


def test_merging_none_is_the_tower(tiny_batch):
    model = tiny()
    frames = tiny_batch["pixel_values"].flatten(0, 1)
    tower = model.vision_model
    with torch.no_grad():
        states, owners = merged_blocks(tower.encoder.layers, tower.pre_layrnorm(tower.embeddings(frames)), 0)
        torch.testing.assert_close(states, tower(pixel_values=frames).last_hidden_state)
    assert torch.equal(owners, torch.arange(17).expand(12, -1))


@pytest.mark.parametrize("family", [CLIPVisionConfig, ChineseCLIPVisionConfig, AltCLIPVisionConfig])
def test_equal_patches_merge_without_effect(family):
    """A frame of one colour, in a tower without positions: all patches are one, however many tokens stand for them."""
    words = {"projection_dim": 64, "text_config": {"model_type": "clip_text_model"}}
    if family is not CLIPVisionConfig:
        names = {"model_type": family.model_type.replace("vision", "text"), "vocab_size": 99, "num_hidden_layers": 1}
        words["text_config"] = {**names, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64}
    vision = {**VISION, "patch_size": 8, "model_type": family.model_type}
    whole = tiny(vision_config=vision, **words)
    less = tiny(vision_config=vision, merge_tokens=4, **words)
    less.load_state_dict(whole.state_dict())
    for model in (whole, less):
        model.vision_model.embeddings.position_embedding.weight.data[1:] = 0.1
    frames = torch.randn(5, 3, 1, 1).expand(-1, -1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(less.get_frame_tokens(frames), whole.get_frame_tokens(frames), rtol=0, atol=1e-5)
        different = torch.randn(5, 3, 32, 32)
        assert not torch.allclose(less.get_frame_tokens(different), whole.get_frame_tokens(different), atol=1e-3)


def test_blocks_run_on_fewer_tokens_and_every_place_has_one(tiny_batch):
    model, seen = tiny(merge_tokens=4), []
    for block in model.vision_model.encoder.layers:
        block.register_forward_hook(lambda module, given, made: seen.append(made.shape[1]))
    frames = tiny_batch["pixel_values"].flatten(0, 1)
    tokens = model.get_frame_tokens(frames)
    assert seen == [17, 13, 9, 5] and tokens.shape == (12, 17, 64)
    assert len({tuple(row) for row in tokens[0].tolist()}) == 5
    alone = tiny(merge_tokens=4, temporal_input="frame")
    for part in ("vision_model", "visual_projection"):
        getattr(alone, part).load_state_dict(getattr(model, part).state_dict())
    torch.testing.assert_close(alone.get_frame_tokens(frames)[:, 0], tokens[:, 0])


def test_gradients_through_merged_tokens_and_through_checkpoints(tiny_batch):
    model = tiny(merge_tokens=3).train()
    model(**tiny_batch).loss.backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in plain.values())
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    runs = []
    model.temporal.blocks[0].fc1.register_forward_hook(lambda *given: runs.append(1))
    loss = model(**tiny_batch).loss
    forward = len(runs)
    loss.backward()
    assert len(runs) == 2 * forward  # once more in the backward pass: the temporal blocks are checkpointed too
    torch.testing.assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, plain)


def test_what_cannot_be_merged_is_refused(tiny_batch):
    with pytest.raises(ValueError, match=r"merge_tokens=9, but a frame has 16 patches.*set it to 8 or less"):
        tiny(merge_tokens=9)
    with pytest.raises(ValueError, match="'siglip_vision_model' pools its patches"):
        DMAEConfig(
            text_config={"model_type": "siglip_text_model"}, vision_config={"model_type": "siglip_vision_model"},
            max_words=16, merge_tokens=2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="set merge_tokens to 0"):
        tiny(merge_tokens=2).get_video_features(tiny_batch["pixel_values"], output_hidden_states=True)
