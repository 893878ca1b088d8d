"""What leaving out experts costs: the curve is that of whole logits, and measuring it changes nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import change_header, write_bundle

from edgert.bundle import Bundle
from edgert.converters import calibration
from edgert.converters.calibration import Calibration
from edgert.converters.layout import lay_out
from edgert.converters.left_out import CURVE_BYTES, Divergence, measuring_window, routed, thresholds_of
from edgert.converters.open_source import open_source
from edgert.converters.presets import preset
from edgert.converters.source import Source
from edgert.errors import BundleError

GOLDEN = Path(__file__).parents[1] / "golden"
MIXTURES = ("mixtral", "olmoe", "qwen3moe", "qwen2moe", "gptoss", "deepseek", "granitemoe")


def golden(name: str) -> tuple[Source, np.ndarray]:
    with np.load(GOLDEN / f"logits-{name}.npz", allow_pickle=False) as file:
        return open_source(str(GOLDEN / "models" / name)), file["tokens"][None].astype(np.int64)


def divergences(logits: np.ndarray) -> np.ndarray:
    """Of (distributions, tokens, vocabulary) those of all but the first from it, by the definition."""
    logits = logits.astype(np.float64)
    logs = logits - logits.max(2, keepdims=True)
    logs -= np.log(np.exp(logs).sum(2, keepdims=True))
    return (np.exp(logs[0]) * (logs[0] - logs[1:])).sum(2).mean(1)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_curve_is_that_of_whole_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with all experts are transformers'. The more is left out the fewer stay, and the more it costs."""
    source, tokens = golden(name)
    seen: list[np.ndarray] = []
    add = Divergence.add
    monkeypatch.setattr(Divergence, "add", lambda self, logits: (seen.append(logits.copy()), add(self, logits)))
    monkeypatch.setattr(calibration, "_VALUES_AT_ONCE", 40000)  # the head comes in parts
    thresholds = thresholds_of(source.config)
    found = Calibration(source, tokens, set(), thresholds=thresholds).left_out_losses()
    assert len(seen) > 1 and [point[0] for point in found] == thresholds
    logits = np.concatenate(seen, 2)
    with np.load(GOLDEN / f"logits-{name}.npz", allow_pickle=False) as file:
        kept = file["kept"] if "kept" in file else np.arange(tokens.size)
        assert np.abs(logits[0][kept] - file["logits"]).max() < 2e-3 * np.abs(file["logits"]).max()
    nats, stay, missed = ([point[i] for point in found] for i in (1, 2, 3))
    assert np.allclose(nats, np.maximum.accumulate(divergences(logits)), rtol=1e-3, atol=2e-6)
    assert nats[-1] > 0 and nats == sorted(nats)
    assert source.config.experts_per_token >= stay[0] > stay[-1] >= 1
    assert 1 >= missed[0] > missed[-1] >= 0


