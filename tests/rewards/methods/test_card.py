"""The user card: what the words say decides the reward, and nothing else does."""

import dataclasses
import hashlib

import numpy as np
import pytest

from rewards.errors import UserError
from rewards.methods import card_fit, store
from rewards.methods.base import Comparisons, ItemTable
from rewards.methods.card import Card, CardFitted
from rewards.methods.card_text import EMPTY, CardAnswer, attributes, quotes
from rewards.types import Preferences

WIDTH = 48
TOPICS = ("sea", "mountain", "city", "forest")
FILLER = ("walk", "day", "trip", "view", "plan", "road", "sun", "hotel", "light", "map")


def hashed(texts: list[str]) -> np.ndarray:
    """A language model in small: a bag of hashed words, negated after the word "Dislikes:"."""
    out = np.zeros((len(texts), WIDTH))
    for row, text in zip(out, texts, strict=True):
        sign = 1.0
        for word in text.replace("“", " ").replace("”", " ").replace(";", " ").split():
            if word in ("Likes:", "Dislikes:"):
                sign = 1.0 if word == "Likes:" else -1.0
                continue
            seed = int.from_bytes(hashlib.sha256(word.strip(".,").encode()).digest()[:4], "big")
            row += sign * np.random.default_rng(seed).normal(size=WIDTH)
        row /= max(1.0, np.sqrt(len(text.split())))
    return out


def world(seed: int = 0, people: int = 120, answers: int = 16, with_attributes: bool = False):
    """Texts name a topic; a person loves one topic, hates another; the taste is in no other place."""
    rng = np.random.default_rng(seed)
    loves = rng.integers(0, 4, people)
    value = np.zeros((people, 4))
    value[np.arange(people), loves] = 3.0
    value[np.arange(people), (loves + 1) % 4] = -3.0
    texts, topic, rows = [], [], []
    for person in range(people):
        for _ in range(answers):
            pair = rng.permutation(4)[:2]
            for each in pair:
                texts.append(f"{TOPICS[each]} {' '.join(rng.choice(FILLER, 3))} {len(texts)}")
                topic.append(each)
            first, second = len(texts) - 2, len(texts) - 1
            margin = value[person, pair[0]] - value[person, pair[1]]
            rows.append((first, second) if rng.random() < 1 / (1 + np.exp(-margin)) else (second, first))
    rows = np.array(rows, np.int32)
    columns = {}
    if with_attributes:
        one_hot = np.eye(4)[topic].tolist()
        columns["attributes"] = [
            {"feature_names": list(TOPICS), "chosen": one_hot[c], "rejected": one_hot[r]} for c, r in rows
        ]
    prefs = Preferences(
        prompts=("Where to?",),
        item_prompt=np.zeros(len(texts), np.int32),
        item_text=tuple(texts),
        item_features=None,
        user_ids=tuple(f"p{u}" for u in range(people)),
        user_index=np.repeat(np.arange(people, dtype=np.int32), answers),
        chosen=rows[:, 0],
        rejected=rows[:, 1],
        outcome=np.ones(len(rows), np.float32),
        choice=np.tile(np.arange(answers, dtype=np.int32), people),
        row=np.arange(1, len(rows) + 1, dtype=np.int32),
        columns=columns,
        source="topics",
    )
    return ItemTable(prefs, hashed(texts).astype(np.float32), {"kind": "lm"}, embed_texts=hashed), loves


@pytest.fixture(scope="module")
def fitted():
    table, loves = world()
    model = Card(dims=16).fit(table, table.prefs.select(table.prefs.user_index < 90))
    rows = np.arange(table.prefs.num_comparisons).reshape(120, 16)[90:]
    return (
        model,
        table,
        Comparisons.of(table.prefs, rows[:, :8]),
        Comparisons.of(table.prefs, rows[:, 8:]),
        loves[90:],
    )


def test_new_people_are_predicted_from_their_card_and_not_from_another_ones(fitted):
    model, table, answers, pairs, loves = fitted
    accuracy = {
        n: np.nanmean(model.score(table, model.adapt(table, answers.first(n)), pairs)) for n in (0, 8)
    }
    assert accuracy[0] < 0.62 and accuracy[8] > 0.75
    people = model.adapt(table, answers)
    other = np.array([np.flatnonzero(loves != own)[0] for own in loves])
    swapped = dataclasses.replace(people, mean=people.mean[other])
    assert np.nanmean(model.score(table, swapped, pairs)) < accuracy[8] - 0.2


