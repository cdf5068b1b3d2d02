"""`chorus rewards rails`: which coefficients of a reward run may be personal; set, shown, switched off."""

from pathlib import Path

from rewards.basis import projection, rails
from rewards.basis.store import RewardRun, load_reward_run
from rewards.files import JSONObject
from rlhf.run.config.load import read


def show(rewards: str) -> JSONObject:
    """The rails of a reward run, every axis with what holds for it."""
    return _described(load_reward_run(rewards))


def put(rewards: str, file: str, reason: str | None) -> JSONObject:
    """Read rails from a YAML file and set them; policies trained before keep those that they were trained with.

    Raises:
      UserError: a wrong key or number, an axis that is none, or limits that no coefficients meet.
    """
    run = load_reward_run(rewards)
    values, _ = read(Path(file))
    found = projection.stated_for(values, run.basis.gauge.names, run.hash, run.prior, file)
    rails.write(run.directory, found, reason)
    return _described(load_reward_run(rewards))


def off(rewards: str, reason: str) -> JSONObject:
    """Switch the rails off for whatever is trained from now on; kept in the history with the reason."""
    run = load_reward_run(rewards)
    rails.write(run.directory, None, reason)
    return _described(load_reward_run(rewards))


def _described(run: RewardRun) -> JSONObject:
    found, names = run.rails, run.basis.gauge.names
    return {
        "run_dir": str(run.directory),
        "hash": None if found is None else found.hash,
        "axes": {name: "free" if found is None else found.of_axis(name) for name in names},
        "half_spaces": {} if found is None else {one.name: f"≤ {one.limit:+g}" for one in found.half_spaces},
        "trust_nats": None if found is None else found.to_json()["trust_nats"],
        "history": rails.history(run.directory),
    }
