"""Agreement with the majority answer as a column: 1 where a completion's answer is that of most others.

    r(x, y_i) = 1[a(y_i) = mode_j a(y_j)],   j over the completions of x

Source: Zuo et al. 2025, TTRL, arXiv:2504.16084. Differs: where two answers are equally frequent there is no
majority and no value, instead of the one met first. Below about half of the majorities right, the vote rewards
common errors, so a probe set with known answers is required and switches the column off. It is a reward for
facts, never for taste: what most completions say is not what a person likes.

The value depends on which other completions of the prompt are in the table; identical texts vote once.
"""

import collections
import dataclasses
import decimal
import re

import numpy as np

from rewards.data.sources import json_records
from rewards.errors import UserError
from rewards.files import JSONObject, sha256_file, sha256_json
from rewards.types import Preferences
from rlhf.phi.columns.items import Measured, groups_of

# A full stop that ends a sentence and commas between thousands do not belong to the number.
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")


@dataclasses.dataclass(frozen=True)
class VotesColumn:
    """`answer`, `probe`, `min_accuracy` as in the configuration."""

    name: str
    answer: str
    probe: str
    min_accuracy: float

    def identity(self) -> str:
        return sha256_json([self.answer, self.min_accuracy])

    def parts(self) -> dict[str, str]:
        """The rule, and the probe, which only a fit reads."""
        return {"votes": self.identity(), "probe": sha256_file(self.probe)}

    def outputs(self) -> tuple[str, ...]:
        return (self.name,)

    def measure(self, prefs: Preferences, *, fitting: bool) -> Measured:
        answers = [extract(text, self.answer) for text in prefs.item_text]
        values = np.full(prefs.num_items, np.nan)
        shares = []
        for group in groups_of(prefs):
            distinct = {prefs.item_text[item]: answers[item] for item in group}
            winner, share = majority(list(distinct.values()))
            if winner is not None:
                values[group] = [float(answers[item] == winner) for item in group]
                shares.append(share)
        report: JSONObject = {
            "answered": float(np.mean([answer is not None for answer in answers])),
            "majority_share": float(np.mean(shares)) if shares else 0.0,
        }
        if not fitting:
            return Measured((self.name,), values[:, None], report)
        accuracy, count = probe_accuracy(self.probe, self.answer)
        report |= {
            "probe_accuracy": accuracy,
            "probe_prompts": count,
            "probe_sha256": sha256_file(self.probe),
        }
        off = None
        if accuracy < self.min_accuracy:
            off = (
                f"majority answers are right on {accuracy:.0%} of {count} probe prompts, below "
                f"min_accuracy {self.min_accuracy:.0%}"
            )
        return Measured((self.name,), values[:, None], report, off)


def extract(text: str, rule: str) -> str | None:
    """The answer in a completion, brought into one spelling; None when there is none.

    `number` is the last number, `boxed` the content of the last \\boxed{}, else `rule` is a regular expression
    whose one group is taken from its last match. Numbers are compared by value: 1,000.0 is 1000.
    """
    if rule == "boxed":
        found = _boxed(text)
    else:
        pattern = _NUMBER if rule == "number" else re.compile(rule)
        matches = list(pattern.finditer(text))
        found = matches[-1].group(pattern.groups) if matches else None
    return None if found is None or not found.strip() else _canonical(found)


def _boxed(text: str) -> str | None:
    """Content of the last \\boxed{...}, braces inside it balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def _canonical(answer: str) -> str:
    text = " ".join(answer.split()).strip(" .$").casefold()
    if _NUMBER.fullmatch(text):
        try:
            return str(decimal.Decimal(text.replace(",", "")).normalize() + 0)  # −0 is 0
        except decimal.DecimalException:
            return text
    return text


def majority(answers: list[str | None]) -> tuple[str | None, float]:
    """The most frequent answer and its share of the answers given; None where two are equally frequent."""
    counts = collections.Counter(answer for answer in answers if answer is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None, 0.0
    return counts[0][0], counts[0][1] / sum(answer is not None for answer in answers)


def probe_accuracy(path: str, rule: str) -> tuple[float, int]:
    """Share of probe prompts whose majority answer is the known one, and their number.

    Raises:
      UserError: the file cannot be read, or a row lacks `completions` or `answer`.
    """
    right, count = 0, 0
    for number, row in json_records(path):
        if isinstance(row, Exception):
            raise UserError(f"{path}: row {number}: {row}")
        fields = row if isinstance(row, dict) else {}
        completions, answer = fields.get("completions"), fields.get("answer")
        if (
            not isinstance(completions, list)
            or not completions
            or not all(isinstance(completion, str) for completion in completions)
        ):
            raise UserError(
                f"{path}: row {number}: completions must be a list of texts; a probe row is "
                '{"prompt": …, "completions": [...], "answer": …}'
            )
        if not isinstance(answer, str | int | float) or isinstance(answer, bool):
            raise UserError(
                f"{path}: row {number}: answer {answer!r}: write the known answer as text or number"
            )
        winner, _ = majority([extract(completion, rule) for completion in completions])
        right += winner is not None and winner == _canonical(str(answer))
        count += 1
    if not count:
        raise UserError(f"{path}: holds no probe rows; give prompts with completions and the known answer")
    return right / count, count
