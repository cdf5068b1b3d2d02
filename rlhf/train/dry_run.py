"""`chorus train … --dry-run`: compile a run's programs and read their memory off them, without its weights.

Everything is resolved as in the run (configuration, model, tokenizer, data, mesh); weights, moments and rows enter as shapes,
so that a model is judged that this machine could not hold. What fits is run once on zeros. Nothing is written.

A program holds its arguments, its results and its temporaries; the state is given away to the step that follows, so it is
counted once. Compiled rewards and hints are programs of their own beside these and are not counted. Operations are those of the
compiler's own count, which passes through the body of a loop (over layers, tokens, micro-batches) once.
"""

import functools
import logging
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from rewards.basis.rails import stated
from rewards.basis.store import load_reward_run
from rewards.data.examples import read_examples
from rewards.data.read import read_preferences
from rewards.data.stream import Stream
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people.population import load_people
from rlhf.mesh import place, rules
from rlhf.mesh.devices import current, described, under_mesh
from rlhf.models.adapters import AdapterSpec
from rlhf.models.quantised import coded
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import UserShares
from rlhf.policy.logprobs import MAX_CACHED_BYTES, PolicyParams, structure
from rlhf.policy.packing import PackedRows
from rlhf.policy.rails import in_force
from rlhf.run.record import traced
from rlhf.train import dpo_parts, dpo_step, memory, optim, sft_step, streamed
from rlhf.train.config import DPOConfig, SFTConfig
from rlhf.train.length import in_steps, num_steps, settled
from rlhf.train.rl import prompts as rl_prompts
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import PPOConfig, RLConfig
from rlhf.train.rl.critic import init_critic
from rlhf.train.rl.rollout import Prompts
from rlhf.train.rl.settings import RLProgram
from rlhf.train.rl.sources import drawn_people
from rlhf.train.sft import build_rows, frozen_parts, program_of, tokens_per_step, trained_parts

_LOG = logging.getLogger("chorus")
Config = SFTConfig | DPOConfig | RLConfig


class Program(NamedTuple):
    """A compiled function of the run, what it is called with (shapes), and what its arguments are, by use."""

    name: str
    compiled: Any  # of jax.stages
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    held: dict[str, PyTree]


class Model(NamedTuple):
    """The policy of a run as shapes on the mesh."""

    base: policy_store.Base
    graphdef: nnx.GraphDef
    params: PolicyParams
    trained: dict[str, PyTree]
    full: bool


@under_mesh
def run(config: Config, *, device_gb: float | None = None) -> JSONObject:
    """Compile, judge, and run one step on zeros where it fits.

    Args:
      device_gb: memory of a device to judge by, in GB; None takes that of this machine's. With it nothing is run.
    Raises:
      UserError: whatever the run would refuse before its first step; or it does not fit, and what would make it.
    """
    started = time.perf_counter()
    programs, tokens = _programs(config)
    room = memory.device_bytes() if device_gb is None else device_gb * memory.GIGABYTE
    result: JSONObject = {
        "mesh": described(),
        "device_gb": room / memory.GIGABYTE,
        "compile_seconds": time.perf_counter() - started,
        "tokens_per_step": tokens,
        "programs": {program.name: _judged(program) for program in programs},
    }
    needed = max(found["total_gb"] for found in result["programs"].values())
    result |= {"needed_gb": needed, "fits": needed * memory.GIGABYTE <= room}
    if not result["fits"]:
        raise UserError(
            f"memory: a device needs {needed:.3g} GB ({_listed(result['programs'])}) and has {room / memory.GIGABYTE:.3g}; "
            f"{_fix(config, result['programs'])}"
        )
    if device_gb is None:
        seconds = sum(_seconds(program) for program in programs)
        result |= {"step_seconds": seconds, "tokens_per_second": tokens / seconds}
    return result


def _programs(config: Config) -> tuple[list[Program], float]:
    """The compiled functions of one step, and its tokens."""
    layers, dtype = config.model.adapter_layers, config.model.dtype
    base = policy_store.described(
        config.model.name, adapter_layers=layers, dtype=dtype, kept=config.model.base
    )
    model = base.config
    memory.check_pass(config)
    rules.check_model(num_heads=model.num_heads, num_kv_heads=model.num_kv_heads, mlp_width=model.mlp_width)
    if isinstance(config, SFTConfig):
        return _sft(config, base)
    return _dpo(config, base) if isinstance(config, DPOConfig) else _rl(config, base)


