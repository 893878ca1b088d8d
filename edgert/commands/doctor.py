"""`edgert doctor`: what this machine offers, and what is missing."""

import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from edgert import __version__
from edgert.download import models_folder
from edgert.kernels import native
from edgert.kernels.formats import QUANTIZED_BLOCK
from edgert.kernels.records import Code, Quantize
from edgert.kernels.simd.target import VARIABLE, choose, executable_targets, machine, processor_features
from edgert.kernels.team import Program, Team
from edgert.process import default_threads
from edgert.residency.device import Device, device_of, stored_devices
from edgert.terminal import show, show_json

from .loading import compile_progress

_OPTIONAL = {"llama-cpp-python": ("`--against`", "peer"), "onnxruntime": ("what makes embeddings", "embeddings")}
"""What one can do without: what needs each, and the extra that has it."""


@click.command("doctor")
@click.argument("bundle", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str | None, as_json: bool) -> None:
    """Show what this machine offers and what is missing.

    With BUNDLE, measure the disk that holds it again (three seconds) and show only that disk.
    """
    devices = [device_of(bundle, again=True)] if bundle else stored_devices()
    facts, problems = examine()
    problems += [f"{device.name} refuses direct reading; what edgert reads there passes through the page cache, "
                 "which costs time: keep bundles on another disk" for device in devices if not device.direct]
    if as_json:
        show_json({**facts, "flash": [asdict(device) for device in devices], "problems": problems})
    else:
        flash = [_describe(device) for device in devices] or ["not measured yet: edgert doctor BUNDLE"]
        width = max(map(len, facts))
        for name, value in [*facts.items(), *(("flash", line) for line in flash)]:
            show(f"{name:{width}}  {', '.join(map(str, value)) if isinstance(value, list) else value}")
        show("\n".join(["", *problems]) if problems else "\nNothing is missing.")
    if any(problem.startswith("missing") for problem in problems):
        raise click.exceptions.Exit(1)


def _describe(device: Device) -> str:
    speed = device.bandwidth
    chunk = device.chunk_bytes >> 10
    return (f"{device.name}: {f'{speed / 1e9:.2f} GB/s' if speed >= 1e9 else f'{speed / 1e6:.3g} MB/s'} in reads of "
            f"{f'{chunk >> 10} MiB' if chunk % 1024 == 0 else f'{chunk} KiB'}, "
            f"{f'{device.depth} at once' if device.depth > 1 else 'one at a time'}; "
            f"{1e6 * device.latency_s:.0f} µs for 4 KiB; {'direct' if device.direct else 'through the page cache'}")


def examine() -> tuple[dict[str, Any], list[str]]:
    """Facts by name, and what is missing or makes edgert slower than it could be, one sentence each."""
    problems: list[str] = []
    features = processor_features()
    wanted = ("avx512_vnni", "avx_vnni", "avx2", "fma", "f16c", "asimddp", "asimdhp")
    facts: dict[str, Any] = {
        "edgert": __version__, "python": platform.python_version(), "system": platform.platform(),
        "processor": f"{_processor_name()}, {machine()}",
        "features": [name for name in wanted if name in features] or ["none that helps"],
        "cores": f"{psutil.cpu_count(logical=False) or '?'} physical, {os.cpu_count()} logical; "
                 f"{default_threads()} used",
        "memory": f"{psutil.virtual_memory().available / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB free",
        "huge pages": _huge_pages(),
        "models": f"{models_folder()}, {_free(models_folder())} free",
        "compiled kernels": f"{native.cache_folder()}, {_free(native.cache_folder())} free",
    }
    for package in ("numpy", "numba", "llvmlite", "tokenizers", "gguf", *_OPTIONAL):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
            if package in _OPTIONAL:
                what, extra = _OPTIONAL[package]
                problems.append(f"{package} is not installed; only {what} needs it: pip install 'edgert[{extra}]'")
            else:
                problems.append(f"missing: {package}; install edgert again")
    try:
        target = choose()
    except ValueError as error:
        problems.append(f"missing: kernels for this processor: {error}")
        return facts, problems
    facts["instruction sets"] = [t.name for t in executable_targets()]
    facts["instruction set in use"] = target.name + (f" ({VARIABLE})" if os.environ.get(VARIABLE) else "")
    if target.name == "plain":
        problems.append("this processor has none of the instruction sets that edgert is fast with: "
                        "AVX2, AVX-VNNI, AVX-512 VNNI, NEON dot product")
    started = time.perf_counter()
    cached = native.cached_object(target.name).exists()
    library = native.library(progress=compile_progress)
    facts["kernels"] = f"{'loaded' if cached else 'compiled'} in {1e3 * (time.perf_counter() - started):.0f} ms"
    for threads in sorted({1, default_threads()}):
        facts[f"one parallel step, {threads} thread{'s' * (threads > 1)}"] = f"{_step_us(library, threads):.2f} µs"
    return facts, problems


def _step_us(library: native.Library, threads: int) -> float:
    """Microseconds that the threads take from one operation of a program to the next."""
    x, out = np.ones(32, np.float32), np.zeros(QUANTIZED_BLOCK, np.uint8)
    program, steps = Program(), 2000
    for _ in range(steps):
        program.append(Code.QUANTIZE, Quantize(x.ctypes.data, 128, 1, out.ctypes.data, QUANTIZED_BLOCK, 0, 0))
    team = Team(library, threads)
    team.set(tokens=1)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        team.run(program.array)
        times.append(time.perf_counter() - started)
    team.close()
    return 1e6 * sorted(times)[3] / steps


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "not on this system"
    return text[text.index("[") + 1:text.index("]")]


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB"
