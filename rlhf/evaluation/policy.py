"""`chorus evaluate`: held-out people, their coefficients from a few answers, and what the policy does with them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards.basis.readout import Readout
from rewards.basis.store import FittedBasis, RewardRun, load_reward_run
from rewards.comparison import replay
from rewards.data.read import read_preferences
from rewards.data.split import keep_people, split_people
from rewards.errors import UserError
from rewards.files import JSONObject, write_json
from rewards.people.population import load_people
from rewards.types import Preferences
from rlhf.evaluation import held_out
from rlhf.evaluation.config import EvaluateConfig
from rlhf.mesh import place
from rlhf.mesh.devices import under_mesh
from rlhf.phi import encoder
from rlhf.policy import store as policy_store
from rlhf.policy.batches import encode_items
from rlhf.policy.generation import Drawing, complete
from rlhf.policy.logprobs import all_logprobs, cached_hidden, sequence_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.report import figures as evaluate
from rlhf.report.verdict import evaluation_verdict
from rlhf.run import inputs, processes
from rlhf.run.directory import REPORT, RESULT, Run, plain, read_result
from rlhf.train.dpo_parts import read_of

MATRIX = "matrix.json"
Z_ROWS = 4
"""People scored in one forward pass over the answer tree."""


@dataclasses.dataclass(frozen=True)
class People:
    """Who is evaluated: ids, coefficients after a few of their own answers, and z."""

    user_ids: list[str]
    coef: np.ndarray
    shrunk: np.ndarray
    z: np.ndarray


@under_mesh
def run(config: EvaluateConfig) -> JSONObject:
    """Evaluate and write metrics.json, matrix.json and report.html; returns the metrics.

    A finished evaluation is not repeated as long as all that it read is as it was then.
    """
    with Run.open(config.output_dir, config, "evaluate") as job:
        prefs = read_preferences(config.data.path, config.data.split, columns=config.data.columns)
        rewards = load_reward_run(config.rewards)
        found = read_by(config, prefs, rewards)
        if finished(job, found):
            return job.stored_result()
        prefs = keep_people(prefs, config.data.min_comparisons, config.data.max_people)
        policy = policy_store.load_policy(config.policy)
        check_match(config, policy, rewards)
        _, held = split_people(prefs, config.data.held_out_people, config.data.split_seed)
        judged = judge(config, policy, rewards, prefs, held)
        names = {"run_dir": str(job.directory), **hashes(found)}
        matrix = {"people": judged.people.user_ids, "reward": judged.matrix.tolist()}
        verdict = evaluation_verdict(plain(judged.figures), judged.matrix)
        result = names | judged.figures | {"verdict": verdict._asdict()}

        def written() -> JSONObject:
            write_json(job.directory / MATRIX, matrix)
            write_report(job.directory, result, judged)
            inputs.write(job, found)
            job.write_result(result)
            return read_result(job.directory)

        return processes.from_writer(written)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What an evaluation found.

    Attributes:
      figures: as in metrics.json. people: who was evaluated.
      matrix: float[U, U] nats; row u, column v: what u gets, by u's own taste, from the policy made for v.
      texts: what each person was told.
    """

    figures: JSONObject
    people: People
    matrix: np.ndarray
    texts: list[list[str]]


@under_mesh
def judge(
    config: EvaluateConfig,
    policy: policy_store.Policy,
    rewards: FittedBasis,
    prefs: Preferences,
    held: np.ndarray,
    reference: policy_store.Base | None = None,
) -> Judged:
    """Evaluate in memory.

    Args:
      config: everything but its paths counts.
      held: bool[N], the comparisons of those who are evaluated. reference: π_ref; None reads `config.model`.
    """
    phi = encoder.items_phi(rewards.basis, prefs)
    people, _ = held_out_people(config, prefs, rewards, policy, phi, held)
    prompts = np.unique(prefs.item_prompt[np.union1d(prefs.chosen, prefs.rejected)])
    gate = policy.gate
    assert gate is not None, "a policy with users"
    figures: JSONObject = {
        "people": people.user_ids,
        "answers_per_person": config.users.answers,
        "beta": gate.beta,
        "rho": gate.eta / (gate.beta + gate.eta),
    }
    figures["sampled"], matrix, texts = sampled_answers(config, policy, prefs, rewards, people, prompts)
    if config.enumerate:
        figures["enumerated"], matrix = enumerated(
            policy, prefs, phi, people, prompts, reference or open_reference(config, policy)
        )
    return Judged(figures, people, matrix, texts)


