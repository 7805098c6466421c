"""Publish to a loopback Hub, then use the model from the published files alone, in processes without this package."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmae import DMAEForTextVideoRetrieval, DMAEProcessor
from dmae.inference.loading import load_model_and_processor
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.training.adapters import add_adapters, save_adapter

# importlib import mode gives test modules no package: the shared pieces come as fixtures
TEXTS = ["a red square moves left", "a green circle moves up", "the sky is blue"]
REPOSITORY = "user/tiny-dmae"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1800)  # several fresh processes, each of which imports torch

SCORE = """
import json
import torch
from transformers import AutoModel, AutoProcessor
texts, videos = {texts!r}, {videos!r}
model = AutoModel.from_pretrained({source!r}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code=True)
words, frames = processor(text=texts, return_tensors="pt"), processor(videos=videos, return_tensors="pt")
with torch.no_grad():
    scores = model(**words, **frames).logits_per_text / model.logit_scale.exp()
print(json.dumps(scores.tolist()))
"""
PIPELINE = """
from transformers import AutoConfig, pipeline
assert AutoConfig.from_pretrained({source!r}, trust_remote_code=True).model_type == "dmae"
pipe = pipeline("text-video-retrieval", model={source!r}, trust_remote_code=True)
ranked = pipe(texts, videos=videos, batch_size=1)
assert all(row == sorted(row, key=lambda found: -found["score"]) for row in ranked)
assert pipe(texts[0], videos=videos) [0]["video"] == ranked[0][0]["video"]
assert [len(row) for row in pipe(texts, videos=videos, top_k=1)] == [1, 1, 1]
from transformers import FeatureExtractionPipeline
extract = pipeline("feature-extraction", model={source!r}, trust_remote_code=True)
assert not isinstance(extract, FeatureExtractionPipeline), "transformers' own would be handed a model it cannot run"
rows = extract(texts)
assert len(rows) == 3 and len({{len(row[0]) for row in rows}}) > 1, "padding is not an embedding"
assert torch.allclose(torch.tensor(rows[0][0]).norm(dim=-1), torch.ones(len(rows[0][0])), atol=1e-5)
text, video = (extract(item, pooled=True, return_tensors=True) for item in (texts[0], texts[1]))
assert text.shape == video.shape == (1, 64)
frames = extract(videos=videos[0])
assert len(frames) == 1 and 1 <= len(frames[0]) <= 4 and len(frames[0][0]) == 64
for wrong in (dict(), dict(texts="a", videos="b")):
    try:
        extract(**wrong)
    except ValueError as error:
        assert "one of the two" in str(error)
    else:
        raise SystemExit("nothing, and both, are refused")
print(json.dumps([[found["score"] for found in sorted(row, key=lambda found: found["index"])] for row in ranked]))
"""


@pytest.fixture(scope="module")
def videos(clips) -> list[str]:
    return [str(clips["red"]), str(clips["green"])]


@pytest.fixture(scope="module")
def expected(model_folder, videos) -> list[list[float]]:
    """3 x 2 scores of the local model: local classes, local files."""
    model = DMAEForTextVideoRetrieval.from_pretrained(model_folder).eval()
    processor = DMAEProcessor.from_pretrained(model_folder)
    batch = processor(text=TEXTS, return_tensors="pt"), processor(videos=videos, return_tensors="pt")
    with torch.no_grad():
        scores = similarity(model.get_text_features(**batch[0]), model.get_video_features(**batch[1]), model.config)
    assert scores.shape == (3, 2) and scores.std() > 1e-4  # a model that scores everything alike would pass any test
    return scores.tolist()


@pytest.fixture(scope="module")
def published(hub, model_folder, dmae, tmp_path_factory):
    """The repository after one `dmae push`; client processes share its cache folder, as a user's would."""
    home = tmp_path_factory.mktemp("user")
    dmae(["push", model_folder.parent, "--repo-id", REPOSITORY], hub.environment(home))
    return home


