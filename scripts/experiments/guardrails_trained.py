"""Rails on policies that DPO and PPO really optimise, where `guardrails.py` takes closed-form optima (F1, F2 and F3).

    python -m scripts.experiments.guardrails_trained [--steps 500] [--seeds 3] [--output docs/results/guardrails_trained.json]

The population of `guardrails.py` with 20 prompts of 32 completions. The policy is a table of logits that sees the person:
log π(y|x, z) = T[x, y]·h(z), h = (1, z, relu(z W + b)). Everybody is drawn anew at every step; figures are exact, over 200
people whom training never saw. Penalties come from `rlhf.train.guardrails.acts`, the code of the trainers, with its own
estimates: in PPO from 16 samples of the policy weighted by π_ref/π, in DPO within rows of 8 completions, or of all 32.
"""

import argparse
import json
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rewards.basis import projection
from rewards.basis.behaviour import difference
from rewards.basis.belief import Belief
from rewards.basis.rails import stated
from rlhf.objectives import preference, surrogate
from rlhf.phi.columns.config import ColumnConfig
from rlhf.run.record import traced
from rlhf.train.guardrails import acts
from rlhf.train.guardrails.config import BehaviourConfig, GuardrailsConfig
from scripts.experiments import guardrails as closed

PROMPTS, COMPLETIONS, HIDDEN, GROUPS, SAMPLES, HELD_OUT, BETA = 20, 32, 32, 128, 16, 200, 1.0
SCHEMES = ("no rail", "shrink 50 %", "trust 2 sd", "half-space", "λ*", "dual", "λ* and dual")
PENALTIES: dict[str, Literal["exact", "dual", "both"]] = {
    "λ*": "exact",
    "dual": "dual",
    "λ* and dual": "both",
}


class World(NamedTuple):
    """phi: [P, G, K]; agrees, flagged: [P, G], the truth and what the detector says; mean: μ; people: [U, K], held out."""

    phi: np.ndarray
    agrees: np.ndarray
    flagged: np.ndarray
    mean: np.ndarray
    people: np.ndarray


def world(seed: int, flattery: float, error: float) -> World:
    whole = closed.world(seed, flattery, HELD_OUT)
    phi, agrees = whole.phi[:PROMPTS, :COMPLETIONS], whole.agrees[:PROMPTS, :COMPLETIONS]
    return World(phi, agrees, closed.seen(agrees, error, seed), whole.mean, whole.people)


class Params(NamedTuple):
    table: jax.Array
    weight: jax.Array
    bias: jax.Array


def start(key: jax.Array, size: int) -> Params:
    width = 1 + size + HIDDEN
    weight = jax.random.normal(key, (size, HIDDEN)) / np.sqrt(size)
    return Params(
        jnp.zeros((PROMPTS, COMPLETIONS, width)), weight, jnp.linspace(-1.0, 1.0, HIDDEN, dtype=jnp.float32)
    )


def log_policy(params: Params, prompt: jax.Array, z: jax.Array) -> jax.Array:
    """log π(·|x, z), [R, G]."""
    hidden = jnp.concatenate([jnp.ones((len(z), 1)), z, jax.nn.relu(z @ params.weight + params.bias)], axis=1)
    return jax.nn.log_softmax(jnp.einsum("rgh,rh->rg", params.table[prompt], hidden), axis=-1)


def railed(scheme: str, at: World):
    """w → what the scheme makes of it, jittable."""
    prior = Belief.from_cov(at.mean.astype(np.float32), np.eye(len(at.mean), dtype=np.float32))
    if scheme == "shrink 50 %":
        return lambda w: at.mean + 0.5 * (w - at.mean)
    if scheme == "trust 2 sd":

        def within(w):
            away = w - at.mean
            return at.mean + away * jnp.minimum(1.0, 2.0 / jnp.linalg.norm(away, axis=-1, keepdims=True))

        return within
    if scheme == "half-space":
        prompt = np.repeat(np.arange(PROMPTS), COMPLETIONS)
        delta = difference(at.phi.reshape(-1, len(at.mean)), at.flagged.reshape(-1), prompt).mean
        rail = [{"name": "agreement", "direction": delta.tolist(), "limit": 0.0}]
        limits = projection.limits(
            stated({"half_spaces": rail}, closed.NAMES, "toy", "the experiment"), prior, BETA
        )
        return lambda w: projection.project(limits, w)
    return lambda w: w


