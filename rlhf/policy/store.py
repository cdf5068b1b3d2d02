"""Policies on disk: `policy/` of a training run holds what training added; the base stays where it is.

    policy/policy.json          kind, base model, adapters, conditioning, hashes
    policy/weights.safetensors  LoRA and conditioner (and the base, when all weights were trained)
    policy/base.json            hashes of the base's tokenizer and settings, where policy.json is older than they are in it

`load_base` reads a Hugging Face model, or a training run with its adapters folded in, as frozen base weights;
`load_policy` reads a run as it was trained. Both are strict: every tensor is accounted for and hashed.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from rewards import hashed, opening, paths
from rewards.basis.store import RECORD as BASIS
from rewards.errors import UserError
from rewards.files import JSONObject, cache_dir, sha256_file
from rlhf.mesh import place
from rlhf.models import quantised
from rlhf.models.adapters import AdapterSpec
from rlhf.models.conditioner_kinds import merge
from rlhf.models.config import Kept, ModelConfig
from rlhf.models.layout import Tree
from rlhf.models.load import load_params, read_hf_config, resolve_model
from rlhf.models.tokenizer import Tokenizer
from rlhf.policy.conditioning import Gate
from rlhf.policy.logprobs import PolicyParams, stages_of, structure
from rlhf.run import inputs, processes

_LOG = logging.getLogger("chorus")

POLICY, WEIGHTS, BASE = "policy.json", "weights.safetensors", "base.json"
IN_MEMORY = "(in memory)"
"""Name of a base that stands in no directory."""
AGAIN = "restore it or train again"
REWARD = "reward"
"""Kind of the runs of `chorus rewards train`: the model under a reward, which others may read and nobody may sample from."""
FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Besides the weights, what decides how a model reads and where it stops."""
NEEDED = ("base", "base_fingerprint", "adapter_layers", "dtype", "full", "spec", "weights_sha256")


@dataclasses.dataclass(frozen=True)
class Base:
    """A model's frozen weights: a nested dict as `rlhf.models.load` makes it, cut into `stages`."""

    name: str
    directory: Path
    config: ModelConfig
    tree: Tree
    stages: tuple[int, ...]
    tokenizer: Tokenizer
    fingerprint: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """sha256 of its `FILES`."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy ready to run.

    Attributes:
      graphdef, params: structure and arrays; `spec` its adapters.
      gate: how coefficients become z; None for a policy without users.
      record: the contents of policy.json.
    """

    base: Base
    graphdef: nnx.GraphDef
    params: PolicyParams
    spec: AdapterSpec | None
    gate: Gate | None
    record: JSONObject


def fingerprint(directory: Path) -> str:
    """sha256 over the names and contents of a model directory's weights."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(_digest(path).encode())
    return digest.hexdigest()


def files_of(directory: Path, names: Sequence[str] = FILES) -> dict[str, str]:
    """sha256 by name of a model directory's files `names`, those that there are."""
    return {name: _digest(path) for name in names if (path := directory / name).is_file()}


def files_under(name: str | Path) -> dict[str, str]:
    """`files_of` the model directory under a model or a training run, without loading."""
    while is_run(name):
        name = _located(record_of(name), name)["base"]
    return files_of(resolve_model(name))


def _digest(path: Path) -> str:
    """sha256 of a file, remembered as long as nothing was written to it: its time of change cannot be set back."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _file_digest(path: Path, *state: int) -> str:
    return sha256_file(path)


def is_run(name: str | Path) -> bool:
    """Whether `name` is the directory of a training run with a finished policy."""
    return (Path(name) / "policy" / POLICY).is_file()


def require_run(run: str | Path) -> None:
    """A UserError where there is no finished policy: an unfinished run, one of another command, a reward model."""
    if not is_run(run):
        reason = (
            _no_policy(run)
            if (Path(run) / "config.yaml").is_file()
            else "is not a policy run; give the output_dir of chorus train"
        )
        raise UserError(f"{run}: {reason}")
    if record_of(run).get("kind") == REWARD:
        raise UserError(
            f"{run}: a reward model (chorus rewards train), which judges and does not write; give the output_dir of chorus train"
        )


def _no_policy(run: str | Path) -> str:
    """Why a run directory without policy/ has none."""
    kind = opening.text(Path(run) / "config.yaml").split("\n", 1)[0].removeprefix("# chorus ").strip()
    if kind == "rewards" or (Path(run) / BASIS).is_file():
        return "a reward run, not a model; give a training run or a model"
    if kind in ("evaluate", "outputs", "sweep"):
        what = "a sweep" if kind == "sweep" else "an evaluation"
        return f"{what}, not a model; give a training run or a model"
    return "this training run has not finished; run its command again to complete it"


def identity(run: str | Path) -> str:
    """Hash of a finished run's policy.json, which holds the hashes of its weights, base model and basis."""
    return hashed.record_identity(Path(run) / "policy" / POLICY, AGAIN)


