"""Files made from small zips written here; the real ones only where they are at hand."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sentiment_data as data

from rewards.errors import UserError
from rlhf.models.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "text"


@pytest.fixture
def zips(tmp_path):
    """200 + 200 sentences, of which one stands under both labels and one twice, and 80 + 80 reviews."""
    good = [f"a fine film number {i} ." for i in range(200)]
    bad = [f"a dull film number {i} ." for i in range(200)]
    with zipfile.ZipFile(tmp_path / "sentence_polarity.zip", "w") as archive:
        archive.writestr("sentence_polarity/README.txt", "not a sentence of the corpus\n")
        archive.writestr("sentence_polarity/rt-polarity.pos", "\n".join([*good, good[0], "neither  here ."]))
        archive.writestr("sentence_polarity/rt-polarity.neg", "\n".join([*bad, "neither here ."]))
    with zipfile.ZipFile(tmp_path / "movie_reviews.zip", "w") as archive:
        archive.writestr("movie_reviews/README", "pos neg")
        for kind in ("pos", "neg"):
            for i in range(80):
                archive.writestr(
                    f"movie_reviews/{kind}/cv{i:03d}.txt", f"review {kind} {i} has \nmany words in it ."
                )
    return tmp_path


def test_sentences_know_their_label_and_contradictions_are_left_out(zips):
    found = data.read_sentences(zips / "sentence_polarity.zip")
    assert len(found) == 400 and "neither here ." not in found
    assert found["a fine film number 3 ."] == 1 and found["a dull film number 3 ."] == 0


def test_pairs_put_the_positive_first_and_use_a_sentence_once(zips):
    rows = data.prepare(zips, count=50, words=4)["pairs.jsonl"]
    assert len(rows) == 50 and all("fine" in row["chosen"] and "dull" in row["rejected"] for row in rows)
    texts = [row[side] for row in rows for side in ("chosen", "rejected")]
    assert len(set(texts)) == 100 and {row["prompt"] for row in rows} == {data.OPENING}
    assert {row["user_id"] for row in rows} == {f"fold{i:02d}" for i in range(20)}


def test_nothing_is_in_two_files(zips):
    files = data.prepare(zips, count=1000, words=4)
    paired = {row[side].strip() for row in files["pairs.jsonl"] for side in ("chosen", "rejected")}
    sentences = {row["text"] for row in files["judge.jsonl"] if row["corpus"] == "sentences"}
    assert not paired & sentences and len(sentences) > 100
    reviews = {
        " ".join(row["text"].split()[:4]) for row in files["judge.jsonl"] if row["corpus"] == "reviews"
    }
    prompts, held = (
        {row["prompt"].removeprefix(f"{data.OPENING} ") for row in files[name]}
        for name in ("prompts.jsonl", "held.jsonl")
    )
    assert len(prompts) > 20 and len(held) > 5
    assert not prompts & held and not prompts & reviews and not held & reviews
    assert len(prompts | held | reviews) == 160
    assert all(len(prompt.split()) == 4 for prompt in prompts | held)


def test_labels_of_the_judges_are_those_of_the_folder(zips):
    for row in data.prepare(zips, count=1000, words=4)["judge.jsonl"]:
        assert row["label"] == int("fine" in row["text"] or " pos " in row["text"])


def test_where_a_text_goes_depends_on_it_alone():
    texts = {f"text {i}": i % 2 for i in range(60)}
    fewer = {text: label for text, label in reversed(texts.items()) if text != "text 7"}
    for whole, part in zip(data.divide(texts, 4), data.divide(fewer, 4), strict=True):
        assert {text for text in whole if text != "text 7"} == set(part)


@pytest.mark.parametrize("broken", ["missing", "no zip", "another zip"])
def test_a_wrong_zip_is_named(zips, broken):
    path = zips / "sentence_polarity.zip"
    path.unlink()
    if broken == "no zip":
        path.write_bytes(b"not a zip")
    if broken == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("shakespeare/hamlet.xml", "words")
    with pytest.raises(UserError, match="sentence_polarity.zip") as error:
        data.prepare(zips, count=50, words=4)
    assert "\n" not in str(error.value)


def chat_model(folder: Path) -> Path:
    """A directory as a chat model's: a tokenizer of whole words with a chat template, and weights."""
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Words(WordLevel({"[unk]": 0, "[end]": 1, "film": 2, "user": 3}, unk_token="[unk]"))
    words.pre_tokenizer = Whitespace()
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": "[end]",
        "chat_template": "{% for m in messages %}user {{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").chmod(0o400)
    return folder


def test_plain_model_reads_prompts_as_text_and_leaves_the_model_alone(tmp_path):
    source = chat_model(tmp_path / "chat")
    data.plain_model(source, tmp_path / "out" / "plain")
    plain = Tokenizer(tmp_path / "out" / "plain")
    assert Tokenizer(source).encode_prompt("film") == [3, 2] and plain.encode_prompt("film") == [2]
    assert not plain.has_chat_template and plain.end_id == 1
    assert (tmp_path / "out" / "plain" / "model.safetensors").read_bytes() == b"weights"
    assert (source / "model.safetensors").stat().st_mode & 0o777 == 0o400


def test_the_command_writes_all_files_and_leaves_the_model_alone(zips, tmp_path):
    source = chat_model(tmp_path / "chat")
    (source / "config.json").write_text("{}")
    out = tmp_path / "data"
    command = [sys.executable, ROOT / "scripts" / "sentiment_data.py", "--zips", zips, "--output", out]
    command += ["--model", source, "--pairs", "40", "--words", "4"]
    assert "40 rows" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert sorted(path.name for path in out.iterdir()) == [
        *("held.jsonl", "judge.jsonl", "model", "pairs.jsonl", "prompts.jsonl", "start.jsonl")
    ]
    assert (source / "model.safetensors").stat().st_mode & 0o777 == 0o400
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode and again.stderr.count("\n") == 1 and "exists already" in again.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="the real zips are not here")
def test_the_real_zips():
    sentences = data.read_sentences(REAL / "sentence_polarity.zip")
    assert 10_600 < len(sentences) <= 10_662 and abs(sum(sentences.values()) - len(sentences) / 2) < 20
    assert len(data.read_reviews(REAL / "movie_reviews.zip")) == 2000
