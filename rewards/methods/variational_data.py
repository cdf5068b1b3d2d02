"""What surrounds the network of the variational models: padded answers, named parameters, calls in parts, monitors.

Letters in shapes: U people, M answers (padded), n context answers, L latent width.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from rewards.data.order import by_content
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import variational_net as network
from rewards.methods.base import Comparisons
from rewards.types import Preferences

ACTIVE_VARIANCE = 0.01
MAX_ANSWERS = 512  # answers a person in training; a random choice of more, which bounds the padded arrays


def padded_answers(prefs: Preferences, weight: np.ndarray | None, seed: int) -> Comparisons:
    """All comparisons of every person in time order, padded; at most MAX_ANSWERS each, drawn at random.

    Raises:
      UserError: fewer than two people, nothing but ties, or a weight that does not fit.
    """
    weight = np.ones(prefs.num_comparisons, np.float32) if weight is None else np.asarray(weight, np.float32)
    if weight.shape != (prefs.num_comparisons,) or not np.all(weight >= 0):
        raise UserError(
            f"weight: {weight.shape} for {prefs.num_comparisons} comparisons of {prefs.source}; give one number ≥ 0 each"
        )
    rows = np.flatnonzero(weight > 0)
    if len(np.unique(prefs.user_index[rows])) < 2:
        raise UserError(
            f"{prefs.source}: comparisons of {len(np.unique(prefs.user_index[rows]))} person(s); a population "
            "needs at least two user_id values"
        )
    if np.all(prefs.outcome[rows] == 0.5):
        raise UserError(f"{prefs.source}: all {len(rows)} comparisons are ties; nothing can be learned")
    _, place = by_content(prefs)
    rows = np.random.default_rng(seed).permutation(rows[np.argsort(place[rows])])
    rows = rows[np.argsort(prefs.user_index[rows], kind="stable")]
    counts = np.bincount(prefs.user_index[rows], minlength=prefs.num_users)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = rows[rank < MAX_ANSWERS]
    rows = rows[np.lexsort((place[rows], prefs.user_index[rows]))]
    counts = np.minimum(counts, MAX_ANSWERS)
    table = np.full((prefs.num_users, counts.max()), -1, np.int64)
    table[prefs.user_index[rows], np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = rows
    answers = Comparisons.of(prefs, table)
    return dataclasses.replace(answers, weight=np.where(table >= 0, weight[table], 0.0).astype(np.float32))


def parts(answers: Comparisons) -> tuple[np.ndarray, ...]:
    return answers.chosen, answers.rejected, answers.outcome, answers.weight


def take(answers: Comparisons, people: np.ndarray) -> Comparisons:
    return Comparisons(*(part[people] for part in parts(answers)))


def shuffled(answers: Comparisons, seed: int) -> Comparisons:
    """Every person's answers in a random order, padding last: time order must not decide what is predicted."""
    draw = np.random.default_rng(seed).random(answers.weight.shape)
    order = np.argsort(draw + 2.0 * (answers.weight <= 0), axis=1)
    return Comparisons(*(np.take_along_axis(part, order, axis=1) for part in parts(answers)))


def in_chunks(function: Callable[..., tuple], answers: Comparisons, size: int, *more: np.ndarray) -> tuple:
    """function(Answers, *more) over at most `size` people at a time, the last part padded; joined arrays."""
    people = len(answers.weight)
    size = min(size, max(people, 1))
    results = []
    for start in range(0, people, size):
        index = np.arange(start, start + size)
        rows, real = np.minimum(index, people - 1), index < people
        piece = network.Answers(*parts(take(answers, rows)))
        results.append([np.asarray(out)[real] for out in function(piece, *(array[rows] for array in more))])
    return tuple(np.concatenate(column) for column in zip(*results, strict=True))


@functools.cache
def _abstract(shape: network.Shape):
    """Graph and parameter paths of a network, without its numbers."""
    graph, state = nnx.split(nnx.eval_shape(lambda: network.Net(shape, rngs=nnx.Rngs(0))))
    return graph, {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}


def initial(shape: network.Shape, seed: int) -> dict[str, np.ndarray]:
    """Random parameters by name."""
    return flat(_draw(shape, jax.random.key(seed)))


@functools.partial(jax.jit, static_argnames=("shape",))
def _draw(shape: network.Shape, key):
    return nnx.split(network.Net(shape, rngs=nnx.Rngs(key)))[1]


def sizes(shape: network.Shape) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    _, state = nnx.split(nnx.eval_shape(lambda: network.Net(shape, rngs=nnx.Rngs(0))))
    return {
        ".".join(map(str, path)): tuple(leaf.get_value().shape) for path, leaf in nnx.to_flat_state(state)
    }


