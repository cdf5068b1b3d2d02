"""Preference files as TensorFlow Datasets, without TensorFlow.

Stored as array_record, the one format that is written and read at random access without TensorFlow (the
default, tfrecord, needs it), so a prepared folder feeds Grain or any other reader of TFDS. Text comes back
as bytes; rows come back in an order of their own, by hash of the key, so `row` keeps the number in the
original file.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rewards import files
from rewards.data import stated_choice
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Preferences, as_messages

VERSION = "1.0.0"
_CONFIG_NAMES = {"electricity": "electricity", "train-trips": "train_trips", "train_trips": "train_trips"}
_SET_NAMES = {"electricity": "electricity", "train_trips": "train-trips"}


@dataclasses.dataclass(eq=False)
class PreferenceConfig(tfds.core.BuilderConfig):
    """`path`: the preference file to store; empty for a shipped set, which is fetched."""

    path: str = ""


class ChorusPreferences(tfds.core.GeneratorBasedBuilder):
    """Comparisons with user ids: one flat record a row, everything optional as JSON text in `other_columns`.

    TFDS features have neither null nor values of mixed shape, and both occur in optional columns; JSON keeps
    them.
    """

    VERSION = tfds.core.Version(VERSION)
    # TFDS would work this out with the package importlib_resources, which it needs but does not declare.
    code_path = Path(__file__)  # pyright: ignore[reportAssignmentType]
    BUILDER_CONFIGS = [
        PreferenceConfig(
            name="electricity", description="Choices between electricity contracts, 361 people."
        ),
        PreferenceConfig(name="train_trips", description="Choices between train trips, 235 people."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = ("prompt", "prompt_format", "chosen", "rejected", "user_id", "other_columns")
        features: JSONObject = {name: tfds.features.Text() for name in text}
        features |= {"row": np.int32, "outcome": np.float32}
        # dataset_info_from_configs() would need a package folder of its own.
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, JSONObject]]]:
        config = self.builder_config
        assert isinstance(config, PreferenceConfig)
        path = config.path or stated_choice.fetch(_SET_NAMES[config.name])
        return {"train": self._generate_examples(read_preferences(str(path)))}

    def _generate_examples(self, prefs: Preferences) -> Iterator[tuple[int, JSONObject]]:
        for n in range(prefs.num_comparisons):
            yield int(prefs.row[n]), _record(prefs, n)


def _record(prefs: Preferences, n: int) -> JSONObject:
    chosen, rejected = int(prefs.chosen[n]), int(prefs.rejected[n])
    prompt = prefs.prompts[prefs.item_prompt[chosen]]
    other = {name: values[n] for name, values in prefs.columns.items()}
    if prefs.item_features is not None:
        other["chosen_features"] = prefs.item_features[chosen].tolist()
        other["rejected_features"] = prefs.item_features[rejected].tolist()
        if not prefs.item_text[chosen]:
            other |= {"chosen": None, "rejected": None, "prompt": prompt or None}
    messages = as_messages(prompt) if isinstance(prompt, tuple) else None
    return {
        "row": int(prefs.row[n]),
        "prompt": prompt if messages is None else json.dumps(messages, ensure_ascii=False),
        "prompt_format": "text" if messages is None else "chat",
        "chosen": prefs.item_text[chosen],
        "rejected": prefs.item_text[rejected],
        "user_id": prefs.user_ids[prefs.user_index[n]],
        "outcome": float(prefs.outcome[n]),
        "other_columns": json.dumps(other, ensure_ascii=False, default=str),
    }


def build(source: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Prepare a data set once and return its folder, which `read_preferences("tfds:FOLDER")` and any TFDS
    can read.

    Args:
      source: "electricity", "train-trips", or a preference file.
      data_dir: root folder of TFDS data; by default `tfds` in the cache folder.
    Raises:
      UserError: as `read_preferences` and `stated_choice.fetch`; or the folder cannot be written.
    """
    root = Path(data_dir) if data_dir is not None else files.cache_dir() / "tfds"
    name = _CONFIG_NAMES.get(str(source))
    if name is not None:
        config: Any = name
    else:
        path = Path(source).resolve()
        # The content is part of the name: a changed file is another data set, never a stale copy of the old
        # one.
        digest = files.sha256_file(path)[:12] if path.is_file() else "missing"
        config = PreferenceConfig(name=f"{path.name.split('.')[0]}-{digest}", path=str(path))
        if digest == "missing":
            raise UserError(
                f"{source}: no such file or set; use {', '.join(stated_choice.SETS)} or a preference file"
            )
    try:
        builder = ChorusPreferences(data_dir=str(root), config=config, file_format="array_record")
        with _quiet():
            # TFDS writes into a temporary folder and renames it, so a prepared folder is a whole one.
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError as error:
        raise UserError(
            f"{root}: cannot write the data set ({error.strerror or error}); "
            "free some space or choose another folder"
        ) from None
    return Path(builder.data_path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints its progress on stdout, which belongs to the command's result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def open_records(name: str, split: str) -> Iterator[JSONObject]:
    """Raw records of a prepared folder, a shipped set (prepared on first use) or another registered data
    set.
    """
    builder = _builder(name)
    splits = list(builder.info.splits)
    if split == "all":
        wanted = splits
    elif split.split("[")[0] in splits:  # sub-splits such as train[:10%] are TFDS's own
        wanted = [split]
    else:
        raise UserError(f"tfds:{name}: has no split {split!r}; choose one of {', '.join(splits)} or 'all'")
    for part in wanted:
        try:
            records = builder.as_data_source(split=part)
            for start in range(0, len(records), 1000):
                for record in records.__getitems__(range(start, min(start + 1000, len(records)))):
                    # A shard cut at a block boundary is read without complaint, as records of nothing.
                    if all(value is None for value in record.values()):
                        raise ValueError("records are missing, the shard is cut short")
                    yield record
        except (ImportError, NotImplementedError) as error:
            raise UserError(
                f"tfds:{name}: cannot be read without TensorFlow ({error}); "
                "prepare it with file_format='array_record'"
            ) from None
        except Exception as error:  # readers and the split parser raise types of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"tfds:{name} split {part!r}: cannot be read ({reason}); prepare the folder again"
            ) from None


