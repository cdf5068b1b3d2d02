"""Where a number that is not finite comes from: which row of a step, which term of its loss, which parameters.

Every row of the step is taken by itself, its loss and the gradient of that: a sum does not say which of its terms was not
finite. Rows are looked at one after the other by one compiled program; nothing is changed.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rlhf.phi.columns import arguments
from rlhf.policy.packing import PackedRows
from rlhf.train import dpo_step, optim, sft_step
from rlhf.train.reward import step as reward_step
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl import update as updates
from rlhf.train.rl.prompts import PromptBatch

Terms = dict[str, jax.Array]
LOSS = "train/loss/total"


class Row(NamedTuple):
    """A row of the step that is not finite.

    Attributes:
      place: which of the step's rows, from 0.
      terms: what is not finite of it. gradient: parameters for which the gradient of its loss is not.
      tokens: of the row, or of its prompt. user: index of whose labels it holds, −1 for nobody's.
      coef: coefficients that it was for, or None. update: optimiser step of the iteration in which it broke.
    """

    place: int
    terms: tuple[str, ...]
    gradient: tuple[str, ...]
    tokens: tuple[int, ...]
    user: int = -1
    coef: tuple[float, ...] | None = None
    update: int = 0


def not_finite(tree: PyTree) -> tuple[str, ...]:
    """Names of the leaves that hold a number which is not finite."""
    return tuple(
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all())
    )


def rows(state: Any, batch: PyTree, step: Callable[..., object]) -> list[Row]:
    """Rows of a step of any trainer that are not finite; none where only the step as a whole is not.

    Args:
      state, batch, step: as the loop gives them to `Callback.before`.
    """
    if isinstance(batch, PromptBatch):
        return list(_of_iteration(step.__self__, state, batch))  # pyright: ignore[reportFunctionMemberAccess]
    assert isinstance(step, functools.partial), "supervised steps are bound to what stays the same"
    given = step.keywords
    if isinstance(batch, sft_step.SFTBatch):
        found, packed, users = _sft(state, batch, **given), batch.rows.packed, None
    elif isinstance(batch, dpo_step.DPOBatch):
        found, packed, users = _dpo(state, batch, **given), batch.rows.packed, batch.rows.user
    else:
        found, packed, users = _reward(state, batch, **given), batch.packed, batch.user
    return [_described(row, packed, users) for row in found]


def _described(row: Row, packed: PackedRows, users: Any) -> Row:
    micro, place = divmod(row.place, packed.tokens.shape[1])
    length = int(np.max(np.asarray(packed.scored[micro, place]))) + 1
    tokens = np.asarray(packed.tokens[micro, place])[:length]
    user = -1 if users is None else int(users[micro, place])
    return row._replace(tokens=tuple(map(int, tokens)), user=user)


def _each(params: PyTree, loss: Callable[[PyTree, PyTree], tuple[jax.Array, Terms]], parts: Iterator[PyTree]):
    """Rows whose loss or gradient is not finite, by place; `parts` are what `loss` takes of one row after the other."""
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for place, part in enumerate(parts):
        (total, terms), grads = gradient(params, part)
        terms = {LOSS: total, **terms}
        bad = tuple(name for name, value in terms.items() if not bool(jnp.isfinite(value).all()))
        if bad or (not_finite(grads)):
            yield Row(place, bad, not_finite(grads), ())


def _single(tree: PyTree) -> Iterator[PyTree]:
    """One row after the other of leaves [A, B, …], as leaves [1, …]."""
    micros, rows = jax.tree.leaves(tree)[0].shape[:2]
    for micro in range(micros):
        for row in range(rows):
            yield jax.tree.map(lambda leaf, m=micro, r=row: leaf[m, r : r + 1], tree)


def _sft(state, batch, *, frozen, settings, program) -> list[Row]:
    def loss(params, part):
        rows = part.rows
        total = jnp.maximum(jnp.sum(rows.weight[..., None] * rows.packed.member), 1.0)
        return sft_step.loss_of(params, frozen, part, total, program)

    return list(_each(state.params, loss, _single(batch)))


def _reward(state, batch, *, frozen, settings, program) -> list[Row]:
    def loss(params, part):
        return reward_step.loss_of(params, frozen, part, jnp.ones(()), settings, program)

    return list(_each(state.params, loss, _single(batch)))


def _dpo(state, batch, *, frozen, population, settings, program, extra=None) -> list[Row]:
    """With the coefficients that the step drew, which a row alone would draw otherwise."""
    micros = batch.ref_logprobs.shape[0]
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), micros)
    coef = None
    if settings.loss.personal:
        kind, shares = settings.loss.kind, program.shares
        drawn = [
            dpo_step.row_coef(kind, shares, population, batch.rows.user[m], keys[m]) for m in range(micros)
        ]
        coef = jnp.stack(drawn)

    def loss(params, part):
        row, coef = part
        terms, _ = dpo_step.row_metrics(
            params, frozen, row, population, keys[0], settings, program, state.guard, coef
        )
        terms = {name: jnp.mean(value) for name, value in terms.items()}
        return terms[LOSS], terms

    found = _each(state.params, loss, _single((batch, coef)))
    if coef is None:
        return list(found)
    coef = np.asarray(coef).reshape(-1, coef.shape[-1])
    return [row._replace(coef=tuple(map(float, coef[row.place]))) for row in found]


def _of_iteration(trainer: Any, state: updates.RLState, batch: PromptBatch) -> Iterator[Row]:
    """Rows of the first optimiser step of an iteration of which one is not finite."""
    settings, program, frozen = trainer.settings, trainer.program, trainer.frozen
    shared = (batch.prompts, trainer.people, frozen, trainer.sampling, trainer.stop, settings)
    rollout = updates.draw(state, *shared, program=program)
    texts, source = trainer.prompts.rows.take(batch.index), trainer.source.reward
    with arguments.training(trainer.state_at(batch.number), len(batch.index)):
        rewards = jnp.asarray(source(rollout, texts).phi)
        checks = trainer.checked(rollout, texts)
    if settings.critic is not None and settings.critic.from_rewards:
        rollout = rollouts.valued_from(rollout, source.kernel.beginnings(source.arrays, rollout))

    @jax.jit
    def ready(state):
        return updates.prepared(state, rollout, rewards, frozen, settings, program, trainer.people, checks)

    given = ready(state)
    whole, algorithm = given.whole, settings.algorithm
    seen = {
        "log π": rollout.logprobs,
        "log π_ref": rollout.ref_logprobs,
        "values": rollout.values,
        "rewards": rewards,
        "advantages": whole.advantages,
        "returns": whole.returns,
    }
    broken = {
        name: ~np.asarray(jnp.isfinite(each).reshape(len(each), -1).all(axis=1))
        for name, each in seen.items()
    }
    shuffle = rollouts.iteration_keys(state.key, state.iteration).shuffle
    orders = updates.minibatch_rows(
        shuffle, whole.advantages.shape[0], algorithm.epochs, algorithm.minibatches
    )

    def loss(params, order):
        part = updates.part_of(whole, order)
        return updates.loss_of(params, frozen, part, given.kl_price, settings, program)

    @jax.jit
    def optimise(state, order):
        part = updates.part_of(whole, order)
        return updates.optimise(state, part, frozen, given.kl_price, settings, program, None)[0]

    now = optim.TrainState(state.step, state.params, state.opt_state, state.key)
    coef = np.asarray(rollout.coef)
    for number, order in enumerate(np.asarray(orders)):
        found = list(_each(now.params, loss, iter(order[:, None])))
        for row in found:
            place = int(order[row.place])
            values = tuple(name for name, bad in broken.items() if place < len(bad) and bad[place])
            who = place % len(coef)
            tokens = np.asarray(rollout.tokens[who])[int(rollout.starts[who]) :]
            yield row._replace(
                place=who,
                terms=values + row.terms,
                tokens=tuple(map(int, tokens)),
                coef=tuple(map(float, coef[who])),
                update=number,
            )
        if found:
            return
        now = optimise(now, order)
