"""chorus replay."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command

_LISTED = 20


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "replay",
        "run the step again whose numbers were not finite: which row, person, term of the loss, parameter",
        "chorus replay runs/electricity/dpo",
        run,
        show,
    )
    parser.add_argument("output_dir", metavar="RUN", help="run directory of the training that stopped")


def run(args: argparse.Namespace) -> JSONObject:
    from rlhf.train.nonfinite import replay

    return replay(args.output_dir)


def show(result: JSONObject) -> None:
    """What is wrong, from parameters to rows."""
    now, rows = result["not_finite"], result["rows"]
    print(f"step {result['step']}: {', '.join(now) or 'every metric is finite this time'}")
    if result["parameters_not_finite"]:
        print(f"before the step not finite: {_some(result['parameters_not_finite'])}")
    print(f"norm of the parameters before the step: {result['param_norm']:.4g}")
    for row in rows[:_LISTED]:
        who = f", person {row['person']}" if row["person"] is not None else ""
        coef = row["coefficients"]
        who += f", coefficients [{', '.join(f'{value:.3g}' for value in coef)}]" if coef else ""
        number = "" if row["row"] is None else f" (number {row['row']} of the run's rows, from 0)"
        print(f"place {row['place']}{number}{who}, update {row['update']}: {row['text']!r}")
        print(f"  not finite: {_some(row['terms']) or 'no term of its loss'}")
        if row["gradient"]:
            print(f"  gradient of: {_some(row['gradient'])}")
    if len(rows) > _LISTED:
        print(f"and {len(rows) - _LISTED} rows more (--json lists all)")
    if not rows:
        print("the loss and the gradient of every row are finite: their sum or the optimiser is not")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
