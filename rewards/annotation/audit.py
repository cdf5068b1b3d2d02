"""An audit of recorded answers: how repeatable, how much moved by order and frame, how cyclic, who answers anyhow.

Every rate comes with a 95 % interval over resampled people (one person's answers are not independent), and, where
a model links the two, with the flip rate ε it implies:
    repeat agreement a = 1 − 2ε(1−ε)      cycle rate c = ε(1−ε)      (ε = ½ for a coin: a = ½, c = ¼)
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from rewards.annotation.measurements import Measurements, measure
from rewards.annotation.triads import Triads, is_cyclic, triads
from rewards.data.check import agreement
from rewards.data.leak import wilson_interval
from rewards.files import JSONObject
from rewards.types import Preferences

LEVEL = 0.05  # expected share of wrong accusations among the people named
MIN_PEOPLE = 10  # fewer are not resampled; Wilson's interval over answers is given
DRAWS = 1000
SIMULATIONS = 999
MIN_POSITION = 8  # answers with a recorded order from which a person's habit of position is tested
TIME_COLUMNS = ("seconds", "response_seconds", "response_time_seconds", "duration_seconds")


def audit(prefs: Preferences, seed: int = 0) -> JSONObject:
    """Plain numbers (JSON values) about the quality of the answers in `prefs`; None where nothing says it.

    Keys:
      repeats: couples of answers of a person to one question: `couples`, `agreement`, `interval`, `flip_rate`;
        the same under `same_condition` and `other_condition` (what stood first, frame). Constructed answers
        repeat in the first and move in the second; `constructed_gap` is the difference of the agreements.
      order: share won by what stood first, with `effect` = P(A | first) − P(A | second) = 2 share − 1.
      frames: for each frame with a direction, the share won by the favoured side.
      cycles: `triads`, `cyclic`, `rate`, `interval`, `flip_rate`, `people`, `median_rate` over people with 10.
      agreement: two people on the same pair: `rate`, and the `flip_rate` one shared order would need.
      random: people who answer like a coin and less consistently than the others: see `random_answerers`.
      position: people who take (nearly) always the same place on the screen.
      seconds: median response time, and people with a median under a third of it; None without a column of
        `TIME_COLUMNS` (also inside `choice_context`).
      verdict: one sentence; to_do: what to do, most important first.
    """
    rng, data = np.random.default_rng(seed), measure(prefs)
    untied = prefs.outcome != 0.5
    found = triads(prefs)
    result: JSONObject = {
        "source": prefs.source,
        "users": len(np.unique(prefs.user_index)),
        "comparisons": prefs.num_comparisons,
        "repeats": _repeats(prefs, data, rng),
        "order": _order(prefs, data, rng),
        "frames": _frames(prefs, data, rng),
        "cycles": _cycles(found, prefs.num_users, rng),
        "agreement": _agreement(prefs, untied),
    }
    result["random"] = random_answerers(prefs, data, found, _flip_rate(result), rng)
    result["position"] = _position(prefs, data)
    result["seconds"] = _seconds(prefs)
    # Imported late: the sentences read the numbers, the numbers know nothing of sentences.
    from rewards.annotation.audit_text import to_do, verdict

    return result | {"verdict": verdict(result), "to_do": to_do(result)}


def flip_rate_of_agreement(rate: float) -> float:
    """ε with 1 − 2ε(1−ε) = rate, in [0, ½]; ½ at or below a coin's agreement."""
    return 0.5 * (1.0 - float(np.sqrt(max(0.0, 2.0 * rate - 1.0))))


def flip_rate_of_cycles(rate: float) -> float:
    """ε with ε(1−ε) = rate, in [0, ½]; ½ at or above a coin's quarter."""
    return 0.5 * (1.0 - float(np.sqrt(max(0.0, 1.0 - 4.0 * rate))))


