"""Records: what varies is data, what fixes a program is static, and JAX may rebuild one with whatever it likes."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import Field, ValidationError

from rlhf.run.record import Count, record, traced


@record
class Price:
    coef: float = Field(gt=0)
    limit: float | None = Field(default=None, gt=0)
    place: Literal["reward", "loss"] = "reward"


@record
class Whole:
    price: Price
    other: Price | None = None
    steps: Count = 3
    rows: int = 4
    names: tuple[str, ...] = ("a", "b")


def make(**changes) -> Whole:
    return Whole(price=Price(coef=0.1, **changes))


def test_numbers_are_leaves_under_their_names_and_the_rest_is_structure():
    leaves, tree = jax.tree_util.tree_flatten_with_path(traced(make()))
    assert {jax.tree_util.keystr(path): float(leaf) for path, leaf in leaves} == {
        ".steps": 3.0,
        ".price.coef": pytest.approx(0.1),
        ".price.limit": float("inf"),
    }
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for _, leaf in leaves)
    assert tree == jax.tree.structure(traced(make(limit=7.0)))
    assert tree != jax.tree.structure(traced(make(place="loss")))
    assert tree != jax.tree.structure(traced(dataclasses.replace(make(), rows=5)))
    assert tree != jax.tree.structure(traced(dataclasses.replace(make(), other=Price(coef=1.0))))


def test_another_number_compiles_nothing_and_another_word_does():
    seen = []

    @jax.jit
    def program(whole: Whole):
        seen.append(whole.price.place)
        assert isinstance(whole.rows, int) and whole.names == ("a", "b")
        return whole.price.coef * whole.rows + whole.steps + jnp.minimum(whole.price.limit, 100.0)

    assert program(traced(make())) == pytest.approx(103.4)
    assert program(traced(make(limit=2.0))) == pytest.approx(5.4)
    assert program(traced(dataclasses.replace(make(), steps=9))) == pytest.approx(109.4)
    assert seen == ["reward"]
    program(traced(make(place="loss")))
    assert seen == ["reward", "loss"]


def test_jax_rebuilds_without_checks_and_people_do_not():
    plain = make()
    assert plain == jax.tree.map(lambda leaf: leaf, plain) and hash(plain) == hash(make())
    shapes = jax.eval_shape(lambda whole: whole, traced(plain))
    assert shapes.price.coef.shape == () and shapes.rows == 4
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), traced(plain), traced(make(limit=2.0)))
    found = jax.vmap(lambda whole: whole.price.limit)(stacked)
    np.testing.assert_array_equal(found, [np.inf, 2.0])
    for wrong in ({"coef": -1.0}, {"coef": 1.0, "cost": 2.0}, {"coef": float("nan")}, {"coef": jnp.ones(2)}):
        with pytest.raises(ValidationError):
            Price(**wrong)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.rows = 5
