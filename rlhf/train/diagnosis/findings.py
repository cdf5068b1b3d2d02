"""What can go wrong in reinforcement learning, in words: the likely cause, and the keys to change. Detectors: `diagnosis`.

Where no source is named, the evidence is `scripts/experiments/rl_faults.py`, which makes each fault on purpose.
"""

from typing import Literal, NamedTuple

Severity = Literal["stop", "warn", "note"]  # the run is worthless; it will probably fail; worth knowing


class Kind(NamedTuple):
    """One way to fail.

    Attributes:
      cause: the likely one, a sentence. changes: (key of the configuration, what to do with it), likeliest first.
      explained_by: kinds of which this one is a mere consequence; it is not reported beside them.
    """

    severity: Severity
    cause: str
    changes: tuple[tuple[str, str], ...]
    explained_by: tuple[str, ...] = ()


class Finding(NamedTuple):
    """A kind that was found.

    Attributes:
      name: of the kind, and of its section in docs/rl-diagnosis.md.
      step: the last step that was looked at.
      evidence: the numbers that show it, by name.
    """

    name: str
    severity: Severity
    cause: str
    changes: tuple[tuple[str, str], ...]
    step: int
    evidence: dict[str, float]

    def line(self) -> str:
        """One line for a console: what, the numbers, why, what to change."""
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in self.evidence.items())
        advice = "; ".join(f"{key}: {what}" for key, what in self.changes)
        return f"{self.severity}: {self.name} at step {self.step} ({numbers}). {self.cause} Change {advice}."


RATE = ("optimizer.learning_rate", "lower it, to a third")
EPOCHS = ("algorithm.epochs", "lower it")
PRICE = ("kl.coef", "raise it")

