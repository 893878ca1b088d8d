"""Makes a model sparse for real: ReLU in the place of SiLU, then trained further for a short time, on one processor.

    python tests/large/make_relu.py MODEL.gguf FOLDER --texts FILE... [--minutes 40] [--threads 1] [--rate 3e-4]
        [--sparsity-loss 0.02] [--seed N]
    edgert convert FOLDER relu.edge

Needs `pip install edgert[golden]`. MODEL.gguf is of a family with SiLU (SmolLM2-135M-Instruct); it is the teacher: the
student, which begins as its copy, learns the distributions of its next tokens (Hinton et al. 2015) on TEXTS, of which
HTML tags are left out. What is active is made less by a penalty on |relu(gate) * up| that grows during training (Song
et al. 2024, "ProSparse"); the embedding, which is the head too, stays. The last 4 % of each text are held out.

FOLDER gets config.json, model.safetensors and the tokenizer. Progress goes to standard error, one JSON object to
standard output: perplexities on what is held out, of the teacher, of the student at first and at the end, and the share
of neurons that are zero.
"""

import argparse
import copy
import json
import math
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

WINDOW, BATCH = 256, 2
HELD_OUT = 0.04


class _Plain(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def read(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".html":
        parser = _Plain()
        parser.feed(text)
        text = "".join(parser.parts)
    return text


def windows(paths: list[Path], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token ids to learn from and those held out, both (windows, WINDOW)."""
    learned, held = [], []
    for path in paths:
        ids = np.array(tokenizer(read(path), add_special_tokens=False)["input_ids"])
        ids = ids[:len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        out = math.ceil(len(ids) * HELD_OUT)
        learned.append(ids[:len(ids) - out])
        held.append(ids[len(ids) - out:])
    return np.concatenate(learned), np.concatenate(held)


class Activity:
    """Hooks on a student's feed-forward parts: relu(gate) * up of the latest pass, of every layer."""

    def __init__(self, model: Any) -> None:
        self._hidden: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda module, given, number=number: self._hidden.__setitem__(number, given[0]))

    def take(self) -> list[torch.Tensor]:
        found, self._hidden = list(self._hidden.values()), {}
        return found


def perplexity(model: Any, held: np.ndarray, activity: Activity | None = None) -> tuple[float, list[float]]:
    """Of the second halves of the windows, and the share of zeros in every layer."""
    total, zeros = 0.0, []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(held), BATCH):
            ids = torch.from_numpy(held[start:start + BATCH])
            logits = model(ids).logits[:, WINDOW // 2:-1].float()
            total += float(functional.cross_entropy(logits.flatten(0, 1), ids[:, WINDOW // 2 + 1:].flatten(),
                                                    reduction="sum"))
            if activity is not None:
                zeros.append([float((h == 0).float().mean()) for h in activity.take()])
    share = np.mean(zeros, 0).round(4).tolist() if zeros else []
    return math.exp(total / (len(held) * (WINDOW // 2 - 1))), share


def train(teacher: Any, student: Any, activity: Activity, learned: np.ndarray, minutes: float, rate: float,
          sparsity_loss: float, generator: np.random.Generator) -> int:
    """Returns the number of steps."""
    wanted = [parameter for name, parameter in student.named_parameters() if "embed" not in name]
    for parameter in student.parameters():
        parameter.requires_grad = False
    for parameter in wanted:
        parameter.requires_grad = True
    optimizer = torch.optim.AdamW(wanted, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    started, order = time.monotonic(), generator.permutation(len(learned))
    step = 0
    while (gone := (time.monotonic() - started) / 60 / minutes) < 1:
        share = min((step + 1) / 10, max(1 - gone, 0.02))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        ids = torch.from_numpy(learned[order[np.arange(step * BATCH, (step + 1) * BATCH) % len(order)]])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = functional.log_softmax(teacher(ids).logits.float(), -1).flatten(0, 1)
            logits = functional.log_softmax(student(ids).logits.float(), -1).flatten(0, 1)
        divergence = functional.kl_div(logits, target, log_target=True, reduction="batchmean")
        hidden = activity.take()
        # By the root of the mean square, so that smaller weights do not make it smaller.
        active = sum((h.float().abs().mean() / h.detach().float().pow(2).mean().sqrt()) for h in hidden) / len(hidden)
        loss = divergence + sparsity_loss * min(2 * gone, 1.0) * active
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        if step % 5 == 0:
            zeros = np.mean([float((h == 0).float().mean()) for h in hidden])
            print(f"step {step}: divergence {float(divergence.detach()):.4f}, zero {zeros:.4f}, active "
                  f"{float(active.detach()):.4f}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        step += 1
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sparsity-loss", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    where: dict[str, Any] = {"pretrained_model_name_or_path": arguments.gguf.parent, "gguf_file": arguments.gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    teacher = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    student = copy.deepcopy(teacher)
    student.config.hidden_act = "relu"
    for layer in student.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    learned, held = windows(arguments.texts, tokenizer)
    held = held[generator.permutation(len(held))[:16]]
    print(f"{learned.size} tokens to learn from, {held.size} of those held out", file=sys.stderr, flush=True)
    activity = Activity(student)
    result: dict[str, Any] = {"teacher": perplexity(teacher, held)[0]}
    result["relu"], zeros = perplexity(student, held, activity)
    result["relu_zero"] = float(np.mean(zeros))
    print(json.dumps(result), file=sys.stderr, flush=True)
    started = time.monotonic()
    steps = train(teacher, student, activity, learned, arguments.minutes, arguments.rate, arguments.sparsity_loss,
                  generator)
    result["learned_tokens"] = steps * BATCH * WINDOW
    result["train_s"] = round(time.monotonic() - started)
    result["trained"], result["zero_by_layer"] = perplexity(student, held, activity)
    result["zero"] = float(np.mean(result["zero_by_layer"]))
    print(json.dumps(result), flush=True)
    tokenizer.save_pretrained(arguments.folder)
    del student.config.quantization_config  # what the GGUF file was; save_pretrained refuses such models
    student.config.save_pretrained(arguments.folder)
    save_file({name: tensor.half().contiguous() for name, tensor in student.state_dict().items()
               if name != "lm_head.weight"}, arguments.folder / "model.safetensors")


if __name__ == "__main__":
    main()
