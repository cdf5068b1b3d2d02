"""Completions that are kept: one file a policy, one line a completion.

$CHORUS_CACHE/outputs/IDENTITY.jsonl   key, text, tokens, logprob, finished, check

A batch is written when it is done, so a process that is killed loses one batch at most. A line that is not whole is sampled
again.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from rewards import jsonl
from rewards.errors import UserError
from rewards.files import JSONObject, cache_dir, sha256_json
from rlhf.policy.generation import Completion

CHECK = "check"


class Store:
    """Completions of one policy on disk, by key."""

    def __init__(self, identity: str, folder: Path | None = None):
        self.path = (folder or cache_dir() / "outputs") / f"{identity}.jsonl"
        self.known: dict[str, Completion] = {}
        for line in self._lines():
            try:
                row = jsonl.parse(line)
                if row.pop(CHECK) == _check(row):
                    key, tokens = row.pop("key"), tuple(row.pop("tokens"))
                    count, logprob = row.pop("num_tokens", len(tokens)), row.pop("logprob")
                    logprob = math.nan if logprob is None else logprob
                    self.known[key] = Completion(num_tokens=count, tokens=tokens, logprob=logprob, **row)
            except (jsonl.LineError, KeyError, TypeError):
                continue  # cut off where a process was killed, or damaged: sampled again

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n") if self.path.is_file() else []

    def add(self, found: Sequence[tuple[str, Completion]]) -> None:
        """Append completions; several processes may."""
        lines = []
        for key, one in found:
            row = {
                "key": key,
                "text": one.text,
                "tokens": list(one.tokens),
                "logprob": one.logprob if math.isfinite(one.logprob) else None,
                "finished": one.finished,
            }
            if one.num_tokens != len(one.tokens):  # written elsewhere: tokens are not known, but their number
                row["num_tokens"] = one.num_tokens
            lines.append(jsonl.line(row | {CHECK: _check(row)}))
            self.known[key] = one
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":  # the last line is torn
                        lines.insert(0, "\n")
                file.write("".join(lines).encode())
                file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write ({error.strerror}); free some space or set CHORUS_CACHE to another folder"
            ) from None


def _check(row: JSONObject) -> str:
    return sha256_json(row)[:16]
