"""Visitors at the browser app, all at once: is anything lost, how long does the last one wait, how much memory does it take?

    python benchmarks/app_load.py                       # 50 visitors against a server of its own
    python benchmarks/app_load.py --visitors 10 --steps 2 --out docs/data/app_load.json

Every visitor is a session of its own that asks for one small restoration (`cats64`, an example, a ready mask, another seed
each) and listens until it is done. Asked: that each gets its picture and no other's, and the server's memory before, at most
and after. Needs the extra `app`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from invdiff import Mask, load_backbone, make_mask, solve
from invdiff.data import chelsea64


def memory(process: int) -> float:
    """Resident memory of a process, MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def server(port: int) -> subprocess.Popen:
    """A server, once it answers."""
    words = [sys.executable, "-m", "invdiff", "app", "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read()
            return process
        except OSError:
            time.sleep(0.3)
    raise SystemExit("the server ended before it answered")


def visit(url: str, seed: int, steps: int, found: dict[int, dict[str, Any]]) -> None:
    """One visitor: asks, listens, keeps what comes."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # the client would tell of itself
    from gradio_client import Client

    row: dict[str, Any] = {"seed": seed, "state": "lost", "places": []}
    found[seed] = row
    try:
        client = Client(
            url, verbose=False, download_files=False, analytics_enabled=False, httpx_kwargs={"timeout": 600}
        )
        job = client.submit(
            "", None, "Chelsea, 64x64", "ready", "box", 0, None, 4, "box", "gaussian", 9, 1.6, "mean", 0, False, ["ddnm"],
            "cats64", steps, 1, seed, False, "", api_name="/restore",
        )  # fmt: skip
        while not job.done():
            time.sleep(0.2)
        if (broken := job.exception()) is not None:
            raise broken
        for update in job.outputs():
            text = str(update[0])
            if "Place" in text:
                row["places"].append(int(text.split("Place ")[1].split()[0]))
            row["state"] = text
        files = next(part for part in update if isinstance(part, list) and part)
        paths = [str(file["path"] if isinstance(file, dict) else file) for file in files]
        row["picture"] = np.asarray(Image.open(next(path for path in paths if path.endswith("ddnm.png"))))
        row["state"] = "done"
    except Exception as error:
        row["state"] = f"{type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--port", type=int, default=7981)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    process = server(given.port)
    url = f"http://127.0.0.1:{given.port}"
    found: dict[int, dict[str, Any]] = {}
    peak, over = [memory(process.pid)], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak.append(memory(process.pid))

    try:
        visit(url, -1 + 10_000, given.steps, found)  # loads the backbone
        found.clear()
        before = memory(process.pid)
        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        threads = [threading.Thread(target=visit, args=(url, i, given.steps, found)) for i in range(given.visitors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        over.set()
        watcher.join()
        after = memory(process.pid)
        done = [row for row in found.values() if row["state"] == "done"]
        backbone = load_backbone("cats64", engine="torch")
        wrong = sum(not same(row, given.steps, backbone) for row in done)
    finally:
        over.set()
        process.terminate()
    result = {
        "command": f"python benchmarks/app_load.py --visitors {given.visitors} --steps {given.steps}",
        "visitors": given.visitors,
        "restored": len(done),
        "lost": given.visitors - len(done),
        "another's picture": wrong,
        "longest queue": max((max(row["places"]) for row in done if row["places"]), default=0),
        "seconds": round(seconds, 1),
        "memory before, MiB": round(before),
        "memory at most, MiB": round(max(peak)),
        "memory after, MiB": round(after),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=1))
    for row in found.values():
        if row["state"] != "done":
            print({k: v for k, v in row.items() if k != "picture"}, file=sys.stderr)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(result["lost"] or wrong))


def same(row: dict[str, Any], steps: int, backbone: Any) -> bool:
    """Whether a visitor's picture is the one of their seed."""
    answer = solve(Mask(make_mask("box", 64)), chelsea64(), "ddnm", backbone=backbone, steps=steps, seed=row["seed"])
    return bool(np.array_equal(row["picture"], np.asarray(answer.image)))


if __name__ == "__main__":
    main()