def record_of(run: str | Path) -> JSONObject:
    """policy.json of a finished run."""
    path = Path(run) / "policy" / POLICY

    def parse(record: JSONObject) -> JSONObject:
        for key in (key for key in NEEDED if key not in record):
            raise UserError(f"{path}: key {key!r} is missing; {AGAIN}")
        return record

    return hashed.parse_record(path, AGAIN, parse)


def reference_of(run: str | Path) -> str:
    """π_ref of a finished run: the run or model that it was trained from, found again where both were moved together."""
    return str(_located(record_of(run), run)["base"])


def fingerprint_of(path: str | Path) -> str:
    """What `load_base` gives as fingerprint of a training run or a model directory, without loading."""
    return identity(path) if is_run(path) else fingerprint(resolve_model(path))


def parts_of(name: str | Path) -> dict[str, str]:
    """What `parts` gives of a model or a training run, without loading."""
    return {"weights": fingerprint_of(name), **files_under(name)}


def parts(base: Base) -> dict[str, str]:
    """What a model is made of, by name: its weights and its `FILES`."""
    return {"weights": base.fingerprint, **base.files}


def load_base(name: str | Path, *, adapter_layers: int | None, dtype: str, kept: Kept | None = None) -> Base:
    """Read `name` as frozen base weights, cut so that the top `adapter_layers` form their own stage.

    Args:
      name: model name, directory, .gguf file or hub id (`resolve_model`), or a training run, whose adapters are
        folded in (a conditioned policy becomes its aggregate policy).
      kept: how the layers' matrices are kept; None: in `dtype`.
    """
    if is_run(name):
        loaded = _load(name)
        return base_of(
            loaded, str(name), identity(name), adapter_layers=adapter_layers, dtype=dtype, kept=kept
        )
    if (Path(name) / "config.yaml").is_file():
        raise UserError(f"{name}: {_no_policy(name)}")
    base = _without_weights(str(name), resolve_model(name), adapter_layers, kept)
    tree = load_params(base.directory, base.config, base.stages, jnp.dtype(dtype))
    return dataclasses.replace(base, tree=tree, fingerprint=fingerprint(base.directory))


def described(name: str | Path, *, adapter_layers: int | None, dtype: str, kept: Kept | None = None) -> Base:
    """`load_base` without reading weights: shapes in the place of arrays, and no fingerprint.

    Of a training run it is the model underneath, whose shapes are those of the run's policy.
    """
    named = str(name)
    while is_run(name):
        name = _located(record_of(name), name)["base"]
    base = _without_weights(named, resolve_model(name), adapter_layers, kept)
    shapes = structure(base.config, base.stages, None, dtype, False)[1].base
    return dataclasses.replace(base, tree=nnx.to_pure_dict(shapes))


def _without_weights(name: str, directory: Path, adapter_layers: int | None, kept: Kept | None) -> Base:
    """What the small files of a model say; nothing in the place of its weights."""
    config = ModelConfig.from_hf(read_hf_config(directory), f"{directory}/config.json")
    if kept is not None and config.num_experts:
        raise UserError(
            f"model.base {kept}: the experts of {config.family} are kept as they are computed with; leave model.base out"
        )
    config = dataclasses.replace(config, kept=kept)
    stages = stages_of(config, adapter_layers)
    tokenizer = Tokenizer(directory)
    if max(tokenizer.vocab_size - 1, *tokenizer.eos_ids) >= config.vocab_size:
        raise UserError(
            f"{directory}/tokenizer.json: token ids go up to {max(tokenizer.vocab_size - 1, *tokenizer.eos_ids)}, but "
            f"config.json gives the model {config.vocab_size} (vocab_size); take the tokenizer that came with the weights"
        )
    return Base(name, directory, config, {}, stages, tokenizer, "", files_of(directory))


def base_of(
    policy: Policy,
    name: str,
    fingerprint: str,
    *,
    adapter_layers: int | None,
    dtype: str,
    kept: Kept | None = None,
) -> Base:
    """A policy as frozen base weights, its adapters folded in at z = 0; named and identified as given."""
    base, stages = policy.base, stages_of(policy.base.config, adapter_layers)
    tree = restage(merge_adapters(policy, None), base.stages, stages)
    coded = quantised.tree_of(kept, tree)["stages"]  # of the float32 of what was merged
    tree = jax.tree.map(lambda a: jnp.asarray(a, jnp.dtype(dtype)), tree)
    tree, config = (
        tree if kept is None else {**tree, "stages": coded},
        dataclasses.replace(base.config, kept=kept),
    )
    return dataclasses.replace(
        base, name=name, config=config, tree=tree, stages=stages, fingerprint=fingerprint
    )


