"""The Python API: load a bundle."""

import os

from .engine.retention import STOP
from .errors import ModelError
from .generation.lenience import check_max_loss
from .model import Model
from .opening import CompileProgress, Settings
from .process import default_threads
from .sizes import parse_size
from .speculation.speculator import AUTO, parse

DEFAULT_CHUNK = 256


def load(path: str | os.PathLike[str], *, memory: int | str | None = None, threads: int | None = None,
         context: int | None = None, prefill_chunk: int = DEFAULT_CHUNK, kv_type: str | None = None,
         kv_policy: str | None = None, kv_memory: int | str | None = None, speculation: str | int = AUTO,
         parallel: int = 1, structured: bool = False, embeddings: int = 0, max_loss: float = 0.0,
         trace: str | os.PathLike[str] | None = None,
         compile_progress: CompileProgress = lambda number, count, name: None) -> Model:
    """Load a bundle. The settings change speed and memory use; the answers do not depend on them, except on kv_type and
    max_loss, and where a conversation outgrows its context, on that and kv_policy; and of a model with LongRoPE, on
    whether the context is longer than the one that it was first trained for.

    memory: the budget of the whole process, in bytes or as text like "600M" (see `parse_size`). Weights that do not fit
    into it are read from flash for each pass. Default: what fits comfortably in the memory that is free now.
    threads: number of threads that compute. Default: one per physical core that this process may use.
    context: how many tokens prompt and answers may have together, or with another kv_policy, how many of them are kept
    in mind. Default: 4096, or if less the model's maximum, and what it was first trained for, if it has LongRoPE.
    prefill_chunk: how many prompt tokens are computed at once, at most.
    kv_type: type of the key-value cache: "f16", "f32", "q8" or "q4" (kernels/pages.py). Default: "f16"; "f32" for
    unquantized bundles; "q8" with the policy "mixed", which has no other.
    kv_policy: what happens when the context is full: "stop", the default, ends the answer, and so does "flash", with
    which a context may be larger than memory: the answers are the same, and what has no room is read from flash for
    each pass. The others let conversations go on without end, and the model forgets: "window" all but the first and the
    latest tokens, "heavy" what its attention returns to least, and while a prompt is read, that of the question at its
    end; "mixed" keeps all but the first and the latest tokens at 3 bits an element, and forgets the oldest of them at
    last (engine/retention.py).
    kv_memory: bytes that the key-value cache takes of the budget, or a text like "100M". Default: what the context
    needs; with "flash" what weights leave.
    speculation: whether several tokens are guessed and then checked in one pass, where weights are streamed or texts
    repeat themselves: "auto" as far as it pays, "off", or a number of tokens to draft each time.
    parallel: how many answers may be computed at once, in threads of yours: together they take little longer than one
    where weights are streamed. Each has a context of its own, which takes memory. An answer is as if it were alone.
    structured: make room in the budget for answers that follow a JSON schema or a grammar (`generate`), and prepare
    for them: 30 to 45 MB. Without it such answers are given only where the budget has that much to spare.
    max_loss: 0.03 lets a mixture of experts leave out experts that weigh little, and a sparse model with predictors
    neurons that are seldom active, as many as may make a token up to 3 % less likely, as was measured while converting
    (`Model.left_out` says which). Answers of such a model are the same at every budget. Other models, and bundles that
    do not say what it costs, are as without.
    embeddings: bytes of the budget that are for the process of an `Embedder` (`Embedder.memory`).
    trace: a file to which a timeline of computing and reading is written, in Chrome's trace format.
    compile_progress(number, count, kernel): called before each kernel that is compiled, which is only at the very
    first start.

    Raises BundleError if the file is damaged or not a bundle, and ModelError for settings that are out of range or a
    budget that is too small.
    """
    check_max_loss(max_loss)
    threads = default_threads() if threads is None else threads
    for name, value, most in (("threads", threads, 256), ("prefill_chunk", prefill_chunk, 4096)):
        if not 1 <= value <= most:
            raise ModelError(f"{name} is {value}; it goes from 1 to {most}")
    return Model(path, Settings(_bytes("memory", memory), threads, context, prefill_chunk, kv_type, kv_policy or STOP,
                                _bytes("kv_memory", kv_memory), parse(speculation), parallel, structured, embeddings,
                                max_loss, trace), compile_progress)


def _bytes(name: str, size: int | str | None) -> int | None:
    """A setting that is bytes, or a text. Raises ModelError."""
    size = parse_size(size) if isinstance(size, str) else size
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size <= 0):
        raise ModelError(f"{name} is {size!r}; give bytes, or a text like 600M")
    return size
