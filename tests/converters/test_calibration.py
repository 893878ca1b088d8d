"""The calibration pass computes what the model computes, and keeps the moments that are asked for."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from edgert.converters import calibration
from edgert.converters.calibration import Calibration
from edgert.converters.calibration_text import shipped_windows
from edgert.converters.convert import convert
from edgert.converters.open_source import open_source
from edgert.converters.source import Source
from edgert.models.tensors import Role

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("llama3-tied", "llama-f16", "qwen2-bf16-tied", "qwen2", "llama-relu", "qwen2-relu2", "opt",
         "gemma2-bf16", "gemma3")


def golden(name: str) -> tuple[Source, np.ndarray, np.ndarray, str]:
    """A model, tokens as windows, transformers' logits after each, without their cap, and the name of the output
    head."""
    with np.load(GOLDEN / f"logits-{name}.npz", allow_pickle=False) as file:
        tokens, logits = file["tokens"][None].astype(np.int64), file["logits"].astype(np.float64)
    source = open_source(str(GOLDEN / "models" / name))
    if (cap := source.config.logit_softcap) is not None:
        logits = cap * np.arctanh(logits / cap)
    role = Role.EMBEDDING if source.config.tie_word_embeddings else Role.HEAD
    return source, tokens, logits, next(spec.name for spec in source.config.tensors() if spec.role is role)


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_those_of_transformers(name: str) -> None:
    """The head's inputs have second moments M where the logits have W M W': of all layers before, nothing is wrong."""
    source, tokens, logits, head = golden(name)
    moments = Calibration(source, tokens, {head}).moments(head)
    weights = source.tensors[head].read(0, source.config.vocab_size).astype(np.float64)
    expected = logits.T @ logits / len(logits)
    assert np.abs(weights @ moments @ weights.T - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_windows_do_not_see_each_other(name: str) -> None:
    source, tokens, _, head = golden(name)
    both = Calibration(source, np.concatenate([tokens, tokens[:, ::-1]]), {head}).moments(head)
    each = [Calibration(source, window, {head}).moments(head) for window in (tokens, tokens[:, ::-1])]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-4 * np.abs(both).max())


def test_wide_inputs_have_squares_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source, tokens, _, head = golden("qwen2")
    whole = Calibration(source, tokens, {head}).moments(head)
    assert whole.shape == (32, 32)
    monkeypatch.setattr(calibration, "WHOLE", 31)
    np.testing.assert_allclose(Calibration(source, tokens, {head}).moments(head), np.diag(whole), rtol=1e-5)


def test_inputs_of_the_down_projection() -> None:
    """For one token the moments of what gate and up get are that vector times itself, so what down gets is known."""
    source, tokens, _, _ = golden("llama-f16")
    gate, up, down = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
    made = Calibration(source, tokens[:, :1], {gate, down})
    moments, squares = made.moments(gate), made.moments(down)
    column = int(np.argmax(np.diag(moments)))
    x = moments[column] / np.sqrt(moments[column, column])
    gates, ups = (source.tensors[name].read(0, source.config.intermediate_size) for name in (gate, up))
    either = [np.square(g / (1 + np.exp(-g)) * (ups @ x)) for g in (gates @ x, -(gates @ x))]  # x or -x
    assert min(np.abs(squares - expected).max() for expected in either) < 1e-4 * squares.max()


def test_inputs_of_the_down_projection_without_a_gate() -> None:
    """For one token, as above; and most of them are zeros."""
    source, tokens, _, _ = golden("opt")
    up, down = (f"model.decoder.layers.0.fc{part}" for part in (1, 2))
    made = Calibration(source, tokens[:, :1], {up + ".weight", down + ".weight"})
    moments, squares = made.moments(up + ".weight"), made.moments(down + ".weight")
    column = int(np.argmax(np.diag(moments)))
    x = moments[column] / np.sqrt(moments[column, column])
    neurons = source.config.intermediate_size
    rows, bias = (source.tensors[f"{up}.{part}"].read(0, neurons) for part in ("weight", "bias"))
    either = [np.square(np.maximum(rows @ signed + bias, 0)) for signed in (x, -x)]
    assert min(np.abs(squares - expected).max() for expected in either) < 1e-4 * squares.max()
    assert 0.25 < (squares == 0).mean() < 0.75


def test_windows_end_with_the_context() -> None:
    """Behind it there are no learned positions."""
    source, tokens, _, head = golden("opt")
    long = np.tile(tokens, 3)
    assert long.shape[1] > source.config.max_position_embeddings == 128
    made, expected = (Calibration(source, windows, {head}).moments(head) for windows in (long, long[:, :128]))
    assert np.array_equal(made, expected)


def test_matrices_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight is read once, whatever is read at a time."""
    source, tokens, _, head = golden("qwen2")
    seen: list[int] = []
    once = Calibration(source, tokens, {head}).moments(head)
    monkeypatch.setattr(calibration, "_VALUES_AT_ONCE", 100)
    made = Calibration(source, tokens, {head}, seen.append)
    np.testing.assert_allclose(made.moments(head), once, rtol=1e-4, atol=1e-5 * np.abs(once).max())
    assert sum(seen) == made.weights and len(seen) > 100
    assert made.weights == sum(math.prod(spec.shape) for spec in source.config.tensors() if spec.is_matrix
                               and spec.role not in (Role.EMBEDDING, Role.HEAD))


def test_one_input_of_several_matrices() -> None:
    source, tokens, _, _ = golden("qwen2")
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    made = Calibration(source, tokens, set(names))
    q, k, v = (made.moments(name) for name in names)
    assert (q == k).all() and (q == v).all()


def test_a_tokenizer_that_makes_nothing_of_it(tmp_path: Path) -> None:
    """Then a bundle is made as without calibrating."""
    folder = write_model(tmp_path / "model", tie_word_embeddings=False)
    letters = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(re.sub('"([a-p])":', lambda letter: f'"{letter[1]}{letter[1]}":', letters))
    assert shipped_windows(open_source(str(folder))) is None
    made = [tmp_path / name for name in ("a.edge", "b.edge")]
    for path, calibrate in zip(made, (True, False), strict=True):
        convert(str(folder), path, calibrate=calibrate)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_values_that_are_not_finite_are_no_reason_to_fail(tmp_path: Path) -> None:
    """Weights that the bundle can hold, though products of them overflow: they are rounded as without calibrating."""
    folder = write_model(tmp_path / "model", size=1e25, tie_word_embeddings=False)
    made = [tmp_path / name for name in ("a.edge", "b.edge")]
    for path, calibrate in zip(made, (True, False), strict=True):
        convert(str(folder), path, calibrate=calibrate)
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize("name", ["llama-f16", "qwen2"])
def test_a_conversion_is_the_same_each_time(tmp_path: Path, name: str) -> None:
    """And another one where it was not calibrated."""
    contents = []
    for number, calibrate in enumerate((True, True, False)):
        path = tmp_path / f"{number}.edge"
        convert(str(GOLDEN / "models" / name), path, calibrate=calibrate)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_progress_ends_with_all_done(tmp_path: Path) -> None:
    """What is calibrated and what is written, one count."""
    seen: list[tuple[str, int, int]] = []
    convert(str(GOLDEN / "models" / "qwen2"), tmp_path / "m.edge", progress=lambda *report: seen.append(report))
    done = [done for what, done, _ in seen if not what.startswith("reading")]
    assert done == sorted(done) and seen[-1][1] == seen[-1][2]
    assert "calibrating" in {report[0] for report in seen}