def rate_interval(
    hits: Float[np.ndarray, " n"], user: Int[np.ndarray, " n"], rng: np.random.Generator
) -> tuple[float, list[float]]:
    """Σ hits / n with its 95 % interval: ratio of sums over resampled people, Wilson's for few people."""
    _, person = np.unique(user, return_inverse=True)
    total, good = np.bincount(person), np.bincount(person, hits)
    if len(total) < MIN_PEOPLE or np.mean(hits) in (0.0, 1.0):  # resampling cannot show what was not seen
        return float(np.mean(hits)), wilson_interval(float(np.sum(hits)), len(hits))
    draws = rng.integers(0, len(total), (DRAWS, len(total))) if len(total) <= 5000 else None
    if draws is None:  # the normal interval of a ratio of sums is as good for so many, and small
        residual = good - np.mean(hits) * total
        half = 1.96 * float(np.sqrt(np.sum(residual**2)) / total.sum())
        return float(np.mean(hits)), [
            max(0.0, float(np.mean(hits)) - half),
            min(1.0, float(np.mean(hits)) + half),
        ]
    ends = np.quantile(good[draws].sum(axis=1) / total[draws].sum(axis=1), (0.025, 0.975))
    return float(np.mean(hits)), [float(end) for end in ends]


@dataclasses.dataclass(frozen=True)
class Couples:
    """Couples of answers of one person to one question: person, whether they agree, whether asked alike."""

    user: np.ndarray
    agree: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, data: Measurements) -> "Couples":
        """All couples of up to the first ten answers of each question."""
        rows = np.flatnonzero(data.measured)
        rows = rows[np.argsort(data.question[rows], kind="stable")]
        first, second = [], []
        for lag in range(1, 10):
            alike = np.flatnonzero(data.question[rows[lag:]] == data.question[rows[:-lag]])
            first.append(rows[alike])
            second.append(rows[alike + lag])
        a, b = np.concatenate(first), np.concatenate(second)
        return cls(
            data.user[data.question[a]],
            data.turned[a] == data.turned[b],
            data.condition[a] == data.condition[b],
        )


def _repeats(prefs: Preferences, data: Measurements, rng: np.random.Generator) -> JSONObject | None:
    couples = Couples.of(data)
    if not len(couples.user):
        return None
    result: JSONObject = _agreeing(couples, np.ones(len(couples.user), bool), rng) or {}
    if any(name in prefs.columns for name in ("shown_first", "frame")):
        same, other = (_agreeing(couples, mask, rng) for mask in (couples.same, ~couples.same))
        result |= {"same_condition": same, "other_condition": other}
        if same and other:
            result["constructed_gap"] = same["agreement"] - other["agreement"]
    return result


def _agreeing(couples: Couples, mask: np.ndarray, rng: np.random.Generator) -> JSONObject | None:
    if not mask.any():
        return None
    rate, interval = rate_interval(couples.agree[mask].astype(float), couples.user[mask], rng)
    return {
        "couples": int(mask.sum()),
        "agreement": rate,
        "interval": interval,
        "flip_rate": flip_rate_of_agreement(rate),
    }


def _order(prefs: Preferences, data: Measurements, rng: np.random.Generator) -> JSONObject | None:
    return _pushed(prefs, data, "order", rng)


def _frames(prefs: Preferences, data: Measurements, rng: np.random.Generator) -> JSONObject | None:
    found = {kind: _pushed(prefs, data, kind, rng) for kind in data.kinds if kind != "order"}
    return {kind: value for kind, value in found.items() if value} or None


def _pushed(prefs: Preferences, data: Measurements, kind: str, rng: np.random.Generator) -> JSONObject | None:
    """Share of untied answers that went the way a cue points."""
    if kind not in data.kinds:
        return None
    cue = data.cue[:, data.kinds.index(kind)]
    rows = np.flatnonzero(data.measured & (cue != 0))
    if not len(rows):
        return None
    rate, interval = rate_interval((cue[rows] > 0).astype(float), prefs.user_index[rows], rng)
    return {"rows": len(rows), "share": rate, "interval": interval, "effect": 2.0 * rate - 1.0}


def _cycles(found: Triads, num_users: int, rng: np.random.Generator) -> JSONObject | None:
    if not len(found.user):
        return None
    cyclic = found.cyclic
    rate, interval = rate_interval(cyclic.astype(float), found.user, rng)
    total, bad = np.bincount(found.user, minlength=num_users), np.bincount(found.user, cyclic, num_users)
    heavy = total >= 10
    return {
        "triads": len(cyclic),
        "cyclic": int(cyclic.sum()),
        "rate": rate,
        "interval": interval,
        "flip_rate": flip_rate_of_cycles(rate),
        "people": int(np.sum(total > 0)),
        "median_rate": float(np.median(bad[heavy] / total[heavy])) if heavy.any() else None,
    }


