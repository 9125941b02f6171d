"""The command line: ``erd-cuda COMMAND ...``.

Each command is a module here with ``add_parser(subparsers)`` and ``run(args) -> int``. Only the
module of the command that is called is imported, so ``--help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from erd_cuda._version import __version__

__all__ = ["main"]

COMMANDS = {
    "train": "train a lifter and the refinement stages",
    "evaluate": "print the errors of a trained model per action",
    "refine": "run a trained model over a file of 2D keypoints",
    "export": "write a trained model for other programs and runtimes",
    "convert": "convert a dataset to the package's own pickle-free file",
    "reproduce": "train and print the paper's tables and figures",
    "bench": "time everything beside its peers, as one page",
    "demo": "show the bundled model on motion it has not seen",
    "info": "print versions and build for a bug report",
}

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments after the program's name; None for the process's own.

    Returns:
        The exit code: 0, or 2 after one sentence on stderr if the user's input was wrong, or 130
            after Ctrl-C.
        (argparse itself exits with 2 on bad options, and with 0 after ``--help`` and
        ``--version``.)
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="erd-cuda",
        description="Explicit Residual Descent: refine 3D human poses by their reprojection error.",
    )
    parser.add_argument("--version", action="version", version=f"erd-cuda {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if not arguments or arguments[0] not in COMMANDS:
        for name, text in COMMANDS.items():
            subparsers.add_parser(name, help=text)
        parser.parse_args(arguments or ["--help"])
        return 2  # not reached: without a command argparse exits
    try:
        command = importlib.import_module(f"erd_cuda.cli.{arguments[0]}")
        command.add_parser(subparsers)
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            # parse_args would show the program's usage, which has none of the command's options.
            subparsers.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        args.command_line = arguments
        status = int(command.run(args) or 0)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (head, less) has left; Python's flush at exit must not complain about it
        # either, so what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        print(f"erd-cuda: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"erd-cuda: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130


def _sentence(error: BaseException) -> str:
    """The error as one line; the operating system's errors name the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