def _sft(config: SFTConfig, base: policy_store.Base) -> tuple[list[Program], float]:
    if config.data.stream:
        config, rows = streamed.first_rows(config, _stream(config), streamed.example_rows, base)
        hidden = None
    else:
        prefs = read_examples(config.data.path, config.data.split, config.data.columns)
        rows = build_rows(config, prefs, base)
        config = settled(config, base, rows.packed)
        hidden = _hidden(config, base, rows.packed)
    full = config.tune.mode == "full"
    spec = None if full else AdapterSpec(config.tune.lora_rank, config.tune.lora_alpha)
    model = _model(config, base, spec, conditioned=False)
    settings = traced(sft_step.SFTSettings(optimizer=config.optimizer, num_steps=num_steps(config)))
    batch = _batch(config, sft_step.SFTBatch(rows, hidden))
    state = _state(model.trained, lambda trained: optim.init_state(trained, settings.optimizer, _key()))
    program = program_of(config, model.graphdef)
    frozen = frozen_parts(model.params, full)
    lowered = sft_step.step.lower(state, batch, frozen, _whole(settings), program=program)
    arguments = (state, batch, frozen, _whole(settings)), {}
    held = _held(frozen, state) | {"rows": batch}
    return [Program("step", lowered.compile(), arguments, held)], tokens_per_step(config, rows.packed)


def _dpo(config: DPOConfig, base: policy_store.Base) -> tuple[list[Program], float]:
    prefs = None
    if not config.data.stream:
        data = config.data
        prefs = read_preferences(data.path, data.split, columns=data.columns, people=False)
    names = drawn_from = people = None
    if config.loss.personal:
        assert config.rewards is not None, "asked for where the configuration is read"
        run = load_reward_run(config.rewards)
        names, people = run.basis.gauge.names, load_people(run)
        drawn_from = dpo_parts.population(config, run, people)
        if config.loss.kind == "observed" and prefs is not None:
            prefs = dpo_parts.known_people(prefs, people)
    if prefs is None:
        config, rows = streamed.first_rows(config, _stream(config), streamed.pair_rows, base)
        hidden = None
    else:
        rows = dpo_parts.build_rows(config, prefs, base, people)
        config = settled(config, base, rows.packed)
        hidden = _hidden(config, base, rows.packed)
    model = _model(config, base, dpo_parts.adapter_spec(config, names, base), conditioned=names is not None)
    shape = rows.item.shape
    data = dpo_step.DPOBatch(
        rows,
        np.zeros(shape, np.float32),
        np.zeros((*shape, len(names or ())), np.float32),
        hidden,
    )
    settings = dpo_parts.settings_of(config)
    batch, drawn_from = _batch(config, data), _whole(drawn_from)
    state = _state(model.trained, lambda trained: optim.init_state(trained, settings.optimizer, _key()))
    frozen = frozen_parts(model.params, model.full)
    arguments = (state, batch, frozen, drawn_from, _whole(settings)), {}
    program = dpo_parts.program_of(config, model.graphdef, drawn_from is not None)
    lowered = dpo_step.step.lower(*arguments[0], program=program)
    held = _held(frozen, state) | {"rows": batch}
    return [Program("step", lowered.compile(), arguments, held)], tokens_per_step(config, rows.packed)


def _stream(config: SFTConfig | DPOConfig) -> Stream:
    return Stream(config.data.path, config.data.columns, config.data.split)


