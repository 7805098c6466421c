"""Nothing secret or local leaves the machine: every file is read to its end for tokens, keys and private paths.

Tokens are found by detect-secrets' detectors of known forms (its guesses by entropy and by words such as "password" are
not used: captions would set them off) and by a few forms it does not know yet. Text counts in any encoding that holds
ASCII: UTF-8, UTF-16 and UTF-32 in both byte orders, Latin-1, and what stands inside a video, a picture or weights.
"""

import getpass
import os
import re
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dmae.files import reached

DETECTORS = (
    "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "DiscordBotTokenDetector", "GitHubTokenDetector",
    "GitLabTokenDetector", "JwtTokenDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector",
    "PypiTokenDetector", "SendGridDetector", "SlackDetector", "SquareOAuthDetector", "StripeDetector",
    "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip
# Each begins with its own letters, what must not stand before them comes after: `re` then skips to the next candidate.
UNKNOWN_TO_THEM = {
    "Hugging Face Token": r"hf_[A-Za-z0-9]{30,}",
    "GitHub Token": r"github_pat_\w{40,}",
    "Google API Key": r"AIza[\w-]{35}",
    "Google OAuth Secret": r"GOCSPX-[\w-]{20,}",
    "Google Access Token": r"ya29\.[\w-]{30,}",
    "API Key": r"sk-(?<!\wsk-)[A-Za-z0-9_-]{24,}",
    "Slack Token": r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    "Slack App Token": r"xapp-\d-[A-Za-z0-9-]{20,}",
    "Weights & Biases Key": r"WANDB_API_KEY\W{1,4}[0-9a-f]{40}",
}
ROOTS = (
    "home|Users|root|mnt|media|Volumes|data|datasets?|scratch|workspaces?|work|tmp|srv|nas|net|export|storage|gpfs"
    "|lustre|private/var|var/(?:lib|folders)|opt"
)
PRIVATE_PATHS = {
    # not a part of an address (https://host/data/x), nor of a relative path (./data/x)
    "a path of a machine": rf"/(?<![\w.:/~@-]/)(?:{ROOTS})/[\w.-]+",
    "a file: address": r"file:/{1,3}[\w.%~$-]+",
    # after a drive's letter; escaped as in JSON, or plain if it is no escape (the \n of "A:\nfirst") or has two parts
    "a path of a Windows machine": r":\\(?<=[A-Za-z]:\\)(?<![A-Za-z]{2}:\\)"
    r"(?:\\[\w ~$.-]|(?![nrtbfu\"'/\\])[\w~$.]|[\w ~$.-]+\\\w)",
}
COMMON_LOGINS = {"root", "user", "ubuntu", "admin", "runner", "app"}
BLOCK, OVERLAP = 1 << 24, 1 << 12  # bytes; what stands across two blocks is found while it is shorter than the overlap
NOT_TEXT = bytes(byte if 32 <= byte < 127 or byte in b"\t\r\n" else 0 for byte in range(256))
RUN = re.compile(rb"[^\0]{12,}")  # shorter runs are chance: they fill every compressed file


def find_private(content: bytes) -> list[tuple[str, str]]:
    """What must not be published in `content`: pairs of what it is and, cut short, how it begins; each once."""
    text, found = _text(content), {}
    for name, pattern in _patterns():
        for match in pattern.finditer(text):
            found[name, match.group().strip()[:12] + "…"] = None
    return list(found)


def refuse_private(sending: dict[str, Path]) -> None:
    """Raises `ValueError` listing where in {path in the repository: file} `find_private` finds something."""
    problems = []
    for name, path in sending.items():
        found = {item: None for block in _blocks(path) for item in find_private(block)}
        problems += [f"{name}: {what} ({beginning})" for what, beginning in found]
    if problems:
        more = [f"and {len(problems) - 50} more"] if len(problems) > 50 else []
        raise ValueError("not published, because these would go public:\n  " + "\n  ".join(problems[:50] + more))


def _blocks(path: Path) -> Iterator[bytes]:
    """The whole file, a part at a time, each with the end of the one before."""
    reached("read", path)
    with open(path, "rb") as file:
        end = b""
        while block := file.read(BLOCK):
            yield end + block
            end = block[-OVERLAP:]


def _text(content: bytes) -> str:
    """UTF-8 as it is; of anything else the runs of ASCII, those of UTF-16 and UTF-32 (every second byte 0) included."""
    if b"\0" not in content:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return "\n".join(
        run.decode("ascii")
        for reading in (content.translate(NOT_TEXT), content.translate(NOT_TEXT, b"\0"))
        for run in RUN.findall(reading)
    )


def _patterns() -> list[tuple[str, re.Pattern]]:
    return [*_known_forms(), *((name, re.compile(pattern)) for name, pattern in _this_machine().items())]


@cache
def _known_forms() -> tuple[tuple[str, re.Pattern], ...]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    detectors: dict[str, Any] = {kind.__name__: kind for kind in get_mapping_from_secret_type_to_class().values()}
    theirs = [
        (kind.secret_type, re.compile(pattern))
        for kind in (detectors[name] for name in DETECTORS)
        for pattern in kind().denylist
    ]
    ours = [(name, re.compile(pattern)) for name, pattern in (UNKNOWN_TO_THEM | PRIVATE_PATHS).items()]
    return (*theirs, *ours)


def _this_machine() -> dict[str, str]:
    """Patterns for this user's home, login, host and token, as far as they are telling."""
    patterns = {"this machine's home folder": re.escape(str(Path.home())) + r"[/\\]"}
    login, host, token = _login(), socket.gethostname(), os.environ.get("HF_TOKEN", "")
    if login and login not in COMMON_LOGINS:
        patterns["this machine's user name"] = rf"[/\\]{re.escape(login)}[/\\]|\b{re.escape(login)}@"
    if len(host) > 5 and host != "localhost":
        patterns["this machine's name"] = rf"(?<![\w-]){re.escape(host)}(?![\w-])"
    if len(token) >= 8:
        patterns["the token in HF_TOKEN"] = re.escape(token)
    return patterns


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return ""
