"""What is missing, and mending it: `edgert doctor --fix`."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import click

from edgert.download import DEFAULT_MODEL, bundle_path, bundles_here, catalogue, models_folder
from edgert.terminal import show

OPTIONAL = {
    "llama-cpp-python": ("llama", "what runs families that edgert does not know, and `--against`,"),
    "onnxruntime": ("embeddings", "what makes embeddings"),
    "matplotlib": ("plot", "edgert plan --png"),
    "pywebview": ("desktop", "a native window of edgert app"),
}
"""Packages that one can do without: the extra that has each, and what needs it."""


@dataclass(frozen=True)
class Problem:
    """Something that is missing, or makes edgert slower than it could be.

    commands: what mends it, as it is typed, "edgert" or "pip" first; without them the user has to do what the text
    says. needed: edgert does not work without it. wanted: most people want it; others are asked about it only at a
    terminal. ready: whether the commands can be called yet.
    """

    text: str
    commands: list[list[str]] = field(default_factory=list)
    needed: bool = False
    wanted: bool = True
    ready: Callable[[], bool] = lambda: True


def package_problem(package: str) -> Problem:
    """A package is missing that edgert needs."""
    return Problem(f"missing: {package}; install edgert again", [["pip", "install", package]], needed=True)


def optional_problem(package: str) -> Problem:
    """A package is missing that only some people need."""
    extra, what = OPTIONAL[package]
    return Problem(f"{package} is not installed; only {what} needs it: pip install 'edgert[{extra}]'",
                   [["pip", "install", f"edgert[{extra}]"]], wanted=False)


def model_problems(measured: bool) -> list[Problem]:
    """No model in the models' folder, and a disk that was never measured."""
    here = bundles_here()
    name = here[0].stem if here else DEFAULT_MODEL
    problems = []
    if not here:
        source, bundle = models_folder() / catalogue()[DEFAULT_MODEL].file, bundle_path(DEFAULT_MODEL)
        problems.append(Problem(f"there is no model in {models_folder()} yet; {DEFAULT_MODEL} is a small one",
                                [["edgert", "pull", DEFAULT_MODEL], ["edgert", "convert", str(source), str(bundle)]]))
    if not measured:
        problems.append(Problem("the disk was never measured, which takes three seconds when a model is streamed from "
                                "it first", [["edgert", "doctor", name]],
                                ready=lambda: bundle_path(name).is_file()))
    return problems


def mend(problems: Iterable[Problem], yes: bool) -> bool:
    """Say of each problem what mends it, and do that where the user consents. yes: they do, but to what few people
    want. Returns whether all that edgert needs is there then."""
    well = True
    for problem in problems:
        show(problem.text)
        mended = bool(problem.commands) and problem.ready() and _mended(problem, yes)
        well = well and (mended or not problem.needed)
    return well


def _mended(problem: Problem, yes: bool) -> bool:
    for command in problem.commands:
        show(f"    {shlex.join(command)}")
    if not (yes and problem.wanted) and not _consents(problem):
        return False
    for command in problem.commands:
        status = subprocess.run(_called(command), check=False).returncode
        if status:
            show(f"    {shlex.join(command)} ended with status {status}; what it says above is what to do")
            return False
    show("    done")
    return True


def _consents(problem: Problem) -> bool:
    """Ask, at a terminal; elsewhere nobody consents."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        show(f"    not done; call that yourself{', or give --yes' if problem.wanted else ' if you want it'}")
        return False
    return click.confirm("    do that?", default=False)


def _called(command: list[str]) -> list[str]:
    """A command as a process of this Python."""
    return [sys.executable, "-P", "-m", *command]
