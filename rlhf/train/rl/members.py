"""A population of reinforcement-learning runs in one program: one frozen model and one set of prompts, S adapters with their
numbers. Each member writes the run directory that its configuration would write alone.
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import PyTree

from rlhf.mesh import devices
from rlhf.run.directory import Run
from rlhf.train import memory
from rlhf.train.callbacks import Callback
from rlhf.train.diagnosis.detectors import diagnose
from rlhf.train.member_runs import Asked, RunMember, next_member
from rlhf.train.members import Given, Stepped, run_members
from rlhf.train.rl import prompts as rl_data
from rlhf.train.rl import sources as rl_rewards
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import GRPOConfig, PPOConfig
from rlhf.train.rl.member_steps import Constants, Steps
from rlhf.train.rl.ready import Model, Ready, kind_of, ready
from rlhf.train.rl.size import check_sampling
from rlhf.train.rl.sources import Source
from rlhf.train.rl.trainer import SHOWN, read_for
from rlhf.train.rl.watch import Watch
from rlhf.train.sft import open_base
from rlhf.train.trained import Trained, run_callbacks

Config = PPOConfig | GRPOConfig


def train(
    first: Config,
    size: int,
    following: Callable[[], Asked | None],
    at_once: int | None = None,
) -> None:
    """Train all that `following` asks for, `size` at a time.

    Args:
      first: any of their configurations; they differ in numbers and seeds only (`rlhf.sweep.together`).
      following: the next; None when there is none now.
      at_once: members computed side by side, the others after them; None takes 1 on CPUs, all elsewhere.
    """
    with devices.use(first.mesh):
        if at_once is None:
            at_once = 1 if jax.default_backend() == "cpu" else size
        everybody = _Everybody(first, size, min(at_once, size))
        run_members(
            size,
            lambda: next_member(following, lambda asked: _Member(everybody, asked)),
            everybody.step,
        )


class _Everybody:
    """What the members of a population share."""

    def __init__(self, config: Config, size: int, at_once: int):
        self._size, self._at_once = size, at_once
        data = config.data
        prompts = rl_data.read_prompts(data.path, data.split, data.columns)
        self.read = read_for(config, None, prompts, None, None)
        if config.rewards is None:
            rl_rewards.check_functions(config, prompts)
        self._base = open_base(config)
        self._prompts = rl_data.prompt_set(config, self._base, prompts)
        check_sampling(config, self._base, self._prompts.tokens.shape[1])
        self._source: Source | None = None
        self._model: Model | None = None
        self._steps: Steps | None = None

    def ready(self, config: Config, job: Run) -> Ready:
        """A member before its first iteration."""
        if config.population is not None:  # measured on samples of its own seed, and kept in its directory
            source = rl_rewards.prepare(config, self._base, self._prompts, job)
        else:
            self._source = self._source or rl_rewards.prepare(config, self._base, self._prompts)
            source = rl_rewards.with_numbers(config, self._source)
        found = ready(config, self._base, self._prompts, source, directory=job.directory, model=self._model)
        if self._steps is None:
            self._begin(found)
        return found

    def _begin(self, first: Ready) -> None:
        """What the first member has made for all."""
        params, parts = first.trainer.frozen, first.trainer.state.params
        trained = self._size * memory.ADAM * _bytes(parts)
        needed = {"the model": _bytes(params.base), f"what {self._size} members train": trained}
        memory.check(needed, "sweep.population")
        frozen = params._replace(**dict.fromkeys(name for name in parts if name != "critic"))
        self._model, self._steps = first.model, Steps(first.trainer, frozen, self._at_once)

    def step(self, states: updates.RLState, constants: Constants, given: Sequence[Given | None]) -> Stepped:
        assert self._steps is not None, "there are members"
        return self._steps(states, constants, given)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class _Member(RunMember):
    """One reinforcement-learning run of a population."""

    diagnose = staticmethod(diagnose)

    def __init__(self, everybody: _Everybody, asked: Asked):
        self._everybody = everybody
        super().__init__(asked, kind_of(asked.config), everybody.read)

    def prepare(self, config: Config, callbacks: Sequence[Callback]) -> None:
        self._ready = self._everybody.ready(config, self.job)
        self.trainer, settled, job = self._ready.trainer, self._ready.config, self.job
        beside = {"track": config.track, "shown": SHOWN, "watch": [Watch(job.directory)]}
        self.callbacks = run_callbacks(job, config.train, kind_of(config), callbacks, **beside)
        steps = settled.train.steps
        assert steps is not None, "settled"
        own = self.trainer.source.reward.arrays if config.population is not None else None
        self.state, self.batch_of = self.trainer.state, self._ready.batch_of
        self.constants: Constants = (self.trainer.people, self.trainer.settings, self.trainer.sampling, own)
        self.order, self.num_steps = config.seed, steps
        self.checkpoint_every, self.max_skips = config.train.checkpoint_every, config.train.max_skips
        self.tokens_per_step, self.evaluation = self._ready.tokens_per_step, self._ready.evaluation

    def trained(self, state: updates.RLState) -> Trained:
        return self._ready.trained(state)
