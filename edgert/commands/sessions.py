"""`edgert sessions`: conversations that are kept."""

from typing import Any

import click

from edgert.sessions import SessionInfo, list_sessions, remove_session, session_info, sessions_folder
from edgert.sizes import size_text
from edgert.terminal import show, show_json


@click.group("sessions", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the conversations that `edgert chat --session NAME` keeps; show one, or remove it."""
    if context.invoked_subcommand is not None:
        return
    found = list_sessions()
    if as_json:
        show_json({"folder": str(sessions_folder()), "sessions": [_values(info) for info in found]})
        return
    if not found:
        show(f"no sessions in {sessions_folder()}; `edgert chat --session NAME` begins one")
    for info in found:
        show(f"{info.name:20} {_about(info)}")


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_one(name: str, as_json: bool) -> None:
    """Show the session NAME: what it takes, and its conversation."""
    info = session_info(name)
    if as_json:
        show_json({**_values(info), "messages": _messages(info)})
        return
    show(f"{info.name}: {_about(info)}")
    for message in _messages(info):
        show(f"{message['role']}: {message['content']}")


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Remove the session NAME."""
    remove_session(name)
    show(f"removed the session {name}")


def _about(info: SessionInfo) -> str:
    when = f"{info.changed:%Y-%m-%d %H:%M}, {size_text(info.size)}"
    if info.saved is None:
        return f"{when}, damaged, or of another version of edgert"
    kept = "" if info.saved.held == len(info.saved.tokens) else f", of which {info.saved.held} are held"
    return f"{when}, {len(info.saved.tokens)} tokens{kept} as {info.saved.cache_type}, policy {info.saved.policy}"


def _messages(info: SessionInfo) -> list[dict[str, str]]:
    messages = info.saved.talk.get("messages", []) if info.saved is not None else []
    return [{"role": str(m.get("role")), "content": str(m.get("content"))} for m in messages if isinstance(m, dict)]


def _values(info: SessionInfo) -> dict[str, Any]:
    saved = info.saved
    return {"name": info.name, "path": str(info.path), "bytes": info.size, "changed": info.changed.isoformat(),
            "damaged": saved is None, **({} if saved is None else {
                "tokens": len(saved.tokens), "held": saved.held, "kv_type": saved.cache_type,
                "kv_policy": saved.policy, "context": saved.context})}
