"""A policy, for everybody or for one person, as a model of EleutherAI's lm-eval-harness: was anything lost?

    python -m rlhf.evaluation.lm_eval --model chorus --model_args policy=runs/policy,person=e001 --tasks arc_easy

takes every option of `lm_eval`. In Python, `import rlhf.evaluation.lm_eval` makes the name known, so that
`lm_eval.simple_evaluate(model="chorus", model_args="policy=…,person=…", tasks=[…])` works, or give `ChorusLM(…)` itself.

    policy      a run, RUN@STEP, RUN@aggregate, a model's directory or name
    person      somebody whom the run's rewards know, or `population` (w = μ); without, the policy for everybody
    rewards     reward run, where it is not that of the policy's record
    max_length  longest text in tokens; by default the model's context

Prompts are texts as the task writes them; `--apply_chat_template` puts them into the model's template. Tokens, windows and stops
are those of lm-eval's own Hugging Face model.
"""

import itertools
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.basis.store import load_reward_run
from rewards.errors import UserError
from rlhf.evaluation.outputs import people, policies
from rlhf.mesh import place
from rlhf.policy import decoding
from rlhf.policy.generation import Drawing, complete_in_batches
from rlhf.policy.store import Policy, coefficients_to_z
from rlhf.policy.token_scores import next_tokens, padded
from rlhf.run.progress import ProgressLine

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models import utils as own
    from lm_eval.models.utils import has_bos_prefix
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError(
        "lm-eval: standard tasks need the `lm_eval` package; install it with pip install 'chorus-rlhf[lm-eval]'"
    ) from None

NEW_TOKENS = 256
"""Longest answer where a task says nothing, as of lm-eval's Hugging Face model."""


