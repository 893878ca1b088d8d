"""The memory plan, for models and disks of all sorts; what `edgert plan` says of it; and what it predicts."""

import functools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CONFIG, give_tokenizer, write_bundle, write_model

from edgert.bundle import Bundle, Header, Neurons
from edgert.bundle.header import EMBEDDING, HEAD, RESIDENT, Section, Tensor, detail_section, neuron_section
from edgert.commands import plan as plan_command
from edgert.commands.plan_chart import Point, curve, parts_table, picture
from edgert.converters.convert import convert
from edgert.engine.buffers import LEAST_ROWS, MOST_ROWS
from edgert.errors import EdgertError, ModelError
from edgert.generation.grammar import PARSER_BYTES
from edgert.kernels import native
from edgert.kernels.formats import FORMATS
from edgert.kernels.groups import group_layout
from edgert.measuring.compute import MOST_TOKENS, Rehearsal
from edgert.measuring.startup import APP, process_cost
from edgert.memory.plan import Plan, Planner
from edgert.memory.prediction import predict
from edgert.models.llama import Config
from edgert.models.tensors import FEED_FORWARD
from edgert.residency import stream
from edgert.residency.device import Device
from edgert.residency.drafting import Drafting
from edgert.sizes import size_text

MIB = 1 << 20
DEVICE = Device("a test's", True, 1 << 20, 2, 1e9, 1e-4, [])


