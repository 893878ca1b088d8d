"""`edgert` as a process that begins where its imports are done: a second of processor time less each.

A program that has imported every command forks for each call. For what goes by how a program starts, such as its
memory, its encodings and its closed descriptors, start one as users do.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

_PROGRAM = """
import importlib, json, os, socket, sys
from edgert import cli
import edgert.model, edgert.opening
for module, _ in cli.COMMANDS.values():
    importlib.import_module(module)
asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 3)
    if not message:
        break
    child = os.fork()
    if not child:
        asked.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        request = json.loads(message)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv[:] = ["edgert", *request["arguments"]]
        cli.main()
    for descriptor in descriptors:
        os.close(descriptor)
    asked.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
"""


@cache
def _program() -> socket.socket:
    """What to ask. The program ends when this process does, as its socket is closed then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen([sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                     stdin=subprocess.DEVNULL)
    theirs.close()
    ours.settimeout(300)
    return ours


def edgert(*arguments: object, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    """Call `edgert` in the current folder, with more in its environment."""
    words = list(map(str, arguments))
    with tempfile.TemporaryFile("w+") as given, _output() as output, _output() as errors:
        given.write(stdin)
        given.seek(0)
        socket.send_fds(_program(), [json.dumps({
            "arguments": words, "environment": {**os.environ, **environment}, "folder": str(Path.cwd()),
        }).encode()], [given.fileno(), output.fileno(), errors.fileno()])
        try:
            status = int(_program().recv(20))
        except TimeoutError:
            _program().close()
            _program.cache_clear()  # what this one says later is not for the next call
            raise
        for stream in (output, errors):
            stream.seek(0)
        return subprocess.CompletedProcess(words, status, output.read(), errors.read())


def _output() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")
