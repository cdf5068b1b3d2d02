"""What the numbers of `chorus train ppo` and `chorus train grpo` mean; see `rlhf.run.metric_docs`.

A name that ends in /NAME stands for one metric an output of the basis (`train/reward/length`).
"""

from typing import NamedTuple


class MetricDoc(NamedTuple):
    """One metric.

    Attributes:
      meaning: one sentence.
      unit: "nats", "share", "tokens", …; "" for a pure number.
      wrong: what it looks like when something has gone wrong.
    """

    meaning: str
    unit: str
    wrong: str


RL = {
    "train/reward": MetricDoc(
        "What the completions earn, w·φ by the coefficients of the person each was written for; without the KL and "
        "without penalties.",
        "nats; the rewards' own units without people",
        "Does not rise: see the share of groups without variance, and the clip. Rises while samples.jsonl gets worse: "
        "the reward is exploited; raise kl.coef.",
    ),
    "train/reward_sd": MetricDoc(
        "Standard deviation of that reward over the completions of the iteration.",
        "nats",
        "Near 0: every completion earns the same, and there is nothing to learn from.",
    ),
    "train/left_out_share": MetricDoc(
        "Share of rewards that a column on the host left out (None: does not apply to this completion).",
        "1",
        "Near 1: hardly any reward applies, and there is little to learn from.",
    ),
    "train/reward/NAME": MetricDoc(
        "Mean of one basis output over the completions, whoever they were written for.",
        "standard deviations of that output",
        "One output runs away from the others: it is the one that is exploited.",
    ),
    "train/reward_sd/NAME": MetricDoc(
        "Standard deviation of that output over the completions.",
        "standard deviations of that output",
        "Near 0: nobody can be served differently along this output any more.",
    ),
    "train/reward_length_correlation": MetricDoc(
        "Correlation of reward and length among the completions of one prompt and person.",
        "−1 to 1",
        "Near 1 while completions grow: the reward is earned by length.",
    ),
    "train/zero_variance_share": MetricDoc(
        "Share of groups (one prompt, one person) whose completions all earned the same.",
        "share",
        "Near 1: the groups teach nothing; sample more completions, or a reward that tells them apart.",
    ),
    "train/kl_ref_nats": MetricDoc(
        "Log-ratio of policy and reference over a completion, mean of the batch: an unbiased estimate of KL(π‖π_ref).",
        "nats a completion",
        "Slightly below 0 is sampling noise near the start. Steadily negative: sampler and trainer differ (see "
        "train/sampler_gap_nats) or sampling is not at temperature 1. Grows without end: raise kl.coef or lower the rate.",
    ),
    "train/kl_ref_sd_nats": MetricDoc(
        "Standard deviation of that log-ratio over completions.",
        "nats",
        "Far above the mean: a few completions have left the reference entirely.",
    ),
    "train/kl_coef": MetricDoc(
        "β of this iteration, the price of a nat away from the reference.",
        "",
        "With a controller: runs to 0 or without end, so kl.target_nats cannot be met.",
    ),
    "train/advantage_sd": MetricDoc(
        "Standard deviation of the advantages before they are divided by the scale.",
        "nats",
        "Near 0: nothing to learn from. Jumps: one completion decides the step.",
    ),
    "train/advantage_scale": MetricDoc(
        "What the advantages were divided by: one number for everybody, so that strong tastes stay strong.",
        "nats",
        "Follows every jump of the advantages: raise algorithm.scale_decay.",
    ),
    "train/relabel_weight": MetricDoc(
        "Mean truncated importance weight of completions that were relabelled for other people.",
        "share of relabel_limit 1",
        "Near 0: people's answers lie so far apart that relabelling only costs time; set algorithm.relabel to 0.",
    ),
    "train/relabel_effective_share": MetricDoc(
        "Effective part of the relabelled completions, (Σρ)²/(n Σρ²).",
        "share",
        "Near 0 while relabel_weight is not: a few completions decide; lower algorithm.relabel_limit.",
    ),
    "train/explained_variance/NAME": MetricDoc(
        "Share of the variance of the returns of one channel (an output, kl or no_stop) that the critic foresaw.",
        "share; 0 without a critic's help",
        "Stays at or below 0: the critic learns nothing; raise critic.rate, or train longer before you trust PPO.",
    ),
    "train/completion_tokens": MetricDoc(
        "Mean length of the sampled completions, stop token included.",
        "tokens",
        "At rollout.max_new_tokens: cut off. Falls to 1: the policy earns most by saying nothing.",
    ),
    "train/eos_share": MetricDoc(
        "Share of completions that ended by themselves.",
        "share",
        "Falls: completions are cut off; raise rollout.max_new_tokens or algorithm.missing_eos_penalty.",
    ),
    "train/sampler_gap_nats": MetricDoc(
        "Largest difference between a token's log-prob in decoding and in training.",
        "nats",
        "Above 0.01 in float32, 0.1 in bfloat16: the two disagree, and every ratio starts wrong.",
    ),
    "train/z_norm": MetricDoc(
        "Length of the conditioning signal z, in standard deviations of the population; 0 is the aggregate policy.",
        "standard deviations",
        "Near 0: every group is the aggregate person. Far above √K: people unlike any in the population.",
    ),
    "train/loss/total": MetricDoc(
        "What the optimiser lowers: surrogate, value loss, entropy bonus and KL term together. It need not fall: each "
        "iteration is another problem.",
        "",
        "Jumps by orders of magnitude: the learning rate is too high, or the value loss dominates (critic.coef).",
    ),
    "train/loss/policy": MetricDoc(
        "The clipped surrogate, minus the advantage times the ratio π/π_old.",
        "",
        "Exactly 0 in every iteration with several updates: the policy does not move.",
    ),
    "train/loss/value": MetricDoc(
        "Half the squared error of the critic's values, mean over channels and tokens; 0 without a critic.",
        "squared nats",
        "Does not fall: the critic is dead; see its explained variance.",
    ),
    "train/loss/kl": MetricDoc(
        "The KL term where kl.place is loss; else 0.", "nats", "Grows without end: raise kl.coef."
    ),
    "train/loss/hint": MetricDoc(
        "The term that teaches hints and holds other people still (anchor rows); only with a section `hints`.",
        "nats, times the weights of the rows",
        "Does not fall: what the hint asks for is out of reach of the conditioner, or anchors hold it.",
    ),
    "train/hint_kl_nats": MetricDoc(
        "Mean divergence of the policy from its teachers over the tokens of hinted and anchor rows.",
        "nats a token",
        "Does not fall at all: lower hints.anchor_rows or raise hints.coef. Falls and rises again: rewards move the people "
        "whom anchors hold.",
    ),
    "train/token_entropy_nats": MetricDoc(
        "Mean entropy of the next-token distribution along the completions.",
        "nats a token",
        "Collapses to 0: one answer is left; raise kl.coef or algorithm.entropy_coef. Rises: noise.",
    ),
    "train/approx_kl_nats": MetricDoc(
        "KL between the policy that sampled and the one being updated, mean over the iteration's updates.",
        "nats a token",
        "Above 0.05: the updates of one iteration go too far; fewer epochs, a lower rate, or kl.stop_nats.",
    ),
    "train/clip_share": MetricDoc(
        "Share of tokens at which the clip decided.",
        "share",
        "Above 0.3: most of the batch no longer teaches; fewer epochs or a lower rate.",
    ),
    "train/ratio_max": MetricDoc(
        "Largest ratio π/π_old of a token in the iteration.",
        "",
        "Above 10: single tokens move far in one iteration; lower the learning rate.",
    ),
    "train/stopped_share": MetricDoc(
        "Share of the updates left out because the policy had moved by kl.stop_nats.",
        "share",
        "Near 1: hardly anything is learnt; lower the rate or raise kl.stop_nats.",
    ),
    "train/learning_rate": MetricDoc(
        "Learning rate, mean over the iteration's updates.", "", "Not the shape you configured."
    ),
    "train/grad_norm": MetricDoc(
        "Norm of the gradient before clipping.",
        "",
        "Always far above optimizer.max_grad_norm: each update is clipped. Near 0 from the start: nothing is trained.",
    ),
    "train/update_norm": MetricDoc(
        "Norm of the change of the parameters in an update.",
        "",
        "Large against the parameter norm: the learning rate is too high.",
    ),
    "train/param_norm": MetricDoc(
        "Norm of the trained parameters.",
        "",
        "Grows without end: add weight decay or lower the learning rate.",
    ),
    "perf/step_seconds": MetricDoc(
        "Wall-clock time of one iteration: sampling, rewards, updates. The first one compiles.",
        "seconds",
        "Slow iterations that come back: something compiles anew, or rewards outside the program are slow.",
    ),
    "perf/tokens_per_second": MetricDoc(
        "Sampled tokens, learnt from, a second.",
        "tokens a second",
        "Falls during a run: completions get shorter, or the machine is shared.",
    ),
}


def explained(name: str) -> MetricDoc | None:
    """What a metric of an RL run means; one of an output is explained by its kind."""
    head, _, _ = name.rpartition("/")
    return RL.get(name) or RL.get(f"{head}/NAME")
