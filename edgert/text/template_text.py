"""Strings for rendering chat templates: they know who wrote each character, and count against a memory limit.

Written by hand: no library has such strings. What a user writes must not pass for the template's own structure, so each
character keeps a mark through everything that a template does to it, as in llama.cpp's Jinja engine
(common/jinja/string.h). If a mark cannot be kept, the character counts as given by the caller. Every string is counted
by one `Meter`; where a result may be much longer than its inputs, it is counted before it is made.
"""

import functools
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

OBJECT = 128
"""Bytes that a string takes in addition to its characters."""
ITEM = 32
"""Bytes that an item of a list takes, with the object that it refers to unless that is a string."""
PER_INPUT = 64
"""Bytes that a rendering may create for each character of its input."""
LARGEST_WIDTH = 1000
"""Largest width to which text may be padded or formatted."""

OWN, GIVEN = b"\0", b"\1"

_CONTAINERS: tuple[type[Any], ...] = (
    list, tuple, dict, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))

_SPACES = [character for character in map(chr, range(0x3001)) if character.isspace()]


class RefusedError(Exception):
    """The template does more than a chat template may."""


class Meter:
    """Limits of one rendering: bytes of memory, counted when created and never given back, and processor time."""

    def __init__(self, size: int, seconds: float) -> None:
        self._left, self._seconds, self._steps = size, seconds, 0
        self._end = time.thread_time() + seconds

    def spend(self, size: int = 0) -> None:
        """Count `size` bytes and one step. Raises RefusedError if a limit is exceeded."""
        self.afford(size)
        self._left -= size
        self._steps += 1
        if self._steps % 64 == 0 and time.thread_time() > self._end:  # asking takes longer than most steps
            raise RefusedError(f"it takes longer than {self._seconds:g} seconds")

    def afford(self, size: int) -> None:
        """Raises RefusedError if `size` more bytes would exceed the limit."""
        if size > self._left:
            raise RefusedError("it makes too much text")

    def given(self, text: str) -> "Text":
        """Make Text of a message or tool; it raises the memory limit."""
        self._left += OBJECT + PER_INPUT * len(text)
        return Text(text, GIVEN * len(text), self)

    def text(self, value: Any, mark: bytes = GIVEN) -> "Text":
        """`value` as Text, all with one mark. Text stays unchanged; numbers are OWN, since they cannot name tokens."""
        if isinstance(value, Text):
            return value
        self.measure(value)
        if value is None or isinstance(value, (bool, int, float)):
            mark = OWN
        written = str(value)
        return Text(written, mark * len(written), self)

    def measure(self, value: Any) -> None:
        """Raises RefusedError if writing out `value` would exceed the limit.

        To be called before anything that walks through all of a value: a list that contains another list twice, which
        contains another twice, and so on, is small in memory but nearly endless when written out.
        """
        self.spend()
        if not isinstance(value, _CONTAINERS):
            return
        size, pending = 0, [value]
        while pending:
            value = pending.pop()
            size += OBJECT
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, _CONTAINERS):
                pending.extend(value)
                if isinstance(value, dict):
                    pending.extend(value.values())
                self.afford(size + OBJECT * len(pending))
                self.spend()

    def keep(self, value: Any) -> Any:
        """Count a result of a function or filter, and return it; strings become Text."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, _CONTAINERS):
            self.spend(ITEM * len(value))
        return value


def _recased(method: Callable[[str], str]) -> "Callable[[Text], Text]":
    @functools.wraps(method)
    def recased(self: "Text") -> "Text":
        text = method(self)  # a letter may become two, "ß" for example
        return self._like(text, self._given if len(text) == len(self) else GIVEN * len(text))

    return recased


def _padded(method: Callable[..., str], marks: Callable[..., bytes]) -> "Callable[..., Text]":
    @functools.wraps(method)
    def padded(self: "Text", width: SupportsIndex, fill: str = " ") -> "Text":
        check_width(width)
        mark = fill._given if isinstance(fill, Text) and len(fill) == 1 else OWN
        return self._like(method(self, width, fill), marks(self._given, width, mark))

    return padded


class Text(str):
    """A string with a mark for each character. It has the methods of str that chat templates may use.

    Text that the filter `safe` returns is called safe: as in markupsafe, what is added to it is escaped.
    """

    __slots__ = ("_given", "_meter", "_safe")
    _given: bytes
    _meter: Meter
    _safe: bool

    def __new__(cls, text: str, given: bytes, meter: Meter, safe: bool = False) -> "Text":
        meter.spend(OBJECT + sys.getsizeof(text) + len(given))
        self = str.__new__(cls, text)
        self._given, self._meter, self._safe = given, meter, safe
        return self

    def _like(self, text: str, given: bytes | None = None) -> "Text":
        return Text(text, GIVEN * len(text) if given is None else given, self._meter, self._safe)

    def _beside(self, other: Any) -> "Text":
        """`other` as Text that can be put next to this text: escaped if this text is safe and `other` is not."""
        text = self._meter.text(other)
        return escaped(text) if self._safe and not text._safe else text

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        for index, character in enumerate(str.__iter__(self)):
            yield self._like(character, self._given[index:index + 1])

    def __getitem__(self, key: Any) -> "Text":
        text = str.__getitem__(self, key)
        return self._like(text, self._given[key] if isinstance(key, slice) else self._given[key:][:1])

    def __add__(self, other: Any) -> "Text":
        if not isinstance(other, str):
            return NotImplemented
        other = self._beside(other)
        if other._safe and not self._safe:
            return escaped(self) + other
        return self._like(str.__add__(self, other), self._given + other._given)

    def __radd__(self, other: Any) -> "Text":
        return self._meter.text(other) + self if isinstance(other, str) else NotImplemented

    def __mul__(self, times: Any) -> "Text":
        if not isinstance(times, int):
            return NotImplemented
        self._meter.afford(max(times, 0) * (sys.getsizeof(self) + len(self)))
        return self._like(str.__mul__(self, times), self._given * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Text":
        return self[:0].join(_formatted(self, values))

    def join(self, parts: Iterable[Any]) -> "Text":
        parts = [self._beside(part) if isinstance(part, str) else part for part in parts]
        self._meter.afford(sum(2 * (len(self) + len(part)) for part in parts if isinstance(part, str)))
        return self._like(str.join(self, parts), self._given.join([part._given for part in parts]))

    def strip(self, characters: str | None = None) -> "Text":
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None) -> "Text":
        return self[len(self) - len(str.lstrip(self, characters)):]

    def rstrip(self, characters: str | None = None) -> "Text":
        return self[:len(str.rstrip(self, characters))]

    def removeprefix(self, prefix: str) -> "Text":
        return self[len(self) - len(str.removeprefix(self, prefix)):]

    def removesuffix(self, suffix: str) -> "Text":
        return self[:len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        self._afford_parts(sep)
        return self._parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        self._afford_parts(sep)
        return self._parts(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        self._afford_parts(None)
        return self._parts(str.splitlines(self, keepends), None)

    def partition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._parts(str.partition(self, sep), "")
        return first, middle, last

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._parts(str.rpartition(self, sep), "")
        return first, middle, last

    def _afford_parts(self, sep: str | None) -> None:
        self._meter.afford(OBJECT * sum(str.count(self, end) for end in ([sep] if sep else _SPACES)))

    def _parts(self, parts: Iterable[str], sep: str | None) -> list[str]:
        """Parts of this text with their marks. They are in order, with `sep` or, if it is None, white space between."""
        found: list[str] = []
        start = 0
        for part in parts:
            if sep is None:
                start = str.find(self, part, start)
            found.append(self[start:start + len(part)])
            start += len(part) + len(sep or "")
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> "Text":
        if not old:
            self._meter.afford((len(self) + 1) * (len(new) + 1))
            return self._like(str.replace(self, old, new, count))
        self._afford_parts(old)
        return self._meter.text(new).join(self._parts(str.split(self, old, count), old))

    upper = _recased(str.upper)
    lower = _recased(str.lower)
    casefold = _recased(str.casefold)
    capitalize = _recased(str.capitalize)
    title = _recased(str.title)
    swapcase = _recased(str.swapcase)
    center = _padded(str.center, bytes.center)
    ljust = _padded(str.ljust, bytes.ljust)
    rjust = _padded(str.rjust, bytes.rjust)

    def zfill(self, width: SupportsIndex) -> "Text":
        check_width(width)
        return self._like(str.zfill(self, width))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> "Text":
        check_width(tabsize)
        self._meter.afford(len(self) + str.count(self, "\t") * abs(int(tabsize)))
        return self._like(str.expandtabs(self, tabsize))


def escaped(text: Text) -> Text:
    """Escape HTML as markupsafe's `escape` does."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = text.replace(character, entity)
    return safe(text)