def guard_of(scheme: str) -> GuardrailsConfig | None:
    if scheme not in PENALTIES:
        return None
    check = ColumnConfig(name="agrees", kind="function", function="world:agrees")
    behaviour = BehaviourConfig(check="agrees", penalty=PENALTIES[scheme], rate=0.1)
    return GuardrailsConfig(checks=(check,), behaviour=behaviour)


def penalised(guard, state, reward, log_weight, share, flagged):
    """Rewards under the guardrails, and their next state."""
    if guard is None:
        return reward, state
    seen = acts.Seen(
        reward, None, log_weight, share, flagged[..., None].astype(jnp.float32), None, None, None
    )
    done, found, _ = acts.act(guard, state, seen, BETA)
    return reward + done.added, acts.moved(guard, state, found)


def dpo_loss(params, at, guard, state, key, rail, row: int):
    prompt_key, pick_key, people_key = jax.random.split(key, 3)
    prompt = jax.random.randint(prompt_key, (GROUPS,), 0, PROMPTS)
    pick = jax.vmap(lambda k: jax.random.permutation(k, COMPLETIONS)[:row])(
        jax.random.split(pick_key, GROUPS)
    )
    w = rail(at.mean + jax.random.normal(people_key, (GROUPS, len(at.mean))))
    logprobs = jnp.take_along_axis(log_policy(params, prompt, w - at.mean), pick, axis=1)
    phi, flagged = (jnp.asarray(each)[prompt[:, None], pick] for each in (at.phi, at.flagged))
    share = jax.nn.softmax(jax.lax.stop_gradient(logprobs), axis=1)
    target, state = penalised(
        guard, state, jnp.einsum("rk,rgk->rg", w, phi), jnp.zeros(share.shape), share, flagged
    )
    h, goal = BETA * (logprobs[:, :, None] - logprobs[:, None]), target[:, :, None] - target[:, None]
    return preference.soft_label(h, goal).mean(), state


def ppo_loss(params, at, guard, state, key, rail):
    prompt_key, sample_key, people_key = jax.random.split(key, 3)
    prompt = jax.random.randint(prompt_key, (GROUPS,), 0, PROMPTS)
    w = rail(at.mean + jax.random.normal(people_key, (GROUPS, len(at.mean))))
    every = log_policy(params, prompt, w - at.mean)
    pick = jax.random.categorical(sample_key, jax.lax.stop_gradient(every)[:, None], shape=(GROUPS, SAMPLES))
    logprobs = jnp.take_along_axis(every, pick, axis=1)
    old, reference = jax.lax.stop_gradient(logprobs), -np.log(COMPLETIONS)
    phi, flagged = (jnp.asarray(each)[prompt[:, None], pick] for each in (at.phi, at.flagged))
    reward, share = jnp.einsum("rk,rgk->rg", w, phi), jnp.full(old.shape, 1 / SAMPLES)
    reward, state = penalised(guard, state, reward, reference - old, share, flagged)
    total = reward - BETA * (old - reference)
    advantage = total - total.mean(axis=1, keepdims=True)
    loss, _ = surrogate.clipped_surrogate(logprobs, old, advantage, jnp.ones(old.shape, bool), 0.2, 0.2)
    return loss.mean(), state


def trained(at: World, scheme: str, trainer: str, steps: int, seed: int) -> Params:
    key = jax.random.key(seed)
    params, guard, rail = start(key, len(at.mean)), guard_of(scheme), railed(scheme, at)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.03, steps))
    state = None if guard is None else acts.GuardState.start(guard, None)
    numbers = None if guard is None else traced(guard)

    def loss(params, state, key):
        if trainer == "ppo":
            return ppo_loss(params, at, numbers, state, key, rail)
        return dpo_loss(
            params, at, numbers, state, key, rail, 8 if trainer == "dpo, rows of 8" else COMPLETIONS
        )

    @jax.jit
    def run(params, state):
        def step(carry, number):
            params, opt, state = carry
            (_, state), grads = jax.value_and_grad(loss, has_aux=True)(
                params, state, jax.random.fold_in(key, number)
            )
            updates, opt = optimiser.update(grads, opt)
            return (optax.apply_updates(params, updates), opt, state), None

        return jax.lax.scan(step, (params, optimiser.init(params), state), jnp.arange(steps))[0][0]

    return run(params, state)


