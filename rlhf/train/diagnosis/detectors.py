"""Finds what goes wrong in a run of reinforcement learning from its metrics: pure functions over rows of metrics.jsonl.

    for finding in diagnose(read_metrics(directory)):
        print(finding.line())

A detector looks at the last `curves.WINDOW` rows (fewer in a short run) and at the first ones, and answers with the numbers that
show the fault, or None. A metric that was not logged is no evidence. Words and keys to change: `findings`; real curves of
every fault: docs/rl-diagnosis.md. Thresholds keep silent on healthy runs of the probe tasks and speak on planted faults
(`scripts/experiments/rl_faults.py`); where a published number exists it stands beside the constant.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rewards.files import JSONObject
from rlhf.train.diagnosis.curves import MIN_ROWS, Curves
from rlhf.train.diagnosis.findings import KINDS, Finding

ERRORS = 3.0  # standard errors by which a mean must be wrong: 21 detectors look again and again
GAIN_ERRORS = 2.0  # standard errors allowed to a gain of reward
PROGRESS = (
    0.3  # standard deviations of the reward that a run should gain by the time that its KL has risen by
)
PAID_TOKEN_NATS, PAID_NATS = 0.2, 5.0  # so much a token, or so much a completion

# k1 has mean KL(π‖π_ref) ≥ 0 over samples of π; single batches may be negative (TRL warns at −1 nat of one batch, which
# is within noise for long completions), so it is the mean of a window that must lie below 0.
NEGATIVE_KL_NATS = 0.01
# Fresh adapters add exactly nothing: what is left is rounding, 1e-5 nats a token in float32.
START_KL_TOKEN_NATS = 0.05
# Largest difference over all tokens of a batch: 1e-5 in float32; between engines in bfloat16 the mean is about 0.01
# (trl#4772). exp(1) is a ratio of 2.7 before the first update, far outside every clip.
SAMPLER_GAP_NATS = 1.0
# A policy that always says one of the reference's usual words pays about one entropy of the reference a token; twice that
# means words which the reference hardly ever says.
KL_ENTROPIES = 2.0
# Entropy nearly used up: Cui et al. 2025 (arXiv 2505.22617) find performance exhausted with it, DAPO (2503.14476) shows the
# collapse that its higher clip prevents.
ENTROPY_LEFT = 0.1
ENTROPY_GROWTH = 1.5
# An explained variance of 0 is the mean's; a zero-initialised critic needs some iterations to pass it.
CRITIC_ROWS, EXPLAINED = 20, 0.005
FLAT_REWARD = 0.05  # share of the first deviation below which returns no longer vary
# Healthy runs of the faults script clip 1 to 12 % of tokens; from a third on the clip decides rather than the advantage.
CLIP_SHARE = 0.3
# Spinning Up stops an iteration at 0.015 nats; ten times as much a token is another policy.
UPDATE_KL_NATS = 0.1
RATIO_MAX = 10.0  # the usual largest ratio of a batch; TRL skips a batch when its mean ratio exceeds 10
SPIKE, SPIKES = 5.0, 3  # times the median; so many in the last half of the run
# Singhal et al. 2023 (arXiv 2310.03716) find that length alone makes up most of PPO's gains; 0.7² is half of the variance.
LENGTH_GROWTH, LENGTH_CORRELATION = 1.25, 0.7
# Shares of completions that end by themselves: hardly any from the start; or few, and a third of what it was.
NEVER_STOPS, RARELY_STOPS = 0.05, 0.1
# DAPO filters groups without variance; beyond half of a batch mostly nothing is learnt. In the first rows it must be all.
ZERO_VARIANCE, ZERO_VARIANCE_AT_ONCE = 0.5, 0.95
FADED = 0.02
BETA_FACTOR = 10.0  # TRL: β "often increases before numerical instabilities"
STOPPED = 0.5
MOVED_NATS = 1e-3  # KL and log-ratio of a policy that moved at all
IMPERSONAL_Z = 0.05  # standard deviations of the population

Evidence = dict[str, float] | None


def not_finite(curves: Curves) -> Evidence:
    row = curves.rows[-1]
    broken = [
        name
        for name, value in row.items()
        if name.startswith("train/") and (value is None or not np.isfinite(value))
    ]
    return {name.removeprefix("train/"): float("nan") for name in broken[:3]} or None


def sampler_mismatch(curves: Curves) -> Evidence:
    gap = curves["sampler_gap_nats"]
    if len(gap) < 2 or curves.median("sampler_gap_nats") < SAMPLER_GAP_NATS:
        return None
    return {"sampler_gap_nats": curves.median("sampler_gap_nats")}


def wrong_reference(curves: Curves) -> Evidence:
    row = curves.rows[0]
    kl, tokens = row.get("train/kl_ref_nats"), row.get("train/completion_tokens")
    if row["step"] != 1 or kl is None or not tokens or abs(kl) < START_KL_TOKEN_NATS * tokens:
        return None
    return {"first kl_ref_nats": float(kl)}


def nothing_trained(curves: Curves) -> Evidence:
    if not curves.has("ratio_max", "kl_ref_nats"):
        return None
    moved, kl = np.abs(curves["ratio_max"] - 1.0).max(), np.abs(curves["kl_ref_nats"][-curves.width :]).max()
    if moved > MOVED_NATS or kl > MOVED_NATS:
        return None
    return {"largest |ratio − 1|": float(moved), "kl_ref_nats": float(kl)}


def no_signal(curves: Curves) -> Evidence:
    share = curves["zero_variance_share"]
    enough = ZERO_VARIANCE if len(share) >= MIN_ROWS else ZERO_VARIANCE_AT_ONCE
    nothing = len(share) > 0 and (share == 1.0).all()  # not one group has told two answers apart so far
    if not nothing and (len(share) < 3 or curves.last("zero_variance_share") < enough):
        return None
    return {"zero_variance_share": curves.last("zero_variance_share"), "reward_sd": curves.last("reward_sd")}


def negative_kl(curves: Curves) -> Evidence:
    if not curves.has("kl_ref_nats"):
        return None
    values = curves["kl_ref_nats"][-2 * curves.width :]  # twice the usual: single batches are very noisy
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    if values.mean() > -NEGATIVE_KL_NATS or values.mean() + ERRORS * error > 0:
        return None
    return {"kl_ref_nats": float(values.mean()), "standard error": float(error)}


def exploding_kl(curves: Curves) -> Evidence:
    """More KL a token than words of the reference can cost, or a price above what the reward gained."""
    if not curves.has("kl_ref_nats", "completion_tokens", "token_entropy_nats", "reward", "kl_coef"):
        return None
    kl, tokens = curves.last("kl_ref_nats"), max(curves.last("completion_tokens"), 1.0)
    paid, paid_error = curves.gain("kl_ref_nats")
    if paid > 0 and kl / tokens > KL_ENTROPIES * curves["token_entropy_nats"][0]:
        return {"kl a token": kl / tokens, "entropy of the reference": float(curves["token_entropy_nats"][0])}
    gained, error = curves.gain("reward")
    beta = curves.median("kl_coef")
    if paid > _much(curves) and beta * paid > max(gained, 0.0) + ERRORS * np.hypot(error, beta * paid_error):
        return {"β × KL": beta * paid, "reward gained": gained}
    return None


def _much(curves: Curves) -> float:
    """KL, in nats a completion, that must have bought something."""
    return min(PAID_TOKEN_NATS * curves.last("completion_tokens"), PAID_NATS)


def no_progress(curves: Curves) -> Evidence:
    """The reward surely rose by less than a share of its deviation; a reward too noisy to tell is no evidence."""
    names = ("kl_ref_nats", "reward", "reward_sd", "completion_tokens")
    if not curves.has(*names) or len(curves.rows) < CRITIC_ROWS:
        return None
    gained, error = curves.gain("reward")
    moved, _ = curves.gain("kl_ref_nats")
    most = gained + GAIN_ERRORS * error
    if most > PROGRESS * curves.first("reward_sd") or moved < _much(curves):
        return None
    return {"reward gained": gained, "standard error": error, "kl_ref_nats gained": moved}


def entropy_collapse(curves: Curves) -> Evidence:
    return _entropy(curves, lambda share: share < ENTROPY_LEFT)


def entropy_rise(curves: Curves) -> Evidence:
    return _entropy(curves, lambda share: share > ENTROPY_GROWTH)


def _entropy(curves: Curves, wrong: Callable[[float], bool]) -> Evidence:
    if not curves.has("token_entropy_nats"):
        return None
    start, end = float(curves["token_entropy_nats"][0]), curves.last("token_entropy_nats")
    return {"token_entropy_nats": end, "at first": start} if wrong(end / max(start, 1e-9)) else None


def dead_critic(curves: Curves) -> Evidence:
    """No output whose rewards vary is predicted better than by its mean."""
    judged = {}
    for name in curves.matching("reward_sd/"):
        output = name.rpartition("/")[2]
        explained = f"explained_variance/{output}"
        varies = len(curves[name]) and curves.last(name) > FLAT_REWARD * curves.first(name)
        if varies and len(curves[explained]) >= CRITIC_ROWS:
            judged[explained] = curves.last(explained)
    if not judged or max(judged.values()) > EXPLAINED:
        return None
    return judged


def large_updates(curves: Curves) -> Evidence:
    """Judged at the worst stretch of the run: what it broke stays broken when updates are small again."""
    if not curves.has("approx_kl_nats", "ratio_max"):
        return None
    moved, ratio = curves.worst("approx_kl_nats"), curves.worst("ratio_max")
    if moved < UPDATE_KL_NATS and ratio < RATIO_MAX:
        return None
    return {"approx_kl_nats": moved, "ratio_max": ratio}


def narrow_clip(curves: Curves) -> Evidence:
    if not curves.has("clip_share", "approx_kl_nats") or curves.last("clip_share") < CLIP_SHARE:
        return None
    if curves.median("approx_kl_nats") > UPDATE_KL_NATS:
        return None  # large updates clip as well
    return {"clip_share": curves.last("clip_share"), "approx_kl_nats": curves.median("approx_kl_nats")}


def gradient_spikes(curves: Curves) -> Evidence:
    if not curves.has("grad_norm"):
        return None
    norms = curves["grad_norm"][len(curves["grad_norm"]) // 2 :]
    usual = float(np.median(norms))
    count = int(np.sum(norms > SPIKE * usual))
    return (
        {"steps": float(count), "largest": float(norms.max()), "median": usual} if count >= SPIKES else None
    )


def length_hacking(curves: Curves) -> Evidence:
    """Length changed and the reward rose, and within groups length decides most of the reward."""
    if not curves.has("reward", "completion_tokens", "reward_length_correlation"):
        return None
    gained, error = curves.gain("reward")
    growth = curves.last("completion_tokens") / max(float(curves["completion_tokens"][:3].mean()), 1.0)
    together = curves["reward_length_correlation"]
    together = together[together != 0.0]  # once all are at the limit there is nothing left to correlate
    if gained < GAIN_ERRORS * error or len(together) < MIN_ROWS // 2:
        return None
    correlation = float(np.median(together))
    longer = growth > LENGTH_GROWTH and correlation > LENGTH_CORRELATION
    shorter = growth < 1.0 / LENGTH_GROWTH and correlation < -LENGTH_CORRELATION
    return {"length × ": growth, "correlation with reward": correlation} if longer or shorter else None


def cut_short(curves: Curves) -> Evidence:
    ended = curves["eos_share"]
    if len(ended) < 3 or ended[:3].mean() > NEVER_STOPS or curves.last("eos_share") > NEVER_STOPS:
        return None
    return {"eos_share": curves.last("eos_share"), "completion_tokens": curves.last("completion_tokens")}


def forgot_stop(curves: Curves) -> Evidence:
    if not curves.has("eos_share"):
        return None
    start, end = float(curves["eos_share"][:3].mean()), curves.last("eos_share")
    return {"eos_share": end, "at first": start} if end < min(RARELY_STOPS, start / 3) else None


def kl_coef_runaway(curves: Curves) -> Evidence:
    if not curves.has("kl_coef") or min(curves["kl_coef"]) <= 0:
        return None
    factor = float(curves["kl_coef"][-1] / curves["kl_coef"][0])
    return {"β × ": factor} if max(factor, 1.0 / factor) > BETA_FACTOR else None


def early_stops(curves: Curves) -> Evidence:
    if not curves.has("stopped_share") or curves.last("stopped_share") < STOPPED:
        return None
    return {"stopped_share": curves.last("stopped_share")}


def faded_advantages(curves: Curves) -> Evidence:
    if not curves.has("advantage_sd") or curves.last("advantage_sd") > FADED * curves.first("advantage_sd"):
        return None
    return {"advantage_sd": curves.last("advantage_sd"), "at first": curves.first("advantage_sd")}


def impersonal(curves: Curves) -> Evidence:
    if len(curves["z_norm"]) < 3 or curves["z_norm"].max() > IMPERSONAL_Z:
        return None
    return {"z_norm": float(curves["z_norm"].max())}


# Causes before consequences.
# fmt: off
DETECTORS: tuple[Callable[[Curves], Evidence], ...] = (
    not_finite, sampler_mismatch, nothing_trained, no_signal, large_updates, negative_kl, exploding_kl,
    entropy_collapse, entropy_rise, no_progress, length_hacking, cut_short, forgot_stop, dead_critic, narrow_clip,
    gradient_spikes, kl_coef_runaway, impersonal, wrong_reference, early_stops, faded_advantages,
)
# fmt: on


def diagnose(rows: Sequence[JSONObject]) -> list[Finding]:
    """What is wrong at the end of these rows, worst first; nothing for a healthy run.

    Args:
      rows: lines of metrics.jsonl of `chorus train ppo|grpo`, in order, as `rlhf.run.metrics.read_metrics` gives them; null
        is a value that was not finite. To learn when a fault began, give fewer rows.
    """
    if not rows:
        return []
    curves = Curves(rows)
    found = {
        detector.__name__: evidence for detector in DETECTORS if (evidence := detector(curves)) is not None
    }
    findings = []
    for name, evidence in found.items():
        kind = KINDS[name]
        if not any(cause in found for cause in ("not_finite", *kind.explained_by) if cause != name):
            findings.append(
                Finding(name, kind.severity, kind.cause, kind.changes, curves.steps[-1], evidence)
            )
    return sorted(findings, key=lambda finding: ("stop", "warn", "note").index(finding.severity))