def assert_equal(printed: str, expected: list[list[float]]) -> None:
    for line in printed.strip().splitlines():
        torch.testing.assert_close(torch.tensor(json.loads(line)), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def downloaded(hub, published, isolated, videos, expected, tmp_path_factory) -> str:
    """The folder into which a pipeline of the published model was saved again; all of it is in the cache then."""
    folder = tmp_path_factory.mktemp("again")
    code = (SCORE + PIPELINE).format(source=REPOSITORY, texts=TEXTS, videos=videos)
    saving = f"pipe.save_pretrained({str(folder / 'again')!r})"
    assert_equal(isolated(code + saving, folder, hub.environment(published)), expected)
    return str(folder / "again")


def test_config_model_processor_and_pipeline_then_all_saved_again(
    hub, published, downloaded, isolated, videos, expected, tmp_path
):
    environment = hub.environment(published)
    nothing_cached = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    code = (SCORE + PIPELINE).format(source=downloaded, texts=TEXTS, videos=videos)
    assert_equal(isolated(code, tmp_path, environment | nothing_cached), expected)


def test_offline_from_the_cache_the_card_s_examples_run(
    hub, published, downloaded, isolated, clips, videos, expected, tmp_path
):
    """Depends on nothing but the cache: whatever was loaded once works again, and the Hub sees not one request."""
    environment = hub.environment(published)
    score = SCORE.format(source=REPOSITORY, texts=TEXTS, videos=videos)
    card = hub.files(f"models/{REPOSITORY}")["README.md"].decode()
    examples = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(examples) == 2
    for name, clip in zip(("first.mp4", "second.mp4"), clips.values()):
        Path(tmp_path, name).write_bytes(clip.read_bytes())
    seen = len(hub.log)
    code = "\n".join([score, "print('the card:')", *examples])
    scores, printed = isolated(code, tmp_path, environment | {"HF_HUB_OFFLINE": "1"}).split("the card:")
    assert len(hub.log) == seen
    assert_equal(scores, expected)
    assert "first.mp4" in printed and "second.mp4" in printed
    assert "torch.Size([2, 2]) torch.Size([2, 4, 64])" in printed


PINNED = """
try:
    AutoModel.from_pretrained({source!r}, trust_remote_code=True)
except RuntimeError as error:
    assert "newer code" in str(error)
else:
    raise SystemExit("the newer code was not run")
"""


@pytest.mark.slow
def test_a_pinned_code_revision_is_honoured(hub, published, isolated, videos, expected, tmp_path):
    """A later commit breaks the code on purpose: pinned to the first commit the old code runs, unpinned the new one."""
    key = f"models/{REPOSITORY}"
    good = hub.repos[key][-1].oid
    bad = dict.fromkeys(("modeling_dmae.py", "processing_dmae.py"), b"raise RuntimeError('newer code')\n")
    hub.commit(key, "newer code", bad)
    try:
        code = SCORE.format(source=REPOSITORY, texts=TEXTS, videos=videos)
        code = code.replace("trust_remote_code=True", f"trust_remote_code=True, code_revision={good!r}")
        code += PINNED.format(source=REPOSITORY)
        assert_equal(isolated(code, tmp_path, hub.environment(tmp_path)), expected)
    finally:
        hub.repos[key].pop()


BY_HAND = """
import sys
from dmae import DMAEForTextVideoRetrieval, DMAEProcessor
for name in ("user/by-hand", "user/with-a-card"):
    for kind in (DMAEForTextVideoRetrieval, DMAEProcessor):
        kind.from_pretrained(sys.argv[1]).push_to_hub(name)
"""


def test_push_to_hub_of_model_and_processor(hub, model_folder, isolated, videos, expected, tmp_path):
    """transformers' own way: what `push_to_hub` uploads loads the same, with the card and the pipelines it tells of.

    In a process of its own: transformers looks for the earlier card where the Hub was when it was imported.
    """
    key, environment = "models/user/by-hand", hub.environment(tmp_path)
    written = {"README.md": b"---\nlicense: mit\n---\nmy own words\n"}
    hub.create("models/user/with-a-card")
    hub.commit("models/user/with-a-card", "by a person", written)
    command = [sys.executable, "-c", BY_HAND, model_folder]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert b"my own words" in hub.files("models/user/with-a-card")["README.md"]
    files = hub.files(key)
    assert {"handler.py", "pipeline_dmae.py", "requirements.txt", "processing_dmae.py"} <= set(files)
    card = files["README.md"].decode()
    assert "## What a score means" in card and 'model="user/by-hand"' in card and "More Information Needed" not in card
    code = (SCORE + PIPELINE).format(source="user/by-hand", texts=TEXTS, videos=videos)
    text = (ROOT / "docs" / "how_to" / "push_and_share.md").read_text(encoding="utf-8")
    page = text.split("```python\n")[1].split("```")[0].replace("your-name/my-videos", "user/by-hand")
    for name, video in zip(("first.mp4", "second.mp4"), videos):
        (tmp_path / name).write_bytes(Path(video).read_bytes())
    printed = isolated(f"{code}\nprint('the page:')\n{page}", tmp_path, environment).split("the page:")
    assert_equal(printed[0], expected)
    assert sorted(re.findall(r"\w+\.mp4", printed[1])) == ["first.mp4", "second.mp4"] and "64" in printed[1]


@pytest.mark.second_env
@pytest.mark.parametrize("oldest", [True, False], ids=["oldest", "pinned"])
def test_with_only_the_documented_requirements(hub, published, isolated, videos, expected, tmp_path, oldest):
    """A new environment with what the card says to install: the oldest transformers it admits, and today's.

    (With 5.5 and older the model gives NaN or other scores: their `from_pretrained` leaves buffers unfilled.)
    """
    card = hub.files(f"models/{REPOSITORY}")["README.md"].decode()
    wanted = shlex.split(re.search(r"^pip install (.*)$", card, flags=re.M).group(1))
    floor = re.search(r"transformers>=([\d.]+)", card).group(1)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = [python, "-m", "pip", "install", "-q", *wanted]
    pins = [f"transformers=={floor}.0", "torch==2.13.*"] if oldest else ["-c", ROOT / "constraints.txt"]
    subprocess.run([*install, *pins], check=True)
    code = (SCORE + PIPELINE).format(source=REPOSITORY, texts=TEXTS, videos=videos)
    assert_equal(isolated(code, tmp_path, hub.environment(tmp_path), python=str(python)), expected)


@pytest.mark.slow
def test_an_adapter_is_pushed_and_loaded_by_its_name(hub, published, dmae, model_folder, expected, videos, tmp_path):
    """On a base of the Hub; the few files and a card that names the base. A base in a folder is refused."""
    pytest.importorskip("peft")
    model, processor = load_model_and_processor(model_folder, device="cpu")
    add_adapters(model, r=2)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapter, environment = tmp_path / "adapter", hub.environment(published)
    save_adapter(model, str(model_folder), adapter)
    processor.save_pretrained(adapter)
    refused = dmae(["push", adapter, "--repo-id", "user/adapter"], environment, expect=1)
    assert "a folder, which nobody else has; publish the merged model" in refused
    save_adapter(model, REPOSITORY, adapter)
    shown = dmae(["push", adapter, "--repo-id", "user/adapter", "--dry-run"], environment)
    assert "+ adapter_model.safetensors" in shown and "nothing was sent" in shown and "model.safetensors  (" in shown
    assert not hub.repos.get("models/user/adapter")
    dmae(["push", adapter, "--repo-id", "user/adapter", "--license", "mit"], environment)
    files = hub.files("models/user/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json"} <= set(
        files
    ) and "model.safetensors" not in files
    card = files["README.md"].decode()
    assert (
        f"base_model: {REPOSITORY}" in card and "base_model_relation: adapter" in card and "library_name: peft" in card
    )
    code = LOAD_ADAPTER.format(texts=TEXTS, videos=videos)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with torch.no_grad():
        batch = processor(text=TEXTS, videos=videos, return_tensors="pt")
        ours = model.eval()(**batch, return_loss=False).logits_per_text / model.logit_scale.exp()
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout.splitlines()[-1])), ours, atol=1e-5, rtol=0)
    assert (ours - torch.tensor(expected)).abs().max() > 1e-3, "else nothing is shown"


LOAD_ADAPTER = """
import json, torch
from dmae.inference.loading import load_model_and_processor
model, processor = load_model_and_processor("user/adapter", device="cpu", dtype="float32")
with torch.no_grad():
    output = model(**processor(text={texts!r}, videos={videos!r}, return_tensors="pt"), return_loss=False)
print(json.dumps((output.logits_per_text / model.logit_scale.exp()).tolist()))
"""