def _agreement(prefs: Preferences, untied: np.ndarray) -> JSONObject | None:
    found = agreement(prefs, ~untied)
    return found | {"flip_rate": flip_rate_of_agreement(found["rate"])} if found else None


def _flip_rate(result: JSONObject) -> float:
    """The population's ε, from whichever of repeats and triads there are more of; a usual 10 % without either."""
    repeats, cycles = result["repeats"], result["cycles"]
    if repeats and (not cycles or repeats["couples"] >= cycles["triads"]):
        return repeats["flip_rate"]
    return cycles["flip_rate"] if cycles else 0.1


def random_answerers(
    prefs: Preferences, data: Measurements, found: Triads, flip_rate: float, rng: np.random.Generator
) -> JSONObject:
    """People whose answers look like a coin's, tested on everything they left behind.

    Three kinds of evidence: agreement of their own repeats (coin: ½), cycles in their own triads (coin: ¼; both
    distributions simulated on the person's own graph, since triads share pairs), and agreement with the others'
    majority (coin: ½, tested on both sides: a contrarian is no coin). A person is named when the evidence,
    combined by Fisher's method, says *less consistent than the others* after Benjamini and Hochberg's control
    of false discoveries at 5 %, and nothing says *better than a coin* at 5 %.

    Returns:
      tested: people with evidence on which a coin would be told from the others; user_ids: those named.
    """
    coin: dict[int, list[float]] = {}
    typical: dict[int, list[float]] = {}
    majority = _with_majority(prefs, data)
    for evidence in (
        _repeat_evidence(Couples.of(data), flip_rate),
        _triad_evidence(found, flip_rate, rng),
        majority,
    ):
        for person, (p_coin, p_typical) in evidence.items():
            coin.setdefault(person, []).append(p_coin)
            typical.setdefault(person, []).append(p_typical)
    people = sorted(coin)
    if not people:
        return {"tested": 0, "named": 0, "user_ids": []}
    p_coin = np.array([stats.combine_pvalues(np.maximum(coin[u], 1e-12))[1] for u in people])
    p_typical = np.array([stats.combine_pvalues(np.maximum(typical[u], 1e-12))[1] for u in people])
    named = (stats.false_discovery_control(p_typical) <= LEVEL) & (p_coin > LEVEL)
    return {
        "tested": len(people),
        "named": int(named.sum()),
        "user_ids": [prefs.user_ids[people[i]] for i in np.flatnonzero(named)],
    }


Evidence = dict[int, tuple[float, float]]
"""person → (p of a coin doing so well, p of the others doing so badly)"""


