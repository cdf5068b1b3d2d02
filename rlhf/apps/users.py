"""`chorus users …`: ask a person, learn from their answers and statements, show, list and erase records."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rewards import jsonl
from rewards.api import calibrate
from rewards.basis import meaning, projection, store
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.files import JSONObject, write_json
from rewards.people import acquisition, edits, questions, record_json, records, shared_accounts
from rewards.people import card as cards
from rewards.people import pool as pool_module
from rewards.people.pool import choosing, key_for, open_questions, read_pool
from rlhf.apps import asking as asking_module


@dataclasses.dataclass(frozen=True)
class Asking:
    """How questions are chosen: a rule of `rewards.people.acquisition`, and the predicted gain in accuracy to stop below."""

    rule: str = "information"
    stop_below: float | None = None


def ask_terminal(
    rewards: str,
    name: str,
    max_questions: int,
    asking: Asking = Asking(),
    *,
    read: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> JSONObject:
    """Ask `name` about the best pairs under a rule, one at a time; q ends, the same command goes on.

    Every answer is stored at once, and so is a skip: a question skipped is not asked again. The order of the two
    texts on the screen is drawn from the person's name and the number of the question.
    """
    run = store.load_reward_run(rewards)
    acquisition.rule(asking.rule)
    pool = read_pool(run)
    deltas, may = pool_module.worth_asking(run, pool_module.deltas(pool))
    record, stopped = _record(run, name), "asked as many as wanted"
    means = meaning.read(run)  # once, not after every answer
    for _ in range(max_questions):
        allowed = open_questions(pool, record) & may
        if not allowed.any():
            stopped = "every question has been asked"
            say("Every question has been asked.")
            break
        number = len(record.answers) + len(record.skipped)
        index, scores = questions.choose(
            record.posterior, deltas, allowed=allowed, **choosing(run, name, number, asking.rule)
        )
        now, gain = questions.predicted_gain(record.posterior, deltas[index], deltas, lapse=run.lapse)
        if asking.stop_below is not None and gain < asking.stop_below:
            stopped = (
                f"the next answer is predicted to add {gain:.4f} of accuracy, below {asking.stop_below:g}"
            )
            say(f"Stopped: {stopped}.")
            break
        bits = questions.choose(record.posterior, deltas[index : index + 1], lapse=run.lapse)[1][
            0
        ] / math.log(2)
        say(
            f"\nQuestion {number + 1}, worth {bits:.2f} bits (predicted accuracy {now:.1%}, {gain:+.1%} by its answer)"
        )
        reply = asking_module.show_and_read(pool[index], pool_module.sides(name, number), read, say)
        if reply == "q":
            stopped = "the person stopped"
            say("Stopped; the same command goes on from here.")
            break
        event: JSONObject = (
            {"skipped": [pool[index].key]}
            if reply == "s"
            else {"answers": [pool_module.answer_to(pool[index], reply)]}
        )
        before = record.posterior
        record = records.add(run.users, run, name, **event)
        say(
            "Skipped; it will not be asked again."
            if reply == "s"
            else asking_module.learned(run, before, record.posterior, means)
        )
    return describe(run, record) | {"stopped": stopped}


def ask_batch(
    rewards: str, name: str, count: int, output: str | None, asking: Asking = Asking()
) -> JSONObject:
    """Choose `count` questions at once and write (or return) them as a questionnaire; nothing is learned yet."""
    run = store.load_reward_run(rewards)
    pool, record = read_pool(run), _record(run, name)
    number = len(record.answers) + len(record.skipped)
    deltas, may = pool_module.worth_asking(run, pool_module.deltas(pool))
    chosen, _ = questions.choose_batch(
        record.posterior,
        deltas,
        count,
        allowed=open_questions(pool, record) & may,
        **choosing(run, name, number, asking.rule),
    )
    rows = asking_module.questionnaire(name, number, pool, chosen)
    if output is not None:
        if Path(output).exists():
            raise UserError(
                f"--output {output}: exists already; answers in it would be lost, choose another file"
            )
        jsonl.write(output, rows)
    return {"user_id": name, "output": output, "questions": rows}


def ask_file(
    rewards: str, name: str, answers: str, max_questions: int, asking: Asking = Asking()
) -> JSONObject:
    """Choose up to `max_questions` rows of a file by what they would teach, and learn from those."""
    run = store.load_reward_run(rewards)
    acquisition.rule(asking.rule)
    record = _record(run, name)
    candidates = records.unknown(record.answers, _file_answers(run, name, answers))
    size = run.basis.num_basis
    found = np.array([answer.delta_features for answer in candidates], np.float32).reshape(-1, size)
    deltas, open_rows = pool_module.worth_asking(run, found)
    taken: list[records.Answer] = []
    stopped = "asked as many as wanted"
    for _ in range(min(max_questions, int(open_rows.sum()))):
        together = dataclasses.replace(record, answers=(*record.answers, *taken))
        belief = records.recompute(run, together)
        how = choosing(run, name, len(together.answers), asking.rule)
        index, _ = questions.choose(belief, deltas, allowed=open_rows, **how)
        if asking.stop_below is not None:
            _, gain = questions.predicted_gain(belief, deltas[index], deltas, lapse=run.lapse)
            if gain < asking.stop_below:
                stopped = (
                    f"the next answer is predicted to add {gain:.4f} of accuracy, below {asking.stop_below:g}"
                )
                break
        open_rows[index] = False
        taken.append(candidates[index])
    record = records.append(run.users, run, name, taken)
    return describe(run, record) | {"asked": len(taken), "stopped": stopped}


def update(rewards: str, name: str, answers: str) -> JSONObject:
    """Learn from the rows of a preference file, or from a filled-in questionnaire.

    What the record holds already is left out, so reading a file twice, or once more when it has grown, counts no
    answer twice.
    """
    run = store.load_reward_run(rewards)
    skipped, empty = [], 0
    if asking_module.is_questionnaire(answers):
        given, skipped, empty = asking_module.read_questionnaire(answers, name, read_pool(run))
        # A question of a questionnaire is asked once, so any answer to it counts.
        known = {answer.key for answer in _record(run, name).answers}
        new = [answer for answer in given if answer.key not in known]
    else:
        given = new = _file_answers(run, name, answers)
    learned = records.learn(run.users, run, name, answers=new, skipped=skipped)
    counts = {"added": learned.added, "known": len(given) - learned.added}
    return describe(run, learned.record) | counts | {"skipped": len(skipped), "empty": empty}


def edit(rewards: str, name: str, axes: list[str], text: str | None) -> JSONObject:
    """Turn numbers ("taste 1=+1.5") or words ("shorter, please") into statements about the person's coefficients.

    Raises:
      UserError: what `rewards.people.edits` refuses; then nothing is written, not even the edits that were in order.
    """
    run = store.load_reward_run(rewards)
    record = _record(run, name)
    new = [edits.from_axis(run, axis) for axis in axes]
    if text is not None:
        new += edits.from_words(run, record.posterior, text)
    record = records.add(run.users, run, name, edits=new)
    made = [{"name": e.name, "text": e.text, "value": e.value, "sd": e.sd} for e in new]
    return describe(run, record) | {"edited": made}


def show(rewards: str, name: str, policy: str | None = None) -> JSONObject:
    """A person's coefficients, and whether two people seem to answer under the name; somebody unknown is an error.

    Args:
      policy: a training run that was made with these rewards; then also what it is conditioned on for this person,
        `coef_effective` and `z`, which depend on its prices of KL.
    """
    run = store.load_reward_run(rewards)
    gate = None
    if policy is not None:
        from rlhf.policy import (
            store as policy_store,  # brings flax and a model's code, which nobody else here needs
        )

        gate = policy_store.load_gate(policy, run.hash)
    record = records.load(run.users, name, run)
    delta = np.array([answer.delta_features for answer in record.answers], np.float32).reshape(
        -1, len(run.prior.mean)
    )
    outcome = np.array([answer.outcome for answer in record.answers], np.float32)
    # Answers alone: a statement about oneself says nothing about who else answers.
    found = shared_accounts.check(
        run.prior,
        delta,
        outcome,
        key=key_for(name, 0),
        sitting=shared_accounts.sittings([answer.time for answer in record.answers]),
        lapse=run.lapse,
    )
    shared: JSONObject | None = None
    if found is not None:
        shared = {
            "flagged": found.flagged,
            "p_value": found.p_value,
            "false_alarm_rate": shared_accounts.LEVEL,
        }
        shared |= {
            "gain_nats": found.gain_nats,
            "share": found.share,
            "coef": found.coef.astype(float).tolist(),
        }
    shown = describe(run, record) | {"shared_account": shared, "policy": policy}
    if gate is not None:
        shrunk, z = gate.compose(np.asarray(record.posterior.mean, np.float32))
        shown |= {"coef_effective": np.asarray(shrunk).tolist(), "z": np.asarray(z).tolist()}
    return shown


def card(rewards: str, name: str, output: str | None = None) -> JSONObject:
    """What is held about a person, in words and numbers, with the answers and statements behind each coefficient.

    Args:
      output: a file for the whole of it, every answer included; None: only what is returned.
    Raises:
      UserError: nobody of this name, or the file exists already.
    """
    run = store.load_reward_run(rewards)
    record = records.load(run.users, name, run)
    shown = describe(run, record)
    for k, axis in enumerate(shown["axes"]):
        axis |= {"used": shown["coef_railed"][k], "because": cards.reasons(run, record, k)}
    found = {
        **shown,
        "rails_hash": None if run.rails is None else run.rails.hash,
        "provenance": cards.provenance(record),
        "output": output,
    }
    if output is not None:
        if Path(output).exists():
            raise UserError(f"--output {output}: exists already; choose a file that does not exist")
        whole = {name: value for name, value in found.items() if name != "output"}
        write_json(output, whole | {"record": record_json.to_json(record)})
    return found


def everybody(rewards: str) -> JSONObject:
    """Ids and numbers of answers."""
    run = store.load_reward_run(rewards)
    people = records.list_records(run.users)
    return {"users": [{"user_id": user_id, "num_answers": count} for user_id, count in people]}


def forget(rewards: str, name: str) -> JSONObject:
    """Erase a person's record."""
    if not Path(rewards).is_dir():
        raise UserError(f"{rewards}: no such reward run; create one with `chorus rewards fit`")
    records.forget(Path(rewards) / store.USERS, name)
    return {"user_id": name, "forgotten": True}


