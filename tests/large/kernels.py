"""Sparse kernels' table: a matrix times 1 and 64 tokens, by our kernels and by those of others.

    python tests/large/kernels.py [--shapes qwen|smol|1536x8960,...] [--tokens 1 64] [--threads 1 2]
                                  [--sparsity 50 70 80 90 95] [--seconds 60] [--others]

Ours are q4 dense, q4n (2:4), q3, q2, ternary, and at each sparsity q4b, of whose tiles of 16 rows so many columns are
zero, at random. --others: onnxruntime's int8 (DynamicQuantizeLinear and MatMulInteger) and int4 (MatMulNBits, blocks of
32, accuracy level 4), and scipy.sparse's CSR of float32, unstructured. Shapes are rows x columns of the weights.

Weights come from memory: each variant goes through copies of its matrix, together larger than the third-level cache.
Variants take turns, and what is printed is the median: microseconds, times faster than q4 dense, GB/s of weights and
bytes of 512 weights. EDGERT_SIMD chooses the instruction set. Progress goes to standard error.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

SHAPES = {"qwen": ["8960x1536", "1536x8960", "1536x1536", "256x1536", "151936x1536"],
          "smol": ["1536x576", "576x1536", "576x576", "49152x576"]}
_FROM_MEMORY = 96 << 20
"""Bytes of all copies of a matrix together, at least."""
_MOST_COPIES = 400

Run = Callable[[], object]


def copies_of(size: int) -> int:
    return min(-(-_FROM_MEMORY // size), _MOST_COPIES) if size < _FROM_MEMORY else 1


class Ours:
    """Our kernels, through a program of as many operations as there are copies."""

    def __init__(self, threads: int) -> None:
        from edgert.kernels import native
        from edgert.kernels.team import Team
        self._team = Team(native.library(), threads)

    def run_of(self, name: str, rows: int, columns: int, tokens: int, sparsity: float) -> tuple[Run, int, int]:
        """What computes a matrix's products once for each copy; the copies, and the bytes of one."""
        import numpy as np

        from edgert.kernels.formats import FORMATS, SLAB, TILE
        from edgert.kernels.records import Code, Linear
        from edgert.kernels.team import Program
        from edgert.residency.region import Region
        form, tiles = weights_of(name, rows, columns, sparsity)
        copies = copies_of(tiles.nbytes)
        region = Region(copies * tiles.nbytes, "measuring", huge=True)
        x = activations(tokens, columns)
        y = np.zeros((tokens, len(tiles) * TILE), np.float32)
        slabs = np.arange(-(-len(tiles) // SLAB), dtype=np.int64) * SLAB * tiles.shape[1]
        program, tables = Program(), []
        for copy in range(copies):
            start = copy * tiles.nbytes
            np.frombuffer(region.view(start, tiles.nbytes), np.uint8)[:] = tiles.reshape(-1)
            tables.append(region.address + start + slabs)
            program.append(Code.LINEAR, Linear(
                tables[-1].ctypes.data, 0, len(tiles), form.code, form.blocks(columns), x.ctypes.data, x.strides[0],
                y.ctypes.data, y.strides[0], 0, 0, 0, 0))

        def run(kept: object = (region, x, y, tables)) -> None:
            self._team.set(tokens=tokens)
            assert self._team.run(program.array) and kept

        assert FORMATS["q4"].activation is form.activation
        return run, copies, tiles.nbytes


def activations(tokens: int, columns: int) -> Any:
    """Quantized blocks of 32 (kernels/activation.py)."""
    import numpy as np
    random = np.random.default_rng(0)
    kind = np.dtype([("q", np.int8, 32), ("scale", "f4"), ("scaled_sum", "f4")])
    x = np.zeros((tokens, -(-columns // 32)), kind)
    x["q"] = random.integers(-127, 128, x["q"].shape)
    x["scale"] = 0.01
    x["scaled_sum"] = x["scale"] * x["q"].sum(-1)
    return x


def weights_of(name: str, rows: int, columns: int, sparsity: float) -> tuple[Any, Any]:
    """A format and a random packed matrix."""
    import numpy as np

    from edgert.kernels.block_packing import columns_there, packed_loosely, room_of_tiles, tiles_of_size
    from edgert.kernels.formats import BLOCK_SPARSE, FORMATS, TILE, Quantized
    random, tiles = np.random.default_rng(1), -(-rows // TILE)
    if name != "q4b":
        form = FORMATS[name]
        return form, random.integers(0, 64, (tiles, form.tile_bytes(columns)), np.uint8)
    some = min(tiles, 256)  # what follows repeats
    there = random.random((some, columns)) >= sparsity
    q = np.where(np.repeat(there, TILE, 0), random.integers(1, 8, (some * TILE, columns), np.int8), np.int8(0))
    form = BLOCK_SPARSE.of_size(room_of_tiles(columns_there(q)))
    packed = tiles_of_size(form, packed_loosely(Quantized(
        q, np.ones((some * TILE, columns // 32), np.uint8), scale=np.ones(some * TILE, np.float32))))
    return form, packed[np.arange(tiles) % some]


def onnxruntime_of(kind: str, rows: int, columns: int, tokens: int, threads: int) -> tuple[Run, int, int]:
    """int8 or int4 of onnxruntime: a graph of as many products as there are copies."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    random = np.random.default_rng(2)
    size = rows * columns if kind == "int8" else rows * (columns // 32) * 20
    copies, nodes, weights, outputs = copies_of(size), [], [], []
    if kind == "int8":
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    for copy in range(copies):
        if kind == "int8":
            made = random.integers(-127, 128, (columns, rows), np.int8)
            weights.append(numpy_helper.from_array(made, f"w{copy}"))
            nodes.append(helper.make_node("MatMulInteger", ["q", f"w{copy}", "z"], [f"y{copy}"]))
        else:
            made = random.integers(0, 256, (rows, columns // 32, 16), np.uint8)
            weights.append(numpy_helper.from_array(made, f"w{copy}"))
            weights.append(numpy_helper.from_array(np.ones(rows * columns // 32, np.float32), f"s{copy}"))
            nodes.append(helper.make_node("MatMulNBits", ["x", f"w{copy}", f"s{copy}"], [f"y{copy}"],
                                          domain="com.microsoft", K=columns, N=rows, bits=4, block_size=32,
                                          accuracy_level=4))
        outputs.append(helper.make_tensor_value_info(
            f"y{copy}", TensorProto.INT32 if kind == "int8" else TensorProto.FLOAT, [tokens, rows]))
    graph = helper.make_graph(nodes, "products", [helper.make_tensor_value_info("x", TensorProto.FLOAT,
                                                                                [tokens, columns])], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17),
                                                    helper.make_opsetid("com.microsoft", 1)], ir_version=9)
    onnx.checker.check_model(model) if kind == "int8" else None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": random.standard_normal((tokens, columns), np.float32)}
    return lambda: session.run(None, given), copies, size


def scipy_of(rows: int, columns: int, tokens: int, sparsity: float) -> tuple[Run, int, int]:
    import numpy as np
    import scipy.sparse
    random = np.random.default_rng(3)
    matrix = scipy.sparse.random(rows, columns, 1 - sparsity, "csr", np.float32, random)
    size = matrix.data.nbytes + matrix.indices.nbytes
    several = [matrix.copy() for _ in range(copies_of(size))]
    x = random.standard_normal((columns, tokens), np.float32)
    x = x[:, 0] if tokens == 1 else x
    return lambda: [each @ x for each in several], len(several), size


def measured(arguments: argparse.Namespace, rows: int, columns: int, tokens: int, threads: int) -> None:
    ours = Ours(threads)
    variants: dict[str, tuple[Run, int, int]] = {
        name: ours.run_of(name, rows, columns, tokens, 0) for name in arguments.dense.split(",")}
    for percent in arguments.sparsity:
        variants[f"q4b {percent} %"] = ours.run_of("q4b", rows, columns, tokens, percent / 100)
        if arguments.others and rows * columns * (100 - percent) < 2_000_000_000:
            variants[f"scipy CSR {percent} %"] = scipy_of(rows, columns, tokens, percent / 100)
    if arguments.others and rows * columns < 100_000_000:
        variants |= {f"onnxruntime {kind}": onnxruntime_of(kind, rows, columns, tokens, threads)
                     for kind in ("int8", "int4")}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run, _, _ in variants.values():
        run()
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until or not min(map(len, times.values())):
        for name, (run, copies, _) in variants.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / copies)
    dense = statistics.median(times["q4"])
    print(f"\n{rows} x {columns}, {tokens} tokens, {threads} threads, {os.environ.get('EDGERT_SIMD', 'best')}, "
          f"{min(map(len, times.values()))} runs")
    for name, (_, _, size) in variants.items():
        median = statistics.median(times[name])
        print(f"{name:20} {1e6 * median:10.1f} us {dense / median:7.2f} x {size / median / 1e9:7.1f} GB/s "
              f"{size / (rows * columns / 512):7.0f} bytes", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="qwen,smol")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sparsity", type=int, nargs="*", default=[50, 70, 80, 90, 95])
    parser.add_argument("--dense", default="q4,q4n,q3,q2,ternary")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each shape, number of tokens and of threads")
    parser.add_argument("--others", action="store_true")
    arguments = parser.parse_args()
    for shape in [each for name in arguments.shapes.split(",") for each in SHAPES.get(name, [name])]:
        rows, columns = map(int, shape.split("x"))
        for tokens in arguments.tokens:
            for threads in arguments.threads:
                measured(arguments, rows, columns, tokens, threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
