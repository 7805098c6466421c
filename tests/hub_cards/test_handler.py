"""The endpoint handler: scores and embeddings, and HTTP 400 with a reason for everything else."""

import base64
import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmae import DMAEForTextVideoRetrieval, DMAEProcessor

HANDLER = Path(__file__).resolve().parents[2] / "hub_cards" / "handler.py"
specification = importlib.util.spec_from_file_location("handler", HANDLER)
handler = importlib.util.module_from_spec(specification)
specification.loader.exec_module(handler)

TEXTS = ["a red square moves left", "the sky is blue"]


@pytest.fixture(scope="module")
def served(model_folder, clips):
    web = {"https://videos.example/green.mp4": clips["green"].read_bytes()}
    small = handler.Limits(texts=3, videos=3, video_bytes=100_000, characters=100)
    return handler.EndpointHandler(str(model_folder), small, fetch=lambda url, most, seconds: web[url])


@pytest.fixture(scope="module")
def endpoint(served):
    """post(): what the inference toolkit makes of a body and of the answer, 400 when the handler raises."""

    def post(body, kind="application/json"):
        try:
            return 200, json.loads(json.dumps(served({"inputs": body} if kind == "video/mp4" else body)))
        except Exception as error:
            return 400, {"error": str(error)}

    return post


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_scores_equal_the_local_model(endpoint, model_folder, clips):
    videos = [
        encoded(clips["red"]),
        "https://videos.example/green.mp4",
        "data:video/mp4;base64," + encoded(clips["blue"]),
    ]
    status, answer = endpoint({"inputs": {"texts": TEXTS, "videos": videos}})
    assert status == 200
    model = DMAEForTextVideoRetrieval.from_pretrained(model_folder).eval()
    processor = DMAEProcessor.from_pretrained(model_folder)
    words = processor(text=TEXTS, return_tensors="pt")
    frames = processor(videos=[str(path) for path in clips.values()], return_tensors="pt")
    with torch.no_grad():
        logits = model(**words, **frames).logits_per_text
    torch.testing.assert_close(torch.tensor(answer["scores"]) * answer["logit_scale"], logits, atol=1e-5, rtol=0)


def test_embeddings_come_without_padding(endpoint, clips):
    ask = {"inputs": {"texts": TEXTS[1:], "videos": [encoded(clips["red"])]}, "parameters": {"output": "embeddings"}}
    _, answer = endpoint(ask)
    text, video = answer["texts"][0], answer["videos"][0]
    assert len(text["sentence_embeds"]) == 64
    assert len(text["word_embeds"]) == len(text["word_weights"]) < 16 - 2
    assert sum(text["word_weights"]) == pytest.approx(1)
    assert len(video["frame_embeds"]) == len(video["frame_weights"]) == len(video["timestamps"])
    assert video["timestamps"] == sorted(video["timestamps"])


def test_a_video_as_the_body_gives_its_embeddings(endpoint, clips):
    _, answer = endpoint(clips["red"].read_bytes(), kind="video/mp4")
    assert set(answer) == {"videos"} and len(answer["videos"]) == 1


REFUSALS = {
    "bad_request": [
        {},
        {"inputs": "text"},
        {"inputs": {"texts": "a dog", "videos": ["AAAA"]}},
        {"inputs": {"texts": ["a dog"]}},
        {"inputs": {"texts": [""], "videos": ["AAAA"]}},
        {"inputs": {"texts": ["a dog"], "videos": ["not base64!"]}},
        {"inputs": {"texts": ["a dog"], "videos": [{"path": "/etc/passwd"}]}},
        {"inputs": {"texts": ["a dog"], "videos": ["AAAA"]}, "parameters": {"output": "logits"}},
        {"inputs": {"texts": ["a dog"], "videos": ["AAAA"]}, "parameters": "x"},
    ],
    "too_many": [
        {"inputs": {"texts": ["a"] * 4, "videos": ["AAAA"]}},
        {"inputs": {"texts": ["a"], "videos": ["AAAA"] * 4}},
    ],
    "too_large": [
        {"inputs": {"texts": ["a" * 101], "videos": ["AAAA"]}},
        {"inputs": {"texts": ["a"], "videos": ["A" * 200_000]}},
    ],
    "unreadable_video": [
        {"inputs": {"texts": ["a"], "videos": [base64.b64encode(b"#EXTM3U\nfile:///etc/passwd\n" * 9).decode()]}},
        {"inputs": {"texts": ["a"], "videos": [base64.b64encode(b"\0\0\0\x18ftypisom" + b"\0" * 99).decode()]}},
    ],
}


