"""Perplexity of a model pruned in several ways: python tests/large/pruning.py MODEL --text T ... --prune REQUEST ...

REQUEST: as of `edgert convert --prune`, or none. In one pass through the model, in float32: the windows that come with
edgert are what matrices are pruned by, those of TEXTs are judged; of windows of 512 tokens the second half counts, as
in `edgert eval`. --windows N: how many of a text. --time 5m: of auto.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgert.bundle.journal import Journal
from edgert.converters.calibration_text import shipped_windows
from edgert.converters.open_source import open_source
from edgert.converters.pruning import weights
from edgert.converters.pruning.inputs import Inputs
from edgert.converters.pruning.judging import Judge
from edgert.converters.pruning.request import STRUCTURED, prunable, requested
from edgert.converters.pruning.scratch import Scratch
from edgert.converters.pruning.search import WINDOWS, Search, by_name, losses_here, seconds_of
from edgert.converters.pruning.structure import without_layers, without_neurons
from edgert.converters.source import Source

WINDOW = 512


class Held:
    """A tensor of a source, read once. Implements source.SourceTensor."""

    def __init__(self, tensor: Any) -> None:
        self.shape, self.type_name, self._values = tensor.shape, tensor.type_name, tensor.read(0, tensor.shape[0])

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._values[start:stop].copy()

    def grid(self, start: int, stop: int) -> None:
        return None


class Judged(weights._Pass):
    """Prunes by the first tokens, and judges by the others."""

    first = 0

    def _observe(self, x: np.ndarray, names: Sequence[str], *, squares_alone: bool = False) -> None:
        inputs = Inputs(x[:self.first])
        for name in names:
            self._prune(name, inputs)

    def logits(self, x: Any, norm: str, head: str, *, norm_bias: str | None = None, **_: Any) -> None:
        h = self.norm(x, norm, bias=norm_bias)

        def step() -> None:
            judged = h.values[self.first:].reshape(-1, WINDOW, h.values.shape[1])
            ids = self._windows.reshape(-1)[self.first:].reshape(-1, WINDOW)
            tensor = self._source.tensors[head + ".weight"]
            table = tensor.read(0, tensor.shape[0])
            self.losses = []
            for window, of in zip(judged, ids, strict=True):
                half = window[WINDOW // 2 - 1:-1] @ table.T
                top = half.max(1, keepdims=True)
                logs = half - top - np.log(np.exp(half - top).sum(1, keepdims=True))
                self.losses.append(-logs[np.arange(len(half)), of[WINDOW // 2:]].mean(dtype=np.float64))

        self._steps.append(step)


def judged(source: Source, calibration: np.ndarray, windows: np.ndarray, text: str,
           seconds: float | None) -> list[float]:
    """The losses of all windows, in nats a token."""
    request = None if text == "none" else requested(text)
    Judged.first = calibration.size
    if request is not None and request.method in STRUCTURED:
        without = without_neurons if request.method == "neurons" else without_layers
        source, request = without(source, request.amount, calibration, lambda *_: None), None
    every = np.concatenate([calibration, windows])
    if request is None:
        run = Judged(source, every, lambda name, inputs: None, lambda n: None)
    else:
        amounts = {spec.name: request.amount for spec in prunable(source.config)}
        with tempfile.TemporaryDirectory() as folder, Scratch(Path(folder) / "m") as scratch:
            scratch.begin("")
            if request.method == "auto":
                few = calibration.reshape(-1, 256)[::max(calibration.size // 256 // WINDOWS, 1)][:WINDOWS]
                judge = Judge.of(source, request.pattern, few)
                search = Search(judge, request.amount, seconds, Journal(Path(folder) / "s", ""), losses_here(judge))
                amounts = by_name(search.groups, search.run(lambda *_: None))
                print(f"  {search.generation} generations: {search.loss:.4f}, {search.uniform:.4f} if all alike")
            weights._Pass = Judged  # type: ignore[misc]
            pruning = weights.WeightPruning(source, request, amounts, every, scratch, lambda *_: None)
            if request.needs_text:
                assert isinstance(pruning._calibration, Judged)
                run = pruning._calibration
            else:
                pruning.run()
                run = Judged(pruning.source, every, lambda name, inputs: None, lambda n: None)
            while run._steps:
                run.run()
            return run.losses
    while run._steps:
        run.run()
    return run.losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", action="append", type=Path, required=True)
    parser.add_argument("--prune", action="append", required=True)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=4, help="Windows of what ships.")
    parser.add_argument("--time")
    parser.add_argument("--hold", action="store_true", help="Read the model's weights once, into memory.")
    asked = parser.parse_args()
    source = open_source(asked.model, hashed=False)
    if asked.hold:
        source = replace(source, tensors={name: Held(tensor) for name, tensor in source.tensors.items()})
    shipped = shipped_windows(source)
    assert shipped is not None
    calibration = shipped[:2 * asked.calibration].reshape(-1, WINDOW)
    tokenizer, windows = Tokenizer.from_str(source.tokenizer_json), []
    for text in asked.text:
        ids = np.array(tokenizer.encode(text.read_text(), add_special_tokens=False).ids, np.int64)
        windows.append(ids[:asked.windows * WINDOW].reshape(-1, WINDOW))
    for request in asked.prune:
        started = time.process_time()
        losses = judged(source, calibration, np.concatenate(windows), request,
                        None if asked.time is None else seconds_of(asked.time))
        perplexities = np.exp(np.array(losses).reshape(len(asked.text), -1).mean(1))
        print(request, *(f"{text.name} {found:.3f}" for text, found in zip(asked.text, perplexities, strict=True)),
              f"({time.process_time() - started:.0f} s of processor time)", flush=True)


if __name__ == "__main__":
    main()
