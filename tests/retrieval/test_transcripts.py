"""What a speech model hears becomes words that are found: the true pipeline, over a tiny random Whisper."""

import av
import numpy as np
import pytest

from dmae.retrieval import transcripts
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.spoken import Cue, read_cues


@pytest.fixture(scope="session")
def whisper(tmp_path_factory):
    """A folder as `openai/whisper-…` on the Hub has it, with random weights, that says letters only."""
    import torch
    from tokenizers import AddedToken
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder = tmp_path_factory.mktemp("whisper")
    ordinary = {letter: number for number, letter in enumerate(bytes_to_unicode().values())}
    special = ["<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer({**ordinary, "<|endoftext|>": len(ordinary)}, [])
    tokenizer.add_tokens([AddedToken(name, special=True) for name in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(f"<|{number * 0.02:.2f}|>") for number in range(1501)])
    token = tokenizer.convert_tokens_to_ids
    letters = [number for letter, number in ordinary.items() if letter.isascii() and letter.isalpha()]
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=64,
        decoder_start_token_id=token("<|startoftranscript|>"), pad_token_id=token("<|endoftext|>"),
        bos_token_id=token("<|endoftext|>"), eos_token_id=token("<|endoftext|>"), begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # else the 1501 times together are always likelier than a letter
        model.get_input_embeddings().weight[letters] *= 150
    model.generation_config = GenerationConfig(
        is_multilingual=True, lang_to_id={"<|en|>": token("<|en|>")}, max_length=40, return_timestamps=False,
        task_to_id={"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")},
        no_timestamps_token_id=token("<|notimestamps|>"), decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, max_initial_timestamp_index=50,
        suppress_tokens=sorted({*ordinary.values()} - {*letters}),
        prev_sot_token_id=token("<|startofprev|>"),
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


def with_sound(path, seconds: float = 3.0, begin: float = 0.0):
    """A clip that hums."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=44_100)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(int(seconds * 8)):
            image = np.full((48, 64, 3), 20 * (number % 8), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        samples = np.arange(int(seconds * 44_100))
        wave = (0.5 * np.sin(samples * 2 * np.pi * 440 / 44_100) * (samples >= begin * 44_100)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode())
    return path


@pytest.fixture
def videos(tmp_path, make_clip):
    folder = tmp_path / "videos"
    folder.mkdir()
    with_sound(folder / "spoken.mp4")
    make_clip(folder / "silent.mp4", seed=5)
    with_sound(folder / "subtitled.mp4", seconds=2)
    (folder / "subtitled.srt").write_text("1\n00:00:00,500 --> 00:00:01,500\nalready written\n")
    return folder


def test_what_is_heard_is_written_once_and_found(videos, tmp_path, whisper, model_folder, monkeypatch):
    run = lambda: index_videos(videos, tmp_path / "index", str(model_folder), num_workers=0, transcribe=whisper)  # noqa: E731
    assert run().skipped == []
    written = sorted((tmp_path / "index" / "transcripts").iterdir())
    index = VideoIndex.open(tmp_path / "index")
    contents = {row["video_id"]: row["content"] for row in index.rows()}
    assert [path.stem for path in written] == sorted(contents[name] for name in ("spoken", "silent"))
    heard = read_cues(tmp_path / "index" / "transcripts" / f"{contents['spoken']}.vtt")
    assert heard and all(0 <= cue.start <= cue.end <= 3.1 for cue in heard)
    assert read_cues(tmp_path / "index" / "transcripts" / f"{contents['silent']}.vtt") == []
    (hit, *_) = index.search(heard[0].text, text_weight=100.0)[0]
    assert hit.video_id == "spoken" and hit.reasons[0].startswith("said at ")
    monkeypatch.setattr(transcripts, "load_listener", lambda *_: pytest.fail("nothing is left to be heard"))
    assert run().unchanged == 3


def test_sound_is_read_where_it_is(tmp_path):
    path = str(with_sound(tmp_path / "late.mp4", seconds=3.0, begin=2.0))
    sound = transcripts.read_sound(path, 0.0, 10.0)
    assert len(sound) == pytest.approx(3 * transcripts.RATE, abs=0.1 * transcripts.RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.2)
    assert loud[0] == pytest.approx(2 * transcripts.RATE, abs=0.05 * transcripts.RATE)
    part = transcripts.read_sound(path, 1.5, 2.5)
    assert len(part) == transcripts.RATE
    assert np.flatnonzero(np.abs(part) > 0.2)[0] == pytest.approx(0.5 * transcripts.RATE, abs=0.05 * transcripts.RATE)


def test_what_is_said_is_never_markup(tmp_path):
    said = [Cue(1.0, 2.5, "a --> b < c & d"), Cue(3661.0, 3662.25, "line\nbreak")]
    (tmp_path / "a.vtt").write_text(transcripts.as_vtt(said, "model\n\n1 --> 2"))
    assert read_cues(tmp_path / "a.vtt") == [said[0], Cue(3661.0, 3662.25, "line break")]
