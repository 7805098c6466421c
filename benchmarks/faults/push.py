"""Kills, refusals and lost answers at every point of `dmae push`, against a Hub on the loopback.

python benchmarks/faults/push.py       # writes the key "push" of results/faults.json

A trial publishes a small corpus or model and is struck once: at the n-th request that the Hub sees, for every n, or at
the n-th file that is read. Afterwards the local folder must be byte for byte what it was, the repository must hold its
old files or all of the new ones, and a second push must end with the new ones.

    kill_before, kill_after  the client gets SIGKILL, and the Hub has or has not done what was asked
    drop_before, drop_after  the connection breaks, likewise
    500, 403, 429            the Hub refuses
    read                     a file cannot be read (EIO)

Finished trials stand in `--progress`; a run that was stopped goes on where it was.
"""

import argparse
import errno
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from trials import Trial, run_trials

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {"corpus-new": ("corpus", True), "corpus": ("corpus", False), "model": ("model", False)}
KINDS = ("kill_before", "kill_after", "drop_before", "drop_after", "500", "403", "429")
PATIENCE = 120  # seconds after which a client counts as hanging


def loopback_hub():
    path = ROOT / "tests" / "hub_cards" / "loopback_hub.py"
    specification = importlib.util.spec_from_file_location("loopback_hub", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["loopback_hub"] = module  # its dataclass looks itself up
    specification.loader.exec_module(module)
    return module


hub_module = loopback_hub()


class StruckHandler(hub_module.HubHandler):
    """Strikes once: `hub.strike = (number of the request, kind)`; `hub.client` is the process to kill."""

    silent = False

    def handle_request(self):
        with self.hub.lock:
            number, self.hub.requests = self.hub.requests, self.hub.requests + 1
        kind = self.hub.strike[1] if self.hub.strike and self.hub.strike[0] == number else None
        if kind in ("kill_before", "drop_before"):
            return self.break_off(kind)
        if kind in ("kill_after", "drop_after"):
            self.silent = True
        elif kind:
            self.hub.fail[""] = [int(kind)]
        super().handle_request()
        if self.silent:
            self.break_off(kind)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def reply(self, *arguments, **options):
        if not self.silent:
            super().reply(*arguments, **options)

    def break_off(self, kind: str):
        if kind.startswith("kill"):
            os.kill(self.hub.client, signal.SIGKILL)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client is dead
            self.close_connection = True


class Bench:
    """Sources to publish, the Hub they go to, and trials of it."""

    def __init__(self, folder: Path, hub):
        self.folder, self.hub = folder, hub
        hub.requests, hub.strike, hub.client = 0, None, 0

    def source(self, kind: str, version: int) -> Path:
        path = self.folder / f"{kind}-{version}"
        if not path.exists():
            (make_corpus if kind == "corpus" else make_model)(path, version)
        return path

    def push(self, source: Path, kind: str, fault=None) -> int:
        """Publish in a process of its own; its exit status: 0, 1 for a refusal in one line, 3 for anything else."""
        pid = os.fork()
        if pid == 0:
            os._exit(_client(source, f"user/{kind}", fault))
        self.hub.client = pid
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return 4

    def prepare(self, kind: str, fresh: bool) -> tuple[dict, dict]:
        """An empty Hub, or one with the old version; the repository's files before and after an unhurt push."""
        key = f"{'dataset' if kind == 'corpus' else 'model'}s/user/{kind}"
        contents = []
        for version in (0, 1):
            self.clear()
            assert self.push(self.source(kind, version), kind) == 0
            contents.append(dict(self.hub.files(key)))
        self.clear()
        self.hub.requests = 0
        if not fresh:
            assert self.push(self.source(kind, 0), kind) == 0
            self.hub.requests = 0
        return ({} if fresh else contents[0]), contents[1]

    def clear(self) -> None:
        for store in (self.hub.repos, self.hub.blobs, self.hub.log, self.hub.fail):
            store.clear()

    def trial(self, kind: str, fresh: bool, strike: tuple[int, str], states: tuple[dict, dict]) -> str:
        """ "ok", or what was found: hung, crashed, local, mixed or stuck."""
        key, source = f"{'dataset' if kind == 'corpus' else 'model'}s/user/{kind}", self.source(kind, 1)
        self.clear()
        old, new = states
        if not fresh:
            self.hub.create(key)
            self.hub.commit(key, "old", old)
        before = tree(source)
        self.hub.requests, self.hub.strike = 0, strike if strike[1] != "read" else None
        status = self.push(source, kind, strike[0] if strike[1] == "read" else None)
        self.hub.strike = None
        self.hub.fail.clear()
        there = self.hub.files(key) if key in self.hub.repos else {}
        if status in (3, 4):
            return "crashed" if status == 3 else "hung"
        if tree(source) != before:
            return "local"
        if there not in (old, new):
            return "mixed"
        if status == 0 and there != new:
            return "said to be done"
        return "ok" if self.push(source, kind) == 0 and self.hub.files(key) == new else "stuck"

    def strikes(self, kind: str, fresh: bool) -> tuple[list, tuple[dict, dict]]:
        """Every point of an unhurt push, with every kind of strike."""
        states = self.prepare(kind, fresh)
        assert self.push(self.source(kind, 1), kind) == 0
        requests, files = self.hub.requests, len(states[1])
        return [(n, what) for n in range(requests) for what in KINDS] + [(n, "read") for n in range(2 * files)], states

    def trials(self, kind: str, fresh: bool, most: int | None) -> Iterator[Trial]:
        strikes, states = self.strikes(kind, fresh)
        for number, what in strikes[:: max(1, -(-len(strikes) // most)) if most else 1]:
            name = f"{kind} {'new' if fresh else 'again'} {number} {what}"
            yield name, what, partial(self.trial, kind, fresh, (number, what), states)


def _client(source: Path, repo_id: str, unreadable: int | None) -> int:
    """What runs in the forked process: `push`, as the command calls it."""
    try:
        from dmae import files
        from dmae.hub_cards.push import push

        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        reads = itertools.count()

        def fault(point: str, path: Path) -> None:
            if point == "read" and next(reads) == unreadable:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        files.fault = fault
        push(source, repo_id, license="mit", show=lambda text: None)
    except (OSError, ValueError):
        return 1
    except BaseException:
        return 3
    return 0


def tree(folder: Path) -> dict[str, tuple]:
    """Names, contents and times of all below a folder."""
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_corpus(folder: Path, version: int) -> None:
    (folder / "train").mkdir(parents=True)
    rows = [{"file_name": f"{n}.mp4", "captions": [f"clip {n} of version {version}"]} for n in range(2 + version)]
    for row in rows:
        (folder / "train" / row["file_name"]).write_bytes(b"\0\0\0\x18ftypisom" + str(row).encode())
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def make_model(folder: Path, version: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from dmae import DMAEConfig, DMAEForTextVideoRetrieval, DMAEProcessor, FrameSampler

    torch.manual_seed(version)
    config = DMAEConfig.tiny(interaction="wti")
    bpe = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=32
    )
    DMAEForTextVideoRetrieval(config).save_pretrained(folder)
    sampler = FrameSampler(num_frames=config.max_frames, size=config.vision_config.image_size)
    DMAEProcessor(tokenizer, sampler, max_words=config.max_words).save_pretrained(folder)


def run(scenarios: list[tuple[str, bool]], progress: Path | None = None, most: int | None = None) -> dict:
    """Verdicts counted per kind of strike; resumable by `progress`. most: at most so many trials a scenario, spread."""
    hub_module.LoopbackHub.handler = StruckHandler
    verdicts: dict[str, Counter] = {}
    with hub_module.LoopbackHub() as hub, tempfile.TemporaryDirectory() as scratch:
        environment = hub.environment(Path(scratch, "home"))
        os.environ.update({name: environment[name] for name in environment if name.startswith(("HF_", "NO_PROXY"))})
        import dmae.hub_cards.push  # the Hub's address is read when it is imported: only now

        assert dmae.hub_cards.push
        bench = Bench(Path(scratch), hub)
        trials = itertools.chain.from_iterable(bench.trials(kind, fresh, most) for kind, fresh in scenarios)
        for entry in run_trials(progress or Path(scratch, "progress"), trials, "push"):
            verdicts.setdefault(entry["point"], Counter())[entry["verdict"]] += 1
        shutil.rmtree(Path(scratch, "home"), ignore_errors=True)
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--progress", type=Path, default=Path(tempfile.gettempdir()) / "dmae-push-faults.jsonl")
    parser.add_argument("--most", type=int, help="at most so many trials a scenario, spread over its points")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--no-result", action="store_true", help="leave results/faults.json as it is")
    arguments = parser.parse_args()
    started = time.monotonic()
    verdicts = run([SCENARIOS[name] for name in arguments.scenarios], arguments.progress, arguments.most)
    trials = sum(counter.total() for counter in verdicts.values())
    wrong = trials - sum(counter["ok"] for counter in verdicts.values())
    result = {"strikes": {kind: dict(counter) for kind, counter in verdicts.items()}, "wrong": wrong}
    print(json.dumps(result, indent=1), f"{trials} trials, {time.monotonic() - started:.0f} s", sep="\n")
    if not arguments.no_result:
        from report import merge_result

        merge_result("push", result, seed=0, trials=trials)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