@register_model("chorus")
class ChorusLM(TemplateLM):
    """One policy for one person.

    Args:
      policy, person, rewards, max_length: as above.
      batch_size: rows at a time; "auto" is 8. device, max_batch_size: lm-eval passes them, JAX chooses.
      seed: of sampling, where a task asks for it.

    Raises:
      UserError: no such policy or person, a person for a policy without people, or a policy that gives no log-probs.
    """

    def __init__(
        self,
        policy: str,
        person: str | None = None,
        rewards: str | None = None,
        batch_size: int | str | None = 8,
        max_length: int | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        loaded = _policy(str(policy))
        z = None if person is None else _z(loaded, str(policy), str(person), rewards)
        graphdef, params = decoding.apart(loaded.graphdef, loaded.params)  # once for all batches
        self._policy, self.z = loaded, z
        self._generating = (graphdef, params)
        self.tokenizer: Any = loaded.base.tokenizer.hugging_face
        room = loaded.base.config.max_positions
        self.max_length = room if max_length is None else _whole("max_length", max_length, 2, room)
        text = str(8 if batch_size is None else batch_size).partition(":")[0]
        self.batch_size = 8 if text == "auto" else _whole("batch_size", text, 1, 100_000)
        self._seed, self._drawn = _whole("seed", seed, 0, 2**32 - 1), itertools.count()

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id or self._policy.base.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return self._policy.base.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None and not has_bos_prefix(
            string, self.tokenizer.decode(self.prefix_token_id)
        ):
            return self.tokenizer.encode(string)
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that do not overlap, nats."""
        windows, counts = [], []
        for (text,) in (one.args for one in requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            mine = [(("", text), *make_disjoint_window(one)) for one in cut]
            windows += mine
            counts.append(len(mine))
        scores = iter([score for score, _ in self._loglikelihood_tokens(windows)])
        found = [sum(itertools.islice(scores, count)) for count in counts]
        for one, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", one.args, score)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-prob in nats, whether greedy decoding would write it) of each continuation; a context too long loses its start."""
        rows = [[*context, *continuation][-(self.max_length + 1) :] for _, context, continuation in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        order = sorted(
            range(len(rows)), key=lambda number: -len(rows[number])
        )  # little padding, memory shown at once
        graphdef, params = self._policy.graphdef, self._policy.params
        with ProgressLine("score", max(1, len(rows)), unit="text") as line:
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                filled = [*part, *part[-1:] * (self.batch_size - len(part))]  # one shape
                tokens = padded([rows[number] for number in filled])
                z = None if self.z is None else np.tile(self.z, (len(filled), 1))
                scores, best = (
                    place.host(array) for array in next_tokens(graphdef, params, *place.batch((tokens, z)))
                )
                for row, number in enumerate(part):
                    last, length = len(rows[number]) - 1, len(requests[number][2])
                    mine = slice(last - length, last)
                    found[number] = (
                        float(scores[row, mine].sum(dtype=np.float64)),
                        bool(best[row, mine].all()),
                    )
                    if requests[number][0][0]:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
                line.update(start + len(part))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy unless the task samples; cut before the first of its stops."""
        found = [""] * len(requests)
        kinds: dict[str, list[int]] = {}
        for number, one in enumerate(requests):
            kinds.setdefault(repr(sorted(one.args[1].items())), []).append(number)
        for numbers in kinds.values():
            given = own.normalize_gen_kwargs(dict(requests[numbers[0]].args[1]), NEW_TOKENS)
            end = self.tokenizer.decode([self.eot_token_id])
            stops = own.handle_stop_sequences(given.get("until"), eos=end)
            texts = self._write([requests[number].args[0] for number in numbers], given)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = own.postprocess_generated_text(text, stops, None)
                self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
        return found

    def _write(self, contexts: Sequence[str], given: Any) -> list[str]:
        limit = int(given["max_gen_toks"])
        room = self.max_length - limit
        if room <= 0:
            raise UserError(
                f"lm-eval: a task asks for {limit} new tokens, more than the context of {self.max_length}; "
                "lower max_gen_toks (--gen_kwargs)"
            )
        encoded = [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in contexts]
        graphdef, params = self._generating
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
        texts = [""] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            draws = np.array(list(itertools.islice(self._drawn, len(part))), np.uint32)
            [written] = complete_in_batches(
                Policy(self._policy.base, graphdef, params, self._policy.spec, self._policy.gate, {}),
                [encoded[number] for number in part],
                None if self.z is None else np.tile(self.z, (len(part), 1)),
                draws,
                Drawing(
                    limit,
                    float(given.get("temperature") or 0.0) if given.get("do_sample") else 0.0,
                    top_k=int(given.get("top_k") or 0),
                    top_p=float(given.get("top_p") or 1.0),
                    batch=len(part),
                ),
                seed=self._seed,
            )
            for number, one in zip(part, written, strict=True):
                texts[number] = one.text
        return texts


def _whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number of --model_args.

    Raises:
      UserError: it is none, or out of range.
    """
    text = str(value)
    if (
        isinstance(value, bool)
        or not re.fullmatch(r"\d{1,12}", text, re.ASCII)
        or not low <= int(text) <= high
    ):
        raise UserError(f"lm-eval: {name} {text!r}: must be a whole number from {low} to {high}")
    return int(text)


def _policy(text: str) -> Policy:
    named = policies.parted(text)
    if named.address or named.in_context or named.best_of > 1 or named.place == policies.REFERENCE:
        raise UserError(
            f"policy {text}: tasks ask for log-probs of one policy; give a run, RUN@STEP, RUN@aggregate or a model"
        )
    [source] = policies.sources([text], None, None)
    return source.load()


def _z(policy: Policy, text: str, person: str, rewards: str | None) -> np.ndarray:
    if policy.gate is None or policies.parted(text).aggregate:
        raise UserError(f"policy {text}: answers everybody alike; leave out person={person}")
    run = load_reward_run(rewards or policy.record["rewards"])
    if run.hash != policy.record["basis"]:
        raise UserError(f"rewards: {run.directory} are not those that {text} was trained with; name those")
    coef = people.known(person, run).coef
    assert coef is not None, "a reward run has people"
    return coefficients_to_z(policy, coef)


def main() -> int:
    """lm-eval's command line with the model `chorus`."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"chorus: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
