"""The command ``mmer``.

Each subcommand is a module of this package with two functions, ``add_parser(subparsers)`` and
``run(arguments) -> int``. Only the module of the subcommand that was asked for is imported, so that
``mmer doctor`` is quick and needs none of the optional packages.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import mmer
from mmer._extras import extra_with, install_command

COMMANDS = {
    "doctor": "say what is installed and built here, what is not, and why",
    "train": "train a model as a configuration file describes",
    "evaluate": "measure a trained model on recordings it has not seen",
    "bench": "measure the operators beside their peers on this machine",
    "inspect": "show what the GPU kernels need and execute, with no GPU",
    "predict": "write a trained model's predictions for a recording, and draw them",
}

_USER_ERROR = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    A mistake of the user's (a missing file, a wrong value, an optional package that is not
    installed) is told in one line on standard error; the environment variable ``MMER_DEBUG=1``
    shows the traceback instead.

    Args:
        argv: the arguments after ``mmer``; those of the process by default.

    Returns:
        The exit status: 0 on success, 2 for a mistake of the user's.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # No option of the top level takes a value, so the first word that is no option is the command.
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        arguments = _parser(command).parse_args(words)
        status: int = arguments.run(arguments)
        return status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone; without this, Python complains again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, OSError, ValueError) as error:
        message = _explain(error)
        if message is None or os.environ.get("MMER_DEBUG") == "1":
            raise
        print(f"mmer {command}: error: {message}", file=sys.stderr)
        return _USER_ERROR


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmer",
        description="Fused attention for multimodal sequence models, and emotion recognition.",
        epilog="MMER_DEBUG=1 shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"mmer {mmer.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == command:
            module = import_module(f"mmer.cli.{name}")
            module.add_parser(subparsers)
            subparsers.choices[name].set_defaults(run=module.run)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _explain(error: Exception) -> str | None:
    if isinstance(error, ImportError):
        extra = extra_with(error.name or "")
        if extra is None:
            return None
        return f"it needs {error.name}, which is not installed: {install_command(extra)}"
    return " ".join(str(error).split()) or type(error).__name__
