"""What a search by the command costs, and what memory a server holds: CPU seconds of whole processes.

    python benchmarks/command.py INDEX --clip CLIP     # an index that `dmae index` made on this machine, and any clip

Writes benchmarks/results/command.json: `dmae search` in a process of its own (median of --repeats), the same asked of a
running `dmae serve`, `import torch` alone beside them (a slow machine is slow in all three), and the server's memory
after words and after an upload.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

RESULT = Path(__file__).with_name("results") / "command.json"
WORDS = "a dog catches a frisbee"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--model", help="what the index's model is called in the result")
    parser.add_argument("--repeats", type=int, default=3)
    wishes = parser.parse_args()
    dmae = [sys.executable, "-m", "dmae"]
    alone = [*dmae, "search", str(wishes.index), WORDS, "--device", "cpu"]  # a device of its own: no server is asked
    cpu_seconds(alone)  # fills the disk's cache
    result = {
        "alone": median(alone, wishes.repeats),
        "torch": median([sys.executable, "-c", "import torch"], wishes.repeats),
    }
    with serving(dmae, wishes.index) as (address, process):
        ask(f"{address}/api/search?q=dog")
        result["server_bytes"] = {"words": resident(process.pid)}
        result["asked"] = median([*dmae, "search", str(wishes.index), WORDS], wishes.repeats)
        upload(address, wishes.clip)
        result["server_bytes"]["upload"] = resident(process.pid)
    shown = subprocess.run(
        [*dmae, "index-info", str(wishes.index), "--json"], check=True, capture_output=True, text=True
    )
    info = json.loads(shown.stdout)
    model, load = wishes.model or Path(info["model"]["name"]).name, round(os.getloadavg()[0], 1)
    conditions = {"rows": info["rows"], "model": model, "threads": 1, "cpu": platform.machine(), "load": load}
    result["conditions"] = conditions
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def median(command: list[str], repeats: int) -> float:
    return round(statistics.median(cpu_seconds(command) for _ in range(repeats)), 2)


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a process and its children, one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextlib.contextmanager
def serving(dmae: list[str], index: Path):
    """A server over the index: (its address, its process)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*dmae, "serve", str(index), "--port", str(port)], env=environment) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    ask(f"http://127.0.0.1:{port}/health")
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()


def ask(address: str, data: bytes | None = None, **headers: str) -> bytes:
    request = urllib.request.Request(address, data, {name.replace("_", "-"): text for name, text in headers.items()})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def upload(address: str, clip: Path) -> None:
    head = b'--edge\r\nContent-Disposition: form-data; name="clip"; filename="clip.mp4"\r\n\r\n'
    form = {"Content_Type": "multipart/form-data; boundary=edge"}
    ask(f"{address}/api/search", head + clip.read_bytes() + b"\r\n--edge--\r\n", **form)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
