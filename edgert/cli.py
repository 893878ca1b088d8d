"""The command line: a thin layer over the Python API. Commands are imported when they are called."""

import importlib
import io
import sys
import warnings
from typing import TextIO

import click
from click.shell_completion import CompletionItem

from . import __version__
from .errors import EdgertError
from .terminal import end_standard_output, prepare_standard_streams, show

COMMANDS = {
    "pull": ("edgert.commands.pull", "Download a model of the catalogue."),
    "convert": ("edgert.converters.command", "Convert a GGUF file, a Hugging Face or an ONNX model to a bundle."),
    "list": ("edgert.commands.list", "List the models that are here."),
    "show": ("edgert.commands.show", "Show what a model is."),
    "rm": ("edgert.commands.remove", "Remove models."),
    "ps": ("edgert.commands.processes", "Show the edgert programs that are running."),
    "inspect": ("edgert.commands.inspect", "Show what a bundle contains."),
    "verify": ("edgert.commands.verify", "Check every checksum of a bundle."),
    "chat": ("edgert.apps.command", "Chat with a model in the terminal."),
    "serve": ("edgert.apps.server.command", "Answer over HTTP, for clients of OpenAI's interface or Ollama's."),
    "app": ("edgert.apps.app_command", "Chat with a model in a window."),
    "web": ("edgert.apps.server.web", "Chat with a model in the browser."),
    "sessions": ("edgert.commands.sessions", "List, show or remove conversations that are kept."),
    "run": ("edgert.commands.run", "Generate text from one prompt."),
    "embed": ("edgert.commands.embed", "Compute vectors of texts, to search by meaning."),
    "plan": ("edgert.commands.plan", "Show where memory goes, and predict the speed."),
    "bench": ("edgert.commands.bench", "Measure speed, also against llama.cpp."),
    "eval": ("edgert.commands.eval", "Measure quality: perplexity, questions, prompts."),
    "doctor": ("edgert.commands.doctor", "Show what this machine offers and what is missing."),
}
"""Module and one-line help of each command. Modules are named as text: converters and apps stand above this module,
and `edgert --help` should import none of them."""


class _Commands(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands with their help, without importing them."""
        named = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, context, incomplete)]

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="edgert %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run language models that are larger than the memory they may use.

    Options have other defaults where the file config.toml says so; edgert doctor shows where that is.
    """
    from .commands.defaults import read_defaults

    name = context.invoked_subcommand or ""
    try:
        if (defaults := read_defaults()) is not None and (command := cli.get_command(context, name)) is not None:
            context.default_map = {name: defaults.of(name, command, COMMANDS)}
    except EdgertError:
        if name != "doctor":  # which tells it, and what else is wrong
            raise


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int,
                  file: TextIO | None = None, line: str | None = None) -> None:
    """Shows a warning of edgert as one sentence; any other as Python does, with its file and line."""
    if category.__module__.startswith(f"{__package__}."):
        show(f"edgert: {message}", err=True)
    else:
        _python_shows(message, category, filename, lineno, file, line)


_python_shows = warnings.showwarning


def main() -> None:
    """The `edgert` program. Exit status: 0; 1 for an error, told in one sentence; 2 for wrong usage; 130 for Ctrl-C."""
    warnings.showwarning = _show_warning
    prepare_standard_streams()
    status, message = _outcome()
    end_standard_output()
    if message:
        show(message, err=True)
    sys.exit(status)


def _outcome() -> tuple[int, str]:
    """Run the command; returns the exit status, and what to write on standard error."""
    try:
        cli.main(prog_name="edgert", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code, ""
    except SystemExit as stop:  # click: whoever read our output has gone
        return int(stop.code or 0), ""
    except click.ClickException as error:
        error.show(shown := io.StringIO())
        return error.exit_code, shown.getvalue().rstrip("\n")
    except (KeyboardInterrupt, click.Abort):
        return 130, "interrupted"
    except EdgertError as error:
        return 1, f"edgert: {error}"
    except MemoryError:
        return 1, "edgert: out of memory; close other programs, or take a smaller model or context"
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return 1, f"edgert: {what}{(error.strerror or str(error)).lower()}"
    return 0, ""
