"""`edgert verify`: checks every checksum of a bundle."""

import click

from edgert.bundle import Bundle
from edgert.errors import BundleError
from edgert.terminal import show

from .bundle_argument import BUNDLE
from .gguf import bundle_of


@click.command("verify")
@click.argument("bundle", type=BUNDLE)
def command(bundle: str) -> None:
    """Check every checksum of BUNDLE: the header's, each section's, each neuron group's."""
    with Bundle(bundle_of(bundle)) as opened:
        problems = opened.verify()
        header = opened.header
        groups = sum(n.groups for n in [*header.neurons, *header.predicted])
        sections = len(opened.header.sections)
    for problem in problems[:-1]:
        show(problem, err=True)
    if problems:
        raise BundleError(problems[-1])
    show(f"{bundle}: whole; {sections} sections and {groups} neuron groups match their checksums")
