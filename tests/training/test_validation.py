"""What a validation gives on every rank: what the first one has scored."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.training import validation


@pytest.fixture
def scored(monkeypatch):
    """validated(processes, first) -> the result, with the scores of two texts and two videos on the first rank."""
    split = SimpleNamespace(video_ids=["a", "b"], gold=[0, 1, 1], skipped=[{"video_id": "c"}])
    ranks = SimpleNamespace(text_ranks=np.array([1.0, 2.0, 1.0]), video_ranks=np.array([2.0, 1.0]))
    exchanged, asked = [], []

    def broadcast(objects):
        exchanged.append([*objects])
        return ["of the first rank", "of nobody"]

    monkeypatch.setattr(validation, "broadcast_object_list", broadcast)
    monkeypatch.setattr(validation, "score_split", lambda *arguments: asked.append(arguments) or ranks)

    def validated(processes: int, first: bool):
        exchanged.clear(), asked.clear()

        def encode_split(*arguments):
            torch.rand(3)  # as a loader draws its workers' seeds
            asked.append(arguments)
            return split if first else None

        monkeypatch.setattr(validation, "encode_split", encode_split)
        accelerator = SimpleNamespace(num_processes=processes, autocast=nullcontext, device="cpu")
        model, before = torch.nn.Dropout().eval(), torch.get_rng_state()
        model.config = "config"
        result = validation.validate(accelerator, model, "processor", ["row"], 2, 3)
        assert model.training, "training would go on without dropout"
        assert torch.equal(torch.get_rng_state(), before), "a run that goes on would draw other numbers"
        encoded = (accelerator, model, "processor", ["row"], 2, 3, "validation")
        assert asked == [encoded, *([(split, "config", "cpu")] if first else [])]
        return result, [*exchanged]

    return validated


def test_every_rank_has_the_result_of_the_first(scored):
    """Ranks that chose another best model would save at different times, and wait for each other for ever."""
    own, exchanged = scored(1, True)
    assert exchanged == [] and {name: own[name] for name in ("videos", "texts")} == {"videos": 2, "texts": 3}
    assert own["skipped"] == [{"video_id": "c"}] and own["metrics"]["text_to_video_R@1"] == pytest.approx(2 / 3)
    assert own["metrics"]["video_to_text_R@1"] == 0.5
    assert scored(2, True) == ("of the first rank", [[own]])
    assert scored(2, False) == ("of the first rank", [[None]])