KINDS: dict[str, Kind] = {
    "not_finite": Kind(
        "stop",
        "A loss or a gradient overflowed: the learning rate is too high, or a reward is not finite.",
        (RATE, ("optimizer.max_grad_norm", "lower it"), ("model.dtype", "float32")),
    ),
    "sampler_mismatch": Kind(
        "stop",
        "The policy that samples is not the one that is trained: old weights, other precision or other positions.",
        (("model.dtype", "float32"),),
    ),
    "wrong_reference": Kind(
        "note",
        "The policy differs from π_ref before the first update: it did not start from it, or coefficients are given as "
        "text (conditioner.kind text), which the reference does not read.",
        (
            ("model.name", "the model the policy starts from"),
            ("conditioner.kind", "one that starts at no effect"),
        ),
    ),
    "nothing_trained": Kind(
        "stop",
        "Updates change nothing: the learning rate is 0 or tiny, or no trained parameter reaches the output.",
        (
            ("optimizer.learning_rate", "raise it"),
            ("optimizer.warmup_steps", "lower it"),
            ("tune.lora_rank", "raise it"),
        ),
        ("no_signal",),
    ),
    "no_signal": Kind(
        "warn",
        "All completions of a prompt earn the same, so their advantages are 0: the reward is constant, the prompts are "
        "all solved or all hopeless, or the completions are identical.",
        (
            ("rollout.completions", "raise it"),
            ("data.path", "prompts of middling difficulty"),
            ("columns", "a reward that tells completions of one prompt apart"),
        ),
        ("entropy_collapse", "length_hacking", "large_updates"),
    ),
    "negative_kl": Kind(
        "warn",
        "Completions are not drawn from the policy that is scored, for then log π − log π_ref averages at least 0: "
        "temperature, top-k, top-p or min-p changed the distribution.",
        (
            ("rollout.temperature", "1"),
            ("rollout.top_k", "0"),
            ("rollout.top_p", "1"),
            ("rollout.min_p", "0"),
        ),
        ("sampler_mismatch",),
    ),
    "exploding_kl": Kind(
        "warn",
        "The policy leaves π_ref further than its reward is worth, into text on which the reward was never fitted.",
        (PRICE, RATE, ("train.steps", "stop earlier")),
        ("sampler_mismatch", "entropy_rise"),
    ),
    "no_progress": Kind(
        "warn",
        "The policy moves and the reward does not: gradients are noise. The reward cannot be predicted from the completion, "
        "groups are too small, or steps too large.",
        (
            ("rollout.completions", "raise it"),
            ("rollout.prompts_per_step", "raise it"),
            RATE,
            ("columns", "see in samples.jsonl whether the reward ranks completions as you would"),
        ),
        ("no_signal", "large_updates", "sampler_mismatch", "nothing_trained"),
    ),
    "entropy_collapse": Kind(
        "warn",
        "The policy has nearly one completion left, so it no longer explores: the reward is worth more than the KL costs.",
        (
            PRICE,
            ("algorithm.entropy_coef", "raise it, from 0.001"),
            ("algorithm.clip_high", "raise it, to 0.28"),
            RATE,
        ),
    ),
    "entropy_rise": Kind(
        "warn",
        "The policy becomes noise: the entropy bonus outweighs the reward, or unlikely tokens are pushed up.",
        (("algorithm.entropy_coef", "lower it"), ("algorithm.clip_high", "lower it"), RATE),
    ),
    "dead_critic": Kind(
        "warn",
        "The critic predicts returns no better than their mean: it is not trained, too slowly, or overfits each batch.",
        (
            ("critic.coef", "raise it"),
            ("critic.rate", "raise it; lower it where the explained variance is far below 0"),
            ("critic.backbone", "separate"),
            ("algorithm.gae_lambda", "1, which does without the critic's forecasts"),
        ),
        ("no_signal", "nothing_trained", "sampler_mismatch"),
    ),
    "large_updates": Kind(
        "warn",
        "An iteration moves the policy too far from the one that sampled, and what was measured no longer holds. Ratios of "
        "tokens with a negative advantage are not held by the clip.",
        (RATE, EPOCHS, ("algorithm.minibatches", "lower it"), ("kl.stop_nats", "set it, to 0.05")),
        ("sampler_mismatch",),
    ),
    "narrow_clip": Kind(
        "warn",
        "Most tokens are clipped though the policy hardly moves: the clip is too narrow for that many updates on one rollout.",
        (
            ("algorithm.clip_low", "raise it, to 0.2"),
            ("algorithm.clip_high", "raise it, to 0.2"),
            EPOCHS,
        ),
    ),
    "gradient_spikes": Kind(
        "warn",
        "Single steps have gradients many times the usual: the learning rate is at its limit, or a reward has outliers.",
        (RATE, ("optimizer.max_grad_norm", "lower it, to 1 or less"), ("rollout.completions", "raise it")),
        ("large_updates", "sampler_mismatch", "entropy_collapse", "no_signal"),
    ),
    "length_hacking": Kind(
        "warn",
        "The reward is earned by length: longer (or shorter) completions of the same prompt are paid more, and length follows.",
        (
            ("columns", "add one for length and weigh it down"),
            ("algorithm.aggregation", "constant, which prefers no length"),
            ("algorithm.missing_eos_penalty", "raise it"),
            PRICE,
        ),
    ),
    "cut_short": Kind(
        "warn",
        "Hardly any completion ended by itself from the first step on: max_new_tokens is too small, or the model does not use "
        "the tokenizer's stop token.",
        (
            ("rollout.max_new_tokens", "raise it"),
            ("model.name", "a model trained to stop, such as the run of chorus train sft"),
            ("algorithm.missing_eos_penalty", "raise it"),
        ),
    ),
    "forgot_stop": Kind(
        "warn",
        "The policy has unlearnt to stop: what comes before the cut is paid, and the stop token is not.",
        (
            ("algorithm.missing_eos_penalty", "raise it"),
            ("rollout.max_new_tokens", "raise it"),
            PRICE,
        ),
        ("cut_short",),
    ),
    "kl_coef_runaway": Kind(
        "warn",
        "The controller moves β without end: its target is out of reach, so the objective is no longer the one you set.",
        (
            ("kl.target_nats", "raise it where β grows, lower it where β falls"),
            ("kl.controller", "fixed"),
            RATE,
        ),
    ),
    "early_stops": Kind(
        "note",
        "Most updates are left out because the policy moved too far within an iteration: rollouts are wasted.",
        (RATE, EPOCHS, ("kl.stop_nats", "raise it")),
    ),
    "faded_advantages": Kind(
        "note",
        "Advantages are a small share of what they were at first: the policy has converged or the reward shrinks; what is "
        "left is noise.",
        (("train.steps", "stop earlier"), ("optimizer.schedule", "one that ends at 0")),
        ("no_signal", "entropy_collapse"),
    ),
    "impersonal": Kind(
        "warn",
        "Everybody is addressed as the average person (z is about 0), so nothing personal can be learnt.",
        (
            ("users.posterior", "raise it"),
            ("users.prior", "raise it"),
            ("rail.eta", "lower it"),
            ("rewards", "a reward run whose people differ"),
        ),
    ),
}