def _builder(name: str) -> Any:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _open_folder(f"tfds:{name}", folder)
    short = name.removeprefix("chorus_preferences/")
    if short in _CONFIG_NAMES:
        return _open_folder(f"tfds:{name}", build(short))
    if name.startswith((".", "/", "~")) or not name:
        raise UserError(f"tfds:{name}: no such folder; give a prepared TFDS folder or the name of a data set")
    try:
        builder = tfds.builder(name, try_gcs=False)
    except Exception as error:  # unknown names raise several types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        known = ", ".join(stated_choice.SETS)
        raise UserError(
            f"tfds:{name}: no such data set ({reason}); use {known} or a prepared folder"
        ) from None
    if not Path(builder.data_path).is_dir():
        raise UserError(
            f"tfds:{name}: is not prepared in {builder.data_path}; prepare it "
            "with file_format='array_record' or give the folder where it is"
        )
    return builder


def _open_folder(place: str, folder: Path) -> Any:
    """The folder itself or, above it (TFDS nests NAME/CONFIG/VERSION), the only prepared one inside."""
    found = (
        [folder] if (folder / "features.json").exists() else [m.parent for m in folder.rglob("features.json")]
    )
    if len(found) != 1:
        names = ", ".join(str(one) for one in sorted(found)[:5])
        fix = (
            f"it holds several: name one of {names}"
            if found
            else "it holds no features.json; prepare the data set"
        )
        raise UserError(f"{place}: not one prepared data set: {fix}")
    try:
        return tfds.builder_from_directory(str(found[0]))
    except Exception as error:  # damaged metadata: JSON, protobuf and assertion errors alike
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{place}: damaged data set folder ({reason}); prepare it again") from None
