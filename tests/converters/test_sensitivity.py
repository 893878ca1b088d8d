"""What bits cost is what the model does where one matrix has few, and a mix is the best there is for its size."""

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgert.bundle import Bundle
from edgert.converters import choosing, sensitivity
from edgert.converters.calibration import Calibration
from edgert.converters.command import command
from edgert.converters.convert import convert
from edgert.converters.mix import expected, for_loss, for_size, steps
from edgert.converters.open_source import open_source
from edgert.converters.quantizer import packed
from edgert.converters.sensitivity import FEWER, Part, Sensitivity, parts_of
from edgert.converters.source import Source
from edgert.errors import SourceError
from edgert.kernels.formats import FORMATS, unpack
from edgert.models.tensors import Role, TensorSpec

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("llama3-tied", "qwen2", "gemma2-bf16", "phi2", "gptneox", "olmo2", "granite")


class _Rounded:
    """A tensor as it comes back from a format."""

    def __init__(self, tensor: object, form: str) -> None:
        self._of, self.shape, self.type_name = tensor, tensor.shape, tensor.type_name  # type: ignore[attr-defined]
        values = tensor.read(0, self.shape[0])  # type: ignore[attr-defined]
        self._values = unpack(FORMATS[form], packed(FORMATS[form], values))[:self.shape[0], :self.shape[1]]

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._values[start:stop].copy()

    def grid(self, start: int, stop: int) -> None:
        return None


def windows(source: Source) -> np.ndarray:
    return np.random.default_rng(5).integers(0, source.config.vocab_size, (2, 24))


