"""The dataset card of a MovingObjects corpus."""

from dmae.data.moving_objects.scenes import World
from dmae.data.moving_objects.vocabulary import COLOURS, MOTIONS, OBJECTS


def corpus_card(world: World, seed: int) -> str:
    """README.md of the corpus: what it shows, its dials, how to submit a row, what it cannot say."""
    shots = ", ".join(f"{share:g}" for share in world.shots)
    return f"""---
license: apache-2.0
task_categories:
- feature-extraction
tags:
- text-to-video-retrieval
- synthetic
- benchmark
pretty_name: MovingObjects
---

# MovingObjects

Generated clips of named things that move, with captions that tell a part of what is shown, for controlled comparisons
of text-to-video retrieval methods. {len(OBJECTS)} objects, {len(COLOURS)} colours, plain, striped or spotted,
{len(MOTIONS)} motions; one or two at once, beside or above one another, in shots one after the other.

| split | videos |
| --- | --- |
| train | {world.train}, {world.captions} captions each |
| validation | {world.validation_groups} groups of near misses and {world.validation_singles} single videos |
| test | {world.test_groups} groups of near misses and {world.test_singles} single videos |

{world.size} pixels, {world.seconds:g} s at {world.fps} frames per second, seed {seed}.

- Every scene occurs once in the whole corpus. A validation or test caption is true of its own video only; a training
  caption of none of the near misses of its video. (What a caption states is known, so this is checked, not hoped.)
- `captions`; `shots`: the things of each shot, from left to right (`row`) or top to bottom (`column`); `family`: the
  group of near misses; `near_misses`: the videos that differ in exactly one `attribute` (object, colour, texture,
  motion, place, order).

## Dials

| premise | parameter | here |
| --- | --- | --- |
| some words matter more | `filler`: chance of each place for empty words to be filled | {world.filler:g} |
| captions are incomplete | `telling`: chance that a thing or attribute is told | {world.telling:g} |
| some frames show nothing of it | `irrelevant`: share of time taken by title cards | {world.irrelevant:g} |
| frames support one another | `shots`: shares of videos with 1, 2, ... shots | {shots} |
| near-duplicate frames | `frozen`: share of shots that stop moving | {world.frozen:g} |
| hard negatives exist | `near_misses`: share of training videos in families of four | {world.near_misses:g} |

## As a benchmark

`dmae.data.moving_objects.corpus.render_moving_objects(folder, preset=..., seed=...)` renders it again, with any dial
turned. The study that uses it, its rows and their settings are in the project's repository (`python
benchmarks/evidence.py --help`; it draws its worlds with the same generator at 48 pixels). There

- `--row NAME --checkpoint C --seed S` runs one of its rows again and says whether it lands where the recorded runs do;
- to submit a row, add it to `ROWS` and the row it is compared with to `AGAINST` in `benchmarks/evidence_design.py`, run
  `--forms NAME --seeds 3 --read-test --report`, and send the lines that this appends to
  `benchmarks/results/evidence.jsonl` with the code of the row. It takes the tuned settings of the row that it is
  compared with; whatever else was tuned is tuned on validation and said. Test scores are sealed until `--read-test`.

The glyphs are DejaVu Sans's (the Bitstream Vera and DejaVu licence allows their use in pictures). Nothing here
resembles natural video: results say how methods compare under control, not how well a model finds real videos.
"""