def test_nothing_else_changes() -> None:
    """Moments, and which experts the text's tokens have, are those of the text alone."""
    source, tokens = golden("mixtral")
    names = {spec.name for spec in source.config.tensors() if spec.name.endswith(("q_proj.weight", "lm_head.weight"))}
    alone, beside = (Calibration(source, tokens, names, thresholds=some) for some in ((), (0.2, 0.4)))
    for layer in range(source.config.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        assert np.allclose(alone.moments(name), beside.moments(name), rtol=1e-5, atol=1e-6)
        assert np.array_equal(alone.active(layer), beside.active(layer))
    assert np.allclose(alone.moments("lm_head.weight"), beside.moments("lm_head.weight"), rtol=1e-4, atol=1e-5)
    head = source.tensors["lm_head.weight"].shape
    assert beside.weights == alone.weights + head[0] * head[1]
    assert alone.left_out_losses() == [] and len(beside.left_out_losses()) == 2


def test_it_goes_on_from_any_layer() -> None:
    """Also from the end, after what it costs is known."""
    source, tokens = golden("olmoe")
    whole = Calibration(source, tokens, set(), thresholds=[0.3, 0.5])
    expected, again = whole.left_out_losses(), Calibration(source, tokens, set(), thresholds=[0.3, 0.5])
    layers = source.config.num_hidden_layers
    for layer in range(layers + 1):
        if layer < layers:
            again.active(layer)
        else:
            again.left_out_losses()
        state = again.state()
        assert state is not None
        fresh = Calibration(source, tokens, set(), thresholds=[0.3, 0.5])
        fresh.go_on(state)
        assert fresh.left_out_losses() == expected


def test_what_the_text_is_measured_with() -> None:
    """The beginnings of windows from all over it."""
    windows = np.arange(160).reshape(16, 10)
    assert measuring_window(windows).tolist() == [0, 1, 2, 50, 51, 52, 100, 101, 102, 150]
    assert measuring_window(windows[:1]).tolist() == list(range(10))


@pytest.mark.parametrize("normalized", [True, False])
def test_routed(normalized: bool) -> None:
    logits = np.log(np.array([[4, 3, 2, 1], [1, 1, 1, 1]], np.float32))
    for threshold, stay in ((0.0, [[1, 1, 1, 0], [1, 1, 1, 0]]), (0.3, [[1, 1, 0, 0], [1, 1, 1, 0]]),
                            (0.34, [[1, 0, 0, 0], [1, 0, 0, 0]])):
        weights, active = routed(logits, 3, threshold, normalized=normalized)
        assert active.tolist() == [[bool(one) for one in row] for row in stay]
        expected = np.exp(logits) * stay
        expected /= expected.sum(1, keepdims=True) if normalized else np.exp(logits).sum(1, keepdims=True)
        assert np.allclose(weights * active, expected, rtol=1e-6)


def test_there_is_room_in_the_header() -> None:
    """Whatever the numbers are."""
    source, _ = golden("mixtral")
    header = lay_out(source, preset("q4"), {})
    before = len(header.to_json())
    header.quantization["expert_loss"] = [[0.1234, 100.123456, 1023.123456, 0.123456]] * 6
    assert before < len(header.to_json()) <= before + CURVE_BYTES


SHAPE: dict[str, Any] = {"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2}


def test_curves_that_are_refused(tmp_path: Path) -> None:
    """And one that is missing is none."""
    path = write_bundle(tmp_path / "m.edge", "q4", **SHAPE)

    def changed(curve: Any) -> Path:
        return change_header(path, tmp_path / "changed.edge", lambda h: h["quantization"].update(expert_loss=curve))

    for curve in ({}, 3, [3], [[0.1, 0.1, 2]], [[0.1, 0.1, "2", 1]], [[0.1, True, 2, 1]], [[0.0, 0.1, 2, 1]],
                  [[1.0, 0.1, 2, 1]], [[0.1, -0.1, 2, 1]], [[0.1, 101, 2, 1]], [[0.1, 0.1, 0.5, 1]],
                  [[0.1, 0.1, 2.5, 1]], [[0.1, 0.1, 2, 1.1]], [[0.1, 0.1, 2, -1]], [[0.1, 1e400, 2, 1]],
                  [[0.2, 0.1, 2, 1], [0.1, 0.2, 1, 1]], [[0.1, 0.2, 2, 1], [0.2, 0.1, 1, 1]]):
        with pytest.raises(BundleError, match="header is not"):
            Bundle(changed(curve))
    with Bundle(changed([[0.1, 0.01, 2, 1], [0.2, 0.01, 1.5, 0.6], [0.3, 0.05, 1, 0]])) as bundle:
        assert [bundle.header.left_out_for(loss) for loss in (0.0, 0.005)] == [None, None]
        assert [left and left.threshold for left in map(bundle.header.left_out_for, (0.011, 0.05, 0.06, 1))] == [
            0.2, 0.2, 0.3, 0.3]
    missing = change_header(path, tmp_path / "missing.edge", lambda h: h["quantization"].pop("expert_loss"))
    with Bundle(missing) as bundle:
        assert bundle.header.losses == [] and bundle.header.left_out_for(1.0) is None