def module(shape: network.Shape, params: dict[str, np.ndarray]):
    """Named parameters → (graph, state), what the compiled functions take."""
    graph, paths = _abstract(shape)
    return graph, nnx.from_flat_state([(path, nnx.Param(params[name])) for name, path in paths.items()])


def flat(state) -> dict[str, np.ndarray]:
    """The inverse of `module`."""
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def _context_and_rest(
    answers: Comparisons, size: int, max_context: int
) -> tuple[network.Answers[np.ndarray], network.Answers[np.ndarray]]:
    """The first `size` answers of everybody, half of their answers at most, and all the others."""
    counts = (answers.weight > 0).sum(axis=1)
    given = np.minimum(size, counts // 2)[:, None]
    position = np.arange(answers.weight.shape[1])
    context = answers.weight * (position < given)
    rest = answers.weight * (position >= given)
    # Only the columns that can hold a context, since attention is quadratic in them; as many for every size, so
    # that one program serves all.
    columns = slice(0, max(1, max_context))
    arrays = parts(answers)
    return (
        network.Answers(*(part[:, columns] for part in (*arrays[:3], context))),
        network.Answers(*(part for part in (*arrays[:3], rest))),
    )


def prediction_loss(graph, params, x, answers: Comparisons, max_context: int) -> float:
    """Nats a comparison with none, a few and all context answers: the mean of the three."""
    losses = []
    for size in sorted({0, min(3, max_context), max_context}):
        context, rest = _context_and_rest(answers, size, max_context)
        latent = network.encode(graph, params, x, context)[0]
        margin = np.asarray(network.margins(graph, params, x, latent, rest), np.float64)
        nll = np.logaddexp(0.0, -margin) + (1.0 - rest.outcome) * margin
        losses.append(np.sum(nll * rest.weight) / np.sum(rest.weight))
    return float(np.mean(losses))


def monitors(graph, params, x, answers: Comparisons, max_context: int) -> JSONObject:
    """Does the model use the person? Numbers over `answers`, people it was preferably not fitted on."""
    context, rest = _context_and_rest(answers, max_context, max_context)
    latent, _, kl = (np.asarray(part) for part in network.encode(graph, params, x, context))
    active = int(np.sum(np.var(latent, axis=0) > ACTIVE_VARIANCE))
    own = _accuracy(graph, params, x, latent, rest)
    # The next person's latent: a permutation without a fixed point.
    other = _accuracy(graph, params, x, np.roll(latent, 1, axis=0), rest)
    found = {
        "active_units": active,
        "active_share": active / latent.shape[1],
        "kl_nats": float(kl.mean()),
        "accuracy_own": own,
        "accuracy_swapped": other,
        "swap_loss": own - other,
        "watched_people": len(latent),
        "warnings": [],
    }
    if active == 0:
        found["warnings"].append(
            "the model ignores the person: no latent dimension varies between people (posterior collapse); "
            "lower kl_weight or use kind spl"
        )
    elif own - other <= 0:
        found["warnings"].append(
            f"the model ignores the person: predictions with another person's answers are as good "
            f"({other:.3f}) as with their own ({own:.3f})"
        )
    return found


def _accuracy(graph, params, x, latent, pairs: network.Answers) -> float:
    margin = np.asarray(network.margins(graph, params, x, latent, pairs))
    signed = margin * np.sign(pairs.outcome - 0.5)
    counted = (pairs.weight > 0) & (pairs.outcome != 0.5)
    right = np.where(signed == 0, 0.5, signed > 0)
    return float(np.sum(right * counted) / max(np.sum(counted), 1))


def length(kind: str, tensors: dict[str, np.ndarray], name: str) -> int:
    if name not in tensors or tensors[name].ndim == 0:
        raise UserError(f"{kind} model: tensor {name!r} is missing or a scalar; restore or refit the model")
    return len(tensors[name])


def check_settings(kind: str, settings: JSONObject) -> network.Shape:
    """The sizes in stored settings.

    Raises:
      UserError: a key missing, unknown or of another kind of model.
    """
    wanted = {"kind", "shape", "hyper", "report"}
    for key in sorted(wanted ^ set(settings)):
        problem = "is missing" if key in wanted else f"is not part of a {kind} model"
        raise UserError(f"{kind} model: setting {key!r} {problem}; restore or refit the model")
    if settings["kind"] != kind:
        raise UserError(f"{kind} model: setting 'kind' is {settings['kind']!r}; restore or refit the model")
    names = {field.name for field in dataclasses.fields(network.Shape)}
    if not isinstance(settings["shape"], dict) or set(settings["shape"]) != names:
        raise UserError(
            f"{kind} model: setting 'shape' must hold {', '.join(sorted(names))}; restore or refit the model"
        )
    return network.Shape(**settings["shape"])
