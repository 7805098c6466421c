"""Texts alone or videos alone, states of the towers, and the two names of the frames."""

import pytest
import torch


def text_side(batch):
    return {name: value for name, value in batch.items() if name not in ("pixel_values", "video_mask")}


def test_one_side_alone_gives_its_embeddings(tiny_batch, tiny_model):
    model = tiny_model()
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


def test_frames_by_their_other_name(tiny_batch, tiny_model):
    model = tiny_model()
    expected = model(**tiny_batch)
    frames = tiny_batch.pop("pixel_values")
    assert torch.equal(model(**tiny_batch, pixel_values_videos=frames).logits_per_text, expected.logits_per_text)
    again = model.get_video_features(pixel_values_videos=frames, video_mask=tiny_batch["video_mask"])
    assert torch.equal(again.attended_embeds, expected.attended_embeds)
    as_tuple = model.get_video_features(frames, tiny_batch["video_mask"], return_dict=False)
    assert torch.equal(as_tuple[1], expected.attended_embeds)


def test_states_of_the_towers_on_request(tiny_batch, tiny_model):
    model = tiny_model()
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
