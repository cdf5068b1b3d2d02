"""What an axis of φ goes with: surface traits and words, so that "taste 1" reads as "longer, says “price”".

A learned axis has no name of its own. Its features over the items of the fit, centred by prompt, are explained by
traits of the surface (`rewards.data.surface`) and by single words, also centred by prompt: the one that correlates
most with what is still unexplained is taken first (orthogonal matching pursuit), as long as chance among all that were
looked at would not bring it about. An axis that nothing goes with gets no words.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from rewards import hashed
from rewards.basis.readout import centre
from rewards.basis.store import RewardRun
from rewards.data.surface import TRAITS
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences

FILE = "axes.json"
MOST_PARTS = 3
MOST_ITEMS, MOST_WORDS = 5000, 1000
SMALLEST_CORRELATION = 0.2
FALSE_NAMES = 0.005
"""Chance that an axis that nothing goes with is given any words, by Bonferroni over all traits and words."""

_SAID = {
    "log characters": ("longer", "shorter"),
    "log words": ("longer", "shorter"),
    "log lines": ("more lines", "fewer lines"),
    "mean word length": ("longer words", "shorter words"),
    "share of capitals": ("more capitals", "fewer capitals"),
    "share of non-ASCII": ("more non-ASCII letters", "fewer non-ASCII letters"),
}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What goes with one axis.

    Attributes:
      parts: traits, and words in “quotation marks”, the strongest first, with the correlation of each, within prompts,
        with what those before it leave unexplained.
      explained: share of the axis' variance within prompts that they explain together, 0 to 1.
    """

    parts: tuple[tuple[str, float], ...] = ()
    explained: float = 0.0

    @property
    def words(self) -> str:
        """What answers high on the axis are like, "longer, says “price”"; empty where nothing goes with it."""
        return ", ".join(dict.fromkeys(_said(part, correlation) for part, correlation in self.parts))

    def label(self, name: str) -> str:
        """The axis' name with these words behind it."""
        return f"{name} ({self.words})" if self.parts else name


def measure(prefs: Preferences, phi: Float[np.ndarray, "I K"]) -> tuple[Meaning, ...]:
    """What goes with each of the K axes, over the items that occur in a comparison (at most 5,000, evenly taken).

    Args:
      phi: float[I, K] of every item of `prefs`.
    """
    used = np.union1d(prefs.chosen, prefs.rejected)
    used = used[:: -(-len(used) // MOST_ITEMS)]
    _, prompt = np.unique(prefs.item_prompt[used], return_inverse=True)
    texts = [prefs.item_text[item] for item in used]
    names, values = _candidates(texts)
    freedom = len(used) - (prompt.max() + 1) - MOST_PARTS - 1
    values = centre(values, prompt)
    size = np.linalg.norm(values, axis=0)
    moves = size > 1e-9 * np.sqrt(len(used))
    if freedom < 10 or not moves.any():
        return (Meaning(),) * phi.shape[1]
    names = [name for name, kept in zip(names, moves, strict=True) if kept]
    values = values[:, moves] / size[moves]
    return tuple(_pursued(names, values, axis, freedom) for axis in centre(phi[used], prompt).T)


def write(directory: Path, basis: str, names: tuple[str, ...], meanings: tuple[Meaning, ...]) -> None:
    """Store what goes with the axes of the basis with hash `basis`."""
    axes = {name: dataclasses.asdict(found) for name, found in zip(names, meanings, strict=True)}
    hashed.write_record(directory / FILE, {"basis": basis, "axes": axes})


def read(run: RewardRun) -> dict[str, Meaning]:
    """What goes with each axis of a stored run; nothing for a run from before this was measured.

    Raises:
      UserError: damaged, or of another basis.
    """
    path = run.directory / FILE
    names = run.basis.gauge.names
    if not path.is_file():
        return dict.fromkeys(names, Meaning())

    def parse(content: JSONObject) -> dict[str, Meaning]:
        axes = content.get("axes")
        if content.get("basis") != run.hash or not isinstance(axes, dict) or tuple(axes) != names:
            raise UserError(f"{path}: not of this run's basis; fit the rewards again")
        return {
            name: Meaning(
                tuple((str(part), float(r)) for part, r in found["parts"]), float(found["explained"])
            )
            for name, found in axes.items()
        }

    return hashed.parse_record(path, "fit the rewards again", parse)


def _candidates(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Names and values float[I, M] of every trait, and of the words that are neither rare nor everywhere."""
    from scipy import sparse  # both are slow to import, and needed at the fit alone
    from sklearn.feature_extraction.text import CountVectorizer

    traits = np.array([[trait(text) for trait in TRAITS.values()] for text in texts])
    counter = CountVectorizer(
        binary=True, stop_words="english", token_pattern=r"[^\W\d_]{3,}",
        max_features=MOST_WORDS, min_df=max(5, len(texts) // 100), max_df=0.8,
    )  # fmt: skip
    try:
        present = sparse.csr_array(counter.fit_transform(texts)).toarray()
    except ValueError:  # no word is frequent enough
        return list(TRAITS), traits
    words = [f"“{word}”" for word in counter.get_feature_names_out()]
    return [*TRAITS, *words], np.concatenate([traits, present], axis=1)


def _pursued(names: list[str], values: np.ndarray, axis: np.ndarray, freedom: int) -> Meaning:
    """Orthogonal matching pursuit of one centred axis float[I] in the centred candidates float[I, M] of length 1."""
    total = float(axis @ axis)
    left, chosen, parts = axis, [], []
    limit = -stdtrit(freedom, FALSE_NAMES / (2 * len(names)))
    while total > 0 and len(chosen) < MOST_PARTS:
        norm = np.linalg.norm(left)
        if norm <= 1e-6 * np.sqrt(total):
            break
        correlation = values.T @ left / norm
        best = int(np.argmax(np.abs(correlation)))
        r = float(np.clip(correlation[best], -1.0, 1.0))
        strength = abs(r) * np.sqrt(freedom / max(1e-12, 1 - r * r))
        if abs(r) < SMALLEST_CORRELATION or strength < limit:
            break
        chosen.append(best)
        parts.append((names[best], r))
        left = axis - values[:, chosen] @ np.linalg.lstsq(values[:, chosen], axis, rcond=None)[0]
    return Meaning(tuple(parts), 1.0 - float(left @ left) / total if chosen else 0.0)


def _said(part: str, correlation: float) -> str:
    if part.startswith("“"):
        return f"says {part}" if correlation > 0 else f"does not say {part}"
    more, fewer = _SAID.get(part, (f"more {part}", f"fewer {part}"))
    return more if correlation > 0 else fewer