def test_card_holds_the_words_and_an_edited_one_is_read(fitted):
    model, table, answers, _, loves = fitted
    people = model.adapt(table, answers)
    assert all(text.startswith(("Likes:", "Dislikes:")) for text in people.cards)
    assert np.allclose(model.read(table, list(people.cards)).mean, people.mean)
    edited = model.read(table, [f"Likes: {name} trip" for name in TOPICS]).mean
    phi = model.features(table)
    topic = np.array([TOPICS.index(text.split()[0]) for text in table.prefs.item_text])
    reward = np.array([[(phi @ w)[topic == k].mean() for k in range(4)] for w in edited])
    # Against the population, saying "sea" must raise the sea most, and so on.
    general = np.array([(phi @ model.prior.mean)[topic == k].mean() for k in range(4)])
    assert (np.argmax(reward - general, axis=1) == np.arange(4)).all()


def test_empty_card_is_the_population_exactly(fitted):
    model, table, answers, pairs, _ = fitted
    nobody = model.adapt(table, answers.first(0))
    assert set(nobody.cards) == {EMPTY}
    assert np.array_equal(nobody.mean, np.tile(model.prior.mean, (30, 1)))
    assert np.array_equal(model.read(table, ["", "  ", EMPTY]).mean, np.tile(model.prior.mean, (3, 1)))
    trained = model.coef_mean[:90].astype(np.float64).mean(axis=0)
    assert np.allclose(trained, model.prior.mean, atol=1e-4)
    assert np.allclose(model.coef_mean[90:], model.prior.mean, atol=1e-4)  # nobody there in training


def test_each_text_is_embedded_once(fitted):
    _, table, answers, _, _ = fitted
    asked: list[str] = []

    def counting(texts):
        asked.extend(texts)
        return hashed(texts)

    counted = dataclasses.replace(table, embed_texts=counting)
    model = Card(dims=16, card_ridge=100.0, steps=25, max_people=20).fit(
        counted, table.prefs.select(table.prefs.user_index < 90)
    )
    for _ in range(2):
        model.adapt(counted, answers)
    assert len(asked) == len(set(asked)) and len(asked) <= 3 * 20 + 30


def test_attributes_writer_says_directions_and_counts():
    def answer(chosen, rejected, tie=False):
        values = {name: (chosen[i], rejected[i]) for i, name in enumerate(("price", "travel_time"))}
        return CardAnswer("", "a", "b", tie, values)

    text = attributes([answer((1, 5), (2, 3)), answer((1, 5), (1, 9)), answer((2, 1), (1, 2), tie=True)])
    assert text == "Prefers lower price (1 of 1 answers).\nUndecided about travel time."
    assert attributes([answer((1, 1), (1, 1))]) == EMPTY
    with pytest.raises(UserError, match="no attributes"):
        attributes([CardAnswer("", "a", "b", False, {})])


def test_quotes_are_short_and_keep_ties_apart():
    tie = CardAnswer("", "tea", "coffee", True, {})
    text = quotes([CardAnswer("", "x" * 500, "y\n z", False, {}), tie])
    likes, dislikes, equal = text.split("\n")
    assert len(likes) < 140 and likes.endswith("…”")
    assert dislikes == "Dislikes: “y z”" and equal == "Finds equal: “tea” and “coffee”"


def test_flipped_answers_swap_likes_and_dislikes(fitted):
    model, table, answers, _, _ = fitted
    flipped = model.adapt(table, dataclasses.replace(answers, outcome=1 - answers.outcome))
    own = model.adapt(table, answers)
    for a, b in zip(own.cards, flipped.cards, strict=True):
        assert a.replace("Dislikes: ", "Likes: ").split("\n")[::-1] == b.replace(
            "Dislikes: ", "Likes: "
        ).split("\n")


def test_attributes_and_a_writer_of_ones_own():
    table, _ = world(people=60, with_attributes=True)
    settings = {"dims": 16, "card_ridge": 100.0, "steps": 25}
    model = Card(writer="attributes", **settings).fit(table, table.prefs)
    assert all("answers)" in text for text in model.cards)

    def write(answers: list[CardAnswer]) -> str:
        return f"Likes: {answers[-1].chosen}"

    own = Card(writer=write, **settings).fit(table, table.prefs)
    assert own.cards[0] == f"Likes: {table.prefs.item_text[table.prefs.chosen[15]]}"
    loaded = CardFitted.restore(own.tensors(), own.settings())
    answers = Comparisons.of(table.prefs, np.arange(16)[None])
    with pytest.raises(UserError, match="with_writer"):
        loaded.adapt(table, answers)
    assert np.array_equal(
        loaded.with_writer(write).adapt(table, answers).mean, own.adapt(table, answers).mean
    )


