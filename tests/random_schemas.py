"""Random JSON schemas, each with few enough answers that an answer comes to its end."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
WORDS = ["name", "age", "city", "tags", "unit", "größe", "a b", "is_open", "x-1", "quote\"d"]


def schemas(count: int, seed: int = 0) -> list[Schema]:
    """So many objects' schemas."""
    rng = random.Random(seed)
    return [_object(rng, 3) for _ in range(count)]


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randint(1, 3))
    return {"type": "object", "properties": {name: _any(rng, depth - 1) for name in names},
            "required": sorted(rng.sample(names, rng.randint(0, len(names)))), "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth - 1), "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _choice(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def _string(rng: random.Random, depth: int) -> Schema:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(["^[a-f]{2,5}$", "^(ab|cd)+x?$", "^[0-9]{4}-[0-9]{2}$"]),
                "maxLength": 9}
    if kind == 1:
        return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])}
    return {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 12)}


def _integer(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-200, 100)
    return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 300)}


def _number(rng: random.Random, depth: int) -> Schema:
    return {"type": "number", "enum": [round(rng.uniform(-50, 50), rng.randint(0, 3)) for _ in range(4)]}


def _fixed(rng: random.Random, depth: int) -> Schema:
    return rng.choice([{"type": "boolean"}, {"type": "null"}, {"const": rng.choice(["on", 7, True, None])},
                       {"enum": rng.sample(["red", "green", "blue", 1, 2.5, None, "two words"], 3)},
                       {"type": ["boolean", "null"]}])


def _any(rng: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[random.Random, int], Schema]] = [_string, _integer, _number, _fixed]
    return rng.choice([*leaves, _object, _array, _choice] if depth > 0 else leaves)(rng, depth)
