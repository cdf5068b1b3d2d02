"""What a reward function with TRL's signature is given:

    f(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns) -> list[float | None]

each by its name, as far as the function asks for it. `completion_ids` (lists of token ids, the one that ended a completion
included) exist while a policy is trained. `trainer_state` says how far the training is, `log_metric(name, number)` puts a
number beside the metrics of the step, `log_extra(name, values)` a value for each completion into samples.jsonl. Where texts are
scored outside a training, the state stands at step 0 and what is logged goes nowhere.

Source: TRL 1.16, `GRPOTrainer._calculate_rewards`. Departure: a function gets what it names and need not take **kwargs.
"""

import collections
import contextlib
import contextvars
import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from rewards.errors import UserError, meant
from rewards.types import Preferences, Values
from rlhf.phi.columns.items import as_trl, data_column

TEXTS = ("prompts", "completions")
IDS = "completion_ids"
SHARED = ("trainer_state", "log_metric", "log_extra")


@dataclasses.dataclass
class TrainerState:
    """How far a training is, under the names of `transformers.TrainerState`.

    Attributes:
      global_step: steps done; max_steps: of the whole run; epoch: passes over the prompts done.
      is_evaluation: whether completions are for held-out prompts (not in transformers).
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    is_evaluation: bool = False


@dataclasses.dataclass
class Call:
    """One call of the reward: the state functions see, and what they log. num_completions: length of `log_extra`'s lists."""

    state: TrainerState
    num_completions: int | None = None
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    extra: dict[str, list[object]] = dataclasses.field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """A number of this step; several of one name are averaged."""
        if not isinstance(name, str) or not name:
            raise TypeError(f"log_metric: the name is {name!r}; give text")
        number = getattr(value, "item", lambda: value)()
        if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
            raise ValueError(f"log_metric({name!r}): {str(value)[:40]!r} is not a finite number")
        self.metrics[name].append(float(number))

    def log_extra(self, column: str, values: Sequence[object]) -> None:
        """A value for each completion, in order."""
        if not isinstance(column, str) or not column:
            raise TypeError(f"log_extra: the name is {column!r}; give text")
        values = list(values)
        if self.num_completions is not None and len(values) != self.num_completions:
            raise ValueError(
                f"log_extra({column!r}): {len(values)} values for {self.num_completions} completions"
            )
        self.extra[column] = values

    def means(self, group: str) -> dict[str, float]:
        """Logged numbers as metrics of a group, "train" or "eval"."""
        return {
            f"{group}/logged/{_plain(name)}": float(np.mean(values)) for name, values in self.metrics.items()
        }


_CALL: contextvars.ContextVar[Call | None] = contextvars.ContextVar("reward_call", default=None)


@contextlib.contextmanager
def training(state: TrainerState, num_completions: int) -> Iterator[Call]:
    """Functions called inside (also in threads that were given this context) see `state` and log into the call."""
    call = Call(state, num_completions)
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def current() -> Call | None:
    """The call that functions see now; None outside a training."""
    return _CALL.get()


def jsonable(value: object) -> object:
    """A value that a user's function logged: as it is where JSON has it, else as text."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value  # pyright: ignore
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def of(function: Callable[..., object], spec: str, prefs: Preferences, first: np.ndarray) -> "Arguments":
    """Everything that a function asks for, for all items.

    Args:
      first: `items.first_rows(prefs)`.
    Raises:
      UserError: it needs what there is not.
    """
    named, anything = _parameters(function, spec)
    check(function, spec, prefs.columns, prefs.source)
    columns: dict[str, Values] = {}
    if anything or named.keys() & set(TEXTS):
        texts = [
            as_trl(prefs.prompts[prompt], text)
            for prompt, text in zip(prefs.item_prompt, prefs.item_text, strict=True)
        ]
        found = {"prompts": [prompt for prompt, _ in texts], "completions": [text for _, text in texts]}
        columns = {name: found[name] for name in TEXTS if anything or name in named}
    own = [name for name in prefs.columns if name not in TEXTS and name not in SHARED]
    columns |= {name: data_column(prefs, name, first, constant=True) for name in own if name in named}
    if anything:
        rest = [name for name in own if name not in columns]
        columns |= {name: data_column(prefs, name, first, constant=False) for name in rest}
    call = _CALL.get() or Call(TrainerState())
    shared = dict(zip(SHARED, (call.state, call.log_metric, call.log_extra), strict=True))
    return Arguments(columns, {name: value for name, value in shared.items() if anything or name in named})


@dataclasses.dataclass(frozen=True)
class Arguments:
    """columns: lists with a value for each completion. shared: what is the same for all."""

    columns: dict[str, Values]
    shared: dict[str, object]

    def all(self) -> dict[str, object]:
        return {**self.columns, **self.shared}

    def one(self, item: int) -> dict[str, object]:
        """Of one completion; what it logs goes nowhere."""
        quiet: dict[str, object] = {
            "log_metric": Call(TrainerState()).log_metric,
            "log_extra": lambda column, values: None,
        }
        shared = {name: quiet.get(name, value) for name, value in self.shared.items()}
        return {**{name: [values[item]] for name, values in self.columns.items()}, **shared}


def check(function: Callable[..., object], spec: str, columns: Collection[str], source: str) -> None:
    """Refuse a function that asks for what there will not be; it is not called.

    Args:
      columns: names of the data's other columns, and `completion_ids` where a policy is trained.
    Raises:
      UserError: the parameter, what there is, and the fix.
    """
    named, _ = _parameters(function, spec)
    known = [*TEXTS, *SHARED, *columns]
    for name, parameter in named.items():
        if name in known or parameter.default is not parameter.empty:
            continue
        if name == IDS:
            raise UserError(
                f"function {spec!r}: needs completion_ids, the tokens of a policy in training; where texts are scored "
                "there are none: give it a default, or encode the completions"
            )
        have = ", ".join(columns) or "none"
        fix = meant(name, known, "add it or give the parameter a default")
        raise UserError(
            f"function {spec!r}: needs the column {name!r}, which {source} does not have (columns: {have[:120]}); {fix}"
        )


def check_reads_completions(function: Callable[..., object], spec: str) -> None:
    """Refuse a function that cannot tell two completions of a prompt apart: nothing is learned from it.

    Raises:
      UserError: what it would have to take.
    """
    named, anything = _parameters(function, spec)
    if not anything and not named.keys() & {"completions", IDS}:
        raise UserError(
            f"function {spec!r}: takes neither completions nor completion_ids (its parameters: "
            f"{', '.join(named)[:80] or 'none'}), so all completions of a prompt earn the same; write def f(completions, …)"
        )


def _parameters(function: Callable[..., object], spec: str) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters that can be given by name, and whether it takes any others, too."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have none
        raise UserError(f"function {spec!r}: has no signature to read; wrap it in a def") from None
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UserError(
                f"function {spec!r}: its parameter {parameter.name!r} is positional only, and arguments are given by name; "
                "remove the / from its signature"
            )
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _plain(name: str) -> str:
    return "_".join(name.replace("/", "_").split())
