"""What is said about memory holds for the next process, and under a limit that the kernel keeps.

The limits need root, a memory control group, and the project's shared tools (../shared/tools, or $EDGERT_TOOLS).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(os.environ.get("EDGERT_TOOLS") or Path(__file__).resolve().parents[4] / "shared/tools")
MIB = 1 << 20
SETTINGS = ["-c", "64", "-t", "2"]


@pytest.fixture(scope="module")
def limited() -> str:
    tool = TOOLS / "limit-memory"
    if os.geteuid() != 0 or not tool.exists():
        pytest.skip("needs root and limit-memory")
    if subprocess.run([tool, "100M", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no memory control group can be made here")
    return str(tool)


def edgert(*arguments: object, limit: int | None = None, tool: str = "") -> subprocess.CompletedProcess[str]:
    before = [] if limit is None else [tool, f"{limit}M"]
    return subprocess.run([*before, sys.executable, "-m", "edgert", *map(str, arguments)], input="One word.",
                          capture_output=True, text=True, check=False)


def run(bundle: Path, *more: object, limit: int | None = None, tool: str = "") -> subprocess.CompletedProcess[str]:
    return edgert("run", bundle, "-p", "The capital of France is", "-n", 2, "--json", *SETTINGS, *more, limit=limit,
                  tool=tool)


def named(bundle: Path, *more: object) -> int:
    """The smallest budget in MiB, as a refusal names it."""
    found = re.search(r"at least (\d+) MiB", run(bundle, "-m", "20M", *more).stderr)
    assert found is not None
    return int(found[1])


def kernel_says(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    values: dict[str, int] = json.loads(done.stderr.strip().splitlines()[-1])
    return values


def test_the_budget_that_is_named_works(smollm2: Path) -> None:
    """In the next process, which is never quite of the same size."""
    for _ in range(2):
        smallest = named(smollm2)
        done = run(smollm2, "-m", f"{smallest}M")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["peak_rss_bytes"] < smallest * MIB


def test_the_budget_that_a_plan_names_works_with_every_command(smollm2: Path) -> None:
    smallest = json.loads(edgert("plan", smollm2, "--json", *SETTINGS).stdout)["smallest_budget"] // MIB
    for command in (["run", smollm2, "-p", "x", "-n", 1], ["chat", smollm2, "-n", 1],
                    ["eval", smollm2, "--text", __file__, "--window", 64, "--max-tokens", 64]):
        done = edgert(*command, "-m", f"{smallest}M", *SETTINGS)
        assert f"memory: {smallest} MiB;" in done.stderr


def test_in_a_control_group(limited: str, smollm2: Path) -> None:
    """With no budget, and with one that is larger than the limit: a plan that fits in it, and a process that does."""
    whole, smallest = json.loads(run(smollm2).stdout), named(smollm2)
    for limit, asked in ((smallest, []), (smallest + 10, []), (smallest + 4, ["-m", "4G"])):
        done = run(smollm2, *asked, limit=limit, tool=limited)
        assert done.returncode == 0, done.stderr
        planned = re.search(r"^memory: (\d+) MiB", done.stderr)
        assert planned is not None and int(planned[1]) <= limit
        assert json.loads(done.stdout)["token_ids"] == whole["token_ids"]
        assert kernel_says(done)["oom_kills"] == 0 and kernel_says(done)["peak_bytes"] <= limit * MIB


def test_a_control_group_that_is_too_small(limited: str, smollm2: Path) -> None:
    for asked in ([], ["-m", "4G"]):
        done = run(smollm2, *asked, limit=60, tool=limited)
        line, _ = done.stderr.strip().splitlines()
        assert done.returncode == 1 and kernel_says(done)["oom_kills"] == 0
        assert re.match(r"edgert: the control group's limit of 60 MiB is too small: this model needs at least \d+ MiB "
                        "with these settings; ", line), line


def test_many_threads_keep_to_the_budget(smollm2: Path) -> None:
    many = ["-t", 128]
    smallest = named(smollm2, *many)
    done = run(smollm2, *many, "-m", f"{smallest}M")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_rss_bytes"] <= smallest * MIB


EVERY = """
import sys, edgert
from edgert.process import peak_rss_bytes
with edgert.load(sys.argv[1], memory=sys.argv[2], context=512, threads=2) as model:
    rows = model.plan.logit_rows
    ids = model.tokenizer.encode("word " * 500)[:512]
    try:
        model.extend(ids, every=True)
    except edgert.ModelError as error:
        print(error)
    at = 0
    while at < len(ids):
        at += len(model.extend(ids[at:at + rows], every=True))
    print(rows, at, peak_rss_bytes() < model.plan.budget)
"""


def test_logits_of_every_token_keep_to_the_budget(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EVERY, str(smollm2), "120M"], capture_output=True, text=True,
                          check=True)
    refusal, sizes = done.stdout.splitlines()
    rows = int(sizes.split()[0])
    assert refusal == (f"the logits of 501 tokens take 94 MiB, and the memory budget has room for {rows} at once; ask "
                       "for so many at a time, or raise it")
    assert sizes == f"{rows} 501 True" and 6 <= rows < 100
