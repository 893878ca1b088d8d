"""Sends a server requests as nobody should send them, and looks for what must not come of it.

    python tests/large/serve_fuzz.py BUNDLE [--requests 10000] [--seed 0] [--memory 600M]

Prints one JSON object: how many requests got which status, and the server's memory. Exit status 1 where one got a
status of 500 or more that is not "try again", where the server wrote a traceback or the key of another, or where it
does not answer afterwards.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile_requests import Hostile
from served import Server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", default="600M")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(arguments.bundle, "-m", arguments.memory, errors=Path(folder) / "errors").until_ready()
        process, hostile = psutil.Process(server.process.pid), Hostile(arguments.seed)
        port, statuses, wrong, peak = int(server.url.rpartition(":")[2]), collections.Counter[str](), [], 0
        before = process.memory_info().rss
        for _ in range(arguments.requests):
            asked = hostile.send(port)
            statuses[str(asked.status)] += 1
            peak = max(peak, process.memory_info().rss)
            # 503 is said while the model is loaded anew: the budget is among what is asked for.
            if asked.status is not None and asked.status >= 500 and asked.status != 503:
                wrong.append(repr(asked)[:500])
        while server.status()["state"] == "loading":
            time.sleep(0.1)
        answered = server.client(timeout=60).completions.create(model="any", prompt="a", max_tokens=1).choices
        status = server.end()
        said = server.said[server.said.find("Traceback"):] if "Traceback" in server.said else ""
    print(json.dumps({"requests": arguments.requests, "statuses": dict(sorted(statuses.items())), "wrong": wrong,
                      "rss_before": before, "rss_peak": peak, "traceback": said[:3000], "exit": status}))
    return int(bool(wrong or said) or not answered or status != 0)


if __name__ == "__main__":
    sys.exit(main())