def _rl(config: Any, base: policy_store.Base) -> tuple[list[Program], float]:
    """Drawing and the update; what is between them is the reward's."""
    prompts = rl_prompts.prompt_set(config, base)
    each = config.algorithm.epochs * config.algorithm.minibatches
    config = in_steps(config, len(prompts.starts), config.rollout.prompts_per_step, each)
    people, names, shares = _people(config)
    personal = shares is not None
    model = _model(
        config, base, dpo_parts.adapter_spec(config, names if personal else None, base), conditioned=personal
    )
    settings, num_basis = traced(config.settings), len(names)
    trained = dict(model.trained)
    if isinstance(config, PPOConfig):
        width, key = base.config.width, _key()
        critic = functools.partial(
            init_critic, config.critic, width=width, key=key, num_basis=num_basis, personal=personal
        )
        shapes = jax.eval_shape(lambda params: critic(params), model.params)
        trained["critic"] = _shaped(shapes, rules.specs(shapes))
    state = _state(trained, lambda trained: updates.init_state(trained, settings, _key()))
    dtype, stages = config.model.dtype, base.stages
    program = RLProgram(
        graphdef=model.graphdef,
        reference=structure(base.config, stages, None, dtype, config.model.remat)[0],
        shares=shares,
        filtered=config.rollout.filtered,
        dtype=dtype,
        skip=config.train.on_nonfinite == "skip",
    )
    rollout, batch = config.rollout, config.rows
    sampling = rollout.sampling(batch)
    rows = jax.eval_shape(
        lambda: Prompts(
            jax.numpy.zeros((batch, prompts.tokens.shape[1]), np.int32), jax.numpy.zeros(batch, np.int32)
        )
    )
    stop = _whole(np.array(base.tokenizer.eos_ids, np.int32))
    people, settings = _whole((people, settings))
    asked = (state, _rows(rows), people, model.params, _rows(sampling), stop, settings)
    drawn = updates.draw.lower(*asked, program=program).compile()
    given = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        drawn.out_info,
        drawn.output_shardings,
    )
    phi = _rows(np.zeros((batch, num_basis), np.float32))
    learned = (state, given, phi, model.params, settings)
    updated = updates.update.lower(*learned, program=program, people=people).compile()
    held = _held(model.params, state)
    programs = [
        Program("sampling", drawn, (asked, {}), held),
        Program("update", updated, (learned, {"people": people}), held | {"rollout": given}),
    ]
    return programs, float(batch * rollout.max_new_tokens)


def _people(config: RLConfig) -> tuple[Any, tuple[str, ...], UserShares | None]:
    """Whose coefficients are drawn, the outputs' names, and shares of people; as `rl.sources` does, without the rewards."""
    if config.rewards is not None:
        run = in_force(config.rails, load_reward_run(config.rewards))
        rails = run.rails
        prior, posteriors, names = run.prior, list(load_people(run).posteriors), run.basis.gauge.names
    elif config.population is not None:
        wanted = config.population
        prior, posteriors = wanted.prior, []
        names = tuple(f"column {number}" for number in range(len(wanted.mean)))
        axes = [column.name for column in config.columns]
        rails = stated(wanted.rails, axes, "", "population.rails") if wanted.rails else None
    else:
        size = len(config.weights or config.columns)
        return np.ones(size, np.float32), tuple(column.name for column in config.columns), None
    drawn_from, shares = drawn_people(config, prior, posteriors, rails)
    return drawn_from, names, shares


def _model(config: Config, base: policy_store.Base, spec: Any, conditioned: bool) -> Model:
    graphdef, shapes = structure(base.config, base.stages, spec, config.model.dtype, config.model.remat)
    full = config.tune.mode == "full"
    params = _shaped(shapes, rules.specs(shapes))
    trained = jax.eval_shape(functools.partial(trained_parts, full=full, conditioned=conditioned), params)
    return Model(base, graphdef, params, _shaped(trained, rules.specs(trained)), full)


def _state(trained: PyTree, start: Any) -> Any:
    state = jax.eval_shape(start, trained)
    return _shaped(state, rules.state_specs(trained, state))


def _hidden(config: SFTConfig | DPOConfig, base: policy_store.Base, packed: PackedRows) -> Any:
    """What `cached_hidden` will hold of every row, as an array that takes no memory."""
    if config.tune.mode == "full" or len(base.stages) == 1:
        return None
    dtype = np.dtype(jax.numpy.dtype(config.model.dtype))
    if packed.tokens.size * base.config.width * dtype.itemsize > MAX_CACHED_BYTES:
        return None
    return np.broadcast_to(np.zeros((), dtype), (*packed.tokens.shape, base.config.width))


def _batch(config: SFTConfig | DPOConfig, data: PyTree) -> PyTree:
    """A step's micro-batches of rows."""
    train = config.train
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (train.accumulation_steps, train.batch_rows, *leaf.shape[1:]), leaf.dtype
        ),
        data,
    )
    return _rows(shapes, 1)


