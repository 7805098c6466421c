"""Serve a DMAE model on Hugging Face Inference Endpoints: sentences and videos in, scores or embeddings out.

    POST {"inputs": {"texts": ["a dog runs"], "videos": ["https://host/clip.mp4", "<base64>"]},
          "parameters": {"output": "scores"}}
    ->   {"scores": [[0.31, 0.12]], "logit_scale": 100.0}              scores[i][j]: text i against video j, unscaled

`"output": "embeddings"` gives per text `sentence_embeds`, `word_embeds`, `word_weights` and per video `frame_embeds`
(attended), `frame_weights`, `timestamps` (s); either side may then be left out. A video is an https URL, base64 (a
`data:` prefix is fine) or bytes. A refusal is raised, which the inference toolkit answers with HTTP 400 and
`{"error": "code: message"}`. Only public addresses are fetched.
"""

import base64
import binascii
import contextlib
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import torch
from transformers import AutoModel, AutoProcessor

logger = logging.getLogger(__name__)

# FFmpeg also opens playlists that name other files and addresses; only self-contained containers are let through.
CONTAINERS = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "))
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# All that is routed of IPv6. What `ipaddress` calls global reaches further: fec0::/10, for one, is a site's own.
GLOBAL_UNICAST, DOCUMENTATION = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("3fff::/20")
MAX_REDIRECTS = 3


class RequestError(ValueError):
    """The request is refused; `code` is a stable word for programs, the message is for people. As text: both."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    texts: int = 64
    characters: int = 2000  # per text
    videos: int = 8
    video_bytes: int = 64 * 2**20
    pixels: int = 4096 * 2304  # per frame
    video_seconds: float = 3600.0
    decode_seconds: float = 10.0  # of CPU time, per video
    seconds: float = 60.0  # all videos together, downloads included


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, judging the IPv4 address inside an IPv6 one by itself."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        nat64 = ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        inner = ip.ipv4_mapped or ip.sixtofour or nat64 or (ip.teredo and ip.teredo[1])
        if inner:
            return is_public(str(inner))
        if ip not in GLOBAL_UNICAST or ip in DOCUMENTATION:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class CheckedConnection(http.client.HTTPSConnection):
    """Resolves the host once, refuses if *any* address is not allowed, and connects to the address it checked.

    A second look-up (DNS rebinding) never happens, and proxies in the environment are not used.
    """

    def __init__(self, host: str, port: int, allow: Callable[[str], bool], context: ssl.SSLContext, timeout: float):
        super().__init__(host, port, context=context, timeout=timeout)
        self.allow, self.tls = allow, context
        # A server that sends a byte now and then trips no socket timeout: the alarm ends the exchange as a whole.
        self.alarm = threading.Timer(timeout, self._abort)
        self.alarm.daemon = True

    def connect(self) -> None:
        try:
            entries = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise RequestError("download_failed", f"{self.host}: the name does not resolve") from error
        found = sorted({str(entry[4][0]) for entry in entries})
        refused = [address for address in found if not self.allow(address)]
        if refused:
            raise RequestError("address_refused", f"{self.host} resolves to {refused[0]}, not a public address")
        raw = socket.create_connection((found[0], self.port), self.timeout)
        self.sock = self.wire = self.tls.wrap_socket(raw, server_hostname=self.host, do_handshake_on_connect=False)
        self.alarm.start()
        self.sock.do_handshake()

    def _abort(self) -> None:
        with contextlib.suppress(OSError):  # already closed
            socket.socket.shutdown(self.wire, socket.SHUT_RDWR)


def download(url: str, max_bytes: int, seconds: float, allow: Callable[[str], bool] = is_public, context=None) -> bytes:
    """GET an https URL, every redirect checked like the first address; RequestError if refused, late or too large."""
    deadline = time.monotonic() + seconds
    context, redirect = context or ssl.create_default_context(), ""
    for _ in range(MAX_REDIRECTS + 1):
        parts, port, url = _https(url, redirect)
        left = max(deadline - time.monotonic(), 0.001)
        connection = CheckedConnection(parts.hostname or "", port, allow, context, left)
        failure = None
        try:
            redirect, body = _get(connection, parts, max_bytes)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            failure = error
        finally:
            connection.alarm.cancel()
            connection.close()
        if time.monotonic() >= deadline:  # an aborted transfer can look like a finished one
            raise RequestError("too_slow", f"{parts.hostname}: not downloaded within {seconds:g} s") from failure
        if failure:
            kind = type(failure).__name__
            raise RequestError("download_failed", f"{parts.hostname}: the download failed ({kind})") from failure
        if redirect is None:
            return body
    raise RequestError("download_failed", f"{parts.hostname}: more than {MAX_REDIRECTS} redirects")


def _https(url: str, redirect: str = "") -> tuple[SplitResult, int, str]:
    """Parts, port and whole of the address that `redirect` means on `url`; RequestError if it may not be fetched."""
    try:
        url = urljoin(url, redirect)
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:  # a port beyond 65535, an unclosed bracket
        raise RequestError("address_refused", f"{(redirect or url)[:200]!r}: is not an address ({error})") from error
    if parts.scheme != "https" or not parts.hostname or parts.username:
        raise RequestError("address_refused", f"{url[:200]!r}: only https://host/… without a user name is fetched")
    return parts, port, url


def _get(connection: CheckedConnection, parts, max_bytes: int) -> tuple[str | None, bytes]:
    """One exchange: (where it redirects, nothing) or (None, the body)."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", quote(target, safe="%/:?#[]@!$&'()*+,;=~"))
    response = connection.getresponse()
    if response.status in (301, 302, 303, 307, 308):
        return response.getheader("Location", ""), b""
    if response.status != 200:
        raise RequestError("download_failed", f"{parts.hostname}: answered {response.status}")
    body = bytearray()
    # read1 returns what has arrived; a length that the header promises is not trusted
    while chunk := response.read1(1 << 16):
        body += chunk
        if len(body) > max_bytes:
            raise RequestError("too_large", f"{parts.hostname}: larger than {max_bytes} bytes")
    if response.length:
        raise RequestError("download_failed", f"{parts.hostname}: the transfer ended {response.length} bytes early")
    return None, bytes(body)


