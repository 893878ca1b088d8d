import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert.kernels.simd import target as module
from edgert.kernels.simd.target import ARM, TARGETS, VARIABLE, X86, choose, executable_targets, processor_features

VNNI = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Makes this machine another one."""
    def to_be(machine: str, *features: str, forced: str | None = None) -> None:
        monkeypatch.setattr(module, "machine", lambda: machine)
        monkeypatch.setattr(module, "processor_features", lambda: frozenset(features))
        if forced is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, forced)

    return to_be


@pytest.mark.parametrize(("machine", "features", "names"), [
    (X86, VNNI, ["avx512vnni", "avx2", "plain"]),
    (X86, VNNI | {"avx_vnni"}, ["avx512vnni", "avxvnni", "avx2", "plain"]),
    (X86, VNNI - {"avx512vl"}, ["avx2", "plain"]),
    (X86, {"avx2", "fma", "f16c", "avx_vnni"}, ["avxvnni", "avx2", "plain"]),
    (X86, {"avx2", "fma"}, ["plain"]),
    (X86, {"asimddp"}, ["plain"]),
    (ARM, {"asimd", "asimddp"}, ["neon-dotprod", "plain"]),
    (ARM, {"asimd"}, ["plain"]),
])
def test_best_first(pretend: Pretend, machine: str, features: set[str], names: list[str]) -> None:
    pretend(machine, *features)
    assert [t.name for t in executable_targets()] == names
    assert choose().name == names[0]
    assert choose().machine == machine


def test_a_forced_target_is_taken_and_believed(pretend: Pretend) -> None:
    pretend(X86, *VNNI, forced="avx2")
    assert choose().name == "avx2"
    pretend(ARM, forced="neon-dotprod")
    assert choose().name == "neon-dotprod", "under emulation the features are the host's"


def test_an_unknown_name_says_what_there_is(pretend: Pretend) -> None:
    pretend(X86, *VNNI, forced="neon-dotprod")
    with pytest.raises(ValueError, match=r"EDGERT_SIMD=neon-dotprod.*avx512vnni, avx2, plain"):
        choose()


def test_other_processors_are_refused(pretend: Pretend) -> None:
    pretend("riscv64")
    assert executable_targets() == []
    with pytest.raises(ValueError, match="riscv64"):
        choose()


@pytest.mark.parametrize(("system", "name"), [("AMD64", X86), ("x86_64", X86), ("arm64", ARM), ("aarch64", ARM)])
def test_names_of_machines(monkeypatch: pytest.MonkeyPatch, system: str, name: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: system)
    assert module.machine() == name


@pytest.mark.parametrize(("text", "features"), [
    ("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: other\n", {"fpu", "avx2", "fma"}),
    ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", {"fp", "asimd", "asimddp"}),
    ("nothing of use\n", set()),
])
def test_features_are_read_from_cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str, features: set[str]) -> None:
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda _path: text)
    assert processor_features() == features


def test_without_cpuinfo_there_are_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", missing)
    assert processor_features() == frozenset()


def test_every_machine_has_a_plain_target_last() -> None:
    for machine in (X86, ARM):
        last = [t for t in TARGETS if t.machine == machine][-1]
        assert last.name == "plain" and not last.needs