def _rows(tree: PyTree, dim: int = 0) -> PyTree:
    return _shaped(tree, jax.tree.map(lambda leaf: place.row_spec(leaf.shape, dim), tree))


def _whole(tree: PyTree) -> PyTree:
    return _shaped(tree, jax.tree.map(lambda leaf: P(), tree))


def _shaped(tree: PyTree, specs: PyTree) -> PyTree:
    """Shapes, and where they lie."""
    mesh = current()

    def of(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else NamedSharding(mesh, spec)
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree.map(of, tree, specs)


def _key() -> jax.Array:
    return jax.random.key(0)


def _held(frozen: PyTree, state: Any) -> dict[str, PyTree]:
    return {"weights": frozen, "trained": state.params, "optimiser": state.opt_state}


def _judged(program: Program) -> JSONObject:
    """Gigabytes of one device by use, and operations of one call."""
    found = program.compiled.memory_analysis()
    assert found is not None, "every backend here analyses its programs"
    used = {f"{name}_gb": _bytes(tree) / memory.GIGABYTE for name, tree in program.held.items()}
    arguments, results = found.argument_size_in_bytes, found.output_size_in_bytes
    fresh = results - found.alias_size_in_bytes
    total = arguments + fresh + found.temp_size_in_bytes
    costs = program.compiled.cost_analysis() or {}
    if isinstance(costs, list):
        costs = costs[0]
    return used | {
        "temporaries_gb": (found.temp_size_in_bytes + fresh) / memory.GIGABYTE,
        "total_gb": total / memory.GIGABYTE,
        "teraflops_loops_once": float(costs.get("flops", float("nan"))) / 1e12,
    }


def _bytes(tree: PyTree) -> float:
    """Bytes of one device."""

    def own(leaf: Any) -> float:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 0
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return memory.num_bytes(int(np.prod(shape)), leaf.dtype)

    return sum(map(own, jax.tree.leaves(tree)))


def _listed(programs: JSONObject) -> str:
    name, worst = max(programs.items(), key=lambda item: item[1]["total_gb"])
    uses = [
        f"{use.removesuffix('_gb')} {size:.3g}"
        for use, size in worst.items()
        if use.endswith("_gb") and use != "total_gb" and size > 0.01 * worst["total_gb"]
    ]
    return f"{name}: {', '.join(uses)}"


def _fix(config: Config, programs: JSONObject) -> str:
    """What makes the largest part smaller."""
    _, worst = max(programs.items(), key=lambda item: item[1]["total_gb"])
    part = max(("weights_gb", "trained_gb", "optimiser_gb", "temporaries_gb"), key=lambda use: worst[use])
    if part == "weights_gb" and config.model.dtype == "float32":
        return "set model.dtype=bfloat16, or divide them: mesh.fsdp"
    if part == "weights_gb" and config.tune.mode == "lora" and not coded(config.model.base):
        return "keep them in codes: model.base=nf4 (or int8), or divide them: mesh.fsdp"
    if part in ("trained_gb", "optimiser_gb") and config.tune.mode == "full":
        return "set tune.mode=lora, or divide them: mesh.fsdp"
    if part == "temporaries_gb":
        smaller = (
            "algorithm.minibatches higher, rollout.prompts_per_step lower"
            if isinstance(config, RLConfig)
            else "train.batch_rows lower with train.accumulation_steps higher"
        )
        return smaller + ("" if config.model.remat else ", or model.remat=true")
    return "divide it over more devices: mesh.fsdp"


def _seconds(program: Program) -> float:
    """One call on zeros, the second of two."""

    def zeros() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return jax.tree.map(_zero, program.arguments)

    positional, named = zeros()
    jax.block_until_ready(program.compiled(*positional, **named))
    positional, named = jax.block_until_ready(zeros())
    started = time.perf_counter()
    jax.block_until_ready(program.compiled(*positional, **named))
    return time.perf_counter() - started


def _zero(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.jit(_key, out_shardings=leaf.sharding)()
    make = functools.partial(jax.numpy.zeros, leaf.shape, leaf.dtype)
    return jax.jit(make, out_shardings=leaf.sharding)()