def _binomial(good: np.ndarray, total: np.ndarray, usual: float, *, both_sides: bool) -> Evidence:
    """For people with enough answers that a coin's typical result would surprise one of the others at 5 %."""
    people = np.flatnonzero(stats.binom.cdf(total // 2, total, usual) < LEVEL)
    hits, count = good[people], total[people]
    better = stats.binom.sf(hits - 1, count, 0.5)
    if both_sides:
        better = np.minimum(1.0, 2.0 * np.minimum(better, stats.binom.cdf(hits, count, 0.5)))
    worse = stats.binom.cdf(hits, count, usual)
    return {int(u): (float(a), float(b)) for u, a, b in zip(people, better, worse, strict=True)}


def _repeat_evidence(couples: Couples, flip_rate: float) -> Evidence:
    if not len(couples.user):
        return {}
    total = np.bincount(couples.user)
    good = np.bincount(couples.user, couples.agree).astype(np.int64)
    return _binomial(good, total, 1.0 - 2.0 * flip_rate * (1.0 - flip_rate), both_sides=False)


def _with_majority(prefs: Preferences, data: Measurements) -> Evidence:
    """Agreement with the majority of the others on the same pair."""
    rows = np.flatnonzero(data.measured)
    low = np.minimum(prefs.chosen, prefs.rejected)[rows].astype(np.int64)
    high = np.maximum(prefs.chosen, prefs.rejected)[rows].astype(np.int64)
    _, pair = np.unique(low * prefs.num_items + high, return_inverse=True)
    vote = np.where(prefs.chosen[rows] == low, 1.0, -1.0)
    _, answer = np.unique(pair * np.int64(prefs.num_users) + prefs.user_index[rows], return_inverse=True)
    own = np.bincount(answer, vote)[answer]  # a person's own further answers are no majority
    others = np.bincount(pair, vote)[pair] - own
    clear = others != 0
    user = prefs.user_index[rows][clear]
    if not len(user):
        return {}
    agree = (vote * others > 0)[clear]
    total, good = np.bincount(user), np.bincount(user, agree).astype(np.int64)
    return _binomial(good, total, float(agree.mean()), both_sides=True)


def _triad_evidence(found: Triads, flip_rate: float, rng: np.random.Generator) -> Evidence:
    """Cycles against their distribution on the person's own graph, for a coin and for a random order with flips."""
    evidence: Evidence = {}
    total = np.bincount(found.user) if len(found.user) else np.zeros(0, int)
    for person in np.flatnonzero(total >= 5):
        edges = found.edges[found.user == person]
        if len(edges) > 2000:
            edges = edges[rng.choice(len(edges), 2000, replace=False)]
        used, local = np.unique(edges, return_inverse=True)
        local = local.reshape(-1, 3)
        cycles = int(is_cyclic(found.upward[used], local).sum())
        shape = (SIMULATIONS, len(used))
        coin = is_cyclic(rng.random(shape) < 0.5, local).sum(axis=1)
        # All answers upward is an order without cycles, so flips of it are flips of any order.
        flipped = is_cyclic(rng.random(shape) >= max(flip_rate, 0.01), local).sum(axis=1)
        if np.mean(flipped >= np.median(coin)) >= LEVEL:
            continue
        p_coin = (1 + np.sum(coin <= cycles)) / (1 + SIMULATIONS)
        p_typical = (1 + np.sum(flipped >= cycles)) / (1 + SIMULATIONS)
        evidence[int(person)] = (float(p_coin), float(p_typical))
    return evidence


def _position(prefs: Preferences, data: Measurements) -> JSONObject | None:
    """People who take the same place at least nine times in ten, beyond chance at 5 % false discoveries."""
    if "order" not in data.kinds:
        return None
    cue = data.cue[:, data.kinds.index("order")]
    rows = np.flatnonzero(data.measured & (cue != 0))
    first = np.bincount(prefs.user_index[rows], cue[rows] > 0, prefs.num_users).astype(np.int64)
    total = np.bincount(prefs.user_index[rows], minlength=prefs.num_users)
    people = np.flatnonzero(total >= MIN_POSITION)
    if not len(people):
        return None
    usual = float(np.clip(first.sum() / total.sum(), 0.01, 0.99))
    hits, count = first[people], total[people]
    p_high, p_low = stats.binom.sf(hits - 1, count, usual), stats.binom.cdf(hits, count, usual)
    p = np.minimum(1.0, 2.0 * np.minimum(p_high, p_low))
    share = hits / count
    named = (stats.false_discovery_control(p) <= LEVEL) & ((share >= 0.9) | (share <= 0.1))
    always_first = [prefs.user_ids[u] for u in people[named & (share >= 0.9)]]
    always_second = [prefs.user_ids[u] for u in people[named & (share <= 0.1)]]
    return {"tested": len(people), "always_first": always_first, "always_second": always_second}


def _seconds(prefs: Preferences) -> JSONObject | None:
    for name in TIME_COLUMNS:
        values = prefs.columns.get(name) or [
            (context or {}).get(name) for context in prefs.columns.get("choice_context", [])
        ]
        numbers = np.array(
            [float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else np.nan for v in values]
        )
        known = np.flatnonzero(np.isfinite(numbers) & (numbers > 0)) if len(numbers) else []
        if len(known):
            median = float(np.median(numbers[known]))
            users = np.unique(prefs.user_index[known])
            own = [np.median(numbers[known][prefs.user_index[known] == user]) for user in users]
            fast = [prefs.user_ids[user] for user, m in zip(users, own, strict=True) if m < median / 3]
            return {"column": name, "rows": len(known), "median": median, "fast_user_ids": fast}
    return None
