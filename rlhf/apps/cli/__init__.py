"""The `chorus` command: parse, call, print; every mistake of the user's ends in one line and status 2.

A group module has `add_parser(subparsers)`; every subcommand sets `run(args) -> dict | None`, which works and
returns the result, and `show(result)`, which prints it for people. With --json the result is printed as one
JSON object, last on stdout, and everything else that is printed goes to stderr.
Heavy modules are imported inside `run`, so that --help answers at once.
"""

import argparse
import contextlib
import errno
import importlib
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from rewards import jsonl
from rewards.errors import UserError, meant
from rewards.paths import expanded
from rewards.shown import Shown, speak, without_credentials
from rlhf.run import processes, programs, signals

GROUPS = (
    "quickstart",
    "data",
    "models",
    "rewards",
    "users",
    "train",
    "replay",
    "generate",
    "evaluate",
    "compare",
    "probe",
    "export",
    "sweep",
    "launch",
    "config",
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_REFUSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
# What is said before heavy modules are imported, by commands whose own first line comes late.
_FIRST = {
    f"chorus {command}": f"loading {what} …"
    for what, commands in {
        "the model": ("generate", "export", "evaluate", "probe", "replay"),
        "the rewards": ("rewards evaluate", "rewards score", "users ask", "users update", "users edit"),
        "the runs": ("compare", "sweep"),
    }.items()
    for command in commands
}
_OK, _BUG, _MISTAKE, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest right word."""

    def __init__(self, **options):
        options.setdefault("allow_abbrev", False)  # `--out` must not silently mean --output
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)$", message)
        if found:
            choices = [choice.strip(" '\"") for choice in found[2].split(",")]
            message = f"{found[1]!r} is not known; {suggestion(found[1], choices)}"
        raise UserError(f"{message} ({self.prog} --help)")


def suggestion(word: str, known: Sequence[str]) -> str:
    return meant(word, known, f"known: {', '.join(known)}")


# Arguments that are paths; a shell leaves the `~` of `--output=~/x` alone.
_PATHS = ("answers", "config", "input", "model", "output", "output_dir", "path", "policy", "rewards")


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="chorus",
        description="One language model fine-tuned for many people: preferences in, one policy for all out.",
        epilog="Start with:  chorus quickstart\nEvery command has --help with an example.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in GROUPS:
        importlib.import_module(f"rlhf.apps.cli.{name}").add_parser(subparsers)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments; a misspelt option is an error that names the nearest one of that command."""
    parser = build_parser()
    args, rest = parser.parse_known_args(_with_tied_values(argv))
    if hasattr(args, "overrides"):  # argparse takes no key=value after an option: hand them on
        args.overrides += [word for word in rest if not word.startswith("-") and "=" in word]
        rest = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest:
        used = getattr(args, "parser", parser)
        options = sorted(set(re.findall(r"--[a-z][\w-]*", used.format_help())))
        advice = (
            suggestion(rest[0], options)
            if rest[0].startswith("-")
            else "remove it, or quote text with spaces"
        )
        raise UserError(f"{rest[0]}: not an argument of {used.prog}; {advice} ({used.prog} --help)")
    if args.version:
        from importlib.metadata import version

        print(version("chorus-rlhf"))
        raise SystemExit(_OK)
    if not hasattr(args, "run"):
        parser.print_help()
        raise SystemExit(_OK)
    for name in _PATHS:
        if isinstance(value := getattr(args, name, None), str):
            setattr(args, name, expanded(value))
    return args


def _with_tied_values(argv: Sequence[str]) -> list[str]:
    """Join `--coefficients -1,2` by an equals sign: argparse takes a leading minus for an option."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--coefficients" and re.match(r"-[\d.]", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def execute(args: argparse.Namespace) -> None:
    """Run a command and print its result."""
    if not args.json:
        with contextlib.redirect_stdout(Shown(sys.stdout)):  # pyright: ignore[reportArgumentType]
            result = args.run(args)
            if result is not None and args.show is not None and processes.is_writer():
                args.show(result)
        return
    with contextlib.redirect_stdout(Shown(sys.stderr)):  # pyright: ignore[reportArgumentType]
        result = args.run(args)
    from rlhf.run.directory import plain

    if not processes.is_writer():
        return
    unicode = (sys.stdout.encoding or "utf-8").lower() in ("utf-8", "utf8")
    text = json.dumps(plain(result if result is not None else {}), ensure_ascii=not unicode, allow_nan=False)
    print(jsonl.escaped(text))


def entry() -> NoReturn:
    """The process `chorus`: ends with the status of `main`, and without the interpreter's own way out.

    Leaving the interpreter joins other libraries' threads and collects garbage through JAX's callbacks, where a finished
    command has been seen to hang, and a signal to end in a traceback. Everything of ours is written when `main` returns.
    """
    programs.remember()
    try:
        status = main(first_words=True)
    except Exception:
        traceback.print_exc()
        status = _BUG
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None, *, first_words: bool = False) -> int:
    """Parse, run, print; returns the exit status.

    Args:
      first_words: say at once what is waited for, where a command loads for long before it has anything to say.
    """
    # Libraries speak on stderr in the middle of our lines; a user's own setting wins.
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    # A terminal or locale that cannot show a character gets its escape instead of a traceback.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    speak()
    try:
        with signals.handled():
            args = parse(sys.argv[1:] if argv is None else argv)
            if first_words and (first := _FIRST.get(getattr(getattr(args, "parser", None), "prog", ""))):
                print(first, file=sys.stderr, flush=True)
            execute(args)
        sys.stdout.flush()
        processes.leave(_OK)
        return _OK
    except UserError as error:
        status = _complain(str(error))
        processes.leave(status, str(error))
        return status
    except KeyboardInterrupt as stop:
        print("\nchorus: interrupted; the same command resumes where it stopped", file=sys.stderr)
        status = signals.status(stop.args[0]) if stop.args else _INTERRUPTED
        processes.leave(status, "interrupted")
        return status
    except Exception as error:
        if processes.lost(error):
            print(f"chorus: {processes.GONE}", file=sys.stderr)
            return processes.AGAIN
        if isinstance(error, OSError) and (said := _of_system(error)) is not None:
            if not said:  # or our parent is gone: the others will notice
                return _BROKEN_PIPE
            status = _complain(said)
            processes.leave(status, said)
            return status
        processes.leave(_BUG, f"{type(error).__name__}: {error}")
        raise
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _OK


def _of_system(error: OSError) -> str | None:
    """What to say of an error of the system: nothing where the reader of our output is gone, None where the fault is ours."""
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) is gone; point stdout elsewhere so that the interpreter exits quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ""
    if error.errno in _FULL:
        place = error.filename or "output"
        return f"{place}: cannot write ({error.strerror}); free some space and run the command again"
    if error.errno in _REFUSED and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the name and its permissions"
    return None


def _complain(message: str) -> int:
    said = str(UserError(without_credentials(" ".join(message.split()))))  # names in it escaped and cut
    print(f"chorus: {said}", file=sys.stderr)
    return _MISTAKE