def made_up_header(config: Config, neuron_formats: list[tuple[str, str]], head: str, attention: str) -> Header:
    """Of a bundle that does not exist: what a plan looks at."""
    neurons, sections = [], {}
    groups = -(-config.intermediate_size // 32)
    for layer, (gate_up, down) in enumerate(neuron_formats):
        layout = group_layout(config.hidden_size, FORMATS[gate_up], FORMATS[down])
        details = detail_section(layer) if layout.detail.length else None
        neurons.append(Neurons(neuron_section(layer), details, groups, layout.base.length, layout.detail.length,
                               gate_up, down))
        sections |= {section: Section(0, groups * size) for section, size in neurons[-1].parts()}
    tensors, at = {}, 0
    for spec in config.tensors():
        if spec.layer is not None and spec.role not in FEED_FORWARD:
            kind = attention if spec.is_matrix else "vector"
            tensors[spec.name] = Tensor(RESIDENT, at, kind, spec.shape[0], spec.shape[-1] if spec.is_matrix else 1)
            at += -(-tensors[spec.name].length // 64) * 64
    sections[RESIDENT] = Section(0, at)
    tensors |= {"model.embed_tokens.weight": Tensor(HEAD if config.tie_word_embeddings else EMBEDDING, 0, head,
                                                   config.vocab_size, config.hidden_size)}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = replace(tensors["model.embed_tokens.weight"], section=HEAD)
    for tensor in tensors.values():
        if tensor.section != RESIDENT:
            sections[tensor.section] = Section(0, tensor.length)
    return Header(config, {}, {}, {}, sections, tensors, neurons)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    layers = draw(st.integers(1, 8))
    names = st.sampled_from(sorted(FORMATS))
    config = Config.from_hf({**CONFIG, "hidden_size": 32 * draw(st.integers(1, 64)), "num_hidden_layers": layers,
                             "intermediate_size": draw(st.integers(1, 6000)), "vocab_size": draw(st.integers(2, 80000)),
                             "num_attention_heads": draw(st.sampled_from([1, 2, 8, 24])),
                             "max_position_embeddings": 1 << 16, "tie_word_embeddings": draw(st.booleans())})
    formats = draw(st.lists(st.tuples(names, names), min_size=layers, max_size=layers))
    return made_up_header(config, formats, draw(names), draw(names))


@st.composite
def devices(draw: st.DrawFn) -> Device:
    return replace(DEVICE, chunk_bytes=draw(st.sampled_from([64, 256, 1024, 2048])) << 10,
                   depth=draw(st.integers(1, 8)))


@st.composite
def planners(draw: st.DrawFn, chunk: int | None = None) -> Planner:
    return Planner(draw(headers()), process=draw(st.integers(0, 100)) << 20, context=draw(st.integers(1, 4096)),
                   cache_type=draw(st.sampled_from(["f16", "f32"])), chunk=chunk or draw(st.integers(1, 600)),
                   threads=draw(st.integers(1, 16)), drafting=draw(st.booleans()))


def budgets(planner: Planner, disk: Device) -> st.SearchStrategy[int]:
    return st.integers(planner.smallest(disk), planner.whole + (1 << 20))


def run_bytes(planner: Planner, disk: Device) -> int:
    return max(stream.run_units(s.unit_bytes, disk.chunk_bytes) * s.unit_bytes for s in planner._streamable)


def placed(planner: Planner, plan: Plan) -> int:
    """Bytes of weights that stay in memory, counted anew."""
    return sum(min(plan.placement.pinned[s.name] * s.unit_bytes, s.length) for s in planner._streamable)


@given(st.data(), planners(), devices())
def test_a_plan_keeps_to_its_budget_and_accounts_for_every_weight(data: st.DataObject, planner: Planner,
                                                                  disk: Device) -> None:
    budget = data.draw(budgets(planner, disk))
    plan = planner.plan(budget, lambda: disk)
    assert plan.needed == sum(plan.parts.values()) <= plan.budget == budget
    assert min(plan.parts.values()) >= 0
    assert plan.weights == plan.streamed + placed(planner, plan) + plan.parts["norms and biases"]
    assert placed(planner, plan) == sum(plan.parts["pinned " + of]
                                        for of in ("attention", "base", "details", "output head"))
    for n in planner._header.neurons:
        if n.details:
            assert plan.placement.pinned[n.details] <= plan.placement.pinned[n.section]
    assert LEAST_ROWS <= plan.verify_rows <= MOST_ROWS
    assert list(plan.placement.pinned) == [s.name for s in planner._streamable]
    assert all(0 <= plan.placement.pinned[s.name] <= s.count for s in planner._streamable)
    assert 1 <= plan.chunk <= planner._chunk
    assert (plan.disk is None) == (plan.streamed == 0)
    assert 0 <= plan.pinned_share <= 1
    if plan.streamed:  # what is left over is too little for another unit, or so
        room = run_bytes(planner, disk) + planner._edges
        assert plan.budget - plan.needed <= room
        assert plan.placement.slots * plan.placement.slot_bytes < plan.parts["read ahead"]
        assert plan.placement.slot_bytes >= run_bytes(planner, disk)


class Part(NamedTuple):
    """Of what can be pinned: bytes, and how many of them a plan pins."""

    length: int
    pinned: int


def stages(planner: Planner, plan: Plan) -> list[list[Part]]:
    """What is pinned one after the other: attention, the common rows of the output head, bases, half as many rows
    again, two thirds of the details from the last layer to the first, what is left of details and head. Where no format
    is split, or nothing is to be drafted, all after the bases goes together; where none is split there are neither
    bases nor common rows."""
    header, pinned = planner._header, plan.placement.pinned
    bases = [n.section for n in header.neurons if n.details]
    common = 512
    details = [layout.name for layout in planner._others if layout.name != HEAD]
    drafting = planner._drafting and bool(bases)
    last_first = {name: 4 + number for number, name in enumerate(reversed(details))}
    left = 4 + len(details)
    parts: list[list[Part]] = [[] for _ in range(left + 1)]
    for layout in header.streamable():
        cuts = [(0, left)]
        if layout.section == RESIDENT or layout.name in bases:
            cuts = [(0, 0 if layout.section == RESIDENT else 2)]
        elif layout.name == HEAD and bases:
            more = [(common * 3 // 2, left)] if drafting else []
            cuts = [(0, 1), (common, 3 if drafting else left), *more]
        elif drafting:
            cuts = [(0, last_first[layout.name]), (layout.count * 2 // 3, left)]
        ends = [min(start, layout.count) for start, _ in cuts[1:]] + [layout.count]
        for (first, stage), last in zip(cuts, ends, strict=True):
            first = min(first, layout.count)
            here = [min(end * layout.unit_bytes, layout.length) for end in (first, last)]
            held = min(max(pinned[layout.name], first), last)
            parts[stage].append(Part(here[1] - here[0], min(held * layout.unit_bytes, layout.length) - here[0]))
    return parts


@given(st.data(), planners(), devices())
def test_what_is_streamed_is_spread(data: st.DataObject, planner: Planner, disk: Device) -> None:
    """The part streamed of the matrices, or sections, up to any one is that of them all, give or take a run."""
    plan = planner.plan(data.draw(budgets(planner, disk)), lambda: disk)
    for parts in stages(planner, plan):
        streamed = [part.length - part.pinned for part in parts]
        for i in range(len(parts)):
            share = sum(part.length for part in parts[:i + 1]) / max(sum(part.length for part in parts), 1)
            assert abs(sum(streamed[:i + 1]) - share * sum(streamed)) <= 2 * run_bytes(planner, disk)


@given(st.data(), planners(), devices())
def test_what_makes_the_best_draft_comes_first(data: st.DataObject, planner: Planner, disk: Device) -> None:
    """Nothing is pinned of what comes after something that is not wholly pinned."""
    plan = planner.plan(data.draw(budgets(planner, disk)), lambda: disk)
    order = stages(planner, plan)
    full = [all(part.pinned == part.length for part in parts) for parts in order]
    for number, parts in enumerate(order):
        assert all(full[:number]) or not any(part.pinned for part in parts)


@given(st.data(), planners(), devices())
def test_attention_is_streamed_only_where_there_is_no_room_for_it(data: st.DataObject, planner: Planner,
                                                                  disk: Device) -> None:
    """And then all neuron groups are."""
    plan = planner.plan(data.draw(budgets(planner, disk)), lambda: disk)
    attention = sum(layout.length for layout in planner._attention)
    if plan.parts["pinned attention"] < attention:
        assert plan.parts["pinned base"] == plan.parts["pinned details"] == plan.parts["pinned output head"] == 0
        # What an even spread over runs may leave, as everywhere.
        assert plan.budget - plan.needed <= run_bytes(planner, disk) + planner._edges
        assert planner._smallest_with(planner._fixed(plan.chunk, plan.verify_rows), disk) + attention > plan.budget


@given(st.data(), planners(), devices())
def test_slots_are_fewer_where_all_bases_stay(data: st.DataObject, planner: Planner, disk: Device) -> None:
    plan = planner.plan(data.draw(budgets(planner, disk)), lambda: disk)
    if plan.streamed:
        pinned = plan.placement.pinned
        bases = any(pinned[layout.name] < layout.count for layout in planner._bases)
        assert plan.placement.slots >= planner.slots(disk, bases=bases)
        assert planner.slots(disk, bases=False) <= planner.slots(disk, bases=True)
        assert plan.parts["read ahead"] == planner._ahead(disk, plan.placement.slots)


@given(st.data(), planners(), devices())
def test_a_draft_is_possible_exactly_where_there_is_something_of_everything(
        data: st.DataObject, planner: Planner, disk: Device) -> None:
    """All of attention, something of each layer and of the head; and something is streamed."""
    plan = planner.plan(data.draw(budgets(planner, disk)), lambda: disk)
    pinned = plan.placement.pinned
    attention = plan.parts["pinned attention"] == sum(layout.length for layout in planner._attention)
    each = [pinned[HEAD], *(pinned[n.section] for n in planner._header.neurons)]
    assert Drafting.possible(planner._header, plan.placement) == (plan.streamed > 0 and attention and min(each) > 0)


@given(st.data(), planners(), devices())
def test_a_larger_budget_never_streams_noticeably_more(data: st.DataObject, planner: Planner, disk: Device) -> None:
    less, more = sorted(data.draw(st.tuples(*[budgets(planner, disk)] * 2)))
    plans = [planner.plan(budget, lambda: disk) for budget in (less, more)]
    steps = [planner._fixed(n)["working memory"] for n in (1, 17)]
    assert plans[1].streamed <= plans[0].streamed + run_bytes(planner, disk) + steps[1] - steps[0] + 4096
    assert plans[1].chunk >= plans[0].chunk


@given(planners(), devices())
def test_the_smallest_budget_works_and_less_is_refused_with_its_size(planner: Planner, disk: Device) -> None:
    smallest = planner.smallest(disk)
    assert planner.plan(smallest, lambda: disk).needed <= smallest
    named = planner.named(smallest)
    with pytest.raises(ModelError, match=rf"too small: .* at least {named // MIB} MiB with these settings; .* "
                                         rf"{planner.named(planner.whole) // MIB} MiB nothing is read"):
        planner.plan(max(smallest - MIB, 0), lambda: disk)
    assert 2 * MIB <= named - smallest < 3 * MIB  # for a process that is a little larger the next time


@given(st.data(), planners(), devices())
def test_a_budget_that_is_too_small_is_raised_as_far_as_it_may(data: st.DataObject, planner: Planner,
                                                               disk: Device) -> None:
    smallest = planner.smallest(disk)
    less = data.draw(st.integers(0, smallest - 1))
    raised = planner.plan(less, lambda: disk, most=data.draw(st.integers(smallest, smallest + MIB)))
    assert raised.needed <= raised.budget == smallest
    most = data.draw(st.integers(less, smallest - 1))
    with pytest.raises(ModelError, match=rf"^the limit of {re.escape(size_text(most))} is too small: this model needs"):
        planner.plan(less, lambda: disk, most=most, what="the limit")


@given(st.data(), headers(), devices())
def test_threads_and_logits_are_in_the_plan(data: st.DataObject, header: Header, disk: Device) -> None:
    def planner(threads: int) -> Planner:
        return Planner(header, process=0, context=64, cache_type="f16", chunk=16, threads=threads)

    few, many = planner(1), planner(257)
    assert many.whole - few.whole >= 256 * 64 << 10
    readers = replace(disk, depth=disk.depth + 100)
    assert few._ahead(readers, 9) - few._ahead(disk, 9) >= 100 * 64 << 10
    assert few.slots(readers, bases=True) - few.slots(disk, bases=True) == 100
    plan = few.plan(data.draw(st.integers(few.whole, few.whole + 100 * MIB)), lambda: disk)
    row = 4 * header.config.vocab_size
    assert (plan.logit_rows - 6) * row <= plan.budget - plan.needed < (plan.logit_rows - 5) * row


@given(planners())
def test_the_whole_budget_streams_nothing_and_asks_no_disk(planner: Planner) -> None:
    def no_disk() -> Device:
        raise AssertionError("the disk is not to be measured")
    everything, without_embedding = planner.plan(None, no_disk), planner.plan(planner.whole, no_disk)
    for plan in (everything, without_embedding):
        assert plan.streamed == 0 and plan.disk is None and plan.pinned_share == 1
        assert plan.chunk == planner._chunk and plan.needed <= plan.budget
    assert without_embedding.budget == planner.whole and without_embedding.parts["pinned embedding"] == 0
    assert everything.placement.embedding == (planner._embedding.count if planner._embedding else 0)


@given(st.data(), planners(), devices())
def test_what_is_left_when_nothing_is_streamed_goes_to_the_embedding(data: st.DataObject, planner: Planner,
                                                                     disk: Device) -> None:
    """As much of it as there is room for."""
    everything = planner.plan(None, lambda: disk)
    plan = planner.plan(data.draw(st.integers(planner.whole, everything.budget + MIB)), lambda: disk)
    if planner._embedding is None:
        assert plan.placement.embedding == plan.parts["pinned embedding"] == 0
        return
    units, unit_bytes = plan.placement.embedding, planner._embedding.unit_bytes
    assert units * unit_bytes <= plan.parts["pinned embedding"] and plan.needed <= plan.budget
    left = plan.budget - planner.whole - planner._more_for(plan.verify_rows) - plan.parts["pinned embedding"]
    assert units == planner._embedding.count or left < 1.01 * unit_bytes + 2 * 4096 + 64


# Prediction

SECONDS = {1: (0.05, 0.01), 4: (0.08, 0.01), 16: (0.2, 0.01), 64: (0.7, 0.01)}
DRAFT_SECONDS = 0.01, 0.03


def large_planner(chunk: int = 256) -> tuple[Header, Planner]:
    config = Config.from_hf({**CONFIG, "hidden_size": 1024, "num_hidden_layers": 8, "intermediate_size": 4096,
                             "vocab_size": 30000})
    header = made_up_header(config, [("q4", "q6")] * 8, "q6", "q4")
    return header, Planner(header, process=MIB, context=64, cache_type="f16", chunk=chunk, threads=2)


def test_the_slower_of_reading_and_computing_sets_the_pace() -> None:
    header, planner = large_planner()
    small, whole = (planner.plan(b, lambda: DEVICE) for b in (planner.smallest(DEVICE), planner.whole))
    fast = predict(header, whole, DEVICE, SECONDS.__getitem__, DRAFT_SECONDS)
    assert fast.limit == "computing" and fast.decode_tok_s == pytest.approx(1 / 0.06, rel=0.01)
    assert fast.first_token_s == pytest.approx(0.7 * 200 / 64 + 0.01, rel=0.1)
    slower_disk = replace(DEVICE, bandwidth=1e7)
    reading = predict(header, small, slower_disk, SECONDS.__getitem__, DRAFT_SECONDS)
    assert reading.limit == "flash" and reading.decode_tok_s == pytest.approx(1e7 / small.streamed)


def test_every_pass_over_a_prompt_reads_the_layers_again() -> None:
    header, planner = large_planner(chunk=16)
    plan = planner.plan(planner.smallest(DEVICE), lambda: DEVICE)
    disk = replace(DEVICE, bandwidth=1e6)
    passes, head = -(-200 // plan.chunk), header.sections[HEAD].length
    assert plan.parts["pinned output head"] == 0
    assert predict(header, plan, disk, SECONDS.__getitem__, DRAFT_SECONDS).first_token_s == pytest.approx(
        (passes * (plan.streamed - head) + head) / 1e6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", ["q4", "q8", "f32"])
def test_a_rehearsal_computes_what_the_model_would(tmp_path: Path, tied: bool, preset: str) -> None:
    path = write_bundle(tmp_path / "m.edge", preset, tie_word_embeddings=tied, num_hidden_layers=3)
    with Bundle(path) as bundle, Rehearsal(bundle.header, native.library(), threads=2, cache_type="f16") as rehearsal:
        for tokens in (1, 16, MOST_TOKENS):
            assert all(0 < seconds < 1 for seconds in rehearsal.seconds(tokens))
        without, bases = rehearsal.draft_seconds
        assert 0 < without < 1 and 0 < bases < 1


def test_the_process_is_measured_in_one_of_its_own(bundle: Path, tmp_path: Path) -> None:
    cost = process_cost(bundle)
    assert 20 * MIB < cost.process < 300 * MIB and (cost.structured, cost.window) == (0, None)
    (damaged := tmp_path / "damaged.edge").write_bytes(b"no bundle")
    with pytest.raises(EdgertError, match="is not an edgert bundle"):
        process_cost(damaged)


# The command

@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a model with a tokenizer that can be loaded, large enough for there to be something to plan."""
    folder = write_model(tmp_path_factory.mktemp("plan") / "model", num_hidden_layers=6, hidden_size=256,
                         intermediate_size=8192, vocab_size=9000, tie_word_embeddings=False)
    give_tokenizer(folder)
    convert(str(folder), folder.with_name("m.edge"), "q4")
    yield folder.with_name("m.edge")


@pytest.fixture(autouse=True)
def _a_known_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_command, "device_of", lambda path: replace(DEVICE, chunk_bytes=1 << 18))


measured_once = functools.cache(process_cost)


@pytest.fixture(autouse=True)
def _processes_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the app's, which has a window that is measured as well."""
    monkeypatch.setattr(plan_command, "process_cost", lambda path, program: (
        process_cost if program == APP else measured_once)(path, program))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(plan_command.command, [str(a) for a in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def test_json_over_budgets_then_of_one(bundle: Path) -> None:
    values = answer(bundle, "-c", 64, "-t", 1)
    sizes = [b["budget"] for b in values["budgets"]]
    assert sizes == sorted(set(sizes)) and len(sizes) >= 3
    assert (sizes[0], sizes[-1]) == (values["smallest_budget"], values["whole_budget"])
    assert values["budgets"][0]["bytes_per_token"] > 0 == values["budgets"][-1]["bytes_per_token"]
    one = answer(bundle, "-c", 64, "-t", 1, "--memory", f"{sizes[1] // MIB}M")
    assert one["budget"] == sizes[1] == sum(one["parts"].values()) + one["left_over"]
    assert 0 < one["pinned_share"] < 1 and one["device"]["bandwidth"] == 1e9
    assert one["predicted_decode_tok_s"] > 0 and one["predicted_first_token_s"] > 0
    assert 0 < one["bytes_per_token"] < one["weights_bytes"]
    assert values["budgets"][-1]["speculation"] is None
    assert abs(one["smallest_budget"] - values["smallest_budget"]) <= 4 * MIB  # the process is never quite the same


def test_tables(bundle: Path) -> None:
    values = answer(bundle, "-c", 64)
    middle = (values["smallest_budget"] + values["whole_budget"]) // 2 // MIB
    shown = call(bundle, "-c", 64, "-m", f"{middle}M").output
    for part in ("process", "key-value cache", "working memory", "read ahead", "pinned base", "left over", "budget",
                 "smallest budget", "read for a pass", "stay in memory", "predicted speed", "first token"):
        assert re.search(rf"^{part} ", shown, re.M), part
    for part in ("pinned attention", "pinned output head", "with speculation"):
        assert re.search(rf"^{part} ", shown, re.M), part
    compared = call(bundle, "-c", 64).output
    assert "speculating" in compared.splitlines()[0] and "an estimate" in compared
    assert "the smallest that works" in compared and "all in memory" in compared and "\ntokens/s" in compared
    assert max(len(line) for line in (shown + compared).splitlines()) <= 120


def test_of_a_server(bundle: Path) -> None:
    run, chat, serve = (answer(bundle, "-c", 64, "--for", name) for name in ("run", "chat", "serve"))
    assert serve["structured_output_bytes"] >= PARSER_BYTES and run["structured_output_bytes"] == 0
    more = serve["smallest_budget"] - run["smallest_budget"] - serve["structured_output_bytes"]
    assert 2 * MIB < more < 20 * MIB  # its libraries
    assert 2 * MIB < chat["smallest_budget"] - run["smallest_budget"] < 20 * MIB  # its line editor
    assert re.search(r"^structured output +2\d MiB of the process", call(bundle, "-c", 64, "-m", "1G", "--for",
                                                                         "serve").output, re.M)
    little = (serve["smallest_budget"] - 10 * MIB) // MIB
    shown = call(bundle, "-c", 64, "-m", f"{little}M", "--for", "serve").output
    assert re.search("^structured output +no room for it: schemas and required calls will be refused", shown, re.M)
    assert "is too small" in str(call(bundle, "-c", 64, "-m", f"{run['smallest_budget'] // MIB}M", "--for",
                                      "serve").exception)


def test_of_a_window(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    asked = (bundle, "-c", 64, "-m", "1G", "--for", "app")
    assert "the window, which is measured when it is open" in call(*asked).output
    (kept := tmp_path / "edgert" / "app" / "window_bytes.json").parent.mkdir(parents=True)
    kept.write_text(json.dumps({"window_bytes": 345 * MIB}))
    assert re.search(r"^beside the budget +345 MiB, the window when it was open last", call(*asked).output, re.M)
    assert answer(*asked)["window_bytes"] == 345 * MIB
    kept.write_text("{")
    assert answer(*asked)["window_bytes"] is None


def test_picture(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    assert call(bundle, "-c", 64, "--png", file).exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000
    with pytest.raises(OSError):
        picture(str(tmp_path / "none" / "plan.png"), "m", [Point(1, 1, 1), Point(2, 2, 3)], Point(1.5, 1.2, 1.4))


def test_picture_without_matplotlib(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = call(bundle, "-c", 64, "--png", tmp_path / "plan.png").exception
    assert isinstance(error, EdgertError)
    assert str(error) == "--png draws with matplotlib, which is not installed: pip install 'edgert[plot]'"
    assert not (tmp_path / "plan.png").exists()
    assert call(bundle, "-c", 64).exit_code == 0  # the plot in the terminal needs nothing


@pytest.mark.parametrize(("memory", "message"), [
    ("8M", r"a budget of 8\.0 MiB is too small: this model needs at least \d+ MiB"),
    ("0", r"a budget of 0\.0 MiB is too small"),
    ("600X", "'600X' is not a size"), ("-5", "'-5' is not a size"), ("", "is not a size"),
    ("9" * 400 + "G", "more memory than any machine has")])
def test_refusals(bundle: Path, memory: str, message: str) -> None:
    error = call(bundle, "-c", 64, f"--memory={memory}").exception
    assert isinstance(error, ModelError)
    assert re.search(message, str(error)) and "\n" not in str(error)


def test_other_refusals(bundle: Path, tmp_path: Path) -> None:
    assert "no such file" in str(call(tmp_path / "none.edge").exception)
    assert "context of 100000 tokens" in str(call(bundle, "-c", 100_000).exception)
    assert call(bundle, "-t", 0).exit_code == 2


def test_all_memory_is_more_than_enough(bundle: Path) -> None:
    values = answer(bundle, "-c", 64, "-m", "4G")
    assert values["bytes_per_token"] == 0 and values["limit"] == "computing" and values["left_over"] > 3 << 30


def test_charts() -> None:
    lines = parts_table({"a": 30 * MIB, "none": 0, "b": MIB}, 100 * MIB).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b", "left", "budget"]
    assert lines[0].endswith("█" * 12) and lines[2].count("█") == 28
    rows = curve([Point(100, 1, 1), Point(200, 4, 4)]).splitlines()
    assert rows[1].startswith("     4.0 ┤") and rows[-1].split() == ["100", "MiB", "budget", "200", "MiB"]
    assert curve([Point(100, 1, 1)]) and curve([Point(100, 1, 1), Point(100, 1, 1)])
    rows = curve([Point(100, 1, 2), Point(200, 4, 4)]).splitlines()
    assert rows[0].endswith("░ with speculation")
    assert [row.count("░") for row in rows[1:-2]] == [0] * 6 + [59] * 3 + [0] * 3


@settings(max_examples=30)
@given(st.integers(1, 10 ** 6), st.integers(0, 10 ** 6), st.integers(1, 60))
def test_budgets_are_few_and_hold_both_ends(smallest: int, span: int, rows: int) -> None:
    found = plan_command._budgets(smallest * MIB, (smallest + span) * MIB, rows)
    assert found[0] == smallest * MIB and found[-1] == (smallest + span) * MIB
    assert found == sorted(set(found)) and len(found) <= rows + 3
