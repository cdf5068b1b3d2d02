"""The layers of the design, held against the imports."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_layers_hold():
    command = Path(sys.executable).with_name("lint-imports")
    if not command.is_file() and not shutil.which("lint-imports"):
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_gate_alone_makes_a_z():
    """Whatever holds for everybody's z (the rail, later guardrails) is applied by `Gate`, so nobody may go around it."""
    assert not _uses({"inverse_sqrt", "cov_sqrt", "Conditioning"}, {"rlhf/policy/conditioning.py"})


def _uses(names: set[str], allowed: set[str]) -> list[str]:
    """Where `names` occur as an attribute, a name or an import, outside the allowed files."""
    found = []
    for path in [*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("rewards/**/*.py")]:
        if str(path.relative_to(ROOT)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            field = {"Attribute": "attr", "Name": "id", "alias": "name"}.get(type(node).__name__)
            if field and getattr(node, field) in names:
                found.append(
                    f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}: {getattr(node, field)}"
                )
    return found


def test_a_basis_is_read_at_one_place():
    """Whitening, rotation and signs are made by the gauge, stored, and applied by `Readout` alone."""
    basis = {"rewards/types.py", *(f"rewards/basis/{name}.py" for name in ("gauge", "readout", "store"))}
    assert not _uses({"rotation"}, basis)


def test_trainers_ask_a_reward_what_it_can_do():
    """Which class a reward is of is known where it is made, and nowhere else."""
    kinds = {"EncoderKernel", "ColumnKernel", "HostReward", "ColumnFeatures", "EncoderFeatures", "Compiled"}
    made = {"rlhf/phi/on_device.py", "rlhf/phi/on_host.py", "rlhf/phi/reward.py", "rlhf/train/rl/sources.py"}
    assert not _uses(kinds, made)


