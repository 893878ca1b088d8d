"""`edgert show`: what a model is, in a few lines."""

import click

from edgert.describing import describe
from edgert.terminal import show, show_json

from .bundle_argument import BUNDLE
from .gguf import bundle_of


@click.command("show")
@click.argument("bundle", type=BUNDLE)
@click.option("--template", is_flag=True, help="Print the chat template and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, template: bool, as_json: bool) -> None:
    """Show what the model in BUNDLE is; `edgert inspect` shows what its file holds."""
    path = bundle_of(bundle)
    described = describe(path)
    if template:
        show(described.template or "", end="")
        return
    tools = described.template is not None and "tools" in described.template
    values = {
        "name": described.name or path.stem, "family": described.architecture, "parameters": described.parameters,
        "precision": described.preset, "context": described.context, "embedding": described.hidden_size,
        "layers": described.layers, "heads": described.heads, "key_value_heads": described.key_value_heads,
        "vocabulary": described.vocabulary, "chat": described.template is not None, "tools": tools,
        "license": described.license, "size": path.stat().st_size, "path": str(path), "digest": described.digest}
    if as_json:
        show_json(values)
        return
    for name, value in values.items():
        text = {True: "yes", False: "no", "": "not said"}.get(value, value) if isinstance(value, bool | str) else value
        show(f"{name.replace('_', '-'):16} {f'{text:,}' if isinstance(text, int) else text}")