def base_state(
    base: Base, spec: AdapterSpec | None, dtype: str, remat: bool
) -> tuple[nnx.GraphDef, PolicyParams, PolicyParams]:
    """Graph definition, parameters with the base filled in and no adapters, and the adapters' shapes."""
    graphdef, shapes = structure(base.config, base.stages, spec, dtype, remat)
    state = jax.tree.map(lambda leaf: leaf, shapes.base)  # a copy: `structure` is cached
    nnx.replace_by_pure_dict(state, base.tree)
    return graphdef, PolicyParams(place.parameters(state), shapes.lora, shapes.conditioner), shapes


def restage(tree: Tree, old: tuple[int, ...], new: tuple[int, ...]) -> Tree:
    """Cut the stacks of layers anew."""
    if old == new:
        return tree
    stacked = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), *(tree["stages"][i] for i in range(len(old)))
    )
    bounds = np.cumsum((0, *new))
    stages = {i: jax.tree.map(lambda a, i=i: a[bounds[i] : bounds[i + 1]], stacked) for i in range(len(new))}
    return {**tree, "stages": stages}


def merge_adapters(policy: Policy, z: np.ndarray | None) -> Tree:
    """Base weights with LoRA, and the conditioner at one z[K] (None: the aggregate policy), folded in.

    Where the base's matrices are kept in another type than is computed in (`ModelConfig.kept`), the base is read again and
    merged in float32: what is rounded is stored nowhere.

    Raises:
      UserError: z was given, and this kind of conditioner is no change of weights.
    """
    base, lora, conditioner = (nnx.to_pure_dict(part) for part in policy.params)
    if policy.base.config.kept is not None:
        base = _as_on_disk(policy.base)
    if policy.spec is None:
        return base
    return merge(base, lora, conditioner, policy.spec, policy.base.config, z, top=len(policy.base.stages) - 1)


def _as_on_disk(base: Base) -> Tree:
    """Its weights in float32, read again."""
    again = load_base(base.name, adapter_layers=base.stages[-1], dtype="float32")
    if again.fingerprint != base.fingerprint:
        raise UserError(f"{base.name}: its weights have changed since this policy was read; restore them")
    return again.tree


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """Arrays of an `nnx.State` by dotted path."""
    return {name: place.host(leaf) for name, leaf in _named(tree).items()}


def _gathered(role: str, tree: PyTree) -> dict[str, np.ndarray]:
    """Arrays as they are stored, gathered one by one; only the process that writes keeps them."""
    named = ((f"{role}.{name}", place.host(leaf)) for name, leaf in _named(tree).items())
    return {name: array for name, array in named if processes.is_writer()}


def _named(tree: PyTree) -> dict[str, jax.Array]:
    """Leaves of an `nnx.State`, arrays or shapes, by dotted path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(tree))
    return {_name(path): leaf for path, leaf in flat}


def _name(path: KeyPath) -> str:
    """The dotted name under which a leaf is stored."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def save_policy(
    directory: Path, params: PolicyParams, spec: AdapterSpec | None, record: JSONObject, *, full: bool
) -> None:
    """Write `policy/` of a run; policy.json last, so that its presence means the policy is whole."""
    tensors = _gathered("lora", params.lora) | _gathered("conditioner", params.conditioner)
    if full:
        tensors |= {name: np.asarray(v, np.float32) for name, v in _gathered("base", params.base).items()}
    processes.from_writer(lambda: _write(directory, tensors, spec, record, full))


def _write(
    directory: Path, tensors: dict[str, np.ndarray], spec: AdapterSpec | None, record: JSONObject, full: bool
) -> None:
    record = {
        "format": 1,
        **record,
        "relative": _ways(record, directory),
        "full": full,
        "spec": spec.record() if spec else None,
        "weights_sha256": hashed.write_tensors(directory / "policy" / WEIGHTS, tensors),
    }
    hashed.write_record(directory / "policy" / POLICY, record)


def _ways(record: JSONObject, directory: Path) -> dict[str, str]:
    """How base model and rewards are reached from the run, unless they lie in the cache, which does not move along."""
    cache = cache_dir().resolve()
    return {
        name: paths.relative(record[name], directory)
        for name in ("base", "rewards")
        if record.get(name) and cache not in Path(record[name]).resolve().parents
    }


def _located(record: JSONObject, run: str | Path) -> JSONObject:
    """The record of a policy with the places where its base and rewards are now, known by their hashes."""
    ways = record.get("relative", {})

    def base(path: Path) -> bool:
        return path.is_dir() and fingerprint_of(path) == record["base_fingerprint"]

    def rewards(path: Path) -> bool:
        basis = path / BASIS
        return basis.is_file() and hashed.read_record(basis).get("basis_hash") == record.get("basis")

    found = {"base": paths.find(record["base"], ways.get("base"), run, base)}
    if record.get("rewards"):
        found["rewards"] = paths.find(record["rewards"], ways.get("rewards"), run, rewards)
    return record | found


