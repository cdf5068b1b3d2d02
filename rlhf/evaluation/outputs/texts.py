"""What can be said of texts without a judge: how much of them is new, repeated, cut off, alike, in another language.

    distinct-n       distinct n-grams of words over all n-grams of the texts for one person; mean over people
    repetition       share of a text's 4-grams of words that stood in it before; mean over texts
    perplexity       exp(−Σ log π_ref(y|x) / Σ tokens), by π_ref
    KL(π ‖ π_ref)    mean over samples of log π(y|x, w) − log π_ref(y|x), nats; at temperature 1 and top_p 1 only.
                     KL(π ‖ π_agg) likewise. Best of N: the same of the chosen, with log N − (N − 1)/N more, an upper bound
    other language   share of texts in another language than the prompt, of those where both are clear
    likeness         mean cosine of word and word-pair counts: between completions of one prompt for one person (within), and
                     for different people (between)

Source: Li et al. 2016, A diversity-promoting objective function (distinct-n); the pair of likenesses after Jiang et al. 2025,
Artificial Hivemind, arXiv:2510.22954, with counts of words instead of embeddings; Beirami et al. 2024, Theoretical guarantees on
the best-of-n alignment policy, arXiv:2401.01879 (the bound).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.files import JSONObject
from rewards.types import Prompt
from rlhf.evaluation.outputs import language
from rlhf.evaluation.outputs.samples import Written

WIDTH = 2**18


def qualities(written: Sequence[Written], prompts: Sequence[Prompt], untouched: bool) -> list[JSONObject]:
    """`quality` of each policy."""
    asked = language.of_prompts(prompts)
    return [quality(one, asked, untouched) for one in written]


def quality(written: Written, asked: Sequence[str | None], untouched: bool) -> dict[str, float | None]:
    """Figures of one policy; None where there is no reference, or nothing to read.

    Args:
      asked: language of each prompt. untouched: whether completions were drawn from the policy as it is.
    """
    texts = [one.text for one in written.flat()]
    people, prompts, number = written.shape
    placed = [one for _ in range(people) for one in asked for _ in range(number)]
    words = [text.split() for text in texts]
    found: dict[str, float | None] = {
        "distinct_1": _distinct(words, 1, prompts * number),
        "distinct_2": _distinct(words, 2, prompts * number),
        "repetition": float(np.mean([_repeated(own) for own in words])),
        "truncated": float(np.mean(~written.array("finished"))),
        "empty": float(np.mean([not text.strip() for text in texts])),
        "other_language": language.other_language(placed, language.languages(texts)),
        "tokens": float(np.mean(written.array("num_tokens"))),
        "characters": float(np.mean([len(text) for text in texts])),
        "perplexity": None,
        "kl_to_reference": None,
        "kl_to_aggregate": None,
    }
    if written.aggregate is not None and untouched:
        found["kl_to_aggregate"] = _divergence(written, written.aggregate)
    if written.reference is None or written.tokens is None:
        return found
    known = np.isfinite(written.reference)
    if known.any():
        total = written.reference[known].sum() / max(1, written.tokens[known].sum())
        found["perplexity"] = float(np.exp(min(-total, 700.0)))
        if written.same_tokens and untouched:
            found["kl_to_reference"] = _divergence(written, written.reference)
    return found


def _divergence(written: Written, other: np.ndarray) -> float | None:
    """Of the policy from another whose log-probs [U, P, n] of the completions are given, nats."""
    ratio = written.array("logprob") - other
    known, number = np.isfinite(ratio), written.source.best_of
    return float(np.mean(ratio[known]) + np.log(number) - (number - 1) / number) if known.any() else None


def likeness(written: Written) -> dict[str, float | None]:
    """Mean cosines within and between people; None with one completion, or one person."""
    from sklearn.feature_extraction.text import HashingVectorizer

    people, prompts, number = written.shape
    texts = [one.text for one in written.flat()]
    # Sums of unit vectors give mean cosines of all pairs: |Σ v|² = n + Σ_{i≠j} cos.
    counts = HashingVectorizer(
        n_features=WIDTH, ngram_range=(1, 2), alternate_sign=False, token_pattern=r"\S+"
    )
    vectors: Any = counts.fit_transform(texts)  # a sparse matrix, for which there are no types
    place = np.arange(len(texts)) // number  # (person, prompt)
    per_person = _summed(vectors, place, people * prompts)
    per_prompt = _summed(vectors, np.arange(len(texts)) // number % prompts, prompts)
    own = np.asarray(per_person.multiply(per_person).sum(axis=1)).reshape(people, prompts)
    everybody = np.asarray(per_prompt.multiply(per_prompt).sum(axis=1)).reshape(prompts)
    full = np.asarray(vectors.multiply(vectors).sum(axis=1)).reshape(people, prompts, number).sum(axis=2)
    found: dict[str, float | None] = {"within": None, "between": None}
    if number > 1:
        found["within"] = float(np.mean((own - full) / (number * (number - 1))))
    if people > 1:
        pairs = (people * number) ** 2 - people * number**2
        found["between"] = float(np.mean((everybody - own.sum(axis=0)) / pairs))
    return found


def _summed(vectors: Any, groups: np.ndarray, count: int) -> Any:
    """Rows of a sparse matrix added up by group."""
    from scipy import sparse

    shape = (count, len(groups))
    return sparse.csr_matrix((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape) @ vectors


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(texts: list[list[str]], n: int, each: int) -> float | None:
    """Mean over people, `each` texts a person: the share falls with the number of texts, and one for everybody has fewer."""
    found = []
    for start in range(0, len(texts), each):
        grams = [gram for words in texts[start : start + each] for gram in _grams(words, n)]
        if grams:
            found.append(len(set(grams)) / len(grams))
    return float(np.mean(found)) if found else None


def _repeated(words: list[str], n: int = 4) -> float:
    grams = _grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
