"""`edgert list`: the models that are here."""

import click

from edgert.describing import describe
from edgert.download import models_folder
from edgert.errors import BundleError
from edgert.terminal import show, show_json

from .kept import CONVERTED, EMBEDDINGS, FETCHED, MODEL, Kept, all_kept


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """List the models in the models' folder, which commands take by their names, and what else is kept there."""
    kept = all_kept()
    if as_json:
        show_json({"folder": str(models_folder()), "kept": [
            {"name": one.name, "kind": one.kind, "path": str(one.path), "size": one.size,
             "changed": one.changed.isoformat()} for one in kept]})
        return
    if not kept:
        show(f"nothing in {models_folder()}; `edgert chat` fetches a small model, `edgert pull --list` shows others")
        return
    width = max(len(one.name) for one in kept)
    for one in kept:
        show(f"{one.name:{width}}  {one.size / 1e6:8.0f} MB  {one.changed:%Y-%m-%d %H:%M}  {_about(one)}")


def _about(one: Kept) -> str:
    if one.kind in (MODEL, CONVERTED):
        try:
            described = describe(one.path)
        except BundleError:
            return "damaged, or of another version of edgert: convert it again"
        made = ", made of a GGUF file that was opened" if one.kind == CONVERTED else ""
        return f"{described.architecture}, {described.parameters / 1e6:.0f} M weights, {described.preset}{made}"
    return {FETCHED: "fetched, to make a bundle of", EMBEDDINGS: "for edgert embed"}[one.kind]
