"""The faults that scripts/faults/mutate.py seeds: one a public function, and those that a review found unnoticed."""

import ast
import dataclasses
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
T = "tests/rlhf/train/rl"
RECIPES = "tests/rlhf/objectives/test_recipes.py"
HINTS = "tests/rlhf/train/hints/test_loss.py"
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "advantages": (
        "rlhf/objectives/advantages.py",
        ("tests/rlhf/objectives/test_advantages.py", "tests/rlhf/run/test_unread.py", RECIPES),
    ),
    "surrogate": ("rlhf/objectives/surrogate.py", ("tests/rlhf/objectives/test_surrogate.py", RECIPES)),
    "preference": (
        "rlhf/objectives/preference.py",
        ("tests/rlhf/objectives/test_preference.py", "tests/rlhf/run/test_unread.py"),
    ),
    "kl_control": (
        "rlhf/objectives/kl_control.py",
        ("tests/rlhf/objectives/test_surrogate.py", "tests/rlhf/run/test_unread.py"),
    ),
    "users": ("rewards/basis/users.py", ("tests/rewards/basis/test_users.py",)),
    "gauge": ("rewards/basis/gauge.py", ("tests/rewards/basis/test_gauge.py",)),
    "readout": (
        "rewards/basis/readout.py",
        ("tests/rewards/basis/test_gauge.py", "tests/rewards/basis/test_readout.py"),
    ),
    "acquisition": (
        "rewards/people/acquisition.py",
        ("tests/rewards/people/test_acquisition.py", "tests/rewards/people/test_questions.py"),
    ),
    "conditioning": (
        "rlhf/policy/conditioning.py",
        (
            "tests/rlhf/policy/test_conditioning.py",
            "tests/rlhf/run/test_unread.py",
            "tests/rlhf/apps/test_rails_attacks.py",
        ),
    ),
    "fit": (
        "rewards/basis/fit.py",
        ("tests/rewards/basis/test_held_out.py", "tests/rewards/basis/test_fit.py"),
    ),
    "estimate": ("rlhf/train/rl/estimate.py", (f"{T}/test_update.py", f"{T}/test_twin.py", RECIPES)),
    "update": ("rlhf/train/rl/update.py", (f"{T}/test_update.py", f"{T}/test_twin.py", HINTS)),
    "dpo_step": (
        "rlhf/train/dpo_step.py",
        ("tests/rlhf/train/test_held_out.py", "tests/rlhf/train/test_dpo.py", HINTS),
    ),
    "sampling": ("rlhf/policy/sampling.py", ("tests/rlhf/policy/test_sampling.py",)),
}
SWAPS = {
    "Add": ast.Sub,
    "Sub": ast.Add,
    "Mult": ast.Div,
    "Div": ast.Mult,
    "Lt": ast.GtE,
    "LtE": ast.Gt,
    "Gt": ast.LtE,
    "GtE": ast.Lt,
    "Eq": ast.NotEq,
    "NotEq": ast.Eq,
    "BitAnd": ast.BitOr,
}
CALLS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "argmax": "argmin",
    "sum": "mean",
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One changed text: the whole source of `module` with the fault, and what was done to it."""

    module: str
    function: str
    change: str
    source: str


def places(function: ast.FunctionDef) -> list[tuple[ast.expr, str]]:
    """Nodes of a function's body that a change applies to, with the kind of change."""
    found: list[tuple[ast.expr, str]] = []
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(node, ast.BinOp) and type(node.op).__name__ in SWAPS:
                found.append((node, "operator"))
            elif isinstance(node, ast.Compare) and type(node.ops[0]).__name__ in SWAPS:
                found.append((node, "comparison"))
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
                found.append((node, "sign"))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "where" and len(node.args) == 3:
                    found.append((node, "branches"))
                elif node.func.attr in CALLS:
                    found.append((node, "call"))
    raised = {
        inner
        for statement in ast.walk(function)
        if isinstance(statement, ast.Raise)
        for inner in ast.walk(statement)
    }
    return [(node, kind) for node, kind in found if node not in raised]


def changed(source: str, node: ast.expr, kind: str) -> tuple[str, str]:
    """The source with one node changed, and what was changed."""
    before, new = ast.unparse(node), node
    match node:
        case ast.BinOp():
            node.op = SWAPS[type(node.op).__name__]()
        case ast.Compare():
            node.ops[0] = SWAPS[type(node.ops[0]).__name__]()
        case ast.UnaryOp():
            new = node.operand
        case ast.Call() if kind == "branches":
            node.args[1], node.args[2] = node.args[2], node.args[1]
        case ast.Call(func=ast.Attribute() as function):
            function.attr = CALLS[function.attr]
    after = ast.unparse(new)
    assert node.end_lineno is not None and node.end_col_offset is not None
    lines = source.splitlines(keepends=True)
    start = sum(len(line.encode()) for line in lines[: node.lineno - 1]) + node.col_offset
    end = sum(len(line.encode()) for line in lines[: node.end_lineno - 1]) + node.end_col_offset
    raw = source.encode()
    text = (raw[:start] + f"({after})".encode() + raw[end:]).decode()
    return text, f"{before} → {after}"


def faults_of(module: str) -> list[Fault]:
    """One fault for every public function and method of the module that a change applies to."""
    source = (ROOT / MODULES[module][0]).read_text(encoding="utf-8")
    faults = []
    for index, function in enumerate(functions(ast.parse(source))):
        options = places(function)
        if not options:
            continue
        # Parsed anew, because a change is made in the tree.
        fresh = places(functions(ast.parse(source))[index])
        pick = int(hashlib.sha256(f"{module}.{function.name}".encode()).hexdigest(), 16) % len(fresh)
        text, change = changed(source, *fresh[pick])
        faults.append(Fault(module, function.name, change, text))
    return faults


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Public functions, and public methods (and `__call__`) of classes."""
    own = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    own += [
        node
        for outer in tree.body
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
        if isinstance(node, ast.FunctionDef)
    ]
    return [node for node in own if not node.name.startswith("_") or node.name == "__call__"]


# Found unnoticed by a review: module, name, text, text with the fault.
NAMED = (
    (
        "users",
        "newton without damping",
        "taken = state[0] <= value - 1e-4 * size * decrement + 1e-6 * (1.0 + jnp.abs(value))",
        "taken = jnp.isfinite(state[0])",
    ),
    ("fit", "people left out inside the fit", "weight * ~outside", "weight"),
    (
        "fit",
        "all answers used to adapt",
        "np.minimum(config.adapt_answers, counts // 2)",
        "np.minimum(config.adapt_answers, counts)",
    ),
    (
        "acquisition",
        "Fisher information that ignores genuine",
        "slope = _column(model.genuine) * jax.nn.sigmoid(margin)",
        "slope = jax.nn.sigmoid(margin)",
    ),
    (
        "update",
        "a skipped step moves Adam's moments",
        "new._replace(params=kept[0], opt_state=kept[1])",
        "new._replace(params=kept[0])",
    ),
    (
        "update",
        "every epoch takes the same minibatches",
        "jax.random.split(key, ",
        "jnp.broadcast_to(key, ",
    ),
)


def named_of(module: str) -> list[Fault]:
    source = (ROOT / MODULES[module][0]).read_text(encoding="utf-8")
    faults = []
    for own, name, text, fault in NAMED:
        if own == module:
            assert source.count(text) == 1, f"{module}: {text!r} stands there {source.count(text)} times"
            faults.append(Fault(module, name, f"{text} → {fault}", source.replace(text, fault)))
    return faults
