import jax
import numpy as np
import pytest
from scipy.special import expit, xlogy
from sklearn.metrics import roc_auc_score

from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.comparison import replay as evaluate
from rewards.errors import UserError
from rewards.people import acquisition, questions
from rewards.types import Preferences


def entropy(p):
    return -(xlogy(p, p) + xlogy(1 - p, 1 - p))


@pytest.mark.parametrize("lapse", [0.0, 0.15])
def test_quadrature_equals_monte_carlo_over_all_coefficients(lapse):
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(4, 4))
    mean, cov = rng.normal(size=4), factor @ factor.T
    candidates = rng.normal(size=(6, 4)) * np.array([0.05, 0.3, 1, 1, 2, 3])[:, None]
    coef = rng.multivariate_normal(mean, cov, size=400_000)
    p = lapse / 2 + (1 - lapse) * expit(coef @ candidates.T)
    expected = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
    belief = Belief.from_cov(np.float32(mean), np.float32(cov))
    gains = acquisition.information(belief, np.float32(candidates), acquisition.AnswerModel.lapsing(lapse))
    np.testing.assert_allclose(gains, expected, atol=3e-3)
    assert expected.max() > 0.1


def test_choice_is_the_largest_allowed_gain():
    posterior = Belief.from_precision(np.zeros(2, np.float32), np.diag([1.0, 100.0]).astype(np.float32), 0)
    candidates = np.array([[0, 2.0], [1, 0], [2, 0], [2, 0]])
    index, gains = questions.choose(posterior, candidates)
    assert index == 2 and gains[2] > gains[1] > gains[0] > 0
    allowed = np.array([True, True, False, False])
    assert questions.choose(posterior, candidates, allowed=allowed)[0] == 1
    with pytest.raises(UserError, match="nothing left"):
        questions.choose(posterior, candidates, allowed=np.zeros(4, bool))


def cold_start_world(seed, num_users=60, pool=300, test=300):
    """K = 6 features with spreads 1.5 … 0.5, coefficients N(0.4, I): diverse users, the basis known."""
    rng = np.random.default_rng(seed)
    count = pool + test
    delta = np.sqrt(2) * rng.normal(size=(num_users * count, 6)) * np.linspace(1.5, 0.5, 6)
    mean = np.full(6, 0.4)
    coef = mean + rng.normal(size=(num_users, 6))
    user = np.repeat(np.arange(num_users), count)
    likes = rng.random(len(user)) < expit(np.sum(delta * coef[user], axis=1))
    # Items 2n and 2n + 1 are the two sides of comparison n.
    phi = np.stack([delta / 2, -delta / 2], axis=1).reshape(-1, 6).astype(np.float32)
    first = 2 * np.arange(len(user))
    prefs = Preferences(
        prompts=("p",),
        item_prompt=np.zeros(len(phi), np.int32),
        item_text=("",) * len(phi),
        item_features=phi,
        user_ids=tuple(map(str, range(num_users))),
        user_index=user.astype(np.int32),
        chosen=(first + ~likes).astype(np.int32),
        rejected=(first + likes).astype(np.int32),
        outcome=np.ones(len(user), np.float32),
        choice=np.tile(np.arange(count), num_users).astype(np.int32),
        row=np.arange(len(user), dtype=np.int32),
        columns={},
        source="world",
    )
    mask = np.tile(np.arange(count) >= pool, num_users)
    return (
        prefs,
        phi,
        mask,
        Belief.from_cov(mean.astype(np.float32), np.eye(6, dtype=np.float32)),
        delta,
        likes,
    )


def test_cold_start_information_gain_beats_random_questions():
    prefs, phi, mask, prior, delta, likes = cold_start_world(0)
    counts, auc = (0, 2, 5, 10), {}
    for method in ("information", "random"):
        key = jax.random.key(0)
        result = evaluate.cold_start(prior, prefs, phi, mask, key=key, counts=counts, method=method)
        for n in counts:
            margin = np.sum(delta * result.coef[n][prefs.user_index], axis=1)
            auc[method, n] = np.mean(
                [roc_auc_score(likes[rows], margin[rows]) for rows in rows_of_people(prefs, mask)]
            )
    assert auc["information", 10] >= 0.88
    assert auc["information", 0] == auc["random", 0] < 0.78
    for n in (2, 5, 10):
        assert auc["information", n] > auc["random", n] + 0.01


def rows_of_people(prefs, mask):
    return [np.flatnonzero(mask & (prefs.user_index == user)) for user in range(prefs.num_users)]


def test_replay_equals_asking_one_by_one():
    prefs, phi, mask, prior, _, _ = cold_start_world(1, num_users=2, pool=20, test=5)
    result = evaluate.cold_start(prior, prefs, phi, mask, key=jax.random.key(0), counts=(4,))
    for user in range(2):
        pool = np.flatnonzero(~mask & (prefs.user_index == user))
        delta = phi[prefs.chosen[pool]] - phi[prefs.rejected[pool]]
        allowed, asked = np.ones(len(pool), bool), []
        posterior = users.posterior(prior, delta[:0], np.zeros(0))
        for _ in range(4):
            index, _ = questions.choose(posterior, delta, allowed=allowed)
            allowed[index] = False
            asked.append(index)
            posterior = users.posterior(prior, delta[asked], np.ones(len(asked)))
        np.testing.assert_array_equal(result.questions[user], pool[asked])
        np.testing.assert_allclose(result.coef[4][user], posterior.mean, atol=1e-4)