def test_rewards_alone_imports_neither_the_policy_side_nor_a_language_model():
    code = "import sys, rewards.basis.fit, rewards.people.records, rewards.comparison.replay; " + (
        "assert not [m for m in sys.modules if m.startswith('rlhf') or m in ('transformers', 'torch')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


MAKERS = {"Gate", "gate", "compose", "checked", "drawn", "coefficients_to_z", "signal", "_signals", "z_of"}
"""Calls whose value is a z: the gate, and what is nothing but a call of it (which is checked as well)."""
PASSERS = {"people_rows", "user_rows", "_others"}  # return a z of the gate, alone or in a pair
NO_POLICY = {
    "rlhf/phi/columns/style.py",
    "rlhf/sweep/worker.py",
}  # other functions called `text_of` and `complete`
PLACES = {"rows", "picked"}  # of `rlhf.mesh.place`: the same values on other devices
SHAPERS = {"asarray", "tile", "stack", "concatenate", "repeat", "zeros_like", "zeros", "device_put", "tuple"}


def test_every_z_comes_from_the_gate():
    """Whoever hands a z to the model got it from the gate, as a parameter or field `z`, or hands in None or zeros."""
    takers = _takers()
    assert {"complete", "generate", "token_logprobs", "rows_of", "Rollout", "Reading"} <= set(takers)
    found, checked = [], 0
    for path in sorted(ROOT.glob("rlhf/**/*.py")):
        place = str(path.relative_to(ROOT))
        if place.startswith("rlhf/models/") or place in NO_POLICY:
            continue  # applies a z, makes none
        around: dict[ast.Call, list[ast.AST]] = {}
        for function, call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            around.setdefault(call, []).append(function)
        for call, functions in around.items():
            for given in _given_z(call, takers):
                checked += 1
                if not any(_of_the_gate(given, function, set()) for function in functions):
                    found.append(f"{place}:{call.lineno}: {ast.unparse(given)}")
    assert not found, found
    assert checked > 40


def test_every_gate_has_the_rails():
    """A gate or population is made with the rails of the rewards, or (from a policy) reads them; and z comes of a gate."""
    makes = {"of": 4, "from_posteriors": 4, "from_prior": 3}
    gates = {"Gate", "gate", "compose", "checked", "drawn"}
    others = (MAKERS | PASSERS) - gates
    found = []
    for path in sorted(ROOT.glob("rlhf/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for _, call in _calls(tree):
            owner = getattr(getattr(call.func, "value", None), "id", "")
            name = _name_of(call.func)
            if owner in ("Gate", "Population", "Conditioning", "cls") and len(call.args) < makes.get(name, 0):
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in others:
                inner = {_name_of(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                if not inner & (gates | others - {node.name}):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} asks no gate")
    assert not found, found


def test_a_second_way_to_a_z_is_seen():
    """The test above fails on coefficients that go around the gate."""
    takers = {"complete": 2}
    for source, fine in (
        ("def f(policy, prompts, w):\n    return complete(policy, prompts, policy.gate(w))", True),
        ("def f(policy, prompts, z):\n    return complete(policy, prompts, z[None])", True),
        (
            "def f(policy, prompts, w):\n    _, z = policy.gate.compose(w)\n    return complete(policy, prompts, z)",
            True,
        ),
        ("def f(policy, prompts, w):\n    return complete(policy, prompts, w)", False),
        (
            "def f(policy, prompts, w, mean):\n    z = w - mean\n    return complete(policy, prompts, z)",
            False,
        ),
        ("def f(policy, prompts, rng):\n    return complete(policy, prompts, z=rng.normal(size=3))", False),
    ):
        ((function, call),) = [pair for pair in _calls(ast.parse(source)) if _given_z(pair[1], takers)]
        assert all(_of_the_gate(given, function, set()) for given in _given_z(call, takers)) == fine, source


def _takers() -> dict[str, int]:
    """Functions and records of `rlhf` that take a z: name → its place among the positional arguments."""
    found: dict[str, int] = {}
    for path in ROOT.glob("rlhf/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [one.arg for one in node.args.posonlyargs + node.args.args if one.arg != "self"]
            elif isinstance(node, ast.ClassDef):
                names = [
                    one.target.id
                    for one in node.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                ]
            else:
                continue
            if "z" in names:
                found[node.name] = names.index("z")
    return found


def _calls(tree: ast.AST):
    """(enclosing function, call) of every call in a function."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    yield function, node


def _name_of(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _given_z(call: ast.Call, takers: dict[str, int]) -> list[ast.expr]:
    """What a call hands in as z: by name to anything, or at its place to one of the takers."""
    named = [word.value for word in call.keywords if word.arg == "z"]
    place = takers.get(_name_of(call.func))
    spread = any(isinstance(arg, ast.Starred) for arg in call.args)
    return named + ([call.args[place]] if place is not None and not spread and len(call.args) > place else [])


def _of_the_gate(value: ast.expr, function: ast.AST, seen: set[str]) -> bool:
    if isinstance(value, ast.Constant):
        return value.value is None
    if isinstance(value, ast.Attribute):
        return value.attr == "z"
    if isinstance(value, ast.Subscript | ast.Starred):
        return _of_the_gate(value.value, function, seen)
    if isinstance(value, ast.IfExp):
        return _of_the_gate(value.body, function, seen) and _of_the_gate(value.orelse, function, seen)
    if isinstance(value, ast.List | ast.Tuple):
        return all(_of_the_gate(one, function, seen) for one in value.elts)
    if isinstance(value, ast.ListComp | ast.GeneratorExp):
        bound = {
            node.id
            for part in value.generators
            for node in ast.walk(part.target)
            if isinstance(node, ast.Name)
        }
        if isinstance(value.elt, ast.Name) and value.elt.id in bound:
            return all(_of_the_gate(part.iter, function, seen) for part in value.generators)
        return _of_the_gate(value.elt, function, seen)
    if isinstance(value, ast.Call):
        name = _name_of(value.func)
        if name in SHAPERS | PLACES:
            return not value.args or name.startswith("zeros") or _of_the_gate(value.args[0], function, seen)
        return name in MAKERS | PASSERS
    if isinstance(value, ast.Name):
        if value.id in seen:
            return True
        arguments = getattr(function, "args", None)
        if (
            value.id == "z"
            and arguments
            and "z" in [one.arg for one in arguments.args + arguments.kwonlyargs]
        ):
            return True
        made = [
            own
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            for own in _assigned(target, node.value, value.id, function)
        ]
        return bool(made) and all(_of_the_gate(one, function, seen | {value.id}) for one in made)
    return False


def _assigned(target: ast.expr, value: ast.expr, name: str, function: ast.AST) -> list[ast.expr]:
    """What a name gets from `target = value`; of a tuple its own part, where the right side says which that is."""
    if isinstance(target, ast.Name):
        return [value] if target.id == name else []
    if isinstance(target, ast.Tuple):
        if isinstance(value, ast.Call) and _name_of(value.func) in PLACES:
            value = value.args[0]
        if isinstance(value, ast.Call) and _name_of(value.func) == "map":
            value = value.args[-1]  # the same done to each
        elif isinstance(value, ast.GeneratorExp):
            value = value.generators[0].iter
        if isinstance(value, ast.Name):
            named = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == value.id
            ]
            value = named[0] if len(named) == 1 else value
        each = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
        parts = value.elts if each else [value] * len(target.elts)
        return [
            own
            for one, part in zip(target.elts, parts, strict=True)
            for own in _assigned(one, part, name, function)
        ]
    return []
