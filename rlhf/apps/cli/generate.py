"""chorus generate."""

import argparse

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_seed, check_range
from rlhf.apps.cli.export import parse_coefficients


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "generate",
        "answer prompts with a policy, for any person, or with a plain model",
        'chorus generate --policy runs/electricity/policy --user e001 --prompt "Which contract?" --greedy',
        run,
        show,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--policy", metavar="RUN", help="policy run (chorus train)")
    source.add_argument("--model", metavar="NAME", help="model name, directory, .gguf file or hub id")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="NAME", help="person who asks (default: the aggregate person)")
    who.add_argument("--coefficients", metavar="W1,W2,...", help="coefficients instead of a person")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", metavar="TEXT", action="append", help="prompt; may be given several times"
    )
    prompts.add_argument(
        "--input", metavar="FILE", help="one prompt a line, or JSON lines with a prompt; - for standard input"
    )
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token every time")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default 128)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default 1)")
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K likeliest tokens; 0 (default): all",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens of mass P (default 1)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="drop tokens below P times the likeliest (default 0)",
    )
    parser.add_argument(
        "--mesh",
        default="{}",
        metavar="{fsdp: N}",
        help="how the devices share the work: data, fsdp and tensor as in a training configuration (default: rows are divided)",
    )
    add_seed(parser, "seed of sampling")


def run(args: argparse.Namespace) -> JSONObject:
    if args.model is not None and (args.user is not None or args.coefficients is not None):
        raise UserError("--user and --coefficients need a policy; use --policy RUN instead of --model")
    check_range("--max-new-tokens", args.max_new_tokens, 1, 1_000_000)
    check_range("--temperature", args.temperature, 0, 1e6)
    check_range("--top-k", args.top_k, 0, 2**31 - 1)
    check_range("--top-p", args.top_p, 1e-6, 1)
    check_range("--min-p", args.min_p, 0, 1)
    from rlhf.run.config.common import MeshConfig
    from rlhf.run.config.document import parse_value
    from rlhf.run.config.load import build

    axes = parse_value(args.mesh, "--mesh")
    if not isinstance(axes, dict):
        raise UserError(f"--mesh {args.mesh}: must name axes, as in --mesh '{{fsdp: 8}}'")
    mesh = build(axes, MeshConfig, "--mesh")
    from rewards.data.prompts import checked, read_prompts

    if args.prompt is not None:
        prompts = [checked(prompt, "--prompt") for prompt in args.prompt]
    else:
        prompts = read_prompts(args.input)
    coefficients = parse_coefficients(args.coefficients)
    from rlhf.apps.generate import generate

    return generate(
        prompts,
        policy=args.policy,
        model=args.model,
        user=args.user,
        coefficients=coefficients,
        max_new_tokens=args.max_new_tokens,
        temperature=0.0 if args.greedy else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        mesh=mesh,
    )


def show(result: JSONObject) -> None:
    print("\n".join(result["completions"]))
