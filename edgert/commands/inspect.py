"""`edgert inspect`: what a bundle contains."""

import json
from typing import Any

import click

from edgert.bundle import Bundle, Header
from edgert.bundle.contents import contents, table
from edgert.bundle.header import PREDICTORS, ExpertLoss, LeftOut
from edgert.control_characters import one_line
from edgert.terminal import show, show_json

from .bundle_argument import BUNDLE
from .gguf import bundle_of
from .shares import percent


@click.command("inspect")
@click.argument("bundle", type=BUNDLE)
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, tensors: bool, as_json: bool) -> None:
    """Show what BUNDLE contains: the model, its source, its weight formats, and how many bytes each part takes."""
    with Bundle(bundle_of(bundle)) as opened:
        header, size = opened.header, opened.path.stat().st_size
    kinds = contents(header)
    if as_json:
        show_json({**json.loads(header.to_json()), "bytes": size, "contents": [vars(k) for k in kinds]})
        return
    config = header.config
    rows: list[tuple[str, Any]] = [
        ("architecture", config.architecture), ("layers", config.num_hidden_layers),
        ("hidden size", config.hidden_size), ("neurons a layer", config.intermediate_size) if not config.experts else
        ("experts", f"{config.experts} a layer, {config.experts_per_token} a token, of {config.intermediate_size} "
                    "neurons each"),
        ("heads", f"{config.num_attention_heads}, {config.num_key_value_heads} for keys and values, "
                  f"{config.head_dim} wide"),
        ("vocabulary", config.vocab_size), ("context", config.max_position_embeddings),
        ("chat template", "yes" if "chat_template" in header.sections else "no"),
        *((name, value) for name, value in header.provenance.items() if not isinstance(value, dict | list))]
    if pruning := header.quantization.get("pruning"):
        rows.append(("pruned", f"{pruning['method']}, {pruning['pattern']}"))
    if config.experts_per_token > 1 or PREDICTORS in header.sections:
        losses = ", ".join(f"{percent(point.loss, at_least=True)} ({_stay(point)} stay)" for point in header.losses)
        rows.append(("left out for", losses or "not measured"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        show(f"{name:{width}}  {one_line(str(value))}")
    show()
    show(table(kinds, size))
    if tensors:
        show()
        _list_tensors(header)


def _stay(point: LeftOut) -> str:
    return f"{point.experts:.1f}" if isinstance(point, ExpertLoss) else percent(point.computed)


def _list_tensors(header: Header) -> None:
    for name, t in header.tensors.items():
        at = header.sections[t.section].offset + t.offset
        show(f"{one_line(name):50} {t.format:8} {t.rows:>8} x {t.columns:<8} {t.length:>12,} bytes at {at}")
    for n in [*header.neurons, *header.predicted]:
        for section, size in n.parts():
            show(f"{one_line(section):50} {n.gate_up}/{n.down:5} {n.groups:>8} x {size:<8} "
                 f"{n.groups * size:>12,} bytes at {header.sections[section].offset}")