def open_reference(config: EvaluateConfig, policy: policy_store.Policy) -> policy_store.Base:
    """The model that the policy was trained from."""
    record = policy.record
    return policy_store.load_base(
        config.model.name,
        adapter_layers=record["adapter_layers"],
        dtype=record["dtype"],
        kept=record.get("kept"),
    )


def read_by(config: EvaluateConfig, prefs: Preferences, rewards: RewardRun) -> inputs.Inputs:
    """What an evaluation reads: data, policy with what lies under it, rewards, and π_ref where it is asked."""
    policy_store.require_run(config.policy)
    found = {
        "data.path": {str(config.data.path): inputs.content(prefs)},
        "policy": {"policy": policy_store.identity(config.policy), **policy_store.files_under(config.policy)},
        **read_of(rewards, load_people(rewards)),
    }
    if config.enumerate:
        found["model.name"] = policy_store.parts_of(config.model.name)
    return found


def hashes(found: inputs.Inputs) -> JSONObject:
    """What metrics.json says of it."""
    (data,) = found["data.path"].values()
    return {"policy_sha256": found["policy"]["policy"], "data_sha256": data}


def finished(job: Run, found: inputs.Inputs) -> bool:
    """Whether an earlier session evaluated with these very inputs."""
    if not job.resumed or not all((job.directory / name).is_file() for name in (REPORT, RESULT)):
        return False
    result = read_result(job.directory)
    # Evaluations from before the data was recorded are taken as they are.
    same = all(result.get(name, now) == now for name, now in hashes(found).items())
    return same and inputs.unchanged(job, found)


def check_match(config: EvaluateConfig, policy: policy_store.Policy, rewards: FittedBasis) -> None:
    """The policy must have users, and those of this reward run."""
    if policy.gate is None:
        raise UserError(f"policy: {config.policy} was trained without users; there is nobody to compare")
    if policy.record["basis"] != rewards.hash:
        raise UserError(
            f"rewards: {config.rewards} has basis {rewards.hash[:12]}…, the policy {config.policy} was trained "
            f"with {policy.record['basis'][:12]}…; name the reward run of the policy"
        )


def held_out_people(
    config: EvaluateConfig,
    prefs: Preferences,
    rewards: FittedBasis,
    policy: policy_store.Policy,
    phi: np.ndarray,
    held: np.ndarray | None = None,
) -> tuple[People, replay.ColdStart]:
    """Coefficients of the held-out people after `users.answers` questions chosen among their recorded choices,
    and the replay they come from; `held` bool[N] are their comparisons, by default those that the data section divides."""
    if held is None:
        held = split_people(prefs, config.data.held_out_people, config.data.split_seed)[1]
    wanted = np.unique(prefs.user_index[held])
    if config.users.count is not None:
        wanted = wanted[: config.users.count]
    if len(wanted) < 2:
        raise UserError(
            f"{prefs.source}: {len(wanted)} held-out person; at least two are needed to compare people"
        )
    count = config.users.answers
    result = held_out.asked(
        rewards,
        prefs,
        phi,
        held,
        wanted,
        answers=count,
        last=config.data.last_choices,
        seed=config.seed,
    )
    coef = result.coef[count]
    ids = [prefs.user_ids[user] for user in result.people]
    assert policy.gate is not None, "a policy with users"
    shrunk, z = policy.gate.compose(np.asarray(coef, np.float32))
    return People(ids, coef, np.asarray(shrunk), np.asarray(z, np.float32)), result


def enumerated(
    policy: policy_store.Policy,
    prefs: Preferences,
    phi: np.ndarray,
    people: People,
    prompts: np.ndarray,
    reference: policy_store.Base,
) -> tuple[JSONObject, np.ndarray]:
    """Exact figures over the data's distinct completions of each prompt, averaged over prompts."""
    ref_graphdef, ref_params, _ = policy_store.base_state(reference, None, policy.record["dtype"], False)
    encoded_prompts, completions = encode_items(
        prefs, policy.base.tokenizer, policy.base.config.max_positions
    )
    used = np.union1d(prefs.chosen, prefs.rejected)
    assert policy.gate is not None, "a policy with users"
    beta, results, matrices = float(policy.gate.beta), [], []
    for prompt in prompts:
        items = used[prefs.item_prompt[used] == prompt]
        rows = pack([[Sequences(encoded_prompts[prompt], tuple(completions[i] for i in items))]])
        hidden = cached_hidden(policy.graphdef, policy.params, rows)
        num_users = len(people.user_ids)
        index = np.zeros(num_users, np.int64)
        answers = evaluate.Enumerated(
            policy=all_logprobs(
                policy.graphdef,
                policy.params,
                rows.take(index),
                None if hidden is None else hidden[index],
                z=people.z,
                chunk=Z_ROWS,
            ),
            aggregate=place.host(sequence_logprobs(policy.graphdef, policy.params, rows, None))[0],
            reference=place.host(sequence_logprobs(ref_graphdef, ref_params, rows, None))[0],
        )
        result, matrix = evaluate.summarise_enumerated(answers, phi[items], people.coef, people.shrunk, beta)
        results.append(result)
        matrices.append(matrix)
    return _mean_results(results), np.mean(matrices, axis=0)


