"""The command line as a user meets it: a process, its output, its exit status."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import edgert
from tested_targets import TESTED
from tiny_model import give_tokenizer, write_bundle, write_model

from edgert.converters.convert import convert

EDGERT = [sys.executable, "-m", "edgert"]


def started(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As users start it."""
    return subprocess.run([*EDGERT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def refused(*arguments: object, stdin: str = "", **environment: str) -> str:
    """The one sentence with which a call is refused."""
    done = edgert(*arguments, stdin=stdin, **environment)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("edgert: ")
    return line


def test_help_is_quick_and_lists_every_command() -> None:
    done = started("--help")
    for name in ("pull", "convert", "inspect", "verify", "plan", "chat", "run", "bench", "eval", "doctor"):
        assert f"\n  {name} " in done.stdout
        assert edgert(name, "--help").returncode == 0


def test_help_imports_neither_numpy_nor_numba() -> None:
    code = "import sys, edgert.cli; sys.exit(any(m in sys.modules for m in ('numpy', 'numba', 'tokenizers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_running_a_model_needs_neither_numba_nor_llvm(smollm2: Path) -> None:
    code = ("import sys, edgert\n"
            "with edgert.load(sys.argv[1], context=64) as m: m.generate('Hello', max_tokens=2).text()\n"
            "sys.exit(any(m in sys.modules for m in ('numba', 'llvmlite')))")
    assert subprocess.run([sys.executable, "-c", code, str(smollm2)], check=False).returncode == 0


def test_a_memory_budget_changes_the_speed_and_not_the_answer(smollm2: Path, tmp_path: Path) -> None:
    """The smallest budget is what the refusal of a smaller one says; the process stays below it."""
    call = ["run", smollm2, "-p", "The capital of France is", "-n", 12, "--json", "--threads", 2]
    whole = json.loads(started(*call).stdout)
    assert "flash" not in whole
    tight = started(*call, "--memory", "20M").stderr
    smallest = int(re.search(r"at least (\d+) MiB", tight)[1])  # type: ignore[index]
    for budget in (smallest, smallest + 30):
        trace = tmp_path / "trace.json"
        done = started(*call, "--memory", f"{budget}M", "--trace", trace)
        result = json.loads(done.stdout)
        assert done.stderr.startswith(f"memory: {budget} MiB; ")
        assert result["token_ids"] == whole["token_ids"]
        assert result["peak_rss_bytes"] < budget << 20
        flash = result["flash"]
        assert flash["bytes_per_token"] > 0 and 0 <= flash["wait_share"] <= 1 and 0 < flash["pinned_share"] < 1
        events = json.loads(trace.read_text())["traceEvents"]
        lanes = {e["args"]["name"] for e in events if e["ph"] == "M"}
        assert {"computing", "passes", "reader 0"} <= lanes
        assert {"attention", "feed-forward", "output head", "head", "check"} <= {e["name"] for e in events}
        assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


def test_speculation_changes_the_speed_and_not_the_answer(smollm2: Path) -> None:
    call = ["run", smollm2, "-p", "The capital of France is", "-n", 12, "--json", "--threads", 2, "--ignore-eos"]
    smallest = int(re.search(r"at least (\d+) MiB", refused(*call, "--memory", "20M"))[1])  # type: ignore[index]
    off, two = (json.loads(edgert(*call, "--memory", f"{smallest + 60}M", "--speculation", mode).stdout)
                for mode in ("off", "2"))
    assert two["token_ids"] == off["token_ids"] and "speculation" not in off
    guessing = two["speculation"]
    assert set(guessing) == {"passes", "guessed", "right", "agreement", "tokens_per_pass", "lenient", "loss_per_token",
                             "draft_s", "verify_s"}
    assert guessing["lenient"] == guessing["loss_per_token"] == 0
    assert 0 <= guessing["right"] <= guessing["guessed"] <= 2 * guessing["passes"]
    assert guessing["guessed"] > 0 and guessing["draft_s"] > 0 and guessing["verify_s"] > 0
    assert guessing["tokens_per_pass"] == pytest.approx(11 / guessing["passes"], abs=1e-3)


def test_a_trace_that_cannot_be_written(smollm2: Path, tmp_path: Path) -> None:
    assert "the trace cannot be written" in refused("run", smollm2, "-p", "x", "-n", 1, "--trace", tmp_path)


def test_run_json(smollm2: Path) -> None:
    done = edgert("run", smollm2, "-p", "The capital of France is", "-n", 3, "--json", "--logprobs", 2)
    result = json.loads(done.stdout)
    assert result["text"].startswith(" Paris")
    assert result["prompt_tokens"] == 5
    assert len(result["token_ids"]) == len(result["logprobs"]) == 3
    assert result["finish_reason"] == "length"
    assert result["decode_tok_s"] > 0
    assert result["peak_rss_bytes"] > 80e6


def test_run_takes_a_file_or_standard_input(smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("The capital of France is")
    texts = {edgert("run", smollm2, "-n", 3, *more, stdin=stdin).stdout
             for more, stdin in ((["-f", file], ""), ([], "The capital of France is"))}
    assert len(texts) == 1
    assert " Paris" in texts.pop()


@pytest.mark.parametrize("target", ["avx2", "plain"])
def test_a_forced_instruction_set_runs(smollm2: Path, target: str) -> None:
    if target not in TESTED:
        pytest.skip(f"{target} is not tested here")
    done = edgert("run", smollm2, "-p", "The capital of France is", "-n", 2, EDGERT_SIMD=target)
    assert done.stdout.startswith(" Paris")


NOTHING_IS_KEPT = """
import os
from edgert import cli
from edgert.kernels import native
from edgert.kernels.simd.target import choose
data = native.object_file(choose().name)
native._compile = lambda target, progress: data  # in place of half a minute
os.environ["EDGERT_CACHE"] = os.devnull
cli.main()
"""


def test_a_cache_that_cannot_be_written_is_told_once(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NOTHING_IS_KEPT, "run", smollm2, "-p", "The capital of France is",
                           "-n", "1"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, " Paris\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgert: /dev/null/kernels/") and line.endswith("to a folder that can be written")


def test_refusals_are_one_sentence(smollm2_gguf: Path, tmp_path: Path) -> None:
    folder = give_tokenizer(write_model(tmp_path / "tiny", vocab_size=258, max_position_embeddings=8192))
    convert(str(folder), bundle := tmp_path / "tiny.edge", "f32")
    (empty := tmp_path / "empty.edge").touch()
    (cut := tmp_path / "cut.edge").write_bytes(bundle.read_bytes()[:-1000])
    (text := tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    assert "no such file" in refused("run", tmp_path / "none.edge", "-p", "x")
    assert "is empty" in refused("run", empty, "-p", "x")
    assert "directory" in refused("run", tmp_path, "-p", "x")
    assert "file" in refused("verify", cut)
    assert "the prompt is empty" in refused("run", bundle, "-p", "")
    assert "not UTF-8" in refused("run", bundle, "-f", text)
    assert "no such file" in refused("run", bundle, "-f", tmp_path / "none.txt")
    assert "temperature" in refused("run", bundle, "-p", "x", "--temperature", -1)
    assert "context" in refused("run", bundle, "-p", "x " * 50, "-c", 16)
    assert "EDGERT_SIMD" in refused("run", bundle, "-p", "x", EDGERT_SIMD="sse9")
    assert "not in the catalogue" in refused("pull", "gpt-7")
    assert "no such file" in refused("convert", tmp_path / "none.gguf", tmp_path / "out.edge")
    assert "is not a folder" in refused("convert", smollm2_gguf, tmp_path / "none" / "out.edge")
    assert "is a folder" in refused("convert", smollm2_gguf, tmp_path)
    assert "no such file" in refused("eval", bundle, "--text", tmp_path / "none.txt")
    assert "at least 4" in refused("eval", bundle, "--text", empty)
    assert "is empty; it needs" in refused("eval", bundle, "--questions", empty)
    assert "line 1: is not UTF-8" in refused("eval", bundle, "--prompts", text)
    assert "no such file" in refused("bench", bundle, "--against", tmp_path / "none.gguf")


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    dense = write_bundle(tmp_path / "x.edge")
    assert edgert("run").returncode == 2
    assert edgert("nonsense").returncode == 2
    assert edgert("run", "x.edge", "-p", "x", "--threads", "many").returncode == 2
    for arguments, words in ((("run", "x.edge", "-p", "x", "--max-loss", "a bit"), "'a bit' is no percentage; give"),
                             (("chat", "x.edge", "--max-loss", "3"), "3 is not between 0% and 100%; give one like 3%"),
                             (("bench", dense, "--max-loss", "3%"), "--max-loss goes with --memory"),
                             (("eval", dense, "--text", "t", "--max-loss", "3%"), "--max-loss goes with --prompts")):
        done = edgert(*arguments)
        assert done.returncode == 2 and words in done.stderr
    for command in (("bench",), ("eval", "--text", "t")):
        assert "no such file" in refused(*command, tmp_path / "none.edge", "--max-loss", "3%")


def test_verify_names_section_and_offset(smollm2: Path, tmp_path: Path) -> None:
    assert "whole" in edgert("verify", smollm2).stdout
    content = bytearray(smollm2.read_bytes())
    content[50_000_000] ^= 1
    (damaged := tmp_path / "damaged.edge").write_bytes(content)
    done = edgert("verify", damaged)
    assert done.returncode == 1
    assert "offset" in done.stderr
    assert "does not match its checksum" in refused("run", damaged, "-p", "x")


def test_inspect_json(smollm2: Path) -> None:
    result = json.loads(edgert("inspect", smollm2, "--json").stdout)
    assert result["architecture"] == "llama"
    assert result["bytes"] == smollm2.stat().st_size
    shown = edgert("inspect", smollm2, "--tensors").stdout
    for part in ("embedding and output head", "feed-forward, base", "feed-forward, details", "layers.29.details"):
        assert part in shown


def test_eval_json(smollm2: Path, tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text("Rivers run from the mountains to the sea. " * 40)
    result = json.loads(edgert("eval", smollm2, "--text", text, "--window", 64, "--json").stdout)
    assert result["tokens"] == result["windows"] * 31
    assert 1 < result["perplexity"] < 10


def test_eval_questions_and_prompts(smollm2: Path, tmp_path: Path) -> None:
    """At every memory budget, number of threads and with speculation or without, the same numbers to the bit."""
    (questions := tmp_path / "questions.jsonl").write_text(
        '{"question": "What is the capital of France?\\nAnswer:", "choices": ["Rome", "Paris"], "answer": 1}\n'
        '{"question": "The sun rises in the", "choices": ["south west", "north", "east"], "answer": 2}\n')
    (prompts := tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "What is 12 * 11? Answer with the number only.", "answer": ["132", "12 * 11 = 132"]}\n')
    call = ["eval", smollm2, "--questions", questions, "--prompts", prompts]
    result = json.loads(edgert(*call, "--json", "--threads", 2).stdout)
    assert (result["questions"]["count"], result["questions"]["acc"]) == (2, 1)
    assert [(each["pick"], each["answer"]) for each in result["questions"]["each"]] == [(1, 1), (2, 2)]
    assert result["prompts"]["each"] == [{"answer": "12 * 11 = 132", "right": True}]
    smallest = int(re.search(r"at least (\d+) MiB", refused(*call, "--memory", "20M"))[1])  # type: ignore[index]
    for others in (["--threads", 1, "--speculation", "off", "--memory", f"{smallest}M"],
                   ["--memory", f"{smallest + 30}M", "--speculation", 4, "--prefill-chunk", 2]):
        other = json.loads(edgert(*call, "--json", *others).stdout)
        assert {**other, "threads": 2} == result
    assert edgert(*call).stdout == ("2 questions: accuracy 100.0 ± 0.0 %, per byte 100.0 ± 0.0 %\n"
                                    "1 prompt: 100.0 ± 0.0 % answered exactly\n")
    assert "line 1: question and choice have " in refused(*call, "-c", 8)
    assert "line 1: the prompt has " in refused("eval", smollm2, "--prompts", prompts, "-c", 64)


def test_eval_of_nothing(smollm2: Path) -> None:
    for arguments in ([], ["--against", "x.gguf", "--prompts", "shipped"]):
        done = edgert("eval", smollm2, *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_bench_json(smollm2: Path) -> None:
    result = json.loads(edgert("bench", smollm2, "-r", 1, "-n", 4, "--prefill", 16, "--json").stdout)
    for field in ("decode_tok_s", "prefill_tok_s", "first_token_s", "peak_rss_bytes", "load_s"):
        assert result[field] > 0


def test_bench_with_a_budget_measures_both_ways(smollm2: Path) -> None:
    call = ["bench", smollm2, "-r", 1, "-n", 8, "--prefill", 16, "--memory", "250M"]
    result = json.loads(edgert(*call, "--json").stdout)
    without = result["no_speculation"]
    assert without["tokens_per_pass"] == 1 <= result["tokens_per_pass"]
    assert without["ratio"]["decode_tok_s"] == pytest.approx(result["decode_tok_s"] / without["decode_tok_s"], abs=1e-3)
    done = edgert(*call)
    assert re.search(r"edgert +no speculation +ratio\n", done.stdout) and "\ntokens a pass " in done.stdout
    assert "run 1: edgert, no speculation " in done.stderr


def test_doctor() -> None:
    facts = json.loads(edgert("doctor", "--json").stdout)
    assert facts["instruction set in use"] in facts["instruction sets"]


def hear_interrupts() -> None:
    """What starts tests in the background ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupting_ends_with_130(smollm2: Path) -> None:
    process = subprocess.Popen([*EDGERT, "run", str(smollm2), "-p", "Once", "--ignore-eos"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               preexec_fn=hear_interrupts)
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_error_worth_words(smollm2: Path) -> None:
    process = subprocess.Popen([*EDGERT, "run", str(smollm2), "-p", "Once", "--ignore-eos"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    started = time.monotonic()
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - started < 15
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_run_with_a_schema(smollm2: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], '
                      '"additionalProperties": false}')
    done = edgert("run", smollm2, "--chat", "-p", "What is the capital of Italy?", "--schema", schema)
    assert done.stdout == '{"city": "Rome"}\n', done
    schema.write_text('{"type": "thing"}')
    assert "the schema cannot be used: " in refused("run", smollm2, "-p", "x", "--schema", schema)
    assert "schema.jsn: no such file" in refused("run", smollm2, "-p", "x", "--schema", tmp_path / "schema.jsn")


def test_a_regular_expression_and_a_grammar(smollm2: Path, tmp_path: Path) -> None:
    (grammar := tmp_path / "grammar.lark").write_text('start: ("red" | "green") " " /[0-9]{2}/')
    assert re.fullmatch("[ab]{5}", edgert("run", smollm2, "-p", "Letters:", "--regex", "[ab]{5}").stdout.strip())
    done = edgert("run", smollm2, "-p", "A colour and a number:", "--grammar", grammar, "--temp", "1")
    assert re.fullmatch(r"(red|green) \d\d", done.stdout.strip())
    assert "regex and grammar were given" in refused("run", smollm2, "-p", "x", "--regex", "a", "--grammar", grammar)
    assert "the regex cannot be used: " in refused("run", smollm2, "-p", "x", "--regex", "(")


def test_penalties(smollm2: Path) -> None:
    """What has been said is not said again."""
    asked = ("run", smollm2, "-p", "tick tock tick tock tick tock", "-n", "24", "--json")
    plain, changed = (json.loads(edgert(*asked, *more).stdout)["token_ids"] for more in (
        (), ("--presence-penalty", "2", "--frequency-penalty", "2")))
    assert len(set(changed)) > len(set(plain)) + 4