def read_video(item, limits: Limits, seconds: float, fetch=download) -> bytes:
    """The bytes of one video of a request: as they are, from base64, or from an https URL."""
    if isinstance(item, str) and item.lower().startswith(("http://", "https://")):
        item = fetch(item, limits.video_bytes, seconds)
    elif isinstance(item, str):
        encoded = item.partition(";base64,")[2] if item.startswith("data:") else item
        if len(encoded) > limits.video_bytes * 4 / 3 + 4:  # before decoding doubles the memory
            raise RequestError("too_large", f"larger than {limits.video_bytes} bytes")
        try:
            item = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("bad_request", "is neither an https URL nor base64") from error
    if not isinstance(item, (bytes, bytearray)):
        raise RequestError("bad_request", f"expected bytes, base64 or an https URL, got {type(item).__name__}")
    if len(item) > limits.video_bytes:
        raise RequestError("too_large", f"{len(item)} bytes; the limit is {limits.video_bytes}")
    return bytes(item)


class EndpointHandler:
    """What Inference Endpoints load: `EndpointHandler(folder)` once, then one call per request."""

    def __init__(self, path: str = "", limits: Limits | None = None, fetch: Callable = download):
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.limits, self.fetch = limits or Limits(), fetch
        frames = self.processor.feature_extractor  # it enforces these while it reads
        frames.max_pixels, frames.max_seconds_to_scan = self.limits.pixels, self.limits.video_seconds
        frames.max_cpu_seconds = self.limits.decode_seconds

    def __call__(self, data: dict) -> dict:
        """Answer one request. Raises RequestError for a refusal, and for a failure inside, which names no details."""
        try:
            texts, videos, output = self._parse(data)
            with torch.inference_mode():
                return self._answer(texts, self._decode(videos), output)
        except RequestError:
            raise
        except Exception:
            logger.exception("request failed")  # details stay in the log: they name this machine's files
            raise RequestError("internal", "the request failed inside the server") from None

    def _parse(self, data: dict) -> tuple[list, list, str]:
        data = data if isinstance(data, dict) else {}
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if isinstance(inputs, (bytes, bytearray)):  # a request whose body is the video itself
            inputs, parameters = {"videos": [inputs]}, {"output": "embeddings"}
        if not isinstance(inputs, dict) or not isinstance(parameters, dict):
            raise RequestError("bad_request", 'expected {"inputs": {"texts": [...], "videos": [...]}}')
        texts, videos = inputs.get("texts") or [], inputs.get("videos") or []
        output = parameters.get("output", "scores")
        if output not in ("scores", "embeddings"):
            raise RequestError("bad_request", f'output is "scores" or "embeddings", got {output!r}')
        self._check_counts(texts, videos, output)
        return texts, videos, output

    def _check_counts(self, texts, videos, output: str) -> None:
        limits = self.limits
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise RequestError("bad_request", "texts must be a list of sentences, none of them empty")
        if not isinstance(videos, list):
            raise RequestError("bad_request", f"videos must be a list, got {type(videos).__name__}")
        if (output == "scores" and not (texts and videos)) or not (texts or videos):
            raise RequestError("bad_request", "scores need texts and videos; embeddings need one of them")
        for name, count, most in (("texts", len(texts), limits.texts), ("videos", len(videos), limits.videos)):
            if count > most:
                raise RequestError("too_many", f"{count} {name}; the limit is {most} per request")
        longest = max(map(len, texts), default=0)
        if longest > limits.characters:
            raise RequestError("too_large", f"a text has {longest} characters; the limit is {limits.characters}")

    def _decode(self, videos: list) -> dict | None:
        """Frames of all videos, (V,F,3,H,W), with the number of the offending video in any refusal."""
        deadline, decoded = time.monotonic() + self.limits.seconds, []
        for number, item in enumerate(videos):
            left = deadline - time.monotonic()
            if left <= 0:
                raise RequestError("too_slow", f"only {number} videos read within {self.limits.seconds:g} s")
            try:
                decoded.append(self._frames(read_video(item, self.limits, left, self.fetch)))
            except RequestError as error:
                raise RequestError(error.code, f"videos[{number}]: {error.message}") from error
        return {name: torch.cat([frames[name] for frames in decoded]) for name in decoded[0]} if decoded else None

    def _frames(self, video: bytes):
        if not any(video[at : at + len(magic)] == magic for at, magic in CONTAINERS):
            raise RequestError("unreadable_video", "is not an MP4, MOV, MKV, WebM or AVI file")
        return self._processed("unreadable_video", videos=video, return_timestamps=True)

    def _processed(self, code: str, **inputs):
        try:
            return self.processor(**inputs, return_tensors="pt")
        except ValueError as error:  # VideoDecodeError among them: the model's own classes cannot be imported by name
            raise RequestError(code, str(error)) from error

    def _answer(self, texts: list[str], frames: dict | None, output: str) -> dict:
        device = self.model.device
        words = self._processed("bad_request", text=texts).to(device) if texts else {}
        stamps = frames.pop("timestamps") if frames else None
        frames = {name: value.to(device) for name, value in (frames or {}).items()}
        if output == "embeddings":
            return self._embeddings(words, frames, stamps)
        scale = self.model.logit_scale.float().exp()
        scores = self.model(**words, **frames, return_loss=False).logits_per_text / scale
        return {"scores": scores.float().tolist(), "logit_scale": scale.item()}

    def _embeddings(self, words, frames, stamps) -> dict[str, list[dict]]:
        """What an exact score needs, without the padding (`TextEmbeddings`, `VideoEmbeddings` of the model)."""
        answer = {}
        if words:
            answer["texts"] = [
                {"sentence_embeds": whole.tolist(), **_real(real, word_embeds=each, word_weights=weight)}
                for whole, each, weight, real in _on_cpu(self.model.get_text_features(**words))
            ]
        if frames:
            if self.model.config.sees_windows:  # one vector of all frames, at their middle
                last = frames["video_mask"].sum(-1, keepdim=True).cpu() - 1
                stamps = (stamps[:, :1] + stamps.gather(1, last)) / 2
            answer["videos"] = [
                _real(real, frame_embeds=each, frame_weights=weight, timestamps=at)
                for (_, each, weight, real), at in zip(_on_cpu(self.model.get_video_features(**frames)), stamps)
            ]
        return answer


def _on_cpu(embeddings):
    """One tuple of tensors per row; half precision has no `tolist` worth reading."""
    return zip(*(field.cpu() if field.dtype == torch.bool else field.float().cpu() for field in embeddings))


def _real(mask, **rows) -> dict[str, list]:
    """Numbers without the padding."""
    return {name: values[mask].tolist() for name, values in rows.items()}
