"""What planes of experts would bring, simulated on the text and the routers of make_experts.py: bytes a token, and
tokens a second, of a cache of whole experts, and of all base planes in memory with a cache of details; both without
drafts and with.

    python tests/large/expert_planes.py [--layers 4] [--kept 0.5] [--skew 0.6] [--compute 0.078] [--disks 0.2,0.5,1,2]

Nothing is read or computed but the routers. compute: seconds for a token whose experts are all in memory (two threads
of a Zen 1 server processor, OLMoE's shape). Disks are in GB/s. A draft is one of all base planes, or, of a cache of
whole experts, of what the cache has of those that are chosen. With agreement p, k guesses bring (1 - p^(k+1)) / (1 - p)
tokens a pass, and the pass reads and computes the union of their experts. The depth is the best one, known in
hindsight. Prints one table for each part of the experts that there is room for.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from make_experts import SHAPES, asked_of_embeddings, tensors
from make_sparse import text

BASE = 160 / 288
"""Of an expert's bytes at 4 bits."""
HALF_LIFE = 4.0
WARM, DEPTHS = 96, (0, 1, 2, 3, 5, 7)
SHARED = 133 / 625
"""Of the bytes that a token computes with: attention and the output head."""


def missed(active: np.ndarray, slots: int, at_once: int) -> tuple[float, float]:
    """Experts that a pass of so many tokens needs, and of these does not find, on average after WARM tokens. active:
    bool (tokens, experts), all layers side by side. The cache is that of residency/experts.py."""
    worth, there = np.full(active.shape[1], -np.inf), np.zeros(active.shape[1], bool)
    needed = read = passes = 0
    for time, first in enumerate(range(0, len(active) - at_once + 1, at_once)):
        now = active[first:first + at_once].any(0)
        if first >= WARM:
            needed, read, passes = needed + now.sum(), read + (now & ~there).sum(), passes + 1
        worth[now] = np.logaddexp2(worth[now], time * at_once / HALF_LIFE)
        there |= now
        over = int(there.sum()) - slots
        if over > 0:
            held = np.flatnonzero(there)
            there[held[np.argsort(worth[held], kind="stable")[:over]]] = False
    return needed / passes, read / passes


def best(p: float, draft_s: float, pass_s: Sequence[float]) -> tuple[int, float]:
    """The depth that brings most tokens a second, and those. pass_s: of a pass, by DEPTHS."""
    rates = [sum(p ** i for i in range(k + 1)) / (k * draft_s + seconds)
             for k, seconds in zip(DEPTHS, pass_s, strict=True)]
    at = int(np.argmax(rates))
    return DEPTHS[at], rates[at]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--skew", type=float, default=0.6)
    parser.add_argument("--compute", type=float, default=0.078)
    parser.add_argument("--disks", type=lambda value: [float(each) for each in value.split(",")],
                        default=[0.2, 0.5, 1.0, 2.0])
    arguments = parser.parse_args()
    family, shape = SHAPES["olmoe"]
    config = family.from_hf({**shape, "num_hidden_layers": arguments.layers})
    made = tensors(config, arguments.kept, arguments.skew, seed=0)
    ids = np.array(text(config.vocab_size, WARM + 512))
    active = np.concatenate(list(asked_of_embeddings(config, made, ids)), 1)
    per_layer, experts = shape["num_hidden_layers"] / arguments.layers, active.shape[1]
    expert_bytes = 3 * config.hidden_size * config.intermediate_size * 4.5 / 8
    one = config.num_experts_per_tok * arguments.layers
    for part in (0.25, 0.5, 0.6, 0.7, 0.8, 0.9):
        bases = part >= BASE  # else there is not room for all of them, and nothing to draft with
        kinds = {"whole": (part, 1.0)} | ({"planes": ((part - BASE) / (1 - BASE), 1 - BASE)} if bases else {})
        print(f"room for {part:.0%} of the experts")
        for name, (held, of_expert) in kinds.items():
            found = [missed(active, round(held * experts), depth + 1) for depth in DEPTHS]
            read = [count * per_layer * expert_bytes * of_expert for _, count in found]
            computing = [arguments.compute * (SHARED * (1 + 0.12 * depth) + (1 - SHARED) * needed / one)
                         for (needed, _), depth in zip(found, DEPTHS, strict=True)]
            print(f"  {name}: {read[0] / 1e6:.0f} MB a token; a pass of {', '.join(str(d + 1) for d in DEPTHS)} tokens "
                  f"needs {', '.join(f'{needed / one:.2f}' for needed, _ in found)} times one token's experts")
            draft_s = arguments.compute * (1 if name == "whole" else SHARED + (1 - SHARED) * BASE)
            for disk in arguments.disks:
                pass_s = [max(size / disk / 1e9, seconds) for size, seconds in zip(read, computing, strict=True)]
                rates = [f"{1 / pass_s[0]:.2f}"]
                for p in (0.8, 0.9, 1.0):
                    depth, rate = best(p, draft_s, pass_s)
                    rates.append(f"{rate:.2f} (agreement {p:g}, {depth} guesses)")
                print(f"    {disk:g} GB/s: {', '.join(rates)} tokens/s")


if __name__ == "__main__":
    main()
