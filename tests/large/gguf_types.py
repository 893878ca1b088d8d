"""What converting costs for each type that GGUF files have: SmolLM2, requantized by llama.cpp, against llama.cpp.

    python tests/large/gguf_types.py FOLDER TEXT [TYPE ...] [--preset q4] [--no-calibrate]

Columns of the types in blocks of 256 must be as many times 256, which SmolLM2's 576 are not: it is filled up with zeros
to 768, and with it heads, so that it computes the same (norms' weights and epsilon make up for the longer mean). Its
layers' matrices are then quantized by `ggml_quantize_chunk`, with the squares of their inputs over the calibration text
as importance, as llama.cpp's imatrix has them. For each type a line: bits that a layer's weight takes in the bundle,
perplexities of llama.cpp and ours, their ratio, and the Kullback-Leibler divergence from llama.cpp's distribution to
ours, over the second halves of windows of 512 tokens.
"""

import argparse
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

import edgert
from edgert.converters.calibration import Calibration
from edgert.converters.calibration_text import shipped_windows
from edgert.converters.convert import convert
from edgert.converters.gguf_header import read_header
from edgert.converters.gguf_source import open_gguf
from edgert.converters.source import Source
from edgert.measuring.peer import Peer, import_llama_cpp
from edgert.measuring.perplexity import windows

REFERENCE = Path.home() / ".cache/edgert-test-models/SmolLM2-135M-Instruct.Q4_1.gguf"
TYPES = ("IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS",
         "IQ4_NL", "MXFP4", "NVFP4", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "BF16", "F16")
HIDDEN, WIDE, HEADS, KEY_HEADS, INNER = 576, 768, 12, 4, 1536
"""SmolLM2's hidden size and ours; heads in ours; the neurons of both."""
WINDOW, ROWS = 512, 64
"""Tokens computed from an empty context, and those whose logits are computed at once."""


def importances(source: Source) -> dict[str, np.ndarray]:
    """The mean squares of the inputs of the layers' matrices, by canonical name."""
    specs = [spec for spec in source.config.tensors() if spec.is_matrix and spec.layer is not None]
    shipped = shipped_windows(source)
    assert shipped is not None
    calibration = Calibration(source, shipped, {spec.name for spec in specs})
    found = {}
    for spec in specs:
        moments = calibration.moments(spec.name)
        found[spec.name] = np.ascontiguousarray(moments if moments.ndim == 1 else np.diag(moments))
    return found


