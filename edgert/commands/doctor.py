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
from edgert.errors import EdgertError
from edgert.kernels import native
from edgert.kernels.formats import QUANTIZED_BLOCK
from edgert.kernels.records import Code, Quantize
from edgert.kernels.simd.target import VARIABLE, choose, executable_targets, machine, processor_features
from edgert.kernels.team import Program, Team
from edgert.process import default_threads
from edgert.residency.device import Device, device_of, stored_devices
from edgert.terminal import show, show_json

from .bundle_argument import BUNDLE
from .defaults import defaults_file, read_defaults
from .loading import compile_progress
from .mending import OPTIONAL, Problem, mend, model_problems, optional_problem, package_problem


@click.command("doctor")
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--fix", is_flag=True, help="Say of each thing that is missing which command mends it, and call that if "
                                          "you consent.")
@click.option("--yes", is_flag=True, help="With --fix: consent to all but what few people want.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, bundle: str | None, fix: bool, yes: bool, as_json: bool) -> None:
    """Show what this machine offers and what is missing.

    Compiles the kernels for this processor, if that was not done yet. With BUNDLE, measure the disk that holds it again
    (three seconds) and show only that disk.
    """
    if (yes and not fix) or (fix and as_json):
        raise click.UsageError("--yes goes with --fix, and --json without it")
    devices = [device_of(bundle, again=True)] if bundle else stored_devices()
    facts, problems = examine()
    problems += [Problem(f"{device.name} refuses direct reading; what edgert reads there passes through the page "
                         "cache, which costs time: keep bundles on another disk")
                 for device in devices if not device.direct]
    problems += _defaults_problems(context)
    texts = [problem.text for problem in problems]
    if as_json:
        show_json({**facts, "flash": [asdict(device) for device in devices], "problems": texts})
    elif fix:
        problems = sorted([*problems, *model_problems(bool(devices))],
                          key=lambda problem: not problem.wanted)  # last what few people want
        if not problems:
            show("Nothing is missing.")
        if not mend(problems, yes):
            raise click.exceptions.Exit(1)
        return
    else:
        flash = [_describe(device) for device in devices] or ["not measured yet: edgert doctor BUNDLE"]
        width = max(map(len, facts))
        for name, value in [*facts.items(), *(("flash", line) for line in flash)]:
            show(f"{name:{width}}  {', '.join(map(str, value)) if isinstance(value, list) else value}")
        show("\n".join(["", *texts]) if texts else "\nNothing is missing.")
    if any(problem.needed for problem in problems):
        raise click.exceptions.Exit(1)


def _defaults_problems(context: click.Context) -> list[Problem]:
    """What is wrong in config.toml, for each command that it names."""
    group = context.parent.command if context.parent is not None else None
    if not isinstance(group, click.Group):
        return []
    try:
        if (defaults := read_defaults()) is None:
            return []
        names = group.list_commands(context)
        for name in ["doctor", *(name for name in names if name in defaults.values)]:
            if (named := group.get_command(context, name)) is not None:
                defaults.of(name, named, names)
    except EdgertError as error:
        return [Problem(str(error))]
    return []


def _describe(device: Device) -> str:
    speed = device.bandwidth
    chunk = device.chunk_bytes >> 10
    return (f"{device.name}: {f'{speed / 1e9:.2f} GB/s' if speed >= 1e9 else f'{speed / 1e6:.3g} MB/s'} in reads of "
            f"{f'{chunk >> 10} MiB' if chunk % 1024 == 0 else f'{chunk} KiB'}, "
            f"{f'{device.depth} at once' if device.depth > 1 else 'one at a time'}; "
            f"{1e6 * device.latency_s:.0f} µs for 4 KiB; {'direct' if device.direct else 'through the page cache'}")


def examine() -> tuple[dict[str, Any], list[Problem]]:
    """Facts by name, and what is missing or makes edgert slower than it could be, one sentence each."""
    problems: list[Problem] = []
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
        "defaults": f"{defaults_file()}{'' if defaults_file().exists() else ', not there'}",
        "disk wear": "reading wears no disk, and edgert reads far more than it writes; written are bundles, kept "
                     "conversations, and the cache's swap file with --kv-policy flash",
        "compiled kernels": f"{native.cache_folder()}, {_free(native.cache_folder())} free",
    }
    for package in ("numpy", "numba", "llvmlite", "tokenizers", "gguf", *OPTIONAL):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
            problems.append((optional_problem if package in OPTIONAL else package_problem)(package))
    try:
        target = choose()
    except ValueError as error:
        problems.append(Problem(f"missing: kernels for this processor: {error}", needed=True))
        return facts, problems
    facts["instruction sets"] = [t.name for t in executable_targets()]
    facts["instruction set in use"] = target.name + (f" ({VARIABLE})" if os.environ.get(VARIABLE) else "")
    if target.name == "plain":
        problems.append(Problem("this processor has none of the instruction sets that edgert is fast with: "
                                "AVX2, AVX-VNNI, AVX-512 VNNI, NEON dot product"))
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
