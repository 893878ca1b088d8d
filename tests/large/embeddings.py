"""Texts a second and memory: edgert's embeddings beside onnxruntime called directly, in alternating runs.

    python tests/large/embeddings.py MODEL [RUNS]

MODEL is a folder, as `edgert pull all-minilm-l6-v2` makes it. Each run is a process of its own, which computes the same
1,000 texts of 2 to 60 words; told is the median, and the most memory of the process that computes.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WAYS = {"edgert": "an Embedder", "one": "onnxruntime, a text at a time", "batches": "onnxruntime, 32 texts at a time",
        "off": "onnxruntime, 32 at a time, no optimizations"}
COUNT = 1000


def texts() -> list[str]:
    words = (Path(__file__).parents[2] / "docs/architecture.md").read_text().split()
    numbers = random.Random(1)
    lengths = [numbers.randint(2, 60) for _ in range(COUNT)]
    return [" ".join(words[start:start + length]) for length in lengths for start in [numbers.randrange(3000)]]


def directly(model: Path, way: str) -> tuple[float, int, float]:
    """Seconds that loading takes, most bytes of memory, and seconds that computing takes."""
    import onnxruntime
    from tokenizers import Tokenizer

    from edgert.process import peak_rss_bytes
    begun = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if way == "off":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model / "model.onnx", options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    loaded, some, size = time.perf_counter(), texts(), 1 if way == "one" else 32
    for start in range(0, COUNT, size):
        encodings = tokenizer.encode_batch(some[start:start + size])
        ids = np.array([encoding.ids for encoding in encodings])
        mask = np.array([encoding.attention_mask for encoding in encodings])
        (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
        mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return loaded - begun, peak_rss_bytes(), time.perf_counter() - loaded


def with_edgert(model: Path) -> tuple[float, int, float]:
    import psutil

    import edgert
    begun = time.perf_counter()
    with edgert.Embedder(model, threads=2) as embedder:
        embedder.embed(["one"])
        loaded = time.perf_counter()
        embedder.embed(texts())
        over = time.perf_counter()
        (child,) = psutil.Process().children()
        status = Path(f"/proc/{child.pid}/status").read_text()
        peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    return loaded - begun, peak, over - loaded


def main(model: str, runs: str = "5") -> None:
    measured: dict[str, list[tuple[float, int, float]]] = {way: [] for way in WAYS}
    for _ in range(int(runs)):
        for way, found in measured.items():
            done = subprocess.run([sys.executable, __file__, "measure", model, way], check=True, capture_output=True)
            found.append(json.loads(done.stdout))
    for way, found in measured.items():
        load, peak, seconds = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{WAYS[way]:46} {COUNT / seconds:7.1f} texts/s  {peak / (1 << 20):6.0f} MiB at most  "
              f"{load:5.2f} s to load")


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        way = sys.argv[3]
        print(json.dumps(with_edgert(Path(sys.argv[2])) if way == "edgert" else directly(Path(sys.argv[2]), way)))
    else:
        main(*sys.argv[1:])