def last(source: Source, tokens: np.ndarray) -> np.ndarray:
    """What the output head gets to see, by the calibration pass."""
    role = Role.EMBEDDING if source.config.tie_word_embeddings else Role.HEAD
    head = next(spec.name for spec in source.config.tensors() if spec.role is role)
    found: list[np.ndarray] = []

    class Kept(Calibration):
        def _observe(self, x: np.ndarray, names: list[str], *, squares_alone: bool = False) -> None:
            found.append(x)
            super()._observe(x, names, squares_alone=squares_alone)

    Kept(source, tokens, {head}).moments(head)
    return found[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_model_with_those_matrices_rounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every part, whatever comes after it: in families whose attention and feed-forward part stand side by side,
    that have biases, norms behind, caps."""
    monkeypatch.setattr(sensitivity, "_FIRST", 0)
    source = open_source(str(GOLDEN / "models" / name))
    tokens, parts = windows(source), choosing.parts_to_choose(source)
    judged = Sensitivity(source, tokens, parts, lambda name: None)
    kept: list[np.ndarray] = []
    monkeypatch.setattr(judged, "_likeliest", lambda h, *rest: np.arange(source.config.vocab_size))
    norm = judged._normed
    monkeypatch.setattr(judged, "_normed", lambda values, weight: kept.append(made := norm(values, weight)) or made)
    judged.measure()
    copies = kept[-1].reshape(1 + len(judged._copied), tokens.size, -1)
    np.testing.assert_allclose(copies[0], last(source, tokens), rtol=1e-4, atol=1e-4)
    assert len(judged._copied) == len([part for part in parts if part.specs[0].role is not Role.HEAD])
    for part, copy in zip(judged._copied, copies[1:], strict=True):
        tensors = {**source.tensors, **{name: _Rounded(source.tensors[name], form)
                                        for name, form in part.formats("q3").items()}}
        alone = last(Source(source.config, tensors, source.tokenizer_json, source.generation, None), tokens)
        np.testing.assert_allclose(copy, alone, rtol=2e-3, atol=2e-3 * np.abs(alone).max())
        assert np.abs(copy - copies[0]).max() > 0
    for part in parts:
        losses = [part.losses[form] for form in FEWER]
        assert losses == sorted(losses, reverse=True) and losses[0] > losses[2] > 0


def some_parts() -> list[Part]:
    """Six of different sizes and losses."""
    random, found = np.random.default_rng(3), []
    for number in range(6):
        spec = TensorSpec(f"{number}", (16 * int(random.integers(1, 9)), 64), Role.DOWN, number, "")
        losses = np.sort(random.exponential(1, 4))[::-1] * 10 ** random.uniform(-2, 0)
        found.append(Part([spec], dict(zip(FEWER, losses.tolist(), strict=True))))
    return found


def size_of(parts: list[Part], chosen: list[str]) -> int:
    return sum(part.bytes(form) for part, form in zip(parts, chosen, strict=True))


def test_a_mix_is_the_best_there_is() -> None:
    """Of all 4,096, at the sizes on the way; at those between it fits, and a size that has no use is refused."""
    parts = some_parts()
    every = [(size_of(parts, list(chosen)), expected(parts, list(chosen))) for chosen in product(FEWER, repeat=6)]
    chosen = ["q2"] * 6
    for step in steps(parts):
        chosen[step.part] = step.form
        size, loss = size_of(parts, chosen), expected(parts, chosen)
        assert loss == min(of for bytes_, of in every if bytes_ <= size)
        assert for_size(parts, size, lambda mix: size_of(parts, mix)) == chosen
        between = for_size(parts, size - 1, lambda mix: size_of(parts, mix))
        assert size_of(parts, between) < size and expected(parts, between) > loss
        assert for_loss(parts, loss) == chosen
    assert for_loss(parts, 1e9) == ["q2"] * 6
    least, most = size_of(parts, ["q2"] * 6), size_of(parts, chosen)
    for size, what in ((least - 1, "is too small"), (most + 1, "is more than that can use")):
        with pytest.raises(SourceError, match=rf"--size {size:,} {what}.* {least:,} to {most:,} bytes"):
            for_size(parts, size, lambda mix: size_of(parts, mix))


def test_a_large_last_step_is_made_up_for() -> None:
    """What it gains more than is needed, others need not: they have their fewest bits again."""
    def part(rows: int, *losses: float) -> Part:
        return Part([TensorSpec("", (rows, 64), Role.DOWN, 0, "")], dict(zip(FEWER, losses, strict=True)))

    parts = [part(1600, 9.0, 0.0, 0.0, 0.0), part(16, 1.0, 0.0, 0.0, 0.0), part(16, 0.5, 0.0, 0.0, 0.0)]
    assert for_loss(parts, 1.5) == ["q3", "q2", "q2"]
    assert for_loss(parts, 0.6) == ["q3", "q3", "q2"]


def test_what_sections_are_filled_up_with_counts() -> None:
    """A bundle may be larger than the sum of its matrices; it is not larger than was asked for."""
    parts = some_parts()
    most = size_of(parts, ["q6"] * 6)
    filled = for_size(parts, most, lambda mix: size_of(parts, mix) + 100 * sum(form != "q2" for form in mix) // 6)
    assert size_of(parts, filled) <= most


def test_values_have_the_next_finer_format() -> None:
    source = open_source(str(GOLDEN / "models" / "qwen2"))
    part = parts_of([spec for spec in source.config.tensors() if spec.is_matrix and spec.layer == 0])[0]
    assert list(part.formats("q3").values()) == ["q3", "q3", "q4"]


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A model whose tokenizer makes enough tokens of the texts."""
    return Path(shutil.copytree(GOLDEN / "models" / "qwen2", tmp_path / "model"))


def test_a_bundle_of_a_size(told: Path, tmp_path: Path) -> None:
    """Its formats are several, its header says what was asked for, and it is the same when it is made again."""
    sizes = {}
    for name in ("q2", "q6"):
        convert(str(told), tmp_path / f"{name}.edge", name)
        sizes[name] = (tmp_path / f"{name}.edge").stat().st_size
    asked = (sizes["q2"] + sizes["q6"]) // 2
    seen: list[str] = []
    convert(str(told), tmp_path / "m.edge", size=asked, progress=lambda what, done, total: seen.append(what))
    convert(str(told), tmp_path / "again.edge", size=asked)
    assert (tmp_path / "m.edge").read_bytes() == (tmp_path / "again.edge").read_bytes()
    assert (tmp_path / "m.edge").stat().st_size <= asked and seen[0] == "what bits cost"
    with Bundle(tmp_path / "m.edge") as bundle:
        quantization = bundle.header.quantization
        assert quantization["preset"] == "mixed" and quantization["size"] == asked
        assert 0 < quantization["expected_loss"] < 5


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--size", "40K", "--preset", "q3"], "--size chooses formats, and so does --preset: give one"),
    (["--size", "large"], "'large' is not a size; write it like 600M or 1.5G"),
    (["--size", "1K"], "--size 1,024 is too small: with 2 to 6 bits a weight a bundle of this model has "),
    (["--size", "1G"], "--size 1,073,741,824 is more than that can use (--preset q8 and f16 keep more): with 2 to 6 ")])
def test_what_is_refused(told: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(command, [str(told), str(tmp_path / "m.edge"), *arguments])
    assert result.exit_code != 0 and sentence in f"{result.output}{result.exception}"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_with_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="are not for models with experts; take another preset, such as q4"):
        convert(str(GOLDEN / "models" / "mixtral"), tmp_path / "m.edge", "q3")
    assert not list(tmp_path.iterdir())
