"""What tests share: a tiny random model, its processor and folder, short encoded clips, miniature datasets, tiny runs.

Nothing is downloaded. Heavy imports stand in the fixtures, so that the checks of `make check` start at once.
"""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

LONGEST = ("hub_cards/test_round_trip.py", "training/test_resume.py", "dmae/test_demo.py", "retrieval/test_indexing.py")
TEXTS = ["a red square moves left", "a green circle moves up", "the sky is blue", "two dogs run on the grass"]


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="what tests and fixtures draw from starts here, each anew")


def pytest_collection_modifyitems(items):
    """The longest files first, or one of two workers would end alone with one of them."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


def draw_from(seed: int):
    """Else a draw would depend on what ran before in the same process, and a test be red once in a hundred runs."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(request):
    draw_from(request.config.getoption("--seed"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    draw_from(item.config.getoption("--seed"))


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS * 4, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=32, **names)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is left in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


def random_model(tokenizer, seed: int = 0, **overrides):
    import torch

    from dmae import DMAEConfig, DMAEForTextVideoRetrieval

    torch.manual_seed(seed)
    config = DMAEConfig.tiny(temporal_init="random", partial_order=False, **overrides)
    config.text_config.vocab_size = len(tokenizer)
    return DMAEForTextVideoRetrieval(config).eval()


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """make_model(seed=…, interaction=…, …) -> another tiny random model."""
    return lambda **options: random_model(tokenizer, **options)


@pytest.fixture(scope="session")
def model(tokenizer):
    return random_model(tokenizer, interaction="wti")


@pytest.fixture(scope="session")
def processor(tokenizer, model):
    from dmae import DMAEProcessor, FrameSampler

    sampler = FrameSampler(num_frames=model.config.max_frames, size=model.config.vision_config.image_size, fps=2)
    return DMAEProcessor(tokenizer, sampler, max_words=model.config.max_words)


@pytest.fixture(scope="session")
def model_folder(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_clip(path: Path, seed: int, seconds: float = 2, rate: int = 8, codec: str = "libx264") -> Path:
    """A square that moves over a background; colours and direction by seed."""
    import av
    import numpy as np

    random = np.random.default_rng(seed)
    background, colour = random.integers(0, 256, (2, 3)).astype(np.uint8)
    step = random.integers(-3, 4, 2)
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(int(seconds * rate)):
            image = np.broadcast_to(background, (48, 64, 3)).copy()
            top, left = (np.array([16, 24]) + number * step) % [32, 48]
            image[top : top + 16, left : left + 16] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def make_clip():
    """make_clip(path, seed, seconds=2) writes a clip."""
    return write_clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of twelve clips, clip00.mp4 … clip11.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(12):
        write_clip(folder / f"clip{seed:02d}.mp4", seed)
    return folder


@pytest.fixture(scope="session")
def encoded(model, processor, clips):
    from dmae.inference.embedding import encode_videos

    items = [{"video_id": path.stem, "path": str(path)} for path in sorted(clips.iterdir())]
    return encode_videos(model, processor, items, num_workers=0)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """`miniature(name)` -> (name, annotations, videos): a generated dataset in its true format, made once."""
    from dmae.data.miniature import make_miniature

    made = {}

    def make(name: str):
        if name not in made:
            made[name] = make_miniature(name, tmp_path_factory.mktemp(name) / "data")
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny():
    """The helpers in `tiny_runs.py` (tests are no package, so it is loaded by path)."""
    spec = importlib.util.spec_from_file_location("tiny_runs", Path(__file__).with_name("tiny_runs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