def _mean_results(results: list[JSONObject]) -> JSONObject:
    """Mean over prompts of every figure, person by person where there are several."""
    merged: JSONObject = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        if isinstance(value, dict):
            merged[name] = _mean_results(values)
        else:
            merged[name] = np.mean(values, axis=0).tolist()
    return merged


def sampled_answers(
    config: EvaluateConfig,
    policy: policy_store.Policy,
    prefs: Preferences,
    rewards: FittedBasis,
    people: People,
    prompts: np.ndarray,
) -> tuple[JSONObject, np.ndarray, list[list[str]]]:
    """What the policy freely says to each person, judged by everybody's coefficients."""
    settings, num_users = config.sampling, len(people.user_ids)
    asked = [
        (user, prompt) for user in range(num_users) for prompt in prompts for _ in range(settings.num_samples)
    ]
    completions = complete(
        policy,
        [prefs.prompts[prompt] for _, prompt in asked],
        people.z[[user for user, _ in asked]],
        Drawing(
            settings.max_new_tokens,
            settings.temperature,
            batch=64,
            skip_special_tokens=settings.skip_special_tokens,
        ),
        seed=config.seed,
    )
    texts = [completion.text for completion in completions]
    known = known_answers(prefs, [int(prompt) for _, prompt in asked], texts)
    phi = _features_of(rewards, prefs, asked, texts)
    shape = (num_users, len(prompts) * settings.num_samples)
    valid = known.reshape(shape) if config.enumerate else None
    grouped = [texts[start : start + shape[1]] for start in range(0, len(texts), shape[1])]
    result, matrix = evaluate.summarise_samples(phi.reshape(*shape, -1), grouped, people.coef, valid)
    result["finished"] = float(np.mean([completion.finished for completion in completions]))
    result["tokens"] = float(np.mean([completion.num_tokens for completion in completions]))
    return result, matrix, grouped


def known_answers(prefs: Preferences, prompts: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Whether each text is a completion that the data holds for its prompt, bool[S].

    White space at both ends counts for neither side: some tokenizers add or drop it when they decode. Rewards are those
    of the texts as they are, as in training.
    """
    known = {
        (int(prompt), text.strip()) for prompt, text in zip(prefs.item_prompt, prefs.item_text, strict=True)
    }
    return np.array([(prompt, text.strip()) in known for prompt, text in zip(prompts, texts, strict=True)])


def _features_of(
    rewards: FittedBasis, prefs: Preferences, asked: list[tuple[int, np.integer]], texts: list[str]
) -> np.ndarray:
    """φ of freely written answers: each distinct one is embedded like an item of the data."""
    if rewards.basis.encoder["kind"] not in encoder.READ_NEW_TEXTS:
        raise UserError(
            f"encoder.kind {rewards.basis.encoder['kind']} gives no features for new answers; "
            "fit the rewards with encoder.kind=lm, sentence or columns to evaluate a policy"
        )
    keys = [(int(prompt), text or " ") for (_, prompt), text in zip(asked, texts, strict=True)]
    distinct = sorted(set(keys))
    table = dataclasses.replace(
        prefs,
        item_prompt=np.array([prompt for prompt, _ in distinct], np.int32),
        item_text=tuple(text for _, text in distinct),
        chosen=np.zeros(0, np.int32),
        rejected=np.zeros(0, np.int32),
    )
    phi = Readout.of(rewards.basis).features(encoder.embed_items(table, rewards.basis.encoder))
    place = {key: index for index, key in enumerate(distinct)}
    return phi[[place[key] for key in keys]]


def write_report(directory: Path, result: JSONObject, judged: Judged) -> None:
    """Write report.html into a directory."""
    from rlhf.report import write_evaluation_report

    people = judged.people
    examples = [
        {"person": user_id, "answer": own[0], "coefficients": coef.tolist()}
        for user_id, own, coef in zip(people.user_ids, judged.texts, people.coef, strict=True)
    ]
    write_evaluation_report(directory, result, judged.matrix, people.user_ids, examples)
