"""Build the kernels with their driver, without torch, and run it for every set of instructions.

    python tests/native/run.py                            as they are shipped
    python tests/native/run.py --sanitize thread          with ThreadSanitizer
    python tests/native/run.py --sanitize address,undefined
    python tests/native/run.py --compiler "aarch64-linux-gnu-g++ -static" --emulator qemu-aarch64

The commands stand in the Makefile. Exit status 1 if a run fails or a sanitizer has something to
say.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tests/native/driver.cpp", "csrc/cpu/capability.cpp", "csrc/cpu_features.cpp")
# Reports end the run, and name functions and lines.
SANITIZE_FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


def load_setup() -> ModuleType:
    """Import setup.py, which knows the kernels' sets of instructions and flags."""
    spec = importlib.util.spec_from_file_location("mmer_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with mock.patch("setuptools.setup"):
        spec.loader.exec_module(module)
    return module


def build(compiler: list[str], sanitizers: str, only: str, folder: Path) -> tuple[Path, list[str]]:
    """Compile and link the driver.

    Returns:
        The program and the names of the sets of kernels in it.
    """
    setup = load_setup()
    sets = {
        name: flags
        for name, flags in setup.kernel_sets(compiler).items()
        if only in ("", name) or name == "portable"
    }
    flags = [*setup.COMPILE_FLAGS, *(f"-DMMER_WITH_{name.upper()}" for name in sets)]
    if sanitizers:
        flags += [*SANITIZE_FLAGS, f"-fsanitize={sanitizers}"]
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(source, Path(source).stem, []) for source in SOURCES]
    jobs += [
        (
            setup.KERNELS,
            f"kernels_{name}",
            [*setup.KERNEL_FLAGS, *own, f"-DMMER_KERNELS=kernels_{name}"],
        )
        for name, own in sets.items()
    ]

    def compile_source(job: tuple[str, str, list[str]]) -> str:
        source, name, own = job
        result = str(folder / f"{name}.o")
        subprocess.run([*compiler, *flags, *own, "-c", source, "-o", result], cwd=ROOT, check=True)
        return result

    with ThreadPoolExecutor(setup.max_jobs()) as pool:
        objects = list(pool.map(compile_source, jobs))
    program = folder / "driver"
    link = [*compiler, *([f"-fsanitize={sanitizers}"] if sanitizers else []), "-pthread"]
    subprocess.run([*link, *objects, "-o", str(program)], cwd=ROOT, check=True)
    return program, list(sets)


def main() -> int:
    """Build and run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", default="", help="what -fsanitize= gets")
    parser.add_argument("--compiler", default="", help="default: the one that setup.py finds")
    parser.add_argument("--only", default="", help="one set of instructions instead of all")
    parser.add_argument("--emulator", default="", help="command that runs the program")
    options = parser.parse_args()
    compiler = shlex.split(options.compiler) or load_setup().find_compiler()
    name = "-".join([Path(compiler[0]).name, *options.sanitize.split(",")]).strip("-")
    program, sets = build(
        compiler, options.sanitize, options.only, ROOT / "build" / "native" / name
    )
    failures = 0
    for capability in sets:
        command = [*shlex.split(options.emulator), str(program)]
        done = subprocess.run(
            command,
            env={**os.environ, "MMER_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        if "but this CPU has only" in output:
            print(f"{capability}: this CPU does not have it", flush=True)
            continue
        print(output, end="", flush=True)
        failures += done.returncode != 0
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
