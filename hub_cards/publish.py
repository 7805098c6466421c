"""Compare files with a repository on the Hub, show the difference, and upload it as one commit."""

import fnmatch
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dmae.files import reached
from dmae.hub_cards.scan import refuse_private

# Files of earlier uploads that would be loaded beside, or instead of, the new ones: removed when no longer staged.
OURS = ("*.safetensors", "*.safetensors.index.json", "*_dmae.py", ".eval_results/*.yaml")


class Change(NamedTuple):
    """What an upload does to one file: `status` is new, changed, same or removed; `size` in bytes."""

    path: str
    status: str
    size: int


def publish(
    files: dict[str, Path],
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    dry_run: bool = False,
    message: str = "Publish with dmae",
    show: Callable[[str], None] = print,
    confirm: Callable[[str], bool] | None = None,
):
    """Upload `files` ({path in the repository: file}) as one commit, after showing what would change.

    Nothing is sent when `dry_run`, when nothing differs, when `confirm` (asked after the list was shown) does not say
    True, or when a file holds something private (`ValueError`). The commit is refused by the Hub if somebody else
    commits between the comparison and the upload. After an interruption run it again: the Hub keeps the large files it
    already has, and the repository changes only with the final commit. Returns the `CommitInfo`, or None.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_repo_id(repo_id)
    refuse_private(files)
    api = HfApi()
    parent, remote = _remote_files(api, repo_id, repo_type, dry_run, show)
    changes = compare(files, remote)
    show(describe(changes, f"{repo_type} {repo_id}" + ("" if parent else " (to be created)")))
    sending = [change for change in changes if change.status != "same"]
    if dry_run or not sending:
        show("a dry run: nothing was sent" if dry_run else "nothing to send: the repository has all of it")
        return None
    if confirm is not None and not confirm(f"Publish these {len(sending)} changes as {repo_id}?"):
        show("nothing was sent")
        return None
    operations = [
        CommitOperationDelete(path) if status == "removed" else CommitOperationAdd(path, str(files[path]))
        for path, status, _ in sending
    ]
    sdk = _space_sdk(files["README.md"]) if repo_type == "space" else None
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        commit = api.create_commit(
            repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=parent
        )
    except Exception as error:
        raise _explained(error, repo_id, api.endpoint) from error
    show(f"published: {api.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id} at {commit.oid[:12]}")
    return commit


def check_repo_id(repo_id: str) -> None:
    """Raises `ValueError` unless it reads NAMESPACE/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo id {repo_id!r}: give NAMESPACE/NAME, for example your-name/my-videos")


def compare(files: dict[str, Path], remote: dict[str, tuple[str, int]]) -> list[Change]:
    """Files against `{path: (git sha1 or LFS sha256, size)}` of the repository, sorted by path."""
    changes = []
    for name, path in files.items():
        oid = remote.get(name, ("", 0))[0]
        status = "new" if not oid else "same" if oid == _object_id(path, len(oid)) else "changed"
        changes.append(Change(name, status, path.stat().st_size))
    for name, (_, size) in remote.items():
        if name not in files and any(fnmatch.fnmatch(name, pattern) for pattern in OURS):
            changes.append(Change(name, "removed", size))
    return sorted(changes)


def describe(changes: list[Change], target: str) -> str:
    """The table a person reads before an upload: + new, ~ changed, - removed, = same."""
    signs = {"new": "+", "changed": "~", "removed": "-", "same": "="}
    lines = [f"  {signs[status]} {path}  ({_readable(size)})" for path, status, size in changes]
    sent = [change for change in changes if change.status in ("new", "changed")]
    total = f"{len(sent)} of {len(changes)} files to upload, {_readable(sum(change.size for change in sent))}"
    return "\n".join([f"{target}:", *lines, total])


def _remote_files(api, repo_id: str, repo_type: str, dry_run: bool, show) -> tuple[str | None, dict]:
    """(newest commit, {path: (id, size)}); (None, {}) for a repository that is not there yet."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        parent = api.repo_info(repo_id, repo_type=repo_type).sha
        entries = list(api.list_repo_tree(repo_id, repo_type=repo_type, recursive=True))
    except RepositoryNotFoundError:
        return None, {}
    except Exception as error:
        explained = _explained(error, repo_id, api.endpoint)
        if not dry_run:
            raise explained from error
        show(f"{explained}; without it every file counts as new")
        return None, {}
    files = [entry for entry in entries if hasattr(entry, "blob_id")]
    return parent, {file.path: (file.lfs.sha256 if file.lfs else file.blob_id, file.size) for file in files}


def _space_sdk(readme: Path) -> str:
    """The `sdk` of a Space's card; the Hub wants it when it makes the Space."""
    found = re.search(r"^sdk: (\w+)$", readme.read_text(encoding="utf-8"), flags=re.M)
    if not found:
        raise ValueError(f"{readme}: the card of a Space names its sdk")
    return found.group(1)


def _object_id(path: Path, length: int) -> str:
    """The file's sha256 (64 digits, LFS) or git blob sha1 (40 digits), whichever the repository has."""
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    reached("read", path)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _explained(error: BaseException, repo_id: str, endpoint: str) -> BaseException:
    """The same failure in one line that says what to do; programming errors pass unchanged."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if type(error) is RuntimeError and error.__cause__ is not None:  # how a large file's upload fails
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return PermissionError(
            f"{repo_id}: the Hub refused; log in with `hf auth login`, using a token that may write there"
        )
    if status == 412:
        return OSError(f"{repo_id} changed while this upload was prepared; look at the new commit and push again")
    # huggingface_hub has changed its HTTP library before: what a connection raises is known by the library's name
    if status or type(error).__module__.split(".")[0] in ("httpx", "httpx2"):
        reason = f"answered {status}" if status else f"cannot be reached or broke off ({error})"
        # not "nothing was changed": where only the answer to the commit was lost, all of it was
        return OSError(f"{endpoint} {reason}; push again: it looks first at what is there, and sends only the rest")
    return error


def _readable(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("KB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"
