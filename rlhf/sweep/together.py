"""Which sweeps one program can train: those whose trials differ in what is data for the compiled step, and in their seeds."""

from collections.abc import Iterator, Sequence

from rlhf.run.config.common import RunConfig

COMMANDS = ("train dpo", "train grpo", "train ppo")
_FOLDERS = ("tensorboard",)
"""Trackers that keep to the folder of a run; the others follow one run a process."""
_ALONE = "or remove sweep.population, so that every trial is a process of its own"


_FIXED = ("rollout.top_p", "rollout.min_p")
"""Numbers that also say what is computed: whether anything is cut from the distribution."""


def keys(command: str) -> tuple[str, ...]:
    """Keys of the command that may differ among the members of a population."""
    from rlhf.run.record import numbers
    from rlhf.train.dpo_step import DPOSettings  # JAX and Flax, which reading a sweep does not need
    from rlhf.train.rl.settings import RLSettings

    settings = DPOSettings if command == "train dpo" else RLSettings
    found = (
        name for name in numbers(settings) if "." in name and name not in _FIXED
    )  # the others are no keys
    return ("seed", "users.extreme_sd", *found)


def problem(command: str, keys_tried: Sequence[str], config: RunConfig) -> str | None:
    """What is wrong with a sweep that asks for a population, and what to do.

    Args:
      config: any of its trials.
    """
    return next(_problems(command, keys_tried, config), None)


def _problems(command: str, tried: Sequence[str], config: RunConfig) -> Iterator[str]:
    from rlhf.train.config import DPOConfig
    from rlhf.train.rl.config import RLConfig

    if command not in COMMANDS or not isinstance(config, DPOConfig | RLConfig):
        yield f"is for {', '.join(COMMANDS)}, not {command}; remove it, and every trial is a process of its own"
        return
    known = keys(command)
    if fixed := [key for key in tried if key not in known]:
        yield (
            f"members differ in numbers of the compiled step and in seeds, not in {', '.join(fixed)}; give "
            f"{'it one value' if len(fixed) == 1 else 'them one value each'}, {_ALONE}"
        )
    if config.tune.mode == "full":
        yield f"members share one frozen model, and tune.mode is full; choose lora, {_ALONE}"
    if isinstance(config, RLConfig) and config.hints is not None:
        yield f"hints are one run's; remove hints, {_ALONE}"
    if isinstance(config, DPOConfig) and config.data.stream:
        yield f"members share rows that are all there at the beginning, and data.stream is true; choose false, {_ALONE}"
    if isinstance(config, DPOConfig) and config.train.length_buckets > 1:
        yield f"members train rows of one length, and train.length_buckets is {config.train.length_buckets}; choose 1, {_ALONE}"
    if others := [name for name in config.track if name not in _FOLDERS]:
        yield f"{others[0]} follows one run a process; take it out of track, {_ALONE}"
    if config.mesh.processes not in (None, 1) or config.mesh.coordinator is not None:
        yield f"members are trained by one process, and mesh asks for several; remove mesh.processes, {_ALONE}"