@pytest.mark.parametrize("code, request_", [(code, ask) for code, asks in REFUSALS.items() for ask in asks])
def test_refusals_are_400_with_a_code(endpoint, code, request_):
    status, answer = endpoint(request_)
    assert status == 400 and answer["error"].startswith(f"{code}: ")
    assert len(answer["error"]) > len(code) + 10 and "/tmp" not in answer["error"]


def test_a_refused_video_is_named_by_its_number(endpoint, clips):
    _, answer = endpoint({"inputs": {"texts": ["a"], "videos": [encoded(clips["red"]), "AAAA"]}})
    assert answer["error"].startswith("unreadable_video: videos[1]: is not")


PRIVATE = [
    "https://127.0.0.1/a.mp4", "https://169.254.169.254/latest", "https://[::1]/", "https://[fec0::1]/a.mp4",
    "https://[fec0:0:0:ffff::1]/", "https://[fe80::1]/", "https://[fd00::1]/", "https://[3fff::1]/",
    "https://[5f00::1]/", "https://[64:ff9b:1::a00:1]/", "https://[64:ff9b::10.0.0.1]/", "https://[::ffff:10.0.0.1]/",
    "https://[2002:a00:1::]/", "https://[ff02::1]/", "https://[::10.0.0.1]/",
]  # fmt: skip


def test_plain_http_and_private_addresses_are_refused(model_folder):
    serve = handler.EndpointHandler(str(model_folder))  # with the real download
    for address in ("http://example.com/a.mp4", *PRIVATE):
        with pytest.raises(handler.RequestError) as refused:
            serve({"inputs": {"texts": ["a"], "videos": [address]}})
        assert refused.value.code == "address_refused", address


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::", "64:ff9b::93.184.216.34", "2002:5db8:d822::"]
)
def test_public_addresses_are_let_through(address):
    assert handler.is_public(address)


def test_a_failure_inside_gives_no_details_away(endpoint, model_folder, monkeypatch):
    serve = handler.EndpointHandler(str(model_folder))
    monkeypatch.setattr(serve, "_answer", lambda *a: (_ for _ in ()).throw(RuntimeError("/secret/path")))
    with pytest.raises(handler.RequestError) as failed:
        serve({"inputs": {"texts": ["a"]}, "parameters": {"output": "embeddings"}})
    assert str(failed.value) == "internal: the request failed inside the server"
    assert failed.value.__cause__ is None and failed.value.__suppress_context__


def test_a_video_is_as_large_as_the_limit_and_no_larger():
    """Base64 is judged before it is decoded, with room for its padding."""
    limits = handler.Limits(video_bytes=3)
    for item in (b"abc", bytearray(b"abc"), "YWJj", "data:video/mp4;base64,YWJj"):
        assert handler.read_video(item, limits, 1) == b"abc"
    for item, told in (
        (b"abcd", "4 bytes; the limit is 3"),
        ("A" * 8, "6 bytes; the limit is 3"),
        ("A" * 9, "larger than 3 bytes"),
    ):
        with pytest.raises(handler.RequestError) as refused:
            handler.read_video(item, limits, 1)
        assert (refused.value.code, refused.value.message) == ("too_large", told)


