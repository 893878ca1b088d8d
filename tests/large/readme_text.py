"""The README as it follows from one run of readme_figures.py, whose record is kept in docs/readme-figures.json.

Written from the record are the output of every example that begins with `$ edgert` (a chat has no figures and stays as
it is) and what stands between the marks of FIGURES.
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
README, RECORD = REPOSITORY / "README.md", REPOSITORY / "docs" / "readme-figures.json"
Record = dict[str, Any]
"""date; load: what the machine did besides, processes that wanted to run when it began; machine: processor, cores,
memory_gb, disk, disk_gb_s; runs; bundle_bytes; limits: rows of limit, edgert and llama.cpp, tokens/s of each run;
examples: the output of each command."""

FIGURES = re.compile(r"(<!-- figures: make readme-figures -->\n).*(<!-- end of figures -->\n)", re.DOTALL)
_EXAMPLE = re.compile(r"```\n\$ (edgert (?!chat ).*)\n((?s:.*?))```\n")
_QUIET = 1.0
_MORE = "…\n"
"""The last line of an example that shows only the beginning."""


def load() -> Record:
    record: Record = json.loads(RECORD.read_text())
    return record


def commands(readme: str) -> list[str]:
    """The examples' commands."""
    return [match[1] for match in _EXAMPLE.finditer(readme)]


def render(readme: str, record: Record) -> str:
    """The README with the record's figures. An example that ends with … keeps its number of lines."""
    def example(match: re.Match[str]) -> str:
        command, shown = match.groups()
        output = record["examples"][command]
        if shown.endswith(_MORE):
            output = "".join(output.splitlines(keepends=True)[:shown.count("\n") - 1]) + _MORE
        return f"```\n$ {command}\n{output}```\n"

    return _EXAMPLE.sub(example, FIGURES.sub(lambda match: match[1] + _figures(record) + match[2], readme))


def _figures(record: Record) -> str:
    machine = record["machine"]
    lines = [
        f"Qwen2.5-Coder-1.5B (a bundle of {record['bundle_bytes'] / 1e9:.2f} GB) under a hard memory limit of the "
        "kernel, page cache included,", "beside llama.cpp memory-mapped (tokens per second, medians of "
        f"{record['runs']} interleaved runs):", "",
        "| limit | edgert | llama.cpp | |", "| --- | --- | --- | --- |"]
    for row in record["limits"]:
        ours, theirs = (statistics.median(row[who]) for who in ("edgert", "llama.cpp"))
        lines.append(f"| {_size(row['limit'])} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.1f} × |")
    lines += [
        "", f"All figures on this page come from one run of `make readme-figures` on one machine ({record['date']}):",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB of memory, "
        f"disk {machine['disk']} with {machine['disk_gb_s']:.2f} GB/s."]
    if record["load"] > _QUIET:
        lines += [f"**That machine had other work to do (load {record['load']:.1f}): do not quote these figures.**"]
    return "\n".join(lines) + "\n"


def _size(limit: str) -> str:
    return f"{limit.removesuffix('M')} MiB"


def disagreements(record: Record) -> list[str]:
    """Where figures of one run contradict each other, a sentence each."""
    found, machine = [], record["machine"]
    predicted: dict[str, tuple[float, float]] = {}
    read: dict[str, list[float]] = {}
    for command, output in record["examples"].items():
        for rate in re.findall(r"([\d.]+) GB/s", output):
            if abs(float(rate) - machine["disk_gb_s"]) > 0.006:
                found.append(f"{command}: the disk has {rate} GB/s, elsewhere {machine['disk_gb_s']:.2f}")
        if limit := re.search(r"--memory (\d+M) ", command):
            if size := re.search(r"(\d+) (?:of \d+ )?MiB (?:of weights|are read)", output):
                read.setdefault(limit[1], []).append(float(size[1]))
            if speed := re.search(r"predicted speed +([\d.]+)", output):
                guessing = re.search(r"with speculation +([\d.]+)", output)
                predicted[limit[1]] = float(speed[1]), float((guessing or speed)[1])
    for limit, sizes in read.items():
        if max(sizes) > 1.05 * min(sizes):
            found.append(f"{limit}: {min(sizes):.0f} and {max(sizes):.0f} MiB are read for a pass")
    for row in record["limits"]:
        measured = statistics.median(row["edgert"])
        plain, best = predicted.get(row["limit"], (measured, measured))
        if not 0.6 * plain < measured < 1.6 * best:  # how many guesses are right depends on the text
            found.append(f"{row['limit']}: {plain if measured < plain else best} tokens/s predicted, {measured:.2f} "
                         "measured")
    return found
