"""Build of mmer. Metadata is in pyproject.toml; here are the packages and the compiled parts.

Every compiled part is optional: one that cannot be built is left out, and ``mmer/_build_info.json``
keeps the reason, which ``mmer doctor`` shows.

Environment:
    MMER_BUILD: ``auto`` (default) leaves out what cannot be built, ``require`` fails instead,
        ``none`` compiles nothing.
    FORCE_CUDA: ``1`` builds the CUDA kernels even if the installed torch is a CPU build, and fails
        where they cannot be built; ``0`` leaves them out. By default they are built for a torch
        with CUDA.
    TORCH_CUDA_ARCH_LIST: what they are built for, as for torch: ``"8.0;9.0+PTX"`` by default.
    CUDA_HOME, CUDA_PATH: where the CUDA toolkit is; otherwise that of the nvcc on the PATH.
    MAX_JOBS: how many compilers run at once; one per core by default.
    CXX, CPPFLAGS, CXXFLAGS, LDFLAGS: as for any C++ build.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import BoundedSemaphore

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
BUILD_INFO = Path("mmer", "_build_info.json")
TORCH_MINIMUM = (2, 10)
# The format of torch's headers: a byte each for major and minor version, then six of zeros.
TORCH_TARGET_VERSION = f"0x{TORCH_MINIMUM[0]:02x}{TORCH_MINIMUM[1]:02x}000000000000"
COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
SHARED_FLAGS = (
    ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
)
# The CPU kernels are one source, compiled once for each set of instructions and chosen from when
# they run. An AVX-512 copy of anything shared would crash older CPUs: the source exports a table.
KERNELS = "csrc/cpu/kernels.cpp"
# Loops that fill a few vectors are no calls of memset.
KERNEL_FLAGS = [
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    "-fno-tree-loop-distribute-patterns",
]
# GCC's own headers for AVX-512 make use of variables that are not initialized.
AVX512_FLAGS = [
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    *("-mprefer-vector-width=512", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
X86_KERNELS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512_FLAGS,
    "avx512_bf16": [*AVX512_FLAGS, "-mavx512bf16"],
    "amx": [*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
# Every 64-bit ARM has NEON.
ARM_KERNELS: dict[str, list[str]] = {"portable": [], "neon": []}
OTHER_KERNELS: dict[str, list[str]] = {"portable": []}
# The CUDA kernels, compiled once for each type of elements. A virtual architecture (+PTX) is
# compiled by the driver for GPUs that came later.
CUDA_ELEMENTS = ("float32", "float16", "bfloat16")
CUDA_KERNELS = [
    (f"csrc/cuda/{name}.cu", element)
    for name in (
        "owner_backward",
        "directed_forward",
        "shared_forward",
        "shared_short",
        "once_backward",
        "small_kernels",
    )
    for element in CUDA_ELEMENTS
    if element != "float32" or name not in ("shared_forward", "shared_short", "once_backward")
]
# From a call to the launches of its kernels, for the operators and for tests without a GPU.
CUDA_PLANS = [
    f"csrc/cuda/plan_{name}.cpp"
    for name in ("forward", "backward", "once_backward", "chunks", "parts")
]
# From which architecture on a source is compiled for its own: shared_forward has instructions of
# 9.0, and shared_short, compiled for 8.0, spills registers on 10.0 and 12.0.
CUDA_KERNELS_OF_ARCHITECTURES = {
    "csrc/cuda/shared_forward.cu": 90,
    "csrc/cuda/shared_short.cu": 100,
}
CUDA_ARCHITECTURES = "8.0;9.0+PTX"
OLDEST_ARCHITECTURE = 80
NVCC_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]


class LeftOut(Exception):
    """A part cannot be built here; the message is the reason."""


class NotWanted(LeftOut):
    """A part is not asked for here, which is no failure even where every part is required."""


@dataclass(frozen=True)
class Needs:
    """What a part needs beyond the flags that all parts share.

    Attributes:
        compile_flags: of the sources in C++.
        link_flags: of the library.
        kernels: further objects, each a command that makes it, its source and its name.
    """

    compile_flags: Sequence[str] = ()
    link_flags: Sequence[str] = ()
    kernels: Sequence[tuple[Sequence[str], str, str]] = ()


def all_packages() -> list[str]:
    """Return every package of the distribution; the folder kernels/ is imported as mmer.kernels."""
    # The symlink mmer/kernels shows the same folder to type checkers, and is absent from an sdist.
    inside_mmer = find_packages(include=["mmer", "mmer.*"], exclude=["mmer.kernels*"])
    inside_kernels = [f"mmer.kernels.{name}" for name in find_packages("kernels")]
    return [*inside_mmer, "mmer.kernels", *inside_kernels]


def build_mode() -> str:
    """Return the value of MMER_BUILD."""
    mode = os.environ.get("MMER_BUILD", "auto")
    if mode not in ("auto", "require", "none"):
        raise SetupError(f"MMER_BUILD must be auto, require or none, got {mode!r}")
    return mode


def max_jobs() -> int:
    """Return how many compilers may run at once."""
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not jobs.isdecimal() or int(jobs) < 1:
        raise SetupError(f"MAX_JOBS must be a positive integer, got {jobs!r}")
    return int(jobs)


def environment_flags(name: str) -> list[str]:
    """Return the flags that an environment variable holds."""
    return shlex.split(os.environ.get(name, ""))


def text_macro(name: str, text: str) -> str:
    """Return the flag that defines a macro as a string literal."""
    return f"-D{name}={json.dumps(text)}"


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: CXX, or the first one found."""
    if sys.platform == "win32":
        raise LeftOut("the compiled parts are built on Linux and macOS only")
    if os.environ.get("CXX"):
        return environment_flags("CXX")
    python_was_built_with = shlex.split(sysconfig.get_config_var("CXX") or "")
    for command in (python_was_built_with, ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise LeftOut("no C++ compiler was found; install g++ or clang++, or set CXX")


def accepts(compiler: Sequence[str], flags: Sequence[str]) -> bool:
    """Say whether the compiler knows the flags."""
    command = [*compiler, *environment_flags("CXXFLAGS"), *flags, "-x", "c++", "-fsyntax-only", "-"]
    try:
        return subprocess.run(command, input=b"", capture_output=True).returncode == 0
    except OSError:
        return False


def kernel_sets(compiler: Sequence[str]) -> dict[str, list[str]]:
    """Return the sets of CPU kernels that the compiler can build for its machine, with flags."""
    command = [*compiler, *environment_flags("CXXFLAGS"), "-dumpmachine"]
    try:
        target = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        target = platform.machine()
    machine = target.strip().partition("-")[0].lower()
    if machine in ("x86_64", "amd64"):
        known = X86_KERNELS
    else:
        known = ARM_KERNELS if machine in ("aarch64", "arm64") else OTHER_KERNELS
    return {name: flags for name, flags in known.items() if accepts(compiler, flags)}


def find_torch() -> Path:
    """Return the folder of the installed torch, found without importing it."""
    spec = find_spec("torch")
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    # An isolated build does not see the environment's packages, but knows where they are.
    folders += [
        Path(place, "torch")
        for place in (
            sysconfig.get_path("platlib"),
            sysconfig.get_path("purelib"),
            site.getusersitepackages(),
        )
    ]
    for folder in folders:
        if (folder / "include" / "torch" / "csrc" / "stable").is_dir():
            return folder
    raise LeftOut(
        "torch was not found when mmer was built; now that it is installed, build mmer again with "
        "`pip install --force-reinstall --no-deps --no-cache-dir` and what was installed before"
    )


def operators_needs() -> Needs:
    """Return what the operators need: the headers and libraries of torch."""
    folder = find_torch()
    text = (folder / "version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", text)
    if found is None:
        raise LeftOut(f"{folder / 'version.py'} states no version")
    if (int(found[1]), int(found[2])) < TORCH_MINIMUM:
        wanted = ".".join(map(str, TORCH_MINIMUM))
        raise LeftOut(f"the operators need torch >= {wanted}, found {found[1]}.{found[2]}")
    compiler = find_compiler()
    sets = kernel_sets(compiler)
    present = [f"-DMMER_WITH_{name.upper()}" for name in sets]
    kernels = []
    for name, own_flags in sets.items():
        command = [
            *(*compiler, *COMPILE_FLAGS, *KERNEL_FLAGS, *own_flags, *present),
            *(f"-DMMER_KERNELS=kernels_{name}", *environment_flags("CPPFLAGS")),
            *environment_flags("CXXFLAGS"),
        ]
        kernels.append((command, KERNELS, f"{Path(KERNELS).with_suffix('')}_{name}.o"))
    return Needs(
        compile_flags=[
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
            *present,
            "-isystem",
            str(folder / "include"),
        ],
        link_flags=[f"-L{folder / 'lib'}", "-ltorch_cpu"],
        kernels=kernels,
    )


def native_needs() -> Needs:
    """Return what mmer._native needs: the headers of Python and pybind11, and what to report."""
    try:
        import pybind11
    except ImportError:
        raise LeftOut("pybind11 is not installed") from None
    compiler = find_compiler()
    described = {
        "MMER_COMPILER": Path(compiler[0]).name,
        "MMER_COMPILE_FLAGS": " ".join([*COMPILE_FLAGS, *environment_flags("CXXFLAGS")]),
        "MMER_PYBIND11": pybind11.__version__,
        "MMER_TORCH_TARGET": ".".join(map(str, TORCH_MINIMUM)),
    }
    return Needs(
        compile_flags=[
            *(text_macro(name, value) for name, value in described.items()),
            "-isystem",
            pybind11.get_include(),
            "-isystem",
            sysconfig.get_path("include"),
        ],
        link_flags=["-pthread"],
    )


def find_cuda_toolkit() -> Path:
    """Return the folder of the CUDA toolkit: CUDA_HOME, CUDA_PATH, or that of the nvcc found."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        folder = os.environ.get(variable)
        if folder:
            if not Path(folder, "bin", "nvcc").exists():
                raise LeftOut(f"{variable} is {folder}, where there is no bin/nvcc")
            return Path(folder)
    command = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if command is None:
        raise NotWanted("no nvcc was found; install the CUDA toolkit or set CUDA_HOME")
    # The nvcc on the PATH may be a script; nvcc itself says where its toolkit is.
    asked = subprocess.run(
        [command, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False
    )
    found = re.search(r"^#\$ TOP=(.+)$", asked.stderr, re.MULTILINE)
    return Path(found[1].strip()) if found else Path(command).resolve().parents[1]


def architecture_flags(architectures: str, own_from: int | None) -> list[str]:
    """Return nvcc's flags for a list like TORCH_CUDA_ARCH_LIST, ``"8.0;9.0a+PTX"``.

    A source is compiled for each architecture from ``own_from`` on. For all others it is compiled
    once, for the oldest, and only assembled for each: for two, that takes 0.7 of the time.
    """
    flags = []
    for name in architectures.replace(";", " ").split():
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if found is None:
            raise LeftOut(f"TORCH_CUDA_ARCH_LIST holds {name!r}, wanted 8.0, 9.0a or 9.0+PTX")
        number = f"{found[1]}{found[2]}"
        if int(number) < OLDEST_ARCHITECTURE:
            raise LeftOut(f"the CUDA kernels need compute capability 8.0, not {name}")
        is_own = own_from is not None and int(number) >= own_from
        if is_own:
            number += found[3]
        compiled_for = f"compute_{number if is_own else OLDEST_ARCHITECTURE}"
        flags.append(f"-gencode=arch={compiled_for},code=sm_{number}")
        if found[4]:
            flags.append(f"-gencode=arch={compiled_for},code={compiled_for}")
    if not flags:
        raise LeftOut("TORCH_CUDA_ARCH_LIST names no architecture")
    return list(dict.fromkeys(flags))


def cuda_needs() -> Needs:
    """Return what the CUDA kernels need: nvcc and its runtime, and what the operators need."""
    forced = os.environ.get("FORCE_CUDA", "")
    if forced not in ("", "0", "1"):
        raise SetupError(f"FORCE_CUDA must be 0 or 1, got {forced!r}")
    if forced == "0":
        raise NotWanted("FORCE_CUDA was 0 when mmer was built")
    folder = find_torch()
    if forced != "1":
        text = (folder / "version.py").read_text(encoding="utf-8")
        if re.search(r"^cuda\b.*= ['\"]", text, re.MULTILINE) is None:
            raise NotWanted(
                "torch was a CPU build when mmer was built; FORCE_CUDA=1 builds the CUDA kernels "
                "nevertheless"
            )
    toolkit = find_cuda_toolkit()
    runtimes = [
        path
        for place in ("lib64", "lib", "targets/*/lib")
        for path in toolkit.glob(f"{place}/libcudart_static.a")
    ]
    headers = [
        path.parent
        for place in ("include", "targets/*/include")
        for path in toolkit.glob(f"{place}/cuda_runtime_api.h")
    ]
    if not runtimes or not headers:
        raise LeftOut(f"the CUDA toolkit in {toolkit} has no libcudart_static.a or no headers")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    flags_of = {
        source: architecture_flags(architectures, CUDA_KERNELS_OF_ARCHITECTURES.get(source))
        for source, _ in CUDA_KERNELS
    }
    nvcc = [str(toolkit / "bin" / "nvcc"), *NVCC_FLAGS]
    if os.environ.get("CXX"):
        nvcc += ["-ccbin", environment_flags("CXX")[0]]
    operators = operators_needs()
    return Needs(
        compile_flags=[*operators.compile_flags, "-DUSE_CUDA", "-isystem", str(headers[0])],
        link_flags=[*operators.link_flags, str(runtimes[0]), "-ldl", "-lrt", "-lpthread"],
        kernels=[
            (
                [*nvcc, *flags_of[source], f"-DMMER_ELEMENT={element}"],
                source,
                f"{Path(source).stem}_{element}.o",
            )
            for source, element in CUDA_KERNELS
        ],
    )


NEEDS = {"operators": operators_needs, "native": native_needs, "cuda": cuda_needs}


def part_name(part: Extension) -> str:
    """Return the name of a part in reports: that of its file, without the underscore."""
    return str(part.name).rpartition("._")[2]


def told(left_out: Mapping[str, LeftOut]) -> str:
    """Return the parts that are left out and why, in one line."""
    return "; ".join(f"{name} is left out: {reason}" for name, reason in left_out.items())


def refuse_missing(left_out: Mapping[str, LeftOut], mode: str) -> None:
    """Raise SetupError if a part is left out that has to be built."""
    failures = {x: y for x, y in left_out.items() if not isinstance(y, NotWanted)}
    if failures and mode == "require":
        raise SetupError(f"MMER_BUILD is require, but {told(failures)}")
    if "cuda" in left_out and os.environ.get("FORCE_CUDA") == "1":
        raise SetupError(f"FORCE_CUDA is 1, but {told({'cuda': left_out['cuda']})}")


class BuildParts(build_ext):
    """Build each compiled part by itself, and record which ones were left out and why."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file of a part; a library of operators serves every Python version."""
        *packages, name = fullname.split(".")
        if name in ("_operators", "_cuda"):
            return str(Path(*packages, f"{name}.so"))
        return str(super().get_ext_filename(fullname))

    def build_extensions(self) -> None:
        """Build every part, and write down what was built and what was not."""
        mode = build_mode()
        self.jobs = BoundedSemaphore(max_jobs())
        # What cannot be built anyway is known before anything is compiled or removed.
        needs: dict[str, Needs] = {}
        left_out: dict[str, LeftOut] = {}
        for part in self.extensions:
            try:
                if mode == "none":
                    raise LeftOut("MMER_BUILD was none when mmer was built")
                find_compiler()
                needs[part_name(part)] = NEEDS[part_name(part)]()
            except LeftOut as reason:
                left_out[part_name(part)] = reason
        refuse_missing(left_out, mode)
        for part in self.extensions:
            Path(self.get_ext_fullpath(part.name)).unlink(missing_ok=True)
        wanted = [part for part in self.extensions if part_name(part) in needs]
        with ThreadPoolExecutor() as pool:
            builds = [
                (part, pool.submit(self.build_part, part, needs[part_name(part)]))
                for part in wanted
            ]
        for part, build in builds:
            try:
                build.result()
            except LeftOut as reason:
                left_out[part_name(part)] = reason
        refuse_missing(left_out, mode)
        self.left_out_parts = [part for part in self.extensions if part_name(part) in left_out]
        print(told(left_out) or "all compiled parts are built", flush=True)
        # A new list: this one is the distribution's own, which other commands still read.
        self.extensions = [part for part in wanted if part_name(part) not in left_out]
        information = {
            "built": [part_name(part) for part in self.extensions],
            "left_out": {name: str(reason) for name, reason in left_out.items()},
        }
        path = Path(self.build_lib, BUILD_INFO)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(information, indent=2) + "\n", encoding="utf-8")

    def build_part(self, part: Extension, needs: Needs) -> None:
        """Compile the sources of a part side by side and link them; LeftOut if that cannot be."""
        target = Path(self.get_ext_fullpath(part.name))
        compiler = find_compiler()
        objects_folder = Path(self.build_temp, part_name(part))
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = [
            *COMPILE_FLAGS,
            text_macro("MMER_VERSION", self.distribution.get_version()),
            *needs.compile_flags,
            *environment_flags("CPPFLAGS"),
            *environment_flags("CXXFLAGS"),
        ]

        def make_object(command: Sequence[str], source: str, object_name: str) -> str:
            result = objects_folder / object_name
            result.parent.mkdir(parents=True, exist_ok=True)
            self.run_tool([*command, "-c", source, "-o", str(result)], source)
            return str(result)

        jobs = [*needs.kernels]
        for source in part.sources:
            jobs.append(([*compiler, *flags], source, str(Path(source).with_suffix(".o"))))
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(make_object, *zip(*jobs, strict=True)))
        link = [*compiler, *SHARED_FLAGS, *environment_flags("LDFLAGS"), *objects]
        self.run_tool([*link, *needs.link_flags, "-o", str(target)], target.name)

    def run_tool(self, command: Sequence[str], subject: str) -> None:
        """Run a compiler or linker, and turn its failure into a reason of one line."""
        with self.jobs:
            print(f"{shlex.join(command)}\n", end="", flush=True)
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                raise LeftOut(f"{command[0]} cannot be run: {error.strerror}") from error
        print(done.stderr, end="", file=sys.stderr, flush=True)
        if done.returncode != 0:
            summary = f"{subject}: {command[0]} failed with exit status {done.returncode}"
            problem = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise LeftOut(f"{summary}: {problem.strip()}" if problem else summary)

    def copy_extensions_to_source(self) -> None:
        """Bring the source tree to what was built: new parts in, parts left out away."""
        super().copy_extensions_to_source()
        for part in self.left_out_parts:
            Path(self.get_ext_filename(part.name)).unlink(missing_ok=True)
        self.copy_file(str(Path(self.build_lib, BUILD_INFO)), str(BUILD_INFO))

    def get_outputs(self) -> list[str]:
        """Return the files that this command writes into the build folder."""
        if self.inplace:
            return list(self.get_output_mapping())
        return [*super().get_outputs(), str(Path(self.build_lib, BUILD_INFO))]

    def get_output_mapping(self) -> dict[str, str]:
        """Return which file of the build folder an in-place build copies to which source file."""
        mapping = dict(super().get_output_mapping())
        if self.inplace:
            mapping[str(Path(self.build_lib, BUILD_INFO))] = str(BUILD_INFO)
        return mapping


setup(
    packages=all_packages(),
    package_dir={"mmer": "mmer", "mmer.kernels": "kernels"},
    ext_modules=[
        Extension(
            "mmer._operators",
            [
                "csrc/operators.cpp",
                "csrc/cpu/shared_operator.cpp",
                "csrc/cpu/bidirectional_operator.cpp",
                "csrc/cpu/chunked_operator.cpp",
                "csrc/cpu/window_operator.cpp",
                "csrc/cpu/capability.cpp",
                "csrc/cpu_features.cpp",
                "csrc/dropout_bits.cpp",
            ],
        ),
        Extension(
            "mmer._cuda",
            ["csrc/cuda/operators.cpp", "csrc/cuda/launch.cpp", *CUDA_PLANS],
        ),
        Extension(
            "mmer._native",
            [
                "csrc/native.cpp",
                "csrc/arithmetic_peak.cpp",
                "csrc/cpu_features.cpp",
                "csrc/cuda/bind_plans.cpp",
                *CUDA_PLANS,
            ],
        ),
    ],
    cmdclass={"build_ext": BuildParts},
)