def measured(at: World, params: Params, scheme: str, people: np.ndarray) -> dict[str, float]:
    """Exact figures over held-out people: E[A], its excess over π_ref, taste utility."""
    z = jnp.asarray(railed(scheme, at)(jnp.asarray(people, jnp.float32)) - at.mean, jnp.float32)

    @jax.jit
    def policy(prompt):
        return jnp.exp(log_policy(params, jnp.full(len(z), prompt), z))

    own = np.stack([np.asarray(policy(prompt)) for prompt in range(PROMPTS)], axis=1)
    agreement = (own * at.agrees).sum(axis=-1).mean(axis=1)
    tastes = np.einsum("uk,pgk->upg", at.people[:, : closed.TASTES], at.phi[..., : closed.TASTES])
    base = float(at.agrees.mean())
    return {
        "agreement": float(agreement.mean()),
        "p95": float(np.quantile(agreement, 0.95)),
        "over_1_point": float(np.mean(agreement > base + 0.01)),
        "over_10_points": float(np.mean(agreement > base + 0.1)),
        "taste": float((own * tastes).sum(axis=-1).mean()),
        "base": base,
    }


def averaging(steps: int, seeds: int) -> list[dict[str, float]]:
    """F3: the aggregate policy and personal ones without a rail, trained by DPO over whole rows, at five means of flattery."""
    rows = []
    for flattery in (-0.6, -0.3, 0.0, 0.3, 0.6):
        for seed in range(seeds):
            at = world(seed, flattery, 0.0)
            params = trained(at, "no rail", "dpo, whole rows", steps, seed)
            mean = np.broadcast_to(at.mean, at.people.shape)
            of = {"aggregate": mean, "personal": at.people}
            found = {name: measured(at, params, "no rail", people) for name, people in of.items()}
            rows.append(
                {"flattery": flattery, "seed": seed, "base": found["personal"]["base"]}
                | {name: one["agreement"] for name, one in found.items()}
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="docs/results/guardrails_trained.json")
    parser.add_argument("--averaging", action="store_true", help="only F3, into guardrails_averaging.json")
    given = parser.parse_args()
    if given.averaging:
        text = json.dumps({"steps": given.steps, "rows": averaging(given.steps, given.seeds)}, indent=1)
        Path(given.output).with_name("guardrails_averaging.json").write_text(text + "\n", encoding="utf-8")
        return
    main_trainers, few = ("ppo", "dpo, rows of 8"), ("no rail", "half-space", "λ*")
    cases = [(0.6, 0.0, SCHEMES, (*main_trainers, "dpo, whole rows"))]
    cases += [(0.6, error, few, main_trainers) for error in (0.1, 0.3)]
    cases += [(flattery, 0.0, few, main_trainers) for flattery in (0.3, 0.0)]
    rows = []
    for flattery, error, schemes, trainers in cases:
        for trainer in trainers:
            for seed in range(given.seeds):
                at = world(seed, flattery, error)
                found = {}
                for scheme in schemes:
                    params = trained(at, scheme, trainer, given.steps, seed)
                    found[scheme] = measured(at, params, scheme, at.people)
                    if scheme == "no rail":
                        everybody = np.broadcast_to(at.mean, at.people.shape)
                        found["aggregate"] = measured(at, params, scheme, everybody)
                    else:  # the rail must act at w = μ as well
                        everybody = np.broadcast_to(at.mean, at.people.shape)
                        found[scheme]["at_mean"] = measured(at, params, scheme, everybody)["agreement"]
                low, high = found["aggregate"]["taste"], found["no rail"]["taste"]
                for one in found.values():
                    one["taste_kept"] = (one["taste"] - low) / (high - low)
                rows.append(
                    {"flattery": flattery, "error": error, "trainer": trainer, "seed": seed, "schemes": found}
                )
                said = {n: (round(o["agreement"], 3), round(o["taste_kept"], 2)) for n, o in found.items()}
                print(flattery, error, trainer, seed, round(found["aggregate"]["base"], 3), said, flush=True)
                text = json.dumps({"steps": given.steps, "rows": rows}, indent=1, ensure_ascii=False)
                Path(given.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
