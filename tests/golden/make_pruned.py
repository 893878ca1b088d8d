"""Makes tests/golden/pruned-*.npz: what pruning leaves of the weights of golden models, by torch and transformers.

    python tests/golden/make_pruned.py

Needs `pip install edgert[golden]`. Each matrix is pruned when its input is there, in a model that is pruned before it:
by Wanda's measure, and by magnitude, as in the code of Sun et al. 2023 (locuslab/wanda, lib/prune.py).
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
MODELS = ("llama3-tied", "qwen2", "gemma3")
REQUESTS = {"wanda:50%": (True, 0.5, 0, 0), "wanda:50%:2:4": (True, 0, 2, 4), "magnitude:30%": (False, 0.3, 0, 0),
            "magnitude:50%:2:4": (False, 0, 2, 4)}
"""Of each: whether inputs count, what share is pruned, or how many of how many are kept."""


def prune(linear: torch.nn.Linear, x: torch.Tensor, inputs: bool, share: float, n: int, m: int) -> torch.Tensor:
    """Prune a matrix; what is kept of it comes back."""
    weight = linear.weight.data
    metric = weight.abs()
    if inputs:
        flat = x.reshape(-1, x.shape[-1])
        metric = metric * torch.sqrt((flat.double() ** 2).sum(0)).float()
    gone = torch.zeros_like(metric, dtype=torch.bool)
    if n:
        for start in range(0, metric.shape[1], m):
            part = metric[:, start:start + m]
            gone.scatter_(1, start + torch.topk(part, m - n, dim=1, largest=False)[1], True)
    elif inputs:
        order = torch.sort(metric, dim=1, stable=True)[1]
        gone.scatter_(1, order[:, :int(metric.shape[1] * share)], True)
    else:
        order = torch.sort(metric.flatten(), stable=True)[1]
        gone.view(-1)[order[:int(metric.numel() * share)]] = True
    weight[gone] = 0
    return ~gone


def kept_of(name: str, *how: float) -> dict[str, np.ndarray]:
    model = transformers.AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float32)
    with np.load(HERE / f"logits-{name}.npz") as file:
        tokens = torch.tensor(file["tokens"].astype(np.int64))[None]
    found: dict[str, np.ndarray] = {}

    def hook(of: str):  # type: ignore[no-untyped-def]
        def before(linear: torch.nn.Linear, arguments: tuple[torch.Tensor]) -> None:
            found[of] = np.packbits(prune(linear, arguments[0], *how).numpy(), axis=1)  # type: ignore[arg-type]
        return before

    for of, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in of:
            module.register_forward_pre_hook(hook(of))
    with torch.no_grad():
        model(tokens)
    return found


if __name__ == "__main__":
    for name in MODELS:
        np.savez_compressed(HERE / f"pruned-{name}.npz", **{  # type: ignore[arg-type]
            f"{request}/{of}": bits for request, how in REQUESTS.items() for of, bits in kept_of(name, *how).items()})
