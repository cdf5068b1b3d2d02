"""Figures of sampled film reviews: reward, KL, fluency, variety, and two judges that the policy never met.

log π(y|x) is what the sampler saw; log π_ref(y|x) is scored over the same tokens.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from pages import distinct
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from rewards import jsonl
from rewards.basis.readout import Readout
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rlhf.phi.columns.hidden import pooled_states
from rlhf.phi.encoder import num_layers_of
from rlhf.policy import store as policy_store
from rlhf.policy.generation import Completion, Drawing, complete, logprobs_of
from rlhf.policy.packing import Sequences


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines.

    Raises:
      UserError: no such file, or a line that is not JSON.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; run scripts/sentiment_data.py first")
    return jsonl.rows(path, "make the file again")


def share(right: np.ndarray) -> float:
    return float(np.mean(right))


def utility(run: RewardRun, embeddings: np.ndarray) -> np.ndarray:
    """w·φ in nats, float64[I]; a row depends on no other row, as in training."""
    phi = Readout.of(run.basis).features(embeddings)
    return phi.astype(np.float64) @ np.asarray(run.prior.mean, np.float64)


def judges(data: Path) -> tuple[dict[str, Pipeline], dict[str, Any]]:
    """A classifier of words and word pairs for each corpus of judge.jsonl, and how it does on the sentences of the pairs.

    No sentence of a pair and no review of a prompt is among what they learn from; they share nothing with the reward
    but the task.
    """
    rows, test = read_rows(data / "judge.jsonl"), read_rows(data / "pairs.jsonl")
    texts = [row[side] for row in test for side in ("chosen", "rejected")]
    made, facts = {}, {}
    for corpus in dict.fromkeys(row["corpus"] for row in rows):
        own = [row for row in rows if row["corpus"] == corpus]
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
            LogisticRegression(C=10.0, max_iter=2000),
        )
        made[corpus] = model.fit([row["text"] for row in own], [row["label"] for row in own])
        score = model.decision_function(texts)
        facts[corpus] = {
            "texts": len(own),
            "accuracy": share((score > 0) == np.tile([True, False], len(test))),
            # On texts of another kind its threshold is off, so also how often it puts the two of a pair in order.
            "pairs": share(score[::2] > score[1::2]),
        }
    return made, facts


def sampled(
    policy: policy_store.Policy, prompts: list[str], count: int, rollout: Any, seed: int
) -> list[Completion]:
    """`count` completions of every prompt by the generic person's policy, those of one prompt side by side."""
    asked = [prompt for prompt in prompts for _ in range(count)]
    return complete(policy, asked, None, Drawing(rollout.max_new_tokens, rollout.temperature), seed=seed)


def rewards(
    reference: policy_store.Policy, run: RewardRun, prompts: list[str], samples: list[Completion]
) -> np.ndarray:
    """The reward of every sample as in training: whatever stopped it, or cut it off, counts as the closing token.

    The encoder is the model of the fit, which π_ref need not be.
    """
    settings = run.basis.encoder
    base = policy_store.load_base(settings["model"], adapter_layers=None, dtype="float32")
    closed = [(*(one.tokens[:-1] if one.finished else one.tokens), base.tokenizer.end_id) for one in samples]
    encoded = {prompt: tuple(reference.base.tokenizer.encode_prompt(prompt)) for prompt in prompts}
    starts = [encoded[prompt] for prompt in _asked(prompts, samples)]
    sequences = [Sequences(x, (y,)) for x, y in zip(starts, closed, strict=True)]
    layers = num_layers_of(settings["layer"], base.config.num_layers)
    return utility(run, pooled_states(base, sequences, layers, settings["pool"]))


def _asked(prompts: list[str], samples: list[Completion]) -> list[str]:
    """Every sample's prompt."""
    return [prompt for prompt in prompts for _ in range(len(samples) // len(prompts))]


def measured(
    reference: policy_store.Policy,
    run: RewardRun,
    judged: dict[str, Pipeline],
    prompts: list[str],
    samples: list[Completion],
) -> dict[str, Any]:
    """Figures of one policy's samples.

    kl = mean of log π(y|x) − log π_ref(y|x), nats a completion, an unbiased estimate of KL(π‖π_ref); perplexity =
    exp(−Σ log π_ref ÷ tokens) under the untuned model; positive: share that a judge calls positive; correlation: of
    reward and a judge's score, by ranks.
    """
    ref = logprobs_of(reference, _asked(prompts, samples), samples)
    own = np.array([one.logprob for one in samples], np.float64)
    tokens = np.array([len(one.tokens) for one in samples])
    reward = rewards(reference, run, prompts, samples)
    texts = [one.text for one in samples]
    votes = {name: model.decision_function(texts) for name, model in judged.items()}
    return {
        "reward": float(reward.mean()),
        "reward_sd": float(reward.std()),
        "kl": float(np.mean(own - ref)),
        "kl_se": float(np.std(own - ref, ddof=1) / math.sqrt(len(own))),
        "perplexity": float(np.exp(-ref.sum() / tokens.sum())),
        "distinct_2": distinct(texts, 2),
        "repeated_words": float(np.mean([repeated(text) for text in texts])),
        "ended": share(np.array([one.finished for one in samples])),
        "tokens": float(tokens.mean()),
        "positive": {name: share(score > 0) for name, score in votes.items()},
        "correlation": {
            name: float(np.asarray(spearmanr(reward, score))[0]) for name, score in votes.items()
        },
    }


def repeated(text: str) -> float:
    """Share of a text's words that stand in it already."""
    words = text.split()
    return 1 - len(set(words)) / len(words) if words else 0.0
