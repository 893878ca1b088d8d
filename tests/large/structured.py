"""What structured output costs: python tests/large/structured.py BUNDLE [COUNT]

Answers to COUNT (200) random schemas, sampled: whether each is valid, what its masks cost, how many of its tokens were
forced. Then what the tables and parsers take in memory, of these schemas and of some that are hostile.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import jsonschema
import psutil

import edgert
from edgert.generation.grammar import Constraint, Grammar, Grammars

sys.path.append(str(Path(__file__).parents[1]))
from random_schemas import schemas

_HOSTILE = [("regex", "([a-z]{1,400}x){1,400}"), ("regex", "(a|aa|[^b]{1,3000}){1,50}"),
            ("regex", r"(\w{1,60}[^\d]{1,60}){1,60}"),
            ("json", json.dumps({"type": "array", "items": {"anyOf": [
                {"type": "string", "pattern": f"^[a-{chr(98 + i)}]{{{i},{i + 400}}}z$"} for i in range(20)]}})),
            ("json", json.dumps({"enum": [f"value {i} {'x' * 200}" for i in range(3000)]}))]


def held() -> float:
    """MiB that this process alone holds."""
    return psutil.Process().memory_full_info().uss / 2 ** 20


def _walk(constraint: Constraint, ends: tuple[int, ...], most: int) -> int:
    """Take one of the tokens that are allowed, again and again; how many that were."""
    tokens: list[int] = []
    while len(tokens) < most and not constraint.complete(tokens):
        allowed = constraint.allowed(tokens)
        assert allowed is not None
        found = [token for token in allowed.nonzero()[0].tolist() if token not in ends]
        tokens.append(found[len(tokens) % len(found)])
    return len(tokens)


def main(bundle: str, count: int) -> None:
    with edgert.load(bundle, context=1024) as model:
        model.generate("a", max_tokens=2).text()
        before, started = held(), time.perf_counter()
        grammars = Grammars(model.tokenizer, model.header.config.vocab_size)
        print(f"tables of {model.header.config.vocab_size} tokens: {held() - before:.1f} MiB, "
              f"{time.perf_counter() - started:.2f} s")
        model._grammars = grammars
        costs: list[float] = []
        allowed = Constraint.allowed

        def timed(self: Constraint, answer: list[int]) -> object:
            begun = time.perf_counter()
            try:
                return allowed(self, answer)
            finally:
                costs.append(time.perf_counter() - begun)

        Constraint.allowed = timed  # type: ignore[method-assign]
        valid = cut = tokens = passes = 0
        seconds, making = 0.0, 0.0
        for number, schema in enumerate(schemas(count)):
            begun = time.perf_counter()
            answer = model.generate("JSON about anything: ", schema=schema, temperature=1.0, seed=number)
            making += time.perf_counter() - begun
            pieces = list(answer)
            if pieces[-1].finish_reason == "length":
                cut += 1
            else:
                jsonschema.validate(json.loads("".join(piece.text for piece in pieces)), schema)
                valid += 1
            tokens += len(answer.token_ids)
            passes += answer.statistics.passes + 1
            seconds += time.perf_counter() - begun
        costs.sort()
        print(f"{valid} of {count} valid, {cut} cut at the context's end; {tokens} tokens in {passes} passes, "
              f"{seconds:.1f} s; a schema is read in {1e3 * making / count:.1f} ms")
        print(f"a mask, {len(costs)} of them: median {1e3 * statistics.median(costs):.3f} ms, mean "
              f"{1e3 * statistics.mean(costs):.3f} ms, 99 % {1e3 * costs[len(costs) * 99 // 100]:.3f} ms, "
              f"longest {1e3 * costs[-1]:.1f} ms")
        after = held()
        kept = [grammars.constraint(Grammar("json", json.dumps(schema))) for schema in schemas(count)]
        walked = [_walk(constraint, model.tokenizer.eos_token_ids, 60) for constraint in kept]
        print(f"{count} parsers at once, {sum(walked)} tokens: {held() - after:.1f} MiB")
        for kind, text in _HOSTILE:
            after, begun = held(), time.perf_counter()
            what = "used"
            try:
                _walk(grammars.constraint(Grammar(kind, text)), model.tokenizer.eos_token_ids, 300)
            except edgert.ModelError as error:
                what = f"refused: {error}"
            print(f"{kind} {text[:40]}: {held() - after:.1f} MiB, {time.perf_counter() - begun:.2f} s, {what}"[:200])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
