"""`Policy`: a trained policy in memory, for everybody and for each person."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

import rewards.api.fitted as reward_api
from rewards.api.fitted import FittedRewards
from rewards.api.person import Person
from rewards.basis import projection
from rewards.basis.rails import Rails
from rewards.data.schema import RowError, parse_prompt
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import card, records
from rewards.types import Prompt
from rlhf.api.completions import Completion, Completions
from rlhf.models.load import read_hf_config
from rlhf.models.save import save_hf
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import rails_of
from rlhf.policy.generation import Drawing, complete
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.run.metrics import read_metrics
from rlhf.train.callbacks import Step

_LOG = logging.getLogger("chorus")
Who = Person | str | Sequence[float] | np.ndarray | None
"""A person, the name of one who has a record, K coefficients, or None for the aggregate policy."""
Prompts = Prompt | Sequence[Prompt | Sequence[dict[str, str]]]
"""One prompt or several, each a text or a list of messages."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Policy:
    """A language model that answers everybody, and each person in their own way.

    Attributes:
      loaded: weights, structure, and the gate from coefficients to the policy's input.
      history: metrics of every step of its training, as far as they are known.
      directory: the run directory it is stored in; None in memory.
    """

    loaded: policy_store.Policy
    history: tuple[Step, ...] = ()
    directory: Path | None = None
    _rewards: FittedRewards | None = None

    @functools.cached_property
    def rewards(self) -> FittedRewards | None:
        """The rewards whose people it knows by name; None for a policy for everybody.

        Raises:
          UserError: their directory is gone or holds others.
        """
        if self._rewards is not None or self.loaded.gate is None or not self.loaded.record.get("rewards"):
            return self._rewards
        found = reward_api.load(self.loaded.record["rewards"])
        wanted = self.loaded.record["basis"]
        if found.basis.hash != wanted:
            raise UserError(
                f"{found.directory}: basis {found.basis.hash[:12]}… is not the one that {self._place} was trained with "
                f"({wanted[:12]}…); restore it or train again"
            )
        return found

    def generate(
        self,
        prompts: Prompts,
        *,
        people: Sequence[Who] | None = None,
        max_new_tokens: int = 64,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> Completions:
        """Complete every prompt for every person, prompt by prompt.

        Args:
          prompts: one or several, each a text or a list of messages.
          people: for whom; None stands for [None], the aggregate policy.
          max_new_tokens: longest completion, in tokens.
          greedy: take the likeliest token instead of sampling at `temperature`.
          top_k, top_p, min_p: sample from fewer tokens; 0, 1 and 0 mean all.
          seed: of the sampling; completion i has a key of its own.
        Raises:
          UserError: a person who is unknown or of other rewards, or texts that exceed the model's context.
        """
        asked, who = _prompts(prompts), [None] if people is None else list(people)
        z = self._signals(who)
        found = complete(
            self.loaded,
            [prompt for prompt in asked for _ in who],
            None if z is None else np.tile(z, (len(asked), 1)),
            Drawing(max_new_tokens, 0.0 if greedy else temperature, top_k, top_p, min_p),
            seed=seed,
        )
        names = [_name(person) for person in who] * len(asked)
        of = [prompt for prompt in asked for _ in who]
        return Completions(
            tuple(
                Completion(prompt, name, one.text, one.num_tokens, one.logprob, one.finished)
                for prompt, name, one in zip(of, names, found, strict=True)
            )
        )

    def logprobs(
        self, prompts: Prompts, completions: str | Sequence[str], people: Sequence[Who] | None = None
    ) -> Float[np.ndarray, "B U"]:
        """log π(completion | prompt, person), nats, with the token that ends a turn: float64[B, U].

        Args:
          prompts: one for every completion, or one for all.
          completions: B texts. people: U people; None stands for [None], the aggregate policy.
        """
        texts = [completions] if isinstance(completions, str) else list(completions)
        asked, who = _prompts(prompts), [None] if people is None else list(people)
        asked = asked * len(texts) if len(asked) == 1 else asked
        if len(asked) != len(texts):
            raise UserError(f"logprobs: {len(asked)} prompts for {len(texts)} completions; give one for each")
        tokenizer, z = self.loaded.base.tokenizer, self._signals(who)
        rows = pack(
            [
                [
                    Sequences(
                        tuple(tokenizer.encode_prompt(prompt)), (tuple(tokenizer.encode_completion(text)),)
                    )
                ]
                for prompt, text in zip(asked, texts, strict=True)
            ]
        )
        columns = [
            all_logprobs(
                self.loaded.graphdef,
                self.loaded.params,
                rows,
                None,
                z=None if z is None else np.tile(z[index], (len(texts), 1)),
            )[:, 0]
            for index in range(len(who))
        ]
        return np.stack(columns, axis=1).astype(np.float64)

    def save(self, directory: str | Path) -> Path:
        """Write the policy, and its rewards where these are in memory, so that every command reads them.

        Raises:
          UserError: a policy is there already, or the model it was trained from was never stored.
        """
        directory = Path(directory)
        if policy_store.is_run(directory):
            raise UserError(f"{directory}: holds a policy already; choose another directory")
        record = dict(self.loaded.record)
        if record["base"] is None:
            raise UserError(
                f"{directory}: the model that this policy was trained from is in memory only; save that one, load it "
                "and train from it"
            )
        own = self._rewards
        if own is not None:
            record["rewards"] = str((own.directory or own.save(directory / "rewards")).resolve())
        full = bool(record.get("full"))
        policy_store.save_policy(directory, self.loaded.params, self.loaded.spec, record, full=full)
        return directory

    def export(self, directory: str | Path, *, person: Who = None) -> Path:
        """Write a Hugging Face directory that transformers loads: one person's policy, or everybody's aggregate.

        Raises:
          UserError: the directory exists, or this kind of conditioner does not fold into the weights.
        """
        if Path(directory).exists():
            raise UserError(f"{directory}: exists already; choose a directory that does not exist")
        z = None if person is None else self.signal(person)
        tree = jax.tree.map(np.asarray, policy_store.merge_adapters(self.loaded, z))
        base = self.loaded.base
        if (kept := base.config.kept) in ("int8", "nf4"):
            _LOG.warning(
                f"export: trained over a base kept as {kept} (model.base), and merged into the model as it is on disk; what it "
                "writes may differ from what the policy writes over the codes"
            )
        raw = read_hf_config(base.directory)
        raw = untied(raw) if base.config.tied and "head" in tree else raw
        return save_hf(directory, tree, raw, base.directory, end_ids=base.tokenizer.eos_ids)

    def signal(self, person: Who) -> Float[np.ndarray, " K"] | None:
        """z of somebody, the policy's own input; None for the aggregate.

        Raises:
          UserError: the policy has no users, the person is unknown, or belongs to other rewards.
        """
        if person is None:
            return None
        if self.loaded.gate is None:
            raise UserError(
                f"{self._place}: this policy was trained without users; leave out --user (people in Python)"
            )
        asked = self._coefficients(person)
        z = policy_store.coefficients_to_z(self.loaded, asked)
        if said := self.rails_on(person):
            _LOG.warning(f"{_name(person)}: rails: {'; '.join(said)}")
        return z

    @property
    def rails(self) -> Rails | None:
        """Which coefficients may be personal, for everybody whom it answers; None where it was trained without rails."""
        return rails_of(self.loaded.record, self._place)

    def rails_on(self, person: Who) -> list[str]:
        """What the rails do to somebody's coefficients, in words; empty where they leave them as they are."""
        gate, rails = self.loaded.gate, self.rails
        if gate is None or rails is None:
            return []
        asked = gate.conditioning.mean if person is None else self._coefficients(person)
        asked = np.asarray(asked, np.float32)
        return projection.actions(rails, asked, np.asarray(gate.railed(asked)))

    def provenance(self, person: Who) -> JSONObject | None:
        """The answers and statements that somebody's coefficients come from, by name; None where nobody's record is used."""
        if isinstance(person, str) and self.rewards is not None and self.rewards.run is not None:
            return card.provenance(records.load(self.rewards.run.users, person, self.rewards.run))
        return None

    def _coefficients(self, person: Person | str | Sequence[float] | np.ndarray) -> np.ndarray:
        if isinstance(person, str):
            if self.rewards is None:
                raise UserError(f"{person}: this policy knows nobody by name; give a person or coefficients")
            return self._known(self.rewards, person)
        if not isinstance(person, Person):
            return np.asarray(person)
        if person.rewards.basis.hash != self.loaded.record["basis"]:
            raise UserError(
                f"{person.name}: coefficients of other rewards than this policy was trained with; take a person of those"
            )
        return person.mean

    @staticmethod
    def _known(rewards: FittedRewards, name: str) -> np.ndarray:
        """Coefficients of somebody who has a record: a name in tables is often a slip of the pen."""
        if rewards.run is not None:
            return records.load(rewards.run.users, name, rewards.run).posterior.mean
        if name not in rewards.people:
            raise UserError(f"{name!r}: nobody of this name has answered; ask fitted.person({name!r})")
        return rewards.person(name).mean

    def _signals(self, people: Sequence[Who]) -> np.ndarray | None:
        """z float32[U, K], zero for the aggregate; None when everybody is."""
        found = [self.signal(person) for person in people]
        known = [z for z in found if z is not None]
        if not known:
            return None
        return np.stack([np.zeros_like(known[0]) if z is None else z for z in found])

    @property
    def _place(self) -> str:
        return "the policy" if self.directory is None else str(self.directory)

    def __repr__(self) -> str:
        record = self.loaded.record
        place = "in memory" if self.directory is None else str(self.directory)
        kind = record.get("kind", "model")
        people = (
            f", conditioned on {len(self.loaded.gate.conditioning.mean)} axes" if self.loaded.gate else ""
        )
        return f"Policy({kind} of {self.loaded.base.name}{people}, {place})"


def load_policy(directory: str | Path) -> Policy:
    """Open the policy of a training run or of `Policy.save`.

    Raises:
      UserError: no finished policy there, or weights that are not those of its record.
    """
    directory = Path(directory)
    history = tuple(
        Step(int(row["step"] or 0), {name: value for name, value in row.items() if value is not None})
        for row in read_metrics(directory)
    )
    return Policy(policy_store.load_policy(directory), history, directory)


def plain_model(model: str | Path) -> Policy:
    """A model without adapters, as a policy for everybody."""
    return Policy(policy_store.without_adapters(model))


def untied(raw: JSONObject) -> JSONObject:
    """config.json of the same model with an unembedding of its own (in both places where Gemma 3 says so)."""
    changed = {**raw, "tie_word_embeddings": False}
    if "text_config" in raw:
        changed["text_config"] = {**raw["text_config"], "tie_word_embeddings": False}
    return changed


def _prompts(given: Prompts) -> list[Prompt]:
    """One prompt is a text, or (role, content) pairs, or a list of messages; a list of these is several."""
    single = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], (dict, tuple)))
    if isinstance(given, tuple) and given and isinstance(given[0], tuple) and isinstance(given[0][0], tuple):
        single = False  # several prompts of (role, content) pairs
    found = []
    for number, prompt in enumerate([given] if single else given, 1):
        if isinstance(prompt, tuple):  # a chat prompt as it stands in `Preferences`
            found.append(prompt)
            continue
        try:
            found.append(parse_prompt(prompt))
        except RowError as error:
            raise UserError(f"prompt {number}: {error}") from None
    if not found:
        raise UserError("prompts: none given; write what the model is to answer")
    return found


def _name(person: Who) -> str:
    if person is None:
        return "everybody"
    if isinstance(person, Person):
        return person.name
    return person if isinstance(person, str) else f"w = {np.asarray(person).tolist()}"
