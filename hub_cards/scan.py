"""Nothing secret or local leaves the machine: every file is searched for tokens, keys and this machine's names."""

import getpass
import os
import re
import socket
from pathlib import Path

SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{40,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{24,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@\"']+:[^/\s:@\"']+@",
}
LOCAL_PATH = (
    r"(?<![\w.:/~-])/(?:home|Users|root|mnt|scratch|workspace|work|tmp|private/var)/[\w.-]+"
    r"|\b[A-Za-z]:\\{1,2}Users\\"
)
COMMON_LOGINS = {"root", "user", "ubuntu", "admin", "runner", "app"}
MEDIA = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".png", ".jpg"}  # pictures and videos hold no text to search
SAFETENSORS_HEADER = 1 << 20  # the numbers behind it hold no text


def find_private(content: bytes) -> list[tuple[str, str]]:
    """What must not be published in `content`: pairs of what it is and, cut short, how it begins."""
    text = content.decode("utf-8", errors="replace")
    found = []
    for name, pattern in (SECRETS | {"a path of this machine": LOCAL_PATH} | _this_machine()).items():
        found += [(name, match.group()[:12] + "…") for match in re.finditer(pattern, text)]
    return found


def refuse_private(files: dict[str, Path]) -> None:
    """Raises `ValueError` listing where in `files` ({path in the repository: file}) `find_private` finds something."""
    problems = []
    for name, path in files.items():
        if path.suffix in MEDIA:
            continue
        with open(path, "rb") as file:
            content = file.read(SAFETENSORS_HEADER if path.suffix == ".safetensors" else -1)
        problems += [f"{name}: {what} ({beginning})" for what, beginning in find_private(content)]
    if problems:
        raise ValueError("not published, because these would go public:\n  " + "\n  ".join(problems))


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
