"""From source to PTX for a GPU that is not there, by nvcc and by Triton's compiler."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.ptx.arguments import Buffer, HostView
from tests.ptx.counters import Counters
from tests.ptx.findings import Finding
from tests.ptx.launch import Kernel, LoadedModule, load

_TRITON_TYPES = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint64": "u64",
    "uint32": "u32",
    "uint16": "u16",
    "uint8": "u8",
    "bool": "i1",
}


def has_nvcc() -> bool:
    """Whether nvcc is on the PATH."""
    return shutil.which("nvcc") is not None


def compile_cuda(
    source: str | Path,
    arch: str = "sm_80",
    *,
    defines: Mapping[str, Any] | None = None,
    include: Sequence[str | Path] = (),
    options: Sequence[str] = (),
) -> LoadedModule:
    """Compile CUDA C++ to PTX by nvcc.

    Args:
        source: A path, or the text itself.
        arch: "sm_80", "sm_90a", ...
        defines: Macros.
        include: Folders of headers.
        options: Further options of nvcc.

    Raises:
        RuntimeError: With what nvcc said, when it fails.
        FileNotFoundError: When there is no nvcc.
    """
    if not has_nvcc():
        raise FileNotFoundError("nvcc is not on the PATH")
    command = ["nvcc", "-ptx", "-O3", "-std=c++17", f"-arch={arch}", *options]
    command += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    command += [f"-I{folder}" for folder in include]
    return load(_nvcc(source, tuple(command)))


def _nvcc(source: str | Path, command: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cu"
        if isinstance(source, Path):
            path = source.resolve()
        else:
            path.write_text(source)
        # What the preprocessor leaves decides the result, so it is the key of the cache.
        expanded = _run([*(part for part in command if part != "-ptx"), "-E", str(path)])
        key = hashlib.sha256(repr((command, expanded)).encode()).hexdigest()
        cached = _cache_folder() / f"{key}.ptx"
        if not cached.exists():
            output = Path(folder) / "kernel.ptx"
            _run([*command, "-o", str(output), str(path)])
            temporary = cached.with_suffix(f".{os.getpid()}")
            shutil.copyfile(output, temporary)
            os.replace(temporary, cached)
        return cached.read_text()


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"mmer-ptx-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class TritonKernel:
    """A Triton function compiled for one target and one specialisation.

    Attributes:
        compiled: Triton's own object: ``asm["ptx"]``, ``asm["cubin"]``, ``metadata``.
        kernel: The emulator's kernel.
        names: The arguments that the kernel takes, in order.
    """

    def __init__(self, compiled: Any, names: Sequence[str]) -> None:
        self.compiled = compiled
        self.ptx: str = compiled.asm["ptx"]
        module = load(self.ptx)
        self.kernel: Kernel = module[module.names[0]]
        self.names = list(names)
        self.shared_bytes: int = compiled.metadata.shared
        self.num_warps: int = compiled.metadata.num_warps

    def launch(
        self,
        grid: Sequence[int],
        arguments: Mapping[str, Any],
        *,
        seed: int | None = None,
        check: bool = True,
        ctas: Sequence[int] | None = None,
        batch: int | None = None,
        findings: list[Finding] | None = None,
        ulps: int = 0,
    ) -> Counters:
        """Run over a grid, as `Kernel.launch` does.

        ``arguments`` go by name; those that became constants are passed over.
        """
        values = [arguments[name] for name in self.names]
        # Triton appends two pointers to scratch memory, which these kernels do not use.
        scratch = [None] * (len(self.kernel.parameters) - len(values))
        return self.kernel.launch(
            grid,
            (32 * self.num_warps,),
            [*values, *scratch],
            self.shared_bytes,
            seed=seed,
            check=check,
            ctas=ctas,
            batch=batch,
            findings=findings,
            ulps=ulps,
        )


def compile_triton(
    function: Any,
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
    *,
    target: int = 80,
    num_warps: int = 4,
    num_stages: int = 2,
    **options: Any,
) -> TritonKernel:
    """Compile a ``@triton.jit`` function as the JIT would for these arguments, for any target.

    Types, divisibility by 16 and integers that equal 1 are taken from the arguments, like a launch
    on a GPU would take them.

    Args:
        function: The jitted function.
        arguments: What it will be launched with: tensors, arrays, `Output` and the like, numbers.
        constants: Its ``tl.constexpr`` arguments.
        target: Compute capability times ten: 80, 86, 89, 90, 120.
        num_warps: Warps of a program.
        num_stages: Stages of software pipelines.
        **options: Further options of Triton's compiler.
    """
    signature, specialised = {}, dict(constants)
    divisible = []
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name not in arguments:
            raise TypeError(f"{function.__name__} lacks the argument {name}")
        value = arguments[name]
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
            signature[name], specialised[name] = "constexpr", value
            continue
        signature[name], is_divisible = _triton_type(value)
        if is_divisible:
            divisible.append(position)
    fixed = {"num_warps": num_warps, "num_stages": num_stages, **options}
    return _compile_triton(
        function,
        tuple(signature.items()),
        tuple(specialised.items()),
        tuple(divisible),
        target,
        tuple(fixed.items()),
    )


def _triton_type(value: Any) -> tuple[str, bool]:
    if isinstance(value, bool):
        return "u1", False
    if isinstance(value, (int, np.integer)):
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), int(value) % 16 == 0
    if isinstance(value, (float, np.floating)):
        return "fp32", False
    array = value.array if isinstance(value, Buffer) else value
    name = str(array.dtype).removeprefix("torch.")
    return f"*{_TRITON_TYPES[name]}", HostView(array).start % 16 == 0


@functools.cache
def _compile_triton(
    function: Any,
    signature: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, Any], ...],
    divisible: tuple[int, ...],
    target: int,
    options: tuple[tuple[str, Any], ...],
) -> TritonKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(position,): [["tt.divisibility", 16]] for position in divisible}
    source = ASTSource(function, dict(signature), dict(constants), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=dict(options))
    names = [name for name, kind in signature if kind != "constexpr"]
    return TritonKernel(compiled, names)
