"""The command line: one file per verb, imported when it is called.

Exit codes: 0 done; 1 a fault in this library, an exported file that disagrees with its model, or a part of a federation
that ended; 2 wrong input, which a task that fails alike on every client is, or a disk that refuses (the text says what and
how to mend it); 3 too few devices answered, or nothing was learned; 130 interrupted (what was finished is kept).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from io import TextIOWrapper

VERBS = {
    "run": "train: run a recipe, or resume a run",
    "ls": "list recipes, methods, models, objectives, optimizers, data, devices, links or runs",
    "show": "print a recipe with everything that it leaves to defaults",
    "cp": "copy a recipe to a file of your own",
    "validate": "name every fault of a recipe, and whether data, network and method go together",
    "report": "tables and a page of plots of one run or several",
    "plan": "find recipe, network, density and codec for data, devices, links and limits",
    "compare": "run several recipes on the same data, and report on them",
    "sweep": "recipes by settings by seeds: tables with intervals, differences, plots",
    "watch": "a training as it goes on, from another terminal",
    "export": "the trained model as a file that devices run",
    "profile": "measure this machine and write its device profile, for the virtual clock",
    "keys": "make the certificates of a federation, or the keys of a device",
    "serve": "run the server of a federation of real devices",
    "devices": "the devices of a federation: who is there, what they did, what needs attention",
    "join": "take part in a federation with this device",
    "doctor": "what is installed, what is missing, how fast this machine is",
}

EPILOG = """examples:
  fedbonsai run fedavg
  fedbonsai run fedavg --data.name mnist --data.clients 100 --method.cohort 10
  fedbonsai report runs/fedavg-digits-0
  fedbonsai ls recipes
"""


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115 - closed by who began this
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal that is not UTF-8 cannot show is no reason to end
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    parser = argparse.ArgumentParser(
        "fedbonsai",
        allow_abbrev=False,
        description="Federated training of small models: prune, quantize, send only what matters, count what it cost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="verb")
    given = list(sys.argv[1:] if words is None else words)
    wanted = next((word for word in given if not word.startswith("-")), None)
    for verb, text in VERBS.items():
        # no abbreviations: what is no option of a verb is a setting, and --run none for --runs
        sub = verbs.add_parser(verb, help=text, add_help=verb != "run", description=text, allow_abbrev=False)
        if verb == wanted:
            import_module(f"fedbonsai.cli.{verb}").arguments(sub)
    args, rest = parser.parse_known_args(given)
    if args.version:
        from fedbonsai import __version__

        print(__version__)
        return 0
    if args.verb is None:
        if rest:
            parser.error(f"unknown option {rest[0]}; a verb comes first: {', '.join(VERBS)}")
        parser.print_help()
        return 0
    return _guarded(args.verb, args, rest)


def _shown(verb: str) -> AbstractContextManager[object]:
    """Inside which long work of a verb is shown; a run does so by itself, as ``--quiet`` says."""
    if verb not in ("compare", "plan", "sweep", "validate", "export", "profile", "report", "doctor"):
        return nullcontext()
    from fedbonsai.runs.shown import shown

    return shown(True)


def _guarded(verb: str, args: argparse.Namespace, rest: list[str]) -> int:
    from fedbonsai.disk import refused
    from fedbonsai.errors import FedbonsaiError, NothingLearned, Unanswered, exit_code
    from fedbonsai.places import settle

    try:
        settle()
        with _shown(verb):
            return int(import_module(f"fedbonsai.cli.{verb}").main(args, rest) or 0)
    except FedbonsaiError as error:
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        few = isinstance(error, Unanswered) and not isinstance(error, NothingLearned)
        print(f"fedbonsai: {'too few devices answered: ' if few else ''}{error}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if not (line := refused(error)):
            raise
        print(f"fedbonsai: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
