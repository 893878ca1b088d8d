"""What `/set` shows and changes: the settings of an answer, which come from options of the command line."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from edgert import EdgertError

Check = Callable[[dict[str, Any]], object]
"""Raises EdgertError for settings that are out of range."""


class Settings:
    """Settings of `Model.generate`.

    values: by name. options: of the command line; those that are in `values` can be changed, to what they allow.
    """

    def __init__(self, values: dict[str, Any], options: Iterable[click.Parameter] = ()) -> None:
        self.values = values
        self._first = dict(values)
        self._options = {option.name: option for option in options
                         if isinstance(option, click.Option) and option.name in values}

    @property
    def about(self) -> dict[str, str]:
        """What each setting does."""
        return {name: option.help or "" for name, option in self._options.items()}

    def lines(self) -> Iterator[str]:
        """All settings with their values, for people."""
        width = max(map(len, self._options), default=0)
        for name in self._options:
            yield f"{name:{width}}  {self._text(name)}"

    def show(self, name: str) -> str:
        """One setting, its value, and what it does. Raises EdgertError for a name that there is not."""
        name = self._named(name)
        return f"{name}  {self._text(name)}  {self.about[name]}"

    def change(self, name: str, text: str, check: Check) -> str:
        """Give a setting a value, or with "default" the one that it had at first; says what it is then. check: gets all
        settings as they would be. Raises EdgertError, and then nothing has changed."""
        name = self._named(name)
        option = self._options[name]
        try:
            value = self._first[name] if text == "default" else option.type.convert(text, option, None)
        except click.BadParameter as error:
            raise EdgertError(f"{name}: {error.message.rstrip('.')}; {option.help or ''}".rstrip("; ")) from None
        check({**self.values, name: value})
        self.values[name] = value
        return f"{name}  {self._text(name)}"

    def _named(self, name: str) -> str:
        """The setting that a user means: also by another name that its option has."""
        plain = name.lstrip("-").replace("-", "_").lower()
        for known, option in self._options.items():
            if plain in {opt.lstrip("-").replace("-", "_") for opt in (known, *option.opts) if len(opt) > 2}:
                return known
        raise EdgertError(f"there is no setting {name}; there are {', '.join(self._options)}")

    def _text(self, name: str) -> str:
        value = self.values[name]
        return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