def without_adapters(model: str | Path) -> Policy:
    """A model as it is, as a policy for everybody."""
    if is_run(model):
        require_run(model)
    base = load_base(model, adapter_layers=None, dtype="float32")
    graphdef, params, _ = base_state(base, None, "float32", False)
    return Policy(base, graphdef, params, None, None, {})


def load_policy(run: str | Path) -> Policy:
    """Read a training run's policy.

    Raises:
      UserError: no finished policy there, weights that do not match their record, or a base model that has changed.
    """
    require_run(run)
    return _load(run)


def _load(run: str | Path) -> Policy:
    """The tuned model of a finished run, of whatever kind."""
    directory = Path(run) / "policy"
    record = _located(record_of(run), run)
    base = load_base(
        record["base"],
        adapter_layers=record["adapter_layers"],
        dtype=record["dtype"],
        kept=record.get("kept"),
    )
    base = dataclasses.replace(base, tokenizer=base.tokenizer.dated(record.get("template_date")))
    if base.fingerprint != record["base_fingerprint"]:
        raise UserError(
            f"{record['base']}: weights differ from those that {run} was trained from; restore them or train again"
        )
    _check_files(record, base, directory)
    spec = AdapterSpec.from_record(record["spec"]) if record["spec"] else None
    graphdef, params, shapes = base_state(base, spec, record["dtype"], False)
    roles = ("lora", "conditioner", *(("base",) if record["full"] else ()))
    expected = {
        f"{role}.{name}": leaf.shape for role in roles for name, leaf in _named(getattr(shapes, role)).items()
    }
    tensors = hashed.read_tensors(
        directory / WEIGHTS, record["weights_sha256"], expected, AGAIN, whole="this policy"
    )
    params = params._replace(**{role: _filled(getattr(shapes, role), role, tensors) for role in roles})
    gate = Gate.from_record(record, str(directory / POLICY))
    return Policy(base, graphdef, params, spec, gate, record)


def _check_files(record: JSONObject, base: Base, directory: Path) -> None:
    """The base's tokenizer and settings are those of training; a policy from before they were recorded gets them now."""
    then = record.get("base_files")
    if then is None and (directory / BASE).is_file():
        then = hashed.read_record(directory / BASE, AGAIN)["base_files"]
    if then is None:
        _adopt(directory, base)
    elif changed := inputs.change(then, base.files):
        raise UserError(
            f"{base.directory}: {changed} since {directory.parent} was trained; restore it or train again"
        )


def _adopt(directory: Path, base: Base) -> None:
    try:
        hashed.write_record(directory / BASE, {"base_files": dict(base.files)})
    except UserError:  # it cannot be written here: as before
        return
    _LOG.info(
        f"{directory.parent}: trained before policies recorded their model's tokenizer and settings; those of "
        f"{base.directory} are taken as they are and recorded now"
    )


def _filled(expected: nnx.State, role: str, tensors: dict[str, np.ndarray]) -> nnx.State:
    """The file's tensors of one role, in the structure and types of `expected`."""
    pure = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(tensors[f"{role}.{_name(path)}"], leaf.dtype),
        nnx.to_pure_dict(expected),
    )
    state = jax.tree.map(lambda leaf: leaf, expected)  # a copy: `structure` is cached
    nnx.replace_by_pure_dict(state, pure)
    return place.parameters(state)


def coefficients_to_z(policy: Policy, user_coef: np.ndarray) -> np.ndarray:
    """z of coefficients w[..., K], through the policy's gate.

    Raises:
      UserError: the policy has no users, or the number of coefficients is wrong.
    """
    if policy.gate is None:
        raise UserError("this policy was trained without users; leave out the user or coefficients")
    return policy.gate.checked(user_coef)


def load_gate(run: str | Path, basis: str) -> Gate:
    """The gate of a finished training run, without its weights.

    Args:
      basis: hash of the reward basis whose coefficients are to pass.
    Raises:
      UserError: no finished run, one without people, or one of another basis.
    """
    path = Path(run) / "policy" / POLICY
    if not path.is_file():
        raise UserError(f"{run}: is not a finished policy run; give the output_dir of chorus train")
    record = record_of(run)
    gate = Gate.from_record(record, str(path))
    if gate is None:
        raise UserError(f"{run}: this policy was trained without users; leave out --policy")
    if record.get("basis") != basis:
        raise UserError(
            f"{run}: was trained with basis {str(record.get('basis'))[:12]}…, the reward run has {basis[:12]}…; name "
            "the policy that was trained with these rewards"
        )
    return gate
