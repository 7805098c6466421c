"""The leaderboard: cards as `dmae push` writes them become tables; what has no result is named."""

import pytest
from huggingface_hub import EvalResult, ModelCardData

from dmae.hub_cards.leaderboard import write_leaderboard


def card(folder, results, name: str = "model") -> str:
    """A model's README with {(split, how): R@1}."""
    folder.mkdir()
    made = [
        EvalResult(
            task_type="text-to-video-retrieval", dataset_type="d", dataset_name="clips <b>", dataset_split=split,
            metric_type="text_to_video_R@1", metric_value=value, metric_config=how,
        )
        for (split, how), value in results.items()
    ]  # fmt: skip
    data = ModelCardData(model_name=name, eval_results=made or None)
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n# {name}\n", encoding="utf-8")
    return str(folder)


def test_the_best_stands_first_and_post_processed_ones_below(tmp_path):
    models = [
        card(tmp_path / "low", {("test", None): 40.0, ("test", "post-processing: DSL"): 99.0}),
        card(tmp_path / "high", {("test", None): 45.5, ("validation", None): 50.0}),
        card(tmp_path / "none", {}),
    ]
    said = write_leaderboard(models, tmp_path / "page.html")
    assert said == [f"{models[2]}: its card states no text-to-video results; left out"]
    page = (tmp_path / "page.html").read_text()
    test = page[page.index("clips &lt;b&gt;, test split") : page.index("clips &lt;b&gt;, validation split")]
    assert "clips <b>" not in page
    assert test.index("45.5") < test.index("40.0") < test.index("99.0") and "post-processing: DSL" in test


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the cards states a result"):
        write_leaderboard([card(tmp_path / "none", {})], tmp_path / "page.html")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="no README"):
        write_leaderboard([str(tmp_path / "bare")], tmp_path / "page.html")


def test_a_card_whose_results_are_malformed_is_named_and_does_not_end_it(tmp_path):
    good = card(tmp_path / "good", {("test", None): 40.0})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "README.md").write_text("---\nmodel-index:\n- name: x\n  results:\n  - task: 3\n---\n")
    said = write_leaderboard([str(tmp_path / "bad"), good], tmp_path / "page.html")
    assert said == [f"{tmp_path / 'bad'}: its card states no text-to-video results; left out"]
