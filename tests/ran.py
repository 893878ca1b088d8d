"""What a command says as JSON."""

import json
from typing import Any

from click.testing import CliRunner

from edgert.cli import cli


def ran(*arguments: str) -> Any:
    """The object that a command prints, run on one thread; it must end well."""
    done = CliRunner().invoke(cli, [*arguments, "--threads", "1", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