class Quantizer:
    """llama.cpp's own."""

    def __init__(self) -> None:
        library = Path(import_llama_cpp().__file__).parent / "lib" / "libggml-base.so"
        self._chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def __call__(self, kind: Type, values: np.ndarray, importance: np.ndarray) -> np.ndarray:
        """A float32 matrix as the bytes of its rows in a type."""
        block, size = GGML_QUANT_SIZES[kind]
        out = np.zeros((len(values), values.shape[1] // block * size), np.uint8)
        values, importance = (np.ascontiguousarray(array, np.float32) for array in (values, importance))
        self._chunk(kind, values.ctypes.data, out.ctypes.data, 0, *values.shape, importance.ctypes.data)
        return out


def filled_up(name: str, values: np.ndarray) -> np.ndarray:
    """A tensor of SmolLM2 in the wider model."""
    if name.endswith("norm.weight"):
        values = values * np.float32((HIDDEN / WIDE) ** 0.5)
    rows = {"attn_k": KEY_HEADS * 64, "attn_v": KEY_HEADS * 64, "ffn_gate": INNER, "ffn_up": INNER,
            "token_embd": len(values)}.get(name.split(".")[-2], WIDE)
    shape = (rows, INNER if "ffn_down" in name else WIDE)[:values.ndim]
    return np.pad(values, [(0, there - old) for there, old in zip(shape, values.shape, strict=True)])


def write(out: Path, kind: Type, reference: Path, of_inputs: dict[str, np.ndarray]) -> None:
    """SmolLM2, wider, with its layers' matrices in a type."""
    source, metadata = open_gguf(reference, hashed=False), read_header(reference).metadata
    epsilon = metadata["llama.attention.layer_norm_rms_epsilon"]
    metadata |= {"llama.embedding_length": WIDE, "llama.attention.head_count": HEADS,
                 "llama.attention.head_count_kv": KEY_HEADS, "llama.rope.dimension_count": 64,
                 "llama.attention.layer_norm_rms_epsilon": epsilon * HIDDEN / WIDE}
    writer, quantizer = GGUFWriter(out, "llama"), Quantizer()
    for key, value in metadata.items():
        add: Any = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
                    list: writer.add_array}[type(value)]
        if key != "general.architecture":
            add(key, value)
    for spec in source.config.tensors():
        values = filled_up(spec.gguf, source.tensors[spec.name].read(0, spec.shape[0]))
        if not spec.is_matrix:
            writer.add_tensor(spec.gguf, values)
            continue
        squares = of_inputs.get(spec.name)
        form, importance = Type.Q8_0, np.ones(values.shape[1])
        if squares is not None:
            form, importance = kind, np.pad(squares, (0, values.shape[1] - len(squares)))
        writer.add_tensor(spec.gguf, quantizer(form, values, importance), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


class Comparison:
    """Two distributions over the same tokens, added up."""

    def __init__(self) -> None:
        self.divergence: list[float] = []
        self.losses: tuple[list[float], list[float]] = ([], [])

    def add(self, theirs: np.ndarray, ours: np.ndarray, targets: Sequence[int]) -> None:
        a, b = log_probabilities(theirs), log_probabilities(ours)
        self.divergence += (np.exp(a) * (a - b)).sum(1).tolist()
        for losses, log in zip(self.losses, (a, b), strict=True):
            losses += (-log[np.arange(len(targets)), targets]).tolist()

    def line(self) -> str:
        theirs, ours = (float(np.exp(np.mean(losses))) for losses in self.losses)
        ratios = np.exp(np.mean(np.subtract(self.losses[1], self.losses[0])))
        spread = np.std(np.subtract(self.losses[1], self.losses[0])) / len(self.divergence) ** 0.5
        return (f"{theirs:9.3f} {ours:9.3f} {ratios:7.4f} ± {spread:.4f} KL {1000 * np.mean(self.divergence):7.2f}e-3 "
                f"({len(self.divergence)} tokens)")


def compare(gguf: Path, bundle: Path, text: str) -> Comparison:
    """Ours against llama.cpp's."""
    found, half = Comparison(), WINDOW // 2
    peer = Peer(str(gguf), threads=2, context=WINDOW)
    with edgert.load(bundle, threads=2, context=WINDOW) as model:
        for window in windows(model.tokenizer.encode(text), WINDOW, None):
            peer.reset()
            peer.forward(window[:half])
            model.reset()
            model.extend(window[:half])
            for start in range(half, WINDOW - 1, ROWS):
                some = window[start:start + ROWS]
                targets = window[start + 1:start + 1 + ROWS]
                theirs, ours = peer.forward(some, every=True), model.extend(some, every=True)
                found.add(theirs[:len(targets)], ours[:len(targets)], targets)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("types", nargs="*", default=TYPES)
    parser.add_argument("--preset", default="q4")
    parser.add_argument("--no-calibrate", action="store_true")
    args = parser.parse_args()
    of_inputs: dict[str, np.ndarray] = {}
    for name in args.types:
        gguf, bundle = args.folder / f"{name}.gguf", args.folder / f"{name}.edge"
        if not gguf.exists():
            of_inputs = of_inputs or importances(open_gguf(REFERENCE, hashed=False))
            write(gguf, Type[name], REFERENCE, of_inputs)
        kinds = convert(str(gguf), bundle, args.preset, calibrate=not args.no_calibrate)
        of_layers = [kind for kind in kinds if kind.name.startswith(("attention", "feed-forward"))]
        bits = 8 * sum(kind.bytes for kind in of_layers) / sum(kind.weights for kind in of_layers if kind.counted)
        text = args.text.read_text(encoding="utf-8")
        print(f"{name:8} {bits:5.2f} bits {compare(gguf, bundle, text).line()}", flush=True)


if __name__ == "__main__":
    main()
