"""Commands and their options, errors, and exit codes."""

import json
import os
import sys
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from .._version import __version__
from ._commands import DEFAULT_ENCODER, Result, demo, distill, predict, probe, report

_EPILOG = """exit codes: 0 done; 1 an image, a folder or a file cannot be used, and the message says which; 2 wrong options;
130 interrupted. Progress and warnings go to standard error, the summary or the JSON to standard output."""
# Errors that say what is wrong with the input; others are shown with their traceback.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, default=None
        ``None``: those of the process.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(arguments)
    options.verbose = 0 if options.quiet else 1
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result, lines = options.run(options)
        except _EXPECTED as error:
            message = str(error).replace("overwrite=True", "--overwrite")
            print(f"error: {message}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    text = json.dumps(result, indent=2) if options.json else "\n".join(lines)
    encoding = sys.stdout.encoding or "utf-8"
    try:  # names that the terminal does not have must not cost the result
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:  # such as that of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m sklearn_clpdd",
        description="Linear probes on frozen vision encoders, and image sets distilled to a few images, on folders of images.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Namespace], Result]) -> ArgumentParser:
        doc = (run.__doc__ or "").strip()
        own = commands.add_parser(name, help=doc[0].lower() + doc[1:-1], description=doc, epilog=_EPILOG)
        own.set_defaults(run=run)
        own.add_argument("--json", action="store_true", help="print the result as JSON")
        own.add_argument("--quiet", action="store_true", help="no progress")
        return own

    own = command("probe", probe)
    _add_folder(own)
    own.add_argument("--out", type=Path, metavar="FILE", help="save the probe, such as probe.safetensors")
    _add_encoder(own)

    own = command("predict", predict)
    own.add_argument("probe", help="file of the command probe, or hf:OWNER/NAME")
    own.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    own.add_argument("--encoder", metavar="NAME", help="its network, if that is a folder of this machine")
    own.add_argument("--weights", metavar="FILE", help="the weights of its network, if they are a file")
    own.add_argument("--top", type=_positive, default=1, metavar="N", help="classes for each image (default: %(default)s)")
    _add_machine(own)

    own = command("distill", distill)
    _add_folder(own)
    own.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the set")
    _add_method(own)
    _add_held_out(own)
    _add_encoder(own)

    own = command("report", report)
    own.add_argument("set", help="folder of the command distill, or hf:OWNER/NAME")
    _add_folder(own)
    own.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="(default: %(default)s)")
    _add_held_out(own)
    _add_machine(own)

    own = command("demo", demo)
    own.add_argument("--out", type=Path, default=Path("output"), metavar="FOLDER", help="for the picture (default: %(default)s)")
    own.add_argument("--steps", type=_positive, default=300, metavar="N", help="(default: %(default)s)")
    return parser


def _add_folder(command: ArgumentParser) -> None:
    command.add_argument(
        "folder", type=Path, metavar="DIR", help="one folder of images for each class, or train and test (or val) folders of them"
    )
    command.add_argument("--test", type=Path, metavar="DIR", help="another folder of test images")
    command.add_argument("--overwrite", action="store_true", help="replace what an earlier run has written")
    command.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")


def _add_held_out(command: ArgumentParser) -> None:
    command.add_argument(
        "--test-size",
        type=_share,
        default=0.25,
        metavar="SHARE",
        help="held out for the test if there are no test images; 0 for no test (default: %(default)s)",
    )


def _add_method(command: ArgumentParser) -> None:
    command.add_argument("--images-per-class", type=_positive, default=1, metavar="N", help="(default: %(default)s)")
    limit = command.add_mutually_exclusive_group()
    limit.add_argument("--seconds", type=_seconds, metavar="S", help="time of the steps, without encoding and comparing")
    limit.add_argument("--steps", type=_positive, metavar="N", help="number of steps (default: 600)")
    command.add_argument("--init", choices=["kmeans", "real", "noise"], default="kmeans", help="(default: %(default)s)")
    command.add_argument("--no-views", action="store_true", help="no random crops and flips, for digits, letters and the like")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="the same command goes on from this file")
    page = Path("report.html")
    command.add_argument(
        "--report", type=Path, nargs="?", const=page, metavar="FILE", help=f"also write a page of HTML (without a name: {page})"
    )


def _add_encoder(command: ArgumentParser) -> None:
    command.add_argument(
        "--encoder",
        default=DEFAULT_ENCODER,
        metavar="NAME",
        help="a name that FrozenEncoder takes (default: %(default)s)",
    )
    command.add_argument("--image-size", type=_positive, metavar="PX", help="side of what enters it (default: its own)")
    command.add_argument("--weights", metavar="FILE", help="its weights (default: those of a package, or of the hub)")
    command.add_argument("--cache", type=Path, metavar="FOLDER", help="keep features, so that a second run is fast")
    _add_machine(command)


def _add_machine(command: ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="such as cpu or cuda:1 (default: %(default)s)")
    command.add_argument("--n-jobs", type=int, default=-1, metavar="N", help="threads that decode images (default: one per core)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value
