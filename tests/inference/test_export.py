"""Both towers as graphs give the model's numbers: torch.export, ONNX in onnxruntime, torch.compile's breaks."""

import json

import numpy as np
import pytest
import torch

from dmae.inference.export import TextTower, VideoTower, example_inputs, export_towers, exported_program
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.similarity_dmae import similarity


def inputs_of(config, rows: int):
    """Ragged texts and videos, other rows than the graphs were made with."""
    torch.manual_seed(rows)
    both = example_inputs(config, rows)
    for row in range(rows):
        words = 2 + row
        both["text"]["input_ids"][row, 1 : words + 1] = torch.randint(3, 90, (words,))
        both["text"]["input_ids"][row, words + 1 :] = config.text_config.eos_token_id
        both["text"]["attention_mask"][row, words + 2 :] = 0
        both["text"]["word_mask"][row, words + 1 :] = False
        both["video"]["video_mask"][row, 1 + row :] = False
    both["text"]["word_weights"] = torch.randint(0, 3, both["text"]["word_mask"].shape).float()
    both["video"]["pixel_values"] = torch.randn_like(both["video"]["pixel_values"])
    return both


@pytest.mark.parametrize("words", [dict(interaction="wti"), dict(temporal_input="patch", patches_per_frame=2)])
def test_exported_programs_are_the_towers(make_model, words):
    model = make_model(**words)
    given = inputs_of(model.config, 3)
    for side, tower in (("text", TextTower(model)), ("video", VideoTower(model))):
        program = exported_program(tower, example_inputs(model.config)[side])
        with torch.no_grad():
            torch.testing.assert_close(program.module()(**given[side]), tower(**given[side]), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("words", [dict(interaction="wti"), dict(temporal_input="patch", patches_per_frame=2)])
def test_scores_in_onnxruntime_are_the_models(make_model, tmp_path, words):
    runtime = pytest.importorskip("onnxruntime")
    model = make_model(**words)
    files = export_towers(model, tmp_path, "onnx")
    assert [file.name for file in files] == ["text.onnx", "video.onnx", "similarity.json"]
    given, embeddings = inputs_of(model.config, 3), []
    for side, kind in (("text", TextEmbeddings), ("video", VideoEmbeddings)):
        session = runtime.InferenceSession(tmp_path / f"{side}.onnx", providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == [f"{side}.{name}" for name in kind.names()]
        found = session.run(None, {name: value.numpy() for name, value in given[side].items()})
        embeddings.append(kind(*(torch.from_numpy(np.asarray(array)) for array in found)))
    with torch.no_grad():
        expected = similarity(
            model.get_text_features(**given["text"]), model.get_video_features(**given["video"]), model.config
        )
    torch.testing.assert_close(similarity(*embeddings, model.config), expected, rtol=0, atol=2e-5)
    assert json.loads((tmp_path / "similarity.json").read_text())["interaction"] == model.config.interaction
    with pytest.raises(ValueError, match="form='tflite' is not a choice"):
        export_towers(model, tmp_path, "tflite")


@pytest.mark.slow
def test_compiled_towers_break_at_most_twice(make_model):
    model = make_model(interaction="wti")
    given = inputs_of(model.config, 3)
    for side, tower in (("text", TextTower(model)), ("video", VideoTower(model))):
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch._dynamo.explain(tower)(**given[side])
        assert found.graph_break_count <= 2, [str(reason)[:300] for reason in found.break_reasons]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["text", "video"])
def test_transformers_own_exporter_takes_either_tower(make_model, side):
    """One side at a time; with both sides the scores' sizes depend on the data, which torch.export refuses."""
    dynamo = pytest.importorskip("transformers.exporters.exporter_dynamo")
    configs = pytest.importorskip("transformers.exporters.configs")
    model = make_model(interaction="wti").eval()
    program = dynamo.DynamoExporter().export_program(
        model, dict(example_inputs(model.config)[side]), configs.DynamoConfig()
    )
    program, given = program[0] if isinstance(program, tuple) else program, example_inputs(model.config)[side]
    with torch.no_grad():
        found, expected = program.module()(**given), model(**given)
    checked = [name for name in found if torch.is_tensor(found[name]) and found[name].is_floating_point()]
    assert checked
    for name in checked:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
