"""Every family that edgert and llama.cpp both know, on GGUF files of random weights: how near their logits are, and the
default preset's perplexity beside llama.cpp's on the same file.

    python tests/large/families.py [FAMILY ...]

A minute. Prints a table, and exits with status 1 where a ratio of perplexities is not within 2 %, or a logit of weights
that are not rounded at all is further off than llama.cpp's GELU, a table of halves, explains. Weights that are Q4_0 in
the file stand on the same 4-bit grid in the bundle; F16 ones are rounded, which random weights suffer from most.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

import edgert
from edgert.converters.convert import convert
from edgert.measuring.peer import Peer
from edgert.measuring.perplexity import Score, score, windows

sys.path.append(str(Path(__file__).parents[1]))
from family_gguf import CONTEXT, KINDS, write_family

TEXT = Path(__file__).parents[2] / "docs" / "architecture.md"
WINDOW, WINDOWS = 256, 8
MOST_RATIO, MOST_OFF = 1.02, 3e-3
"""Of perplexities; of a logit, in standard deviations of all."""


def of_peer(path: Path, parts: list[list[int]]) -> tuple[np.ndarray, Score]:
    """The logits of the first window, and the score of all."""
    peer = Peer(str(path), threads=1, context=CONTEXT, batch=WINDOW, kv_type="f32", flash_attention=False)

    def forward(part: list[int], first: int) -> list[np.ndarray]:
        peer.reset()
        return [peer.forward(part, every=True)[first:]]

    return forward(parts[0], 0)[0], score(parts, forward)


def of_edgert(path: Path, preset: str, folder: Path, parts: list[list[int]]) -> tuple[np.ndarray, Score]:
    bundle = folder / f"{path.stem}-{preset}.edge"
    convert(str(path), bundle, preset)
    with edgert.load(bundle, context=CONTEXT, threads=1, speculation="off") as model:

        def forward(part: list[int], first: int) -> list[np.ndarray]:
            model.reset()
            return [model.extend(part, every=True)[first:]]

        return forward(parts[0], 0)[0], score(parts, forward)


def main() -> int:
    print(f"{'':25}{'logits, f32':>12}{'Q4_0: ratio':>14}{'same next':>11}{'F16: ratio':>13}{'same next':>11}")
    ids = list(TEXT.read_bytes()[:WINDOW * WINDOWS])  # any tokens: such a model knows no text
    parts, wrong = windows(ids, WINDOW, None), False
    for name in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            path = write_family(folder / "f32.gguf", name)
            expected, _ = of_peer(path, parts)
            off = np.abs(of_edgert(path, "f32", folder, parts)[0] - expected).max() / expected.std()
            wrong |= off > MOST_OFF
            line = f"{name:25}{off:12.5f}"
            for of in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.F16):
                path = write_family(folder / f"{of.name}.gguf", name, of=of)
                (_, theirs), (_, ours) = of_peer(path, parts), of_edgert(path, "q4", folder, parts)
                ratio = ours.perplexity / theirs.perplexity
                same = np.mean(np.array(ours.choices) == np.array(theirs.choices))
                wrong |= of is GGMLQuantizationType.Q4_0 and not 1 / MOST_RATIO <= ratio <= MOST_RATIO
                line += f"{ratio:13.4f}{100 * same:10.1f} %"
            print(line, flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
