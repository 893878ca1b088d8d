"""Fields that OpenAI's interface has and this server does not support: refused by name where they ask for something."""

from collections.abc import Sequence

from msgspec import Raw, Struct, UnsetType

from .errors import ApiError

Unsupported = Raw | UnsetType
"""The type of such a field."""
_NOTHING = frozenset([b"null", b"[]", b"{}", b"false", b"0", b"0.0", b'"none"', b'""'])
"""Values with which a field asks for nothing."""


def refuse(asked: Struct, names: Sequence[str], *, besides: Sequence[bytes] = (), within: str = "") -> None:
    """Raises ApiError if one of these fields asks for something. besides: other values that do not."""
    for name in names:
        value = getattr(asked, name)
        if isinstance(value, Raw) and bytes(value) not in _NOTHING and bytes(value) not in besides:
            raise ApiError(400, f"{within}{name} is not supported", param=f"{within}{name}", code="unsupported")
