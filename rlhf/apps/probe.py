"""`chorus probe`: a policy or a model through the probe sets of a folder; probes.json and report.html."""

from pathlib import Path

from rewards.errors import UserError, meant
from rewards.files import JSONObject, write_json
from rlhf.evaluation.probes import suite
from rlhf.evaluation.probes.ask import Asker
from rlhf.evaluation.probes.voices import voices_of
from rlhf.policy import store as policy_store
from rlhf.report.probes import write_probes_report
from rlhf.run.folder import check_own

FILE = "probes.json"


def probe(
    policy: str,
    data: str,
    *,
    output: str | None = None,
    count: int = 8,
    people: int = 2,
    seed: int = 0,
    only: tuple[str, ...] = suite.NAMES,
) -> JSONObject:
    """Ask the probes.

    Args:
      policy: training run, or a model by name, directory, .gguf file or hub id.
      data: folder of the probe sets (`rlhf.evaluation.probes.data`). output: where report.html and probes.json go; None:
        nowhere.
      count: items of each kind. people: voices a bucket. only: names of probes.
    Raises:
      UserError: no such folder, an unknown probe, or nothing that could be asked.
    """
    folder = Path(data)
    if output is not None:
        check_own(output, FILE, "probing")
    if not data or not folder.is_dir():
        raise UserError(f"--data {data}: is no folder; give one with bias_probes/, polis_english/ … in it")
    for name in only:
        if name not in suite.NAMES:
            raise UserError(
                f"--only {name}: no such probe; {meant(name, suite.NAMES, ', '.join(suite.NAMES))}"
            )
    if policy_store.is_run(policy):
        loaded = policy_store.load_policy(policy)
        graphdef, params, _ = policy_store.base_state(loaded.base, None, loaded.record["dtype"], False)
        asker = Asker(loaded, policy_store.Policy(loaded.base, graphdef, params, None, None, {}))
    else:
        loaded = policy_store.without_adapters(policy)
        asker = Asker(loaded)
    voices = voices_of(loaded, people, seed)
    found = suite.run(asker, voices, folder, count=count, seed=seed, only=only)
    if not found["items"] and not found["between"]:
        reasons = "; ".join(f"{one['probe']}: {one['reason']}" for one in found["skipped"])
        raise UserError(f"--data {data}: no probe could be asked ({reasons})")
    result = {
        "policy": policy,
        "scores": "log-ratio to the model it was trained from"
        if asker.relative
        else "log-probability a token",
        "seed": seed,
        **found,
    }
    if output is not None:
        directory = Path(output)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / FILE, result)
        write_probes_report(directory, result)
        result["report"] = str(directory / "report.html")
    return result