def safe(text: Text) -> Text:
    return Text(str.__str__(text), text._given, text._meter, safe=True)


METHODS = frozenset(name for name in vars(Text) if not name.startswith("_")) | {
    "startswith", "endswith", "find", "rfind", "index", "rindex", "count", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper"}
"""The methods of strings that a template may call, besides `format`."""


def check_width(*values: Any) -> None:
    """Raises RefusedError for a width that is too large for padding, indenting or truncating text."""
    for value in values:
        width = abs(value) if isinstance(value, (int, float)) else len(value) if isinstance(value, Collection) else 0
        if not width <= LARGEST_WIDTH:  # also what is no number
            raise RefusedError("it pads or truncates text to too large a width")


_CONVERSION = re.compile(r"%(?:\(([^()]*)\))?([-+ #0]*)(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.?)", re.DOTALL)


def _formatted(text: Text, values: Any) -> Iterator[Text]:
    """The parts of `text % values`."""
    meter, end = text._meter, 0
    left = list(values) if isinstance(values, tuple) else [values]
    named = False
    for match in _CONVERSION.finditer(text):
        yield text[end:match.start()]
        end = match.end()
        name, flags, width, precision, kind = match.groups()
        if kind == "%":
            yield text[end - 1:end]
            continue
        if "*" in (width, precision):
            raise RefusedError("it computes the width to which it formats text")
        check_width(*(int(number) for number in (width, precision) if number))
        if name is not None:
            named, value = True, values[name]
        elif left:
            value = left.pop(0)
        else:
            raise TypeError("not enough arguments for format string")
        if kind == "s" and not width and precision is None:
            yield text._beside(value)
            continue
        meter.measure(value)
        points = f".{precision}" if precision is not None else ""
        written = f"%{flags}{width}{points}{kind}" % (value,)
        yield meter.text(written, OWN if isinstance(value, (int, float)) else GIVEN)
    yield text[end:]
    if left and not named and (isinstance(values, (tuple, str)) or not hasattr(values, "__getitem__")):
        raise TypeError("not all arguments converted during string formatting")


def format_fields(text: Text, formatter: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Text:
    """`text.format(...)`. formatter: a string.Formatter, which says what a field may reach."""
    meter, parts, number = text._meter, [], 0
    mark = OWN if GIVEN not in text._given else GIVEN
    for literal, name, form, conversion in formatter.parse(str.__str__(text)):
        parts.append(meter.text(literal, mark))
        if name is None:
            continue
        if "{" in form or re.search(r"\d{4}", form):
            raise RefusedError("it formats text to too large a width")
        if not name or name[0] in ".[":
            name, number = f"{number}{name}", number + 1
        value = formatter.convert_field(formatter.get_field(name, args, kwargs)[0], conversion)
        meter.measure(value)
        if form or not isinstance(value, (Text, int, float)):
            value = meter.text(formatter.format_field(value, form))
        parts.append(meter.text(value))
    return text[:0].join(parts)
