"""Control characters in text of others: a model's name or answer must not control the terminal that shows it."""

_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text with control characters (C0 and C1) written as \\x1b and the like, except newline and tab."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def one_line(text: str) -> str:
    """The same in one line: text of others must not look like a second line of ours either."""
    return visible(" ".join(text.splitlines()))
