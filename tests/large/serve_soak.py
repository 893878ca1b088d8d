"""Half an hour of requests of chance to a server in a budget that the kernel keeps, and what it takes meanwhile.

    python tests/large/serve_soak.py BUNDLE --memory 600M [--minutes 30] [--clients 6] [--parallel 1] [--limit TOOL]

Clients ask for chats and completions, streamed and not, greedy and sampled, scored prompts and tokens; some leave in
the middle, some send what is none of that, now and then the budget is changed and changed back. Greedy answers to the
same prompt must be the same each time. limit: a program that is called as TOOL SIZE COMMAND, and has the kernel end a
command that takes more than SIZE (limit-memory). Prints one JSON object; exit status 1 where an answer was wrong, a
request failed, the server took more than its budget, or was ended.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from edgert.sizes import parse_size

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `edgert` is a folder of tests
from hostile_requests import Hostile
from served import Server

PROMPTS = [f"{opening} {'and then it went on, ' * length}" for opening in (
    "Once upon a time", "The capital of France", "def add(a, b):", "Dear Sir or Madam,", "In the year 1900")
    for length in (0, 3, 20, 60)]


class Soak:
    """Clients of one server until a time, and what they saw."""

    def __init__(self, server: Server, until: float, budget: int, seed: int) -> None:
        self.server, self.until, self.seed = server, until, seed
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.peak, self.samples = 0, [0]
        self._budget = budget
        self._answers: dict[str, str] = {}

    def client(self, number: int) -> None:
        chance, hostile = random.Random(f"{self.seed} {number}"), Hostile(self.seed + number, budgets=False)
        port = int(self.server.url.rpartition(":")[2])
        with httpx.Client(base_url=self.server.url, timeout=300) as http:
            while time.monotonic() < self.until:
                try:
                    if chance.random() < 0.1:
                        asked = hostile.send(port, 1.0)
                        self.counts["hostile"] += 1
                        if asked.status is not None and asked.status >= 500 and asked.status != 503:
                            self.wrong.append(repr(asked)[:300])
                    elif number == 0 and chance.random() < 0.02:
                        size = self._budget - chance.randrange(40 << 20)
                        self._done(http.post("/edgert/budget", json={"memory": size}), "budget")
                    else:
                        self._ask(http, chance)
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))

    def _ask(self, http: httpx.Client, chance: random.Random) -> None:
        prompt, greedy = chance.choice(PROMPTS), chance.random() < 0.6
        body: dict[str, Any] = {"max_tokens": chance.choice((1, 8, 30)), "temperature": 0 if greedy else 1.0}
        kind = chance.choice(("chat", "schema", "completion", "scored"))
        if kind in ("chat", "schema"):
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if kind == "schema":
            body["response_format"] = {"type": "json_object"}
        if kind == "scored":
            body |= {"echo": True, "logprobs": 2, "max_tokens": 1}
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        if chance.random() < 0.4:
            body["stream"] = True
            leaves = chance.randrange(1, 6) if chance.random() < 0.3 else None
            with http.stream("POST", path, json=body) as stream:
                if stream.status_code == 200:
                    for count, _ in enumerate(stream.iter_lines()):
                        if count == leaves:
                            self.counts["left"] += 1
                            return
                else:
                    stream.read()
                self._done(stream, "streamed")
            return
        answer = http.post(path, json=body)
        if self._done(answer, kind) and greedy:
            choice = answer.json()["choices"][0]
            text = json.dumps([choice.get("text"), choice.get("message"), choice["logprobs"]])
            if self._answers.setdefault(json.dumps(body), text) != text:
                self.wrong.append(f"{body} was answered in two ways")
            self.counts["compared"] += 1

    def _done(self, answer: httpx.Response, what: str) -> bool:
        if answer.status_code in (429, 503):
            self.counts[str(answer.status_code)] += 1
            time.sleep(min(float(answer.headers.get("retry-after", 1)), 2))
        elif answer.status_code != 200:
            self.wrong.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        else:
            self.counts[what] += 1
        return answer.status_code == 200

    def watch(self) -> None:
        process = self.server.serving
        while time.monotonic() < self.until and process.is_running():
            rss = process.memory_info().rss
            self.peak = max(self.peak, rss)
            self.samples.append(rss)
            time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--limit")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=1024)
    arguments = parser.parse_args()
    budget = parse_size(arguments.memory)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(arguments.bundle, "-m", arguments.memory, "-c", str(arguments.context), "--queue", "3",
                        "--parallel", str(arguments.parallel), errors=Path(folder) / "errors",
                        before=[arguments.limit, arguments.memory] if arguments.limit else []).until_ready()
        soak = Soak(server, time.monotonic() + 60 * arguments.minutes, budget, arguments.seed)
        threads = [threading.Thread(target=soak.client, args=(number,)) for number in range(arguments.clients)]
        for thread in [*threads, threading.Thread(target=soak.watch)]:
            thread.start()
        for thread in threads:
            thread.join()
        said, alive = server.said, server.process.poll() is None
        server.end()
    fifth = max(len(soak.samples) // 5, 1)
    print(json.dumps({
        "minutes": arguments.minutes, "budget": budget, "peak_rss": soak.peak, "requests": dict(soak.counts),
        "rss_by_fifths": [max(soak.samples[start:start + fifth]) for start in range(0, fifth * 5, fifth)],
        "wrong": soak.wrong[:20], "alive": alive, "traceback": "Traceback" in said}))
    return int(bool(soak.wrong) or not alive or soak.peak > budget or "Traceback" in said)


if __name__ == "__main__":
    sys.exit(main())
