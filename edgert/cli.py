"""The command line: a thin layer over the Python API. Commands are imported when they are called."""

import importlib
import os
import sys

import click

from . import __version__
from .errors import EdgertError

COMMANDS = {
    "pull": ("edgert.commands.pull", "Fetch a model of the catalogue."),
    "convert": ("edgert.converters.command", "Convert a GGUF file or a Hugging Face model to a bundle."),
    "inspect": ("edgert.commands.inspect", "Show what a bundle holds."),
    "verify": ("edgert.commands.verify", "Check every checksum of a bundle."),
    "chat": ("edgert.apps.command", "Chat with a model in the terminal."),
    "run": ("edgert.commands.run", "Continue one prompt."),
    "plan": ("edgert.commands.plan", "Show where the memory goes, and how fast that will be."),
    "bench": ("edgert.commands.bench", "Measure speed, beside llama.cpp if wanted."),
    "eval": ("edgert.commands.eval", "Measure perplexity, beside llama.cpp if wanted."),
    "doctor": ("edgert.commands.doctor", "Show what this machine offers and what is missing."),
}
"""Module and one-line help of each command. Modules go by name: converters and apps stand above this floor, and
`edgert --help` should import none of them."""


class _Commands(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="edgert %(version)s")
def cli() -> None:
    """Language models larger than the memory they may use."""


def main() -> None:
    """The `edgert` program. Exit status: 0, 1 for an error with one sentence, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        cli.main(prog_name="edgert", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except EdgertError as error:
        click.echo(f"edgert: {error}", err=True)
        sys.exit(1)
    except MemoryError:
        click.echo("edgert: out of memory; close other programs, or take a smaller model or context", err=True)
        sys.exit(1)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        click.echo(f"edgert: {what}{(error.strerror or str(error)).lower()}", err=True)
        sys.exit(1)
