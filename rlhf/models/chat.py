"""Chat templates, run within bounds: a template is a program that came with a model, and may loop or grow without end.

transformers compiles templates for a sandbox that keeps them from files and attributes, and lets them take all time and
memory. Here they are compiled for one that also counts: an iteration, an operation and a character that is made each have
a price, paid before the work is done, and a rendering may spend so much and no more.
"""

import contextlib
import datetime
import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence, Set, Sized
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

BUDGET, BUDGET_PER_LETTER = 40_000_000, 400  # less than a second; per letter of the messages besides
LONGEST, LONGEST_PER_LETTER = 1_000_000, 20  # letters of what a template may make of messages
ITERATION, OPERATION, LETTER = 20, 1000, 4  # prices, by the time they take
_ELEMENT = 25  # letters that an element of a list counts for, besides its own
_LARGEST = 1_000_000  # number that a filter may be given: widths, counts
# What can make a text times an argument's length or value of its own.
_MULTIPLY = frozenset(
    "replace join expandtabs translate format format_map indent tojson wordwrap batch xmlattr".split()
)
_LOCK = threading.Lock()
_DIGITS = re.compile(r"\d+")


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """transformers' environment with prices.

    Attributes:
      left: what the rendering may still spend. longest: letters that it may make.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.left, self.longest = BUDGET, LONGEST
        self.concat = self._joined  # pyright: ignore[reportAttributeAccessIssue]

    def pay(self, price: float) -> None:
        self.left -= price
        if self.left < 0:
            raise SecurityError("it takes more time or memory than a conversation can need")

    def size(self, value: Any, worth: bool = False) -> int:
        """Letters of a value as text, counted no further than there is something left to pay with.

        Args:
          worth: count whole numbers by what they are: widths and counts.
        """
        total, open_values = 0, [value]
        while open_values and total * LETTER <= self.left:
            part = open_values.pop()
            if isinstance(part, str | bytes | range):
                total += len(part)
            elif isinstance(part, int):
                total += abs(part) if worth else part.bit_length() // 3 + 1
            elif isinstance(part, Namespace):
                own = part._Namespace__attrs  # pyright: ignore[reportAttributeAccessIssue]
                total += _ELEMENT * (1 + len(own))
                open_values += own.values()
            elif isinstance(part, Mapping):
                total += _ELEMENT * (1 + len(part))
                open_values += [*part.keys(), *part.values()]
            elif isinstance(part, Sequence | Set):
                total += _ELEMENT * (1 + len(part))
                open_values += part
            else:
                total += len(part) if isinstance(part, Sized) else 1
        return total

    def _pay_making(self, name: str, value: Any, args: Sequence[Any], worth: bool) -> None:
        """Of a filter, a method of texts, or a function: before it is called."""
        made, given = self.size(value), self.size(args, worth)
        if "format" in name and isinstance(value, str):
            given += sum(min(int(digits[:12]), 10**12) for digits in _DIGITS.findall(value))
        largest = max((self.size(argument, worth) for argument in args), default=1)
        self.pay(OPERATION + LETTER * (made + given + (made * largest if name in _MULTIPLY else 0)))

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        own = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        of_text = isinstance(own, str | bytes | int)
        values = [*args, *kwargs.values()]
        self._pay_making(getattr(__obj, "__name__", "") or "", own if of_text else "", values, of_text)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            cost = left.bit_length() * max(right, 0)
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            cost = self.size(left, worth=True) * self.size(right, worth=True)
        elif operator == "%" and isinstance(left, str):
            self._pay_making("format", left, [right], worth=True)
            cost = 0
        elif operator == "*" and isinstance(left, int):
            cost = self.size(left) * self.size(right) // 100
        else:
            cost = self.size(left) + self.size(right)
        self.pay(OPERATION + LETTER * cost)
        return super().call_binop(context, operator, left, right)

    def _joined(self, parts: Iterator[str]) -> str:
        kept, total = [], 0
        for part in parts:
            kept.append(part)
            total += len(part)
            if total > self.longest:
                raise SecurityError(f"it makes more than {self.longest} letters of the messages")
        return "".join(kept)

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        _price(source)
        return super()._generate(source, *args, **options)


def _price(tree: nodes.Node) -> None:
    """Put payments into a template: of loops, filters, and of what is written, put together, compared and cut."""
    for node in list(tree.find_all(nodes.Filter)):
        node.args, node.name = [nodes.Const(node.name), *node.args], "_filtered"
    for loop in list(tree.find_all(nodes.For)):
        written = sum(len(text.data) for text in loop.find_all(nodes.TemplateData))
        written += sum(len(text.value) for text in loop.find_all(nodes.Const) if isinstance(text.value, str))
        loop.iter = _through("_counted", loop.iter, nodes.Const(ITERATION + LETTER * written))
    for node in list(tree.find_all((nodes.Output, nodes.Concat))):
        node.nodes = [_through("_made", part) for part in node.nodes]
    for node in list(tree.find_all((nodes.List, nodes.Tuple))):
        if getattr(node, "ctx", "load") == "load":
            node.items = [_through("_made", part) for part in node.items]
    for node in list(tree.find_all(nodes.Compare)):
        node.expr = _through("_made", node.expr)
    for node in list(tree.find_all(nodes.Getitem)):
        if isinstance(node.arg, nodes.Slice):
            node.node = _through("_made", node.node)
    for pair in list(tree.find_all(nodes.Pair)):
        pair.value = _through("_made", pair.value)


def _through(name: str, value: Any, *args: nodes.Expr) -> Any:
    if isinstance(value, nodes.TemplateData | nodes.Const):
        return value
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


@pass_context
def _filtered(context: Context, value: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    sandbox: Any = context.environment
    values = [*args, *kwargs.values()]
    if any(isinstance(number, int) and abs(number) > _LARGEST for number in values):
        raise SecurityError(f"filter {name} is given a number beyond {_LARGEST}")
    sandbox._pay_making(name, value, values, worth=True)
    return sandbox.call_filter(name, value, args, kwargs, context=context)


@pass_context
def _counted(context: Context, values: Any, price: int) -> Any:
    sandbox: Any = context.environment
    if isinstance(values, Sized):
        sandbox.pay(price * len(values))
        return values

    def paid() -> Iterator[Any]:
        for value in values:
            sandbox.pay(4 * ITERATION + price)  # somebody makes them
            yield value

    return paid()


@pass_context
def _made(context: Context, value: Any) -> Any:
    sandbox: Any = context.environment
    sandbox.pay(OPERATION // 4 + LETTER * sandbox.size(value))
    return value


@functools.lru_cache(maxsize=64)
def _compiled(compile_theirs: Any, template: str, date: datetime.date) -> Any:
    """A template of transformers' making for the bounded sandbox, with `date` for today's."""
    theirs = compile_theirs("").environment  # theirs would compute constants of ours
    tags = [type(extension) for extension in theirs.extensions.values()]
    own = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=tags, optimized=False)
    own.filters = theirs.filters | {"_filtered": _filtered, "_counted": _counted, "_made": _made}
    own.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    own.globals["strftime_now"] = lambda form: datetime.datetime.combine(date, datetime.time()).strftime(form)
    return own.from_string(template)


@contextlib.contextmanager
def bounded(date: datetime.date, letters: int) -> Iterator[None]:
    """Templates that transformers renders meanwhile are bounded, and read `date` as today's.

    By hand because `apply_chat_template` takes neither an environment nor a function from its caller.

    Args:
      letters: of the messages: what a template may do grows with them.
    """
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    with _LOCK:
        theirs = module._compile_jinja_template

        def ours(template: str) -> Any:
            compiled = _compiled(theirs, template, date)
            compiled.environment.left = BUDGET + BUDGET_PER_LETTER * letters
            compiled.environment.longest = LONGEST + LONGEST_PER_LETTER * letters
            return compiled

        module._compile_jinja_template = ours
        try:
            yield
        finally:
            module._compile_jinja_template = theirs