def describe(run: store.RewardRun, record: records.UserRecord) -> JSONObject:
    """A record as the commands print it: mean and sd along every axis, beside the population's."""
    calibration, means = calibrate.read(run), meaning.read(run)
    deviation = calibrate.widened(calibration, record.posterior)
    axes = [
        {
            "name": axis,
            "meaning": means[axis].words,
            "mean": float(record.posterior.mean[k]),
            "sd": float(deviation[k]),
            "prior_mean": float(run.prior.mean[k]),
            "prior_sd": float(run.prior.sd[k]),
            "rail": "free" if run.rails is None else run.rails.of_axis(axis),
        }
        for k, axis in enumerate(run.basis.gauge.names)
    ]
    railed, said = within_rails(run, record)
    return {
        "user_id": record.user_id,
        "basis": record.basis,
        "num_answers": len(record.answers),
        "num_edits": len(record.edits),
        "num_skipped": len(record.skipped),
        "coef_mean": np.asarray(record.posterior.mean, np.float64).tolist(),
        "coef_railed": railed,
        "rails": said,
        "coverage": None if calibration is None else calibration.level,
        "axes": axes,
    }


def within_rails(run: store.RewardRun, record: records.UserRecord) -> tuple[list[float], list[str]]:
    """What a policy of these rewards would take of the person's coefficients, and what the rails do to them, in words."""
    asked = np.asarray(record.posterior.mean, np.float32)
    if run.rails is None:
        return asked.astype(float).tolist(), []
    unlimited = dataclasses.replace(run.rails, trust_nats=math.inf)  # which depends on a policy's β
    given = np.asarray(projection.project(projection.limits(unlimited, run.prior, 1.0), asked))
    return given.astype(float).tolist(), projection.actions(unlimited, asked, given)


def _record(run: store.RewardRun, name: str) -> records.UserRecord:
    known = records.exists(run.users, name)
    return records.load(run.users, name, run) if known else records.new_record(run, name)


def _file_answers(run: store.RewardRun, name: str, path: str) -> list[records.Answer]:
    """The rows of a preference file as answers of `name`, in the order given.

    Raises:
      UserError: the file holds rows of somebody else: mixing two people into one record cannot be undone.
    """
    from rlhf.phi import encoder  # brings every kind of column; a question needs none

    prefs = read_preferences(path)
    others = [user for user in prefs.user_ids if user != name]
    if others:
        row = prefs.row[prefs.user_index == prefs.user_ids.index(others[0])][0]
        raise UserError(
            f"{path}: row {row}: user_id is {others[0]!r}, not {name!r}; give a file of this person alone"
        )
    phi = encoder.items_phi(run.basis, prefs)
    order = np.lexsort((np.arange(prefs.num_comparisons), prefs.choice))
    return [records.answer_of(prefs, phi, int(row)) for row in order]