def test_a_request_is_as_large_as_its_limits_and_no_larger(served):
    texts, videos = ["a" * 100] * 3, ["x"] * 3
    assert served._parse({"inputs": {"texts": texts, "videos": videos}}) == (texts, videos, "scores")
    asked = {"output": "embeddings"}
    assert served._parse({"inputs": {"texts": texts}, "parameters": asked}) == (texts, [], "embeddings")
    assert served._parse({"inputs": {"videos": videos}, "parameters": asked}) == ([], videos, "embeddings")
    for body in (b"x", bytearray(b"x")):
        assert served._parse({"inputs": body}) == ([], [body], "embeddings")
    both = "scores need texts and videos; embeddings need one of them"
    listed = "texts must be a list of sentences, none of them empty"
    for data, told in (
        ({"inputs": {}, "parameters": asked}, both), ({"inputs": {"videos": ["x"]}}, both),
        ({"inputs": {"texts": ["a"]}}, both), ({"inputs": {"texts": ["a", 3], "videos": ["x"]}}, listed),
        ({"inputs": {"texts": ["a", " "], "videos": ["x"]}}, listed),
        ({"inputs": {"texts": ["a"], "videos": "x"}}, "videos must be a list, got str"),
        ({"inputs": {"texts": ["a"] * 4, "videos": ["x"]}}, "4 texts; the limit is 3 per request"),
        ({"inputs": {"texts": ["a"], "videos": ["x"] * 4}}, "4 videos; the limit is 3 per request"),
        ({"inputs": {"texts": ["a", "b" * 101], "videos": ["x"]}}, "a text has 101 characters; the limit is 100"),
        (["inputs"], 'expected {"inputs": {"texts": [...], "videos": [...]}}'),
    ):  # fmt: skip
        with pytest.raises(handler.RequestError) as refused:
            served._parse(data)
        assert refused.value.message == told
    for item, told in ((3, "got int"), ({"path": "/etc/passwd"}, "got dict")):
        with pytest.raises(handler.RequestError) as refused:
            handler.read_video(item, served.limits, 1)
        assert refused.value.message == f"expected bytes, base64 or an https URL, {told}"
    frames = served.processor.feature_extractor
    assert (frames.max_pixels, frames.max_seconds_to_scan, frames.max_cpu_seconds) == (4096 * 2304, 3600.0, 10.0)
    assert not served.model.training


def test_all_videos_of_a_request_share_its_time(served, monkeypatch):
    fetched, now = [], [100.0]
    serve = copy.copy(served)
    serve.limits = handler.Limits(video_bytes=7, seconds=60.0)
    serve.fetch = lambda *asked: fetched.append(asked) or b"video"
    serve._frames = lambda video: {"frames": torch.full((1, 2), float(len(fetched)))}
    monkeypatch.setattr(handler, "time", SimpleNamespace(monotonic=lambda: now.pop(0) if len(now) > 1 else now[0]))
    now[:] = [100.0, 100.0, 159.0]
    assert serve._decode(["https://a", "HTTP://b"])["frames"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert fetched == [("https://a", 7, 60.0), ("HTTP://b", 7, 1.0)] and serve._decode([]) is None
    now[:] = [100.0, 130.0, 160.0]
    with pytest.raises(handler.RequestError) as late:
        serve._decode(["https://a", "https://b"])
    assert (late.value.code, late.value.message) == ("too_slow", "only 1 videos read within 60 s")


def test_one_vector_of_a_window_stands_at_its_middle(served):
    """Of two clips, one of three frames; what is no frame has no time."""
    serve, mask = copy.copy(served), torch.tensor([[True] * 4, [True, True, True, False]])
    rows = torch.arange(4.0).reshape(2, 1, 2)
    found = (rows[:, 0], rows, torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    serve.model = SimpleNamespace(config=SimpleNamespace(sees_windows=True), get_video_features=lambda **_: found)
    stamps = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 1.0, 4.0, 0.0]])
    answer = serve._embeddings({}, {"video_mask": mask}, stamps)
    assert answer == {"videos": [
        {"frame_embeds": [[0.0, 1.0]], "frame_weights": [1.0], "timestamps": [3.5]},
        {"frame_embeds": [[2.0, 3.0]], "frame_weights": [1.0], "timestamps": [2.0]},
    ]}  # fmt: skip
