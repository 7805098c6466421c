"""`dmae evaluate --pictures`: pages beside results.json that show what the numbers are made of."""

from pathlib import Path

from dmae.data.clips import LoadedSplit
from dmae.evaluation.results import Results
from dmae.evaluation.scoring import EncodedSplit
from dmae.visuals.hard_negatives import hard_negatives, report_page, write_csv
from dmae.visuals.matches import word_frame_match
from dmae.visuals.pictures import masked_tokens_page, side_by_side_page, word_frame_page
from dmae.visuals.plots import plot_words_and_frames

PAIRS, MATCHES = 30, 6  # hardest pairs reported; matches looked into


def write_pictures(
    folder: Path,
    model,
    processor,
    split: LoadedSplit,
    encoded: EncodedSplit,
    ours: Results,
    theirs: Results | None = None,
    names: tuple[str, str] = ("this model", "the other"),
) -> list[Path]:
    """Hard negatives (page and CSV), words and frames, what TPM masks, and top-3 beside another model's. -> paths.

    `words_and_frames.png` is the best-scored right match, for the model card.
    """
    if "similarities" not in ours.arrays:
        raise ValueError("pictures need the whole similarity matrix; take a smaller split")
    rows = {row["video_id"]: row for row in split.dataset}
    items = [rows[video_id] for video_id in encoded.video_ids]
    captions = [caption for item in items for caption in item["captions"]]
    similarities, gold, sampler = ours.arrays["similarities"], encoded.gold, processor.feature_extractor
    pairs = hard_negatives(similarities, gold, items, captions, PAIRS, _known_difference(split.metadata))
    # a caption may stand with several videos: of these, the one that was missed
    row_of = {(caption, items[owner]["video_id"]): row for row, (caption, owner) in enumerate(zip(captions, gold))}
    hardest = list(dict.fromkeys(row_of[pair.caption, pair.right_video] for pair in pairs))[:MATCHES]
    matches = [(captions[row], items[gold[row]]) for row in hardest]
    pages = {
        "hard_negatives.html": report_page(pairs, items, sampler),
        "words_and_frames.html": word_frame_page(model, processor, matches),
    }
    if model.config.partial_order:
        pages["masked_tokens.html"] = masked_tokens_page(model, processor, matches)
    if theirs is not None and "similarities" in theirs.arrays:
        both = {name: results.arrays["similarities"][hardest] for name, results in zip(names, (ours, theirs))}
        asked = [captions[row] for row in hardest]
        pages["side_by_side.html"] = side_by_side_page(asked, gold[hardest].tolist(), items, both, sampler)
    for name, page in pages.items():
        (folder / name).write_text(page, encoding="utf-8")
    write_csv(pairs, folder / "hard_negatives.csv")
    best = int(similarities[range(len(gold)), gold].argmax())
    match = word_frame_match(model, processor, captions[best], items[gold[best]])
    plot_words_and_frames(captions[best], match, folder / "words_and_frames.png")
    return [folder / name for name in (*pages, "hard_negatives.csv", "words_and_frames.png")]


def _known_difference(metadata: dict[str, dict]):
    """The attribute in which two videos differ, where the dataset lists near misses (MovingDigits does)."""
    known = {
        (video_id, near["video_id"]): near["attribute"]
        for video_id, extra in metadata.items()
        for near in extra.get("near_misses") or []
    }
    return lambda right, wrong: known.get((right, wrong))
