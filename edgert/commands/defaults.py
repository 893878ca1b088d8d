"""A user's own defaults for options: the file config.toml.

    threads = 2               # of every command that has the option
    [chat]
    bundle = "qwen2.5-coder-1.5b"
    temperature = 0.2         # of this command; what is typed comes before both
"""

import difflib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click
import platformdirs

from edgert.errors import EdgertError


def defaults_file() -> Path:
    """Where the file is: $EDGERT_CONFIG, or `config.toml` in the user's folder for settings."""
    if path := os.environ.get("EDGERT_CONFIG"):
        return Path(path)
    return Path(platformdirs.user_config_dir("edgert")) / "config.toml"


class Defaults(NamedTuple):
    """What the file says. values: its tables and keys."""

    path: Path
    text: str
    values: dict[str, Any]

    def of(self, name: str, command: click.Command, commands: Collection[str]) -> dict[str, Any]:
        """Defaults of a command's parameters by their names, for click's `default_map`. commands: the names of all.

        Raises EdgertError for a name that there is not, and for a value of the wrong kind.
        """
        common = _named(_common_parameters())
        own = _named(command.params)
        found = {}
        for key, value in self.values.items():
            if isinstance(value, dict):
                if key not in commands:
                    raise self._error("", key, f"there is no command {key}{_near(key, commands)}")
                continue
            if _plain(key) not in common:
                raise self._error("", key, f"is no setting that commands share{_near(key, common)}; those of one "
                                           "command go below its name, like [chat]")
            if (parameter := own.get(_plain(key))) is not None:
                found[parameter.name or ""] = self._value("", key, value, parameter)
        for key, value in self.values.get(name, {}).items():
            if (parameter := own.get(_plain(key))) is None:
                raise self._error(name, key, f"edgert {name} has no such option{_near(key, own)}")
            found[parameter.name or ""] = self._value(name, key, value, parameter)
        return found

    def _value(self, section: str, key: str, value: Any, parameter: click.Parameter) -> Any:
        kind = _kind(parameter)
        many = parameter.multiple
        for one in value if many and isinstance(value, list) else [value]:
            if (isinstance(one, bool) and kind.type is not bool) or not isinstance(one, kind.type) or (
                    many and not isinstance(value, list)):
                raise self._error(section, key, f"is {one!r}; give {'a list, each ' if many else ''}{kind.words}")
        given = [str(one) for one in value] if many else str(value) if kind is _TEXT else value
        try:
            with click.Context(click.Command("x")) as context:
                parameter.type_cast_value(context, given)
        except click.BadParameter as error:
            raise self._error(section, key, error.message.rstrip(".")) from None
        return given

    def _error(self, section: str, key: str, why: str) -> EdgertError:
        line = self._line(section, key)
        place = f", line {line}" if line else ""
        return EdgertError(f"{self.path}{place}: {f'[{section}] ' if section else ''}{key}: {why}")

    def _line(self, section: str, key: str) -> int | None:
        """The line that a key, or a table of that name, is on; None where it is written in an unusual way."""
        inside = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            if head := re.match(r"\s*\[\s*\"?([\w-]+)\"?\s*\]", line):
                inside = head[1]
                if not section and inside == key:
                    return number
            elif inside == section and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
                return number
        return None


def read_defaults() -> Defaults | None:
    """Read the file; None if there is none. Raises EdgertError."""
    path = defaults_file()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EdgertError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise EdgertError(f"{path}: is not UTF-8 text") from None
    import tomllib  # most people have no such file
    try:
        return Defaults(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise EdgertError(f"{path}: is not TOML: {error}") from None


class _Kind(NamedTuple):
    type: type | tuple[type, ...]
    words: str


_FLAG, _WHOLE, _NUMBER, _TEXT = (
    _Kind(bool, "true or false"), _Kind(int, "a whole number"), _Kind((int, float), "a number"),
    _Kind((str, int), "a text, in quotes"))


def _kind(parameter: click.Parameter) -> _Kind:
    """What kind of value the file has for a parameter."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return _FLAG
    return {click.INT.name: _WHOLE, "integer range": _WHOLE, click.FLOAT.name: _NUMBER}.get(parameter.type.name, _TEXT)


def _common_parameters() -> Iterable[click.Parameter]:
    """Of options that several commands share."""
    from .loading import model_options, parallel_option, sampling_options
    return click.command()(sampling_options(0.0)(parallel_option(model_options(lambda **_: None)))).params


def _named(parameters: Iterable[click.Parameter]) -> dict[str, click.Parameter]:
    """Parameters by the names that the file has for them: those of the command line, with _ for -."""
    return {_plain(name): parameter for parameter in parameters if parameter.expose_value
            for name in (parameter.opts if isinstance(parameter, click.Option) else [f"--{parameter.name}"])
            if name.startswith("--")}


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(_plain(name), list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
