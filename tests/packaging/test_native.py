from __future__ import annotations

import platform
from pathlib import Path
from types import ModuleType

import pytest

import mmer

AVX2 = ["sse4_2", "avx", "f16c", "fma", "avx2"]
AVX512 = [*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl"]
CPUINFO = Path("/proc/cpuinfo")


def test_build_information(native: ModuleType) -> None:
    information = native.build_information()
    assert information["version"] == mmer.__version__
    assert "-std=c++17" in information["flags"]
    assert information["torch_target_version"] == "2.10"
    assert all(information.values())
    assert "march=native" not in information["flags"]


@pytest.mark.skipif(
    not CPUINFO.exists() or platform.machine() != "x86_64", reason="needs Linux on x86-64"
)
def test_features_are_those_the_kernel_reports(native: ModuleType) -> None:
    line = next(x for x in CPUINFO.read_text().splitlines() if x.startswith("flags"))
    reported = set(line.partition(":")[2].split())
    for feature, present in native.cpu_features().items():
        assert present == (feature in reported), feature


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ([], "portable"),
        (["neon"], "neon"),
        (["sse4_2", "avx", "avx2"], "portable"),
        (AVX2, "avx2"),
        ([*AVX2, "avx512f", "avx512_bf16"], "avx2"),
        (AVX512, "avx512"),
        ([*AVX512, "avx512_bf16"], "avx512_bf16"),
        ([*AVX512, "amx_bf16"], "avx512"),
        ([*AVX512, "avx512_bf16", "amx_bf16"], "amx"),
    ],
)
def test_best_capability_is_chosen(native: ModuleType, features: list[str], chosen: str) -> None:
    assert native.choose_cpu_capability(features) == chosen


@pytest.mark.parametrize("requested", ["portable", "avx2", "avx512"])
def test_a_lesser_capability_can_be_requested(native: ModuleType, requested: str) -> None:
    assert native.choose_cpu_capability([*AVX512, "avx512_bf16"], requested) == requested


def test_a_capability_that_cannot_run_is_refused(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"MMER_CPU_CAPABILITY is avx512, .* only avx2, portable"):
        native.choose_cpu_capability(AVX2, "avx512")


def test_unknown_names_are_refused(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"MMER_CPU_CAPABILITY must be one of .*avx2.* got sse9"):
        native.choose_cpu_capability(AVX2, "sse9")
    with pytest.raises(ValueError, match="unknown CPU feature sse9"):
        native.choose_cpu_capability(["sse9"])


def test_the_environment_variable_is_honoured(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMER_CPU_CAPABILITY", raising=False)
    present = [name for name, here in native.cpu_features().items() if here]
    assert native.cpu_capability() == native.choose_cpu_capability(present)
    monkeypatch.setenv("MMER_CPU_CAPABILITY", "portable")
    assert native.cpu_capability() == "portable"
    monkeypatch.setenv("MMER_CPU_CAPABILITY", "nonsense")
    with pytest.raises(ValueError, match="MMER_CPU_CAPABILITY"):
        native.cpu_capability()


def test_arithmetic_peaks(native: ModuleType) -> None:
    peaks = native.measure_arithmetic_peaks(threads=2, seconds=0.001)
    features = native.cpu_features()
    assert ("float32" in peaks) == ((features["avx2"] and features["fma"]) or features["neon"])
    assert ("avx512_bf16" in peaks) == features["avx512_bf16"]
    assert set(peaks) <= {"float32", "avx512_bf16", "amx_bf16"}
    # Faster than one addition in ten nanoseconds, slower than any CPU.
    assert all(1e8 < speed < 1e15 for speed in peaks.values())


def test_arithmetic_peaks_refuse_nonsense(native: ModuleType) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1"):
        native.measure_arithmetic_peaks(threads=0)
    with pytest.raises(ValueError, match="seconds must lie in"):
        native.measure_arithmetic_peaks(threads=1, seconds=0.0)
