"""DMAEProcessor: the batch it gives, weights on real pieces, and the folder that carries all of it."""

import csv
import importlib.util
import json
import pickle
import subprocess
import sys
import sysconfig
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from transformers import CLIPTokenizerFast

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.processing.frames_dmae import FrameSampler
from dmae.processing.processing_dmae import DMAEProcessor
from dmae.processing.words_dmae import WordWeigher
from dmae.training.tokenizer import train_bpe_tokenizer

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TEXTS = ["a red square moves left", "A dog's tail isn't wagging, is it?", "two 😀 cafés open at 10:30"]
PARAGRAPHS = ["a red square moves left. the square moves", "a dog stands. a dog waits", "two cafés open. a man waits"]
CLIP_ONLY = pytest.mark.skipif(not (SHARED / "clip_tokenizer").is_dir(), reason="CLIP's vocabulary is not at hand")


def clips(count=2):
    return [np.full((3, 40, 50, 3), 60 * i, dtype=np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe_tokenizer(TEXTS * 3 + PARAGRAPHS, 400, max_length=32)


@pytest.fixture(scope="module")
def processor(tokenizer):
    weigher = WordWeigher(irrelevant_words=2).fit(PARAGRAPHS)
    return DMAEProcessor(tokenizer, FrameSampler(num_frames=4, size=32), weigher, max_words=16)


@pytest.fixture(scope="module")
def clip_processor():
    tokenizer = CLIPTokenizerFast.from_pretrained(SHARED / "clip_tokenizer")
    return DMAEProcessor(tokenizer, FrameSampler(num_frames=4, size=32), max_words=32)


def spans_with_weights(processor, text):
    """((start, end), weight) for the word pieces of one caption."""
    batch = processor(text=text)
    encoded = processor.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=processor.max_words)
    rows = zip(encoded["offset_mapping"], batch["word_weights"][0], batch["word_mask"][0])
    return [(span, weight) for span, weight, real in rows if real]


def test_batch_has_exactly_the_keys_and_shapes_of_the_model(processor):
    batch = processor(text=TEXTS, videos=clips(), paragraphs=PARAGRAPHS, return_tensors="pt")
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert kinds == {
        "input_ids": ((3, 16), torch.int64),
        "attention_mask": ((3, 16), torch.int64),
        "word_mask": ((3, 16), torch.bool),
        "word_weights": ((3, 16), torch.float32),
        "pixel_values": ((2, 4, 3, 32, 32), torch.float32),
        "video_mask": ((2, 4), torch.bool),
    }
    assert list(batch) == processor.model_input_names


def test_text_or_videos_alone_and_numpy(processor):
    assert set(processor(text="a dog")) == {"input_ids", "attention_mask", "word_mask", "word_weights"}
    assert set(processor(videos=clips()[0])) == {"pixel_values", "video_mask"}
    timed = processor(videos=clips(), return_timestamps=True, return_tensors="np")
    assert set(timed) == {"pixel_values", "video_mask", "timestamps"}
    assert isinstance(timed["pixel_values"], np.ndarray) and timed["timestamps"].tolist()[0][:3] == [0, 1, 2]
    assert processor(text=["a dog"], return_tensors="np")["word_mask"].dtype == bool
    windowed = processor(videos=clips(), start=[None, 1.0], end=[None, 1.5], return_tensors="pt")
    assert windowed["video_mask"].sum(1).tolist() == [3, 1]


def test_padding_and_truncation_keep_bos_and_eos(processor):
    eos, bos, pad = (getattr(processor.tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad"))
    batch = processor(text=["a dog", "a red square moves left " * 20], return_tensors="pt")
    short, long = batch["input_ids"].tolist()
    assert long[0] == short[0] == bos and long[-1] == eos and short[-1] == pad and short.count(eos) == 1
    length = short.index(eos) + 1
    assert batch["attention_mask"].tolist() == [[1] * length + [0] * (16 - length), [1] * 16]
    masks = batch["word_mask"].tolist()
    assert masks[0] == [False] + [True] * (length - 2) + [False] * (17 - length)
    assert masks[1] == [False] + [True] * 14 + [False]
    assert not batch["word_weights"][~batch["word_mask"]].any()


def test_a_paragraph_silences_its_lowest_words(processor):
    text, paragraph = TEXTS[0], PARAGRAPHS[0]
    silent = processor.word_weigher.irrelevant([paragraph])[0]
    assert silent
    plain = processor(text=text, return_tensors="pt")["word_weights"]
    weighed = processor(text=text, paragraphs=paragraph, return_tensors="pt")["word_weights"]
    words = processor.word_weigher.weights([text], [paragraph])[0]
    assert {text[a:b] for a, b, weight in words if weight == 0} == silent & set(text.split())
    assert (weighed <= plain).all() and ((weighed == 0) & (plain > 0)).any()


@CLIP_ONLY
def test_clip_pieces_by_hand(clip_processor):
    assert clip_processor(text="a photo of a cat")["input_ids"][0][:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    text = "The dog's owner can't chase 3 cats in a café!"
    pieces = [(text[a:b], weight) for (a, b), weight in spans_with_weights(clip_processor, text)]
    assert " ".join(piece for piece, _ in pieces) == "The dog 's owner can 't chase 3 cats in a café !"
    assert [weight for _, weight in pieces] == [1, 2, 1, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1]


ODD = ["cafe\u0301s", "un éléphant", "日本語 の 猫", "\U0001f469\u200d\U0001f467 wave", "x" * 400]
ODD += ["a\u00a0dog\tand\n\ncat", "don't won't it's", "\ufb01ne \u2460", *TEXTS]


@CLIP_ONLY
@pytest.mark.parametrize("text", ODD)
def test_clip_pieces_of_odd_text_take_the_weight_of_their_word(clip_processor, text):
    check_every_piece(clip_processor, text)


@pytest.mark.parametrize("text", ODD)
def test_byte_pieces_of_odd_text_take_the_weight_of_their_word(processor, text):
    check_every_piece(processor, text)


def check_every_piece(processor, text):
    words = processor.word_weigher.weights([text])[0]
    spans = spans_with_weights(processor, text)
    assert spans
    for (a, b), weight in spans:
        touched = [w for s, e, w in words if s < b and a < e]
        assert touched and weight == touched[0], text[a:b]


@CLIP_ONLY
@pytest.mark.skipif(not (SHARED / "annotations").is_dir(), reason="the benchmarks' captions are not at hand")
def test_every_piece_of_the_real_captions_lies_in_a_word(clip_processor):
    with open(SHARED / "annotations" / "MSRVTT_JSFUSION_test.csv", encoding="utf-8") as file:
        texts = [row["sentence"] for row in csv.DictReader(file)]
    descriptions = json.loads((SHARED / "annotations" / "didemo_test_data.json").read_text(encoding="utf-8"))
    texts += [row["description"] for row in descriptions]
    texts = [text for text in texts if text.strip()]
    encoded = clip_processor.tokenizer(texts, return_offsets_mapping=True, truncation=True, max_length=32)
    words = clip_processor.word_weigher.weights(texts)
    batch = clip_processor(text=texts, return_tensors="pt")
    split = 0
    for i, text in enumerate(texts):
        assert batch["word_mask"][i].sum() == len(encoded["input_ids"][i]) - 2
        for position, (a, b) in enumerate(encoded["offset_mapping"][i][1:-1], start=1):
            touched = [weight for s, e, weight in words[i] if s < b and a < e]
            assert touched and batch["word_weights"][i, position] == touched[0], text
            split += len(touched) > 1
    assert split < 0.01 * batch["word_mask"].sum()  # "don't": CLIP cuts don|'t, spaCy do|n't


def test_a_caption_cannot_smuggle_in_special_tokens(processor):
    batch = processor(text="a dog <|endoftext|> runs", return_tensors="pt")
    assert (batch["input_ids"] == processor.tokenizer.eos_token_id).sum() == 1


def test_garbage_is_refused_with_its_number(processor):
    for text in ["", "  \n "]:
        with pytest.raises(ValueError, match="text 1 has no words"):
            processor(text=["fine", text])
    with pytest.raises(ValueError, match="text 0 is int"):
        processor(text=[5])
    with pytest.raises(ValueError, match="empty list"):
        processor(text=[])
    with pytest.raises(ValueError, match="nothing to process"):
        processor()


def test_settings_out_of_range_are_refused(tokenizer, processor):
    for max_words in (2, 33):
        with pytest.raises(ValueError, match=f"max_words={max_words}: .* to 32"):
            DMAEProcessor(tokenizer, word_weigher=processor.word_weigher, max_words=max_words)
    with pytest.raises(ValueError, match="softmax, linear, uniform"):
        DMAEProcessor(tokenizer, word_weighting="tfidf")


def same_batch(one, other):
    batches = [p(text=TEXTS, videos=clips(), paragraphs=PARAGRAPHS, return_tensors="pt") for p in (one, other)]
    return all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


@pytest.mark.parametrize("subfolder", ["", "nested"])
def test_a_saved_processor_weighs_as_before(processor, tmp_path, subfolder):
    processor.save_pretrained(tmp_path / subfolder)
    again = DMAEProcessor.from_pretrained(tmp_path, **({"subfolder": subfolder} if subfolder else {}))
    assert same_batch(processor, again)
    assert again.to_json_string() == processor.to_json_string()
    assert not [path.name for path in tmp_path.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt"}]


def test_settings_can_be_overridden_on_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = DMAEProcessor.from_pretrained(tmp_path, max_words=8, word_weighting="uniform")
    batch = again(text=TEXTS, return_tensors="pt")
    assert batch["word_weights"].shape == (3, 8) and torch.equal(batch["word_weights"], batch["word_mask"].float())
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="from_clip"):
        DMAEProcessor.from_pretrained(tmp_path / "empty")


def isolated(script: str, cwd: Path) -> str:
    """Runs `script` where the project is not importable: no site hooks (editable installs), not its folder."""
    prelude = f"""
        import importlib.util, sys
        sys.path.append({sysconfig.get_paths()["purelib"]!r})
        assert importlib.util.find_spec("dmae") is None and importlib.util.find_spec("processing") is None
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script)
    environment = {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_remote_code_gives_the_same_weights_without_the_package(processor, tmp_path):
    processor.save_pretrained(tmp_path / "model")
    script = f"""
        import json
        from transformers import AutoProcessor
        processor = AutoProcessor.from_pretrained("model", trust_remote_code=True)
        batch = processor(text={TEXTS!r}, paragraphs={PARAGRAPHS!r})
        print(json.dumps([batch["input_ids"], batch["word_weights"], type(processor).__module__]))
    """
    ids, weights, module = json.loads(isolated(script, tmp_path))
    expected = processor(text=TEXTS, paragraphs=PARAGRAPHS)
    assert (ids, weights) == (expected["input_ids"], expected["word_weights"])
    assert module.startswith("transformers_modules.")


def test_uniform_by_choice_loads_remotely_without_spacy(processor, tmp_path):
    processor.save_pretrained(tmp_path / "model")
    script = """
        sys.modules["spacy"] = None
        from transformers import AutoProcessor
        try:
            AutoProcessor.from_pretrained("model", trust_remote_code=True)
        except ImportError as error:
            assert "pip install" in str(error), error
        else:
            raise AssertionError("loaded without spaCy")
        processor = AutoProcessor.from_pretrained("model", trust_remote_code=True, word_weighting="uniform")
        print(sum(processor(text="a dog runs")["word_weights"][0]))
    """
    assert float(isolated(script, tmp_path)) == sum(processor(text="a dog runs")["word_mask"][0])


def test_from_clip_reads_the_checkpoints_own_files(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"image_size": 64}}))
    weigher = WordWeigher()
    assert DMAEProcessor.from_clip(tmp_path, word_weigher=weigher).feature_extractor.size == 64
    images = {"crop_size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    for name, content in [("processor_config.json", {"image_processor": images}), ("preprocessor_config.json", images)]:
        (tmp_path / name).write_text(json.dumps(content))
        processor = DMAEProcessor.from_clip(tmp_path, word_weigher=weigher, max_words=12, num_frames=3)
        sampler = processor.feature_extractor
        assert (sampler.size, sampler.num_frames, processor.max_words) == (48, 3, 12)
        assert (sampler.image_mean, sampler.image_std) == (images["image_mean"], images["image_std"])
        (tmp_path / name).unlink()
    (tmp_path / "preprocessor_config.json").write_text('{"size": 40}')  # as OpenAI's own first checkpoints have it
    assert DMAEProcessor.from_clip(tmp_path, word_weigher=weigher).feature_extractor.size == 40


def test_fingerprint_and_pickle(processor):
    before = Hasher.hash(processor)
    processor(text=["a caption for the first time"], videos=clips())
    assert Hasher.hash(processor) == before
    assert same_batch(processor, pickle.loads(pickle.dumps(processor)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_give_the_same_batches(processor, method):
    rows = [{"text": [text]} for text in TEXTS]
    loader = torch.utils.data.DataLoader(
        rows, batch_size=1, num_workers=1, multiprocessing_context=method, collate_fn=Collate(processor)
    )
    for batch, row in zip(loader, rows):
        assert torch.equal(batch["word_weights"], processor(**row, return_tensors="pt")["word_weights"])


class Collate:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows):
        return dict(self.processor(text=[text for row in rows for text in row["text"]], return_tensors="pt"))


def test_threads_share_a_processor(tokenizer, processor):
    fresh = DMAEProcessor(pickle.loads(pickle.dumps(tokenizer)), word_weigher=processor.word_weigher, max_words=16)
    expected = processor(text=TEXTS)["word_weights"]
    with ThreadPoolExecutor(8) as pool:
        assert all(batch["word_weights"] == expected for batch in pool.map(lambda _: fresh(text=TEXTS), range(200)))


def loopback_hub():
    path = Path(__file__).resolve().parents[1] / "hub_cards" / "loopback_hub.py"
    spec = importlib.util.spec_from_file_location("loopback_hub", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module.LoopbackHub()


@pytest.mark.slow
def test_from_a_hub_subfolder_and_pushed_while_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path / "local")
    script = f"""
        import json
        from dmae.processing.processing_dmae import DMAEProcessor
        nested = DMAEProcessor.from_pretrained("user/words", subfolder="nested")
        nested.save_pretrained({str(tmp_path / "again")!r}, push_to_hub=True, repo_id="user/again")
        pushed = DMAEProcessor.from_pretrained("user/again")
        batches = [p(text={TEXTS!r}, paragraphs={PARAGRAPHS!r}) for p in (nested, pushed)]
        print(json.dumps([batch["word_weights"] for batch in batches]))
    """
    with loopback_hub() as hub:
        hub.create("models/user/words")
        files = {f"nested/{path.name}": path.read_bytes() for path in (tmp_path / "local").iterdir()}
        hub.commit("models/user/words", "a processor in a folder", files)
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=hub.environment(tmp_path), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {"word_tagger.bin", "word_frequencies.json"} <= set(hub.files("models/user/again"))
    expected = processor(text=TEXTS, paragraphs=PARAGRAPHS)["word_weights"]
    assert json.loads(done.stdout.splitlines()[-1]) == [expected, expected]


def test_the_words_of_the_model_beside_it_weigh_captions(processor, tmp_path):
    """η and k have one home, the model's configuration; a value given by hand wins."""
    processor.save_pretrained(tmp_path)
    assert DMAEProcessor.from_pretrained(tmp_path).word_weigher.content_weight == 2.0
    DMAEConfig.tiny(content_weight=3.5, irrelevant_words=1).save_pretrained(tmp_path)
    beside = DMAEProcessor.from_pretrained(tmp_path)
    assert beside.word_weigher.to_dict() == {"content_weight": 3.5, "irrelevant_words": 1}
    assert 3.5 in {weight for _, weight in spans_with_weights(beside, "a red square moves left")}
    assert DMAEProcessor.from_pretrained(tmp_path, content_weight=7.0).word_weigher.content_weight == 7.0
