"""What the page has of others is what they published, and comes with its licence."""

import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "apps" / "page"
VENDOR = PAGE / "vendor"


def test_every_file_is_the_packages_own() -> None:
    named = {}
    for line in (VENDOR / "SOURCES").read_text().splitlines():
        if line and not line.startswith("#"):
            file, package, _version, _path, _licence, digest = line.split()
            named[file] = (package, digest)
    licences = {f"LICENSE-{package}" for package, _ in named.values()}
    assert {path.name for path in VENDOR.iterdir()} == {*named, *licences, "SOURCES"}
    for file, (_, digest) in named.items():
        data = (VENDOR / file).read_bytes()
        if file == "preact-hooks.mjs":
            data = data.replace(b'from"./preact.mjs"', b'from"preact"')
        assert hashlib.sha256(data).hexdigest() == digest, file


def test_the_page_needs_nothing_inline() -> None:
    """Its policy would refuse it."""
    text = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    assert text.count("<script") == text.count("<script src=") + text.count("<script defer src=") + text.count(
        '<script type="module" src=')
    assert all(address.startswith("/page/") for address in
               [part.split('"')[0] for name in ("src", "href") for part in text.split(f'{name}="')[1:]])