def test_round_trip_through_disk(fitted, tmp_path):
    model, table, answers, _, _ = fitted
    identity = store.save_model(tmp_path, model)
    loaded = store.load_model(tmp_path, expected_hash=identity)
    assert type(loaded) is CardFitted
    assert np.array_equal(loaded.adapt(table, answers).mean, model.adapt(table, answers).mean)


def test_round_trip_is_strict(fitted):
    model, table, answers, _, _ = fitted
    loaded = CardFitted.restore(model.tensors(), model.settings())
    assert np.array_equal(loaded.adapt(table, answers).mean, model.adapt(table, answers).mean)
    assert list(loaded.seen().cards) == list(model.seen().cards)
    with pytest.raises(UserError, match="card"):
        CardFitted.restore(model.tensors() | {"card.map": np.zeros((2, 2), np.float32)}, model.settings())
    with pytest.raises(UserError, match="'card'"):
        CardFitted.restore(model.tensors(), {k: v for k, v in model.settings().items() if k != "card"})


def test_no_language_model_no_cards(fitted):
    model, table, answers, _, _ = fitted
    mute = dataclasses.replace(table, embed_texts=None)
    for action in (lambda: Card().fit(mute, table.prefs), lambda: model.adapt(mute, answers)):
        with pytest.raises(UserError, match="encoder.kind=lm"):
            action()


def test_cards_never_predict_the_answers_they_were_written_from():
    table, _ = world(people=8, answers=7)
    prefs = table.prefs
    halves = card_fit.Halves.draw(prefs, np.ones(prefs.num_comparisons), np.arange(8), seed=3)
    for row in range(prefs.num_comparisons):
        number = halves.card[row]
        assert number // 2 == prefs.user_index[row]
        assert prefs.chosen[row] not in halves.given.chosen[number][halves.given.weight[number] > 0]


def small_fit(prefs, table, weight=None):
    model = Card(dims=16, card_ridge=100.0, steps=25, max_people=20)
    return model.fit(table, prefs, weight=weight)


def difference(one, other, table, place=None):
    """Mean difference of what two models predict of the training people, the first 40 comparisons of each."""
    rows = np.arange(table.prefs.num_comparisons).reshape(table.prefs.num_users, -1)
    pairs = Comparisons.of(table.prefs, rows)
    mine, theirs = one.seen().mean, other.seen().mean
    theirs = theirs if place is None else theirs[place]
    phi = one.features(table), other.features(table)
    margins = [
        np.einsum("utk,uk->ut", f[pairs.chosen] - f[pairs.rejected], w)
        for f, w in zip(phi, (mine, theirs), strict=True)
    ]
    chances = [1 / (1 + np.exp(-margin)) for margin in margins]
    return np.abs(chances[0] - chances[1]).mean()


def test_neither_the_order_nor_a_row_twice_changes_a_card():
    table, _ = world(people=30, answers=8)
    prefs, rng = table.prefs, np.random.default_rng(4)
    plain = small_fit(prefs, table)
    rows, order = rng.permutation(prefs.num_comparisons), rng.permutation(prefs.num_users)
    place = np.argsort(order)
    names = ("chosen", "rejected", "outcome", "choice", "row")
    turned = dataclasses.replace(
        prefs,
        **{name: getattr(prefs, name)[rows] for name in names},
        user_index=place[prefs.user_index[rows]].astype(np.int32),
        user_ids=tuple(prefs.user_ids[user] for user in order),
    )
    assert difference(plain, small_fit(turned, table), table, place) < 0.005
    twice = np.concatenate([np.arange(prefs.num_comparisons), np.arange(0, prefs.num_comparisons, 3)])
    doubled = dataclasses.replace(
        prefs, **{name: getattr(prefs, name)[twice] for name in (*names, "user_index")}
    )
    weight = np.ones(prefs.num_comparisons, np.float32)
    weight[::3] = 2.0
    assert difference(small_fit(doubled, table), small_fit(prefs, table, weight), table) < 0.005
