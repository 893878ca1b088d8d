"""What speculation is expected to bring."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tiny_model import write_bundle

from edgert.bundle import Bundle, Header
from edgert.bundle.header import HEAD
from edgert.memory.plan import Plan, Planner
from edgert.memory.prediction import Speculation, predict, tokens_per_pass
from edgert.residency.device import Device

DISK = Device("a test's", True, 1 << 18, 2, 1e7, 1e-5, [])
SECONDS = {1: (0.008, 0.002), 4: (0.012, 0.003), 16: (0.03, 0.004), 64: (0.1, 0.004)}
DRAFT_SECONDS = 0.002, 0.005
"""Without neurons, and with the base planes of all."""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Header]:
    path = write_bundle(tmp_path_factory.mktemp("prediction") / "m.edge", num_hidden_layers=4, hidden_size=256,
                        intermediate_size=4096, vocab_size=8000)
    with Bundle(path) as bundle:
        yield bundle.header


def plan(header: Header, bases: float, details: float, *, attention: float = 1, head: float = 1) -> Plan:
    """With these shares in memory."""
    planner = Planner(header, process=0, context=64, cache_type="f16", chunk=64, threads=1)
    made = planner.plan((planner.smallest(DISK) + planner.whole) // 2, lambda: DISK)
    shares = {n.section: bases for n in header.neurons} | {n.details: details for n in header.neurons} | {HEAD: head}
    pinned = {layout.name: int(shares.get(layout.name, attention) * layout.count) for layout in header.streamable()}
    parts = {**made.parts, "pinned output head": int(head * header.sections[HEAD].length)}
    streamed = sum(layout.bytes_of(pinned[layout.name]) for layout in header.streamable())
    return replace(made, placement=replace(made.placement, pinned=pinned), parts=parts, streamed=streamed,
                   verify_rows=17)


def speculation(header: Header, bases: float, details: float, **shares: float) -> Speculation | None:
    return predict(header, plan(header, bases, details, **shares), DISK, SECONDS.__getitem__, DRAFT_SECONDS).speculation


def test_tokens_per_pass() -> None:
    """The sum of agreement**n, (1 - p**(k + 1)) / (1 - p)."""
    assert [tokens_per_pass(p, 3) for p in (0.0, 0.5, 1.0)] == [1, 1.875, 4]
    assert tokens_per_pass(0.8, 5) == pytest.approx((1 - 0.8 ** 6) / 0.2)


@pytest.mark.parametrize(("bases", "details", "agreement"), [
    (0.67, 0, 0.56), (1, 0, 0.77), (1, 0.43, 0.88)])
def test_agreement_is_what_was_measured(header: Header, bases: float, details: float, agreement: float) -> None:
    found = speculation(header, bases, details)
    assert found is not None and found.agreement == pytest.approx(agreement, abs=0.02)


def test_more_in_memory_agrees_more(header: Header) -> None:
    found = [speculation(header, *shares) for shares in ((0.3, 0), (0.6, 0), (0.9, 0), (1, 0), (1, 0.3), (1, 0.9))]
    agreements = [s.agreement for s in found if s is not None]
    assert agreements == sorted(agreements) and len(agreements) == len(found)
    assert agreements[-1] < 1


def test_the_best_number_of_guesses(header: Header) -> None:
    """What it takes is guesses, and a pass that reads as much as for one token or computes longer."""
    made = plan(header, 1, 0)
    prediction = predict(header, made, DISK, SECONDS.__getitem__, DRAFT_SECONDS)
    found = prediction.speculation
    assert found is not None and 1 < found.guesses <= 16
    assert found.tokens_per_pass == tokens_per_pass(found.agreement, found.guesses)
    assert found.verify_s == pytest.approx(made.streamed / DISK.bandwidth)
    # All layers with their base planes, all of the output head, and Python.
    assert found.draft_s == pytest.approx(0.005 + 0.002 + 3e-4)
    assert found.decode_tok_s == pytest.approx(
        found.tokens_per_pass / (found.guesses * found.draft_s + found.verify_s))
    assert prediction.best_tok_s == found.decode_tok_s > prediction.decode_tok_s
    for guesses in range(1, 17):
        other = tokens_per_pass(found.agreement, guesses) / (guesses * found.draft_s + found.verify_s)
        assert other <= found.decode_tok_s + 1e-9
    few = predict(header, replace(made, verify_rows=4), DISK, SECONDS.__getitem__, DRAFT_SECONDS).speculation
    assert few is not None and few.guesses <= 3


def test_a_draft_costs_what_takes_part_in_it(header: Header) -> None:
    nothing, half, all_bases, details = (speculation(header, *shares, head=head) for *shares, head in (
        (0.02, 0, 0.25), (0.5, 0, 1), (1, 0, 1), (1, 0.5, 1)))
    assert half is not None and all_bases is not None and details is not None
    assert half.draft_s == pytest.approx(0.0035 + 0.002 + 3e-4)
    assert details.draft_s == pytest.approx(0.0065 + 0.002 + 3e-4)
    assert nothing is None or nothing.draft_s < half.draft_s


@pytest.mark.parametrize("shares", [
    {"bases": 1, "details": 1, "attention": 1},  # nothing is streamed
    {"bases": 1, "details": 0, "attention": 0.5}, {"bases": 0, "details": 0}, {"bases": 1, "details": 0, "head": 0}])
def test_what_makes_no_draft(header: Header, shares: dict[str, float]) -> None:
    assert speculation(header, **shares) is None


def test_where_guessing_would_not_pay(header: Header) -> None:
    """On a disk that is faster than computing."""
    prediction = predict(header, plan(header, 1, 0), replace(DISK, bandwidth=1e12), SECONDS.__getitem__, (1.0, 1.0))
    assert prediction.speculation is None and prediction.best_tok_s == prediction.decode_tok_s
