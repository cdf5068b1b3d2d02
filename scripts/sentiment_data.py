"""Files of the film-review benchmark, from the two zips that you bring: pairs, prompts, texts of the judges, a plain model.

    python scripts/sentiment_data.py --zips DIR --output runs/sentiment/data

DIR holds movie_reviews.zip and sentence_polarity.zip as nltk_data has them (Pang and Lee 2004, 2005; CC BY 4.0). The
output folder gets

    pairs.jsonl     a positive sentence preferred to a negative one; what the reward is fitted on
    start.jsonl     the first quarter of those pairs: what the language model learns to write, good and bad alike
    prompts.jsonl   openings of reviews, for training
    held.jsonl      openings of other reviews, for evaluation
    judge.jsonl     text, label, corpus: sentences and reviews that are in none of the files above
    model/          the language model without its chat template, so that prompts are plain text

Who goes where depends on a hash of the text alone: half of the sentences make pairs, the others teach one judge; half of
the reviews teach the other judge, and of the rest a quarter is held out. `user_id` is one of 20 folds of pairs, so that
`data.held_out_people` keeps whole folds, and with them all their sentences, out of the fit.
"""

import argparse
import hashlib
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rewards import jsonl
from rewards.errors import UserError
from rewards.files import atomic_directory, read_json, write_json
from rlhf.models.load import resolve_model

OPENING = "film review :"
FOLDS = 20
POLARITY = {"rt-polarity.pos": 1, "rt-polarity.neg": 0}
CHAT = ("tokenizer_config.json", "chat_template.jinja")


def rank(text: str) -> int:
    """A number from the text alone: the same on every machine, whatever stands beside it in a file."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def members(path: Path) -> Iterator[tuple[str, str]]:
    """(name inside the zip, text) of every file of a zip.

    Raises:
      UserError: no such file, no zip, or text that is not UTF-8.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/"):
                    yield name, archive.read(name).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --zips is the folder that holds it") from None
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again from nltk_data") from None


def read_sentences(path: Path) -> dict[str, int]:
    """Every sentence with its label (1 positive); those that stand under both labels are left out."""
    labels: dict[str, set[int]] = {}
    for name, text in members(path):
        label = POLARITY.get(Path(name).name)
        if label is not None:
            for line in text.split("\n"):
                if line.strip():
                    labels.setdefault(" ".join(line.split()), set()).add(label)
    return _both_labels({text: found.pop() for text, found in labels.items() if len(found) == 1}, path)


def read_reviews(path: Path) -> dict[str, int]:
    """Every review, on one line, with its label (1 positive)."""
    reviews = {}
    for name, text in members(path):
        folder = Path(name).parent.name
        if folder in ("pos", "neg") and name.endswith(".txt"):
            reviews[" ".join(text.split())] = int(folder == "pos")
    return _both_labels(reviews, path)


def _both_labels(texts: dict[str, int], path: Path) -> dict[str, int]:
    if set(texts.values()) != {0, 1}:
        raise UserError(
            f"{path}: {len(texts)} labelled texts, of one kind at most; give the zip of nltk_data as it is"
        )
    return texts


def pairs(sentences: Iterable[tuple[str, int]], count: int) -> list[dict[str, Any]]:
    """Positive over negative sentences, each used once, in the order of their hashes; at most `count`.

    A completion begins with a space, as a continuation of `OPENING` does.
    """
    ordered = sorted(sentences, key=lambda item: rank(item[0]))
    positive, negative = ([text for text, label in ordered if label == kind] for kind in (1, 0))
    made = list(zip(positive, negative, strict=False))[:count]
    if len(made) < FOLDS:
        raise UserError(f"--pairs {count}: gives {len(made)} pairs; at least {FOLDS} are needed, one a fold")
    return [
        {
            "prompt": OPENING,
            "chosen": f" {good}",
            "rejected": f" {bad}",
            "user_id": f"fold{number % FOLDS:02d}",
        }
        for number, (good, bad) in enumerate(made)
    ]


def openings(reviews: Iterable[str], words: int) -> list[dict[str, Any]]:
    """Distinct prompts: the first `words` words of every review that has more of them."""
    found = (review.split(" ") for review in reviews)
    texts = dict.fromkeys(f"{OPENING} {' '.join(own[:words])}" for own in found if len(own) > words)
    return [{"prompt": text} for text in texts]


def divide(texts: dict[str, int], modulus: int) -> list[dict[str, int]]:
    """The texts by their hash modulo `modulus`."""
    parts: list[dict[str, int]] = [{} for _ in range(modulus)]
    for text, label in texts.items():
        parts[rank(f"part:{text}") % modulus][text] = label
    return parts


def prepare(zips: Path, *, count: int, words: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of every file, by its name.

    Raises:
      UserError: a zip is missing, damaged, or another one.
    """
    for_pairs, for_judge = divide(read_sentences(zips / "sentence_polarity.zip"), 2)
    eighths = divide(read_reviews(zips / "movie_reviews.zip"), 8)
    read = {text: label for part in eighths[:4] for text, label in part.items()}
    judge = [{"text": t, "label": label, "corpus": "sentences"} for t, label in for_judge.items()]
    judge += [{"text": t, "label": label, "corpus": "reviews"} for t, label in read.items()]
    held = openings(sorted(eighths[4], key=rank), words)
    known = {row["prompt"] for row in held}
    prompts = openings(sorted((t for part in eighths[5:] for t in part), key=rank), words)
    made = pairs(for_pairs.items(), count)
    return {
        "pairs.jsonl": made,
        "start.jsonl": made[: len(made) // 4],
        "prompts.jsonl": [row for row in prompts if row["prompt"] not in known],
        "held.jsonl": held,
        "judge.jsonl": judge,
    }


def plain_model(source: Path, folder: Path) -> None:
    """Links to a model's files and its tokenizer's settings without the chat template: a prompt is then plain text."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in CHAT:
            os.symlink(path.resolve(), folder / path.name)
    path = source / CHAT[0]
    settings = read_json(path) if path.is_file() else {}
    write_json(folder / CHAT[0], {key: value for key, value in settings.items() if key != "chat_template"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zips", type=Path, required=True, help="folder of the two zips")
    parser.add_argument("--output", type=Path, default=Path("runs/sentiment/data"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of sentences, at most")
    parser.add_argument("--words", type=int, default=6, help="words of a review that make a prompt")
    args = parser.parse_args()
    try:
        files = prepare(args.zips, count=args.pairs, words=args.words)
        source = resolve_model(args.model)
        with atomic_directory(args.output) as folder:
            for name, rows in files.items():
                jsonl.write(folder / name, rows)
        plain_model(
            source, args.output / "model"
        )  # not above: the permissions set there would reach the model's files
    except UserError as error:
        sys.exit(f"sentiment_data: {error}")
    for name, rows in files.items():
        print(f"{args.output / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
