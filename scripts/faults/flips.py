"""One bit turned in every kind of file that a run reads or leaves: refused by name, made again, or the same. Never used.

    python scripts/faults/flips.py --flips 600

The tiny model of tests/golden/old_runs is fitted, trained in every way and evaluated once. `READERS` says who reads which
file; a file without a reader there ends the script. docs/results/interruptions.* gets the counts.
"""

import argparse
import contextlib
import functools
import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # this checkout is what is tried

import page  # noqa: E402
from runs import COMMANDS, World, preload  # noqa: E402

Reader = Callable[[Path], object]
"""The file's path (relative to the world) → what comes of it."""
NOT_READ = re.compile(r"/tensorboard/|report\.html$|run\.lock$|\.lock$|matrix\.json$|samples\.jsonl$")
"""Written for people and other programs; nothing of ours reads what they say."""


def policy(path: Path) -> object:
    from rlhf.policy import store

    found = store.load_policy(path.parts[0] + "/" + path.parts[1])
    return [
        digest(found.params),
        repr(found.spec),
        repr(found.gate),
        found.base.tokenizer.encode_prompt("Which ?"),
    ]


def base(path: Path) -> object:
    return policy(Path("runs/sft"))


def critic(path: Path) -> object:
    from rewards import hashed

    shapes = critic_shapes()
    return hashed.load(path.parent, path.stem, lambda record: shapes, "restore it")


@functools.cache
def critic_shapes() -> dict[str, tuple[int, ...]]:
    """Of the whole file, as training knows them without it."""
    from safetensors.numpy import load_file

    return {name: value.shape for name, value in load_file("runs/ppo/critic/critic.safetensors").items()}


def checkpoint(path: Path) -> object:
    """The newest good step of the run; a damaged one is named and passed over."""
    from rlhf.train.checkpoint_files import Damaged, verify

    step = Path(*path.parts[: path.parts.index("checkpoints") + 2])
    try:
        return verify(step)
    except Damaged as damage:
        raise refused(f"{path}: {damage}") from None


def refused(text: str) -> Exception:
    from rewards.errors import UserError

    return UserError(text)


def again(command: str) -> Reader:
    """The finished run's command once more: its own files, and all that it read."""

    def read(path: Path) -> object:
        from rlhf.apps import cli

        args = cli.parse(COMMANDS[command][0].format(every=1).split())
        return args.run(args)

    return read


def model(path: Path) -> object:
    from rewards.basis.store import load_reward_run
    from rewards.methods.store import load_model
    from rewards.people.population import load_people

    fitted, run = load_model(path.parent), load_reward_run(path.parent)
    people = load_people(run)
    return [fitted.tensors(), fitted.settings(), run.hash, vars(run.prior), vars(run.basis), vars(people)]


def calibration(path: Path) -> object:
    from rewards.api import calibrate
    from rewards.basis.store import load_reward_run

    return calibrate.read(load_reward_run(path.parent))


def pool(path: Path) -> object:
    from rewards.basis.store import load_reward_run
    from rewards.people.pool import read_pool

    return [vars(question) for question in read_pool(load_reward_run(path.parent))]


def record(path: Path) -> object:
    from rewards.basis.store import load_reward_run
    from rewards.people import records

    return records.load(path.parent, path.stem, load_reward_run(path.parents[1]))


def hashed_record(path: Path) -> object:
    from rewards import hashed

    return hashed.read_record(path)


def metrics(path: Path) -> object:
    from rlhf.run.metrics import read_metrics

    return read_metrics(path.parent)


def embeddings(path: Path) -> object:
    """Made again where it is not whole."""
    from rewards.basis.store import load_reward_run
    from rewards.data.read import read_preferences
    from rlhf.phi import encoder

    return encoder.embed_items(
        read_preferences("inputs/pairs.jsonl"), load_reward_run("runs/rewards").basis.encoder
    )


def remembered(path: Path) -> object:
    from rewards import hashed

    found = hashed._whole_array(path, path.stem.removeprefix("ref_logprobs-"))
    if found is None:
        raise refused(f"{path}: made again")
    return found


READERS: tuple[tuple[str, Reader], ...] = (
    (r"inputs/model/.*", base),
    (r"inputs/pairs\.jsonl", again("sft")),
    (r"inputs/prompts\.jsonl", again("grpo")),
    (r"runs/(sft|dpo|grpo|ppo)/policy/.*", policy),
    (r"runs/\w+/checkpoints/.*", checkpoint),
    (r"runs/ppo/critic/.*", critic),
    (r"runs/rewards/(model|basis|population)\..*", model),
    (r"runs/rewards/calibration\.json", calibration),
    (r"runs/rewards/questions\.json", pool),
    (r"runs/rewards/users/.*\.json", record),
    (r"runs/\w+/(metrics|inputs|environment)\.json", hashed_record),
    (r"runs/\w+/metrics\.jsonl", metrics),
    (r"runs/rewards/config\.yaml", again("fit")),
    (r"runs/sft/config\.yaml", again("sft")),
    (r"runs/dpo/config\.yaml", again("dpo")),
    (r"runs/grpo/config\.yaml", again("grpo")),
    (r"runs/ppo/config\.yaml", again("ppo")),
    (r"runs/evaluation/config\.yaml", again("evaluate")),
    (r"runs/dpo/cache/.*", remembered),
    (r"cache/embeddings/.*", embeddings),
)


def digest(value: object) -> str:
    """Arrays in any nesting of records and dicts, and everything else by what it says of itself."""
    import jax
    import numpy as np

    found = hashlib.sha256()
    for leaf in jax.tree.leaves(value):
        found.update(np.asarray(leaf).tobytes() if hasattr(leaf, "dtype") else repr(leaf).encode())
    return found.hexdigest()


def kinds(folder: Path) -> dict[str, list[tuple[Path, Reader]]]:
    """Files by kind (its place without numbers and hashes), with their reader."""
    found: dict[str, list[tuple[Path, Reader]]] = defaultdict(list)
    for path in sorted(
        p.relative_to(folder) for top in ("inputs", "runs", "cache") for p in (folder / top).rglob("*")
    ):
        name = path.as_posix()
        if not (folder / path).is_file() or NOT_READ.search(name) or (folder / path).stat().st_size == 0:
            continue
        if path.parent.name == "inputs" and path.name not in ("pairs.jsonl", "prompts.jsonl"):
            continue
        reader = next((reader for pattern, reader in READERS if re.fullmatch(pattern, name)), None)
        if reader is None:
            raise SystemExit(f"{name}: nobody is named in READERS who reads it")
        kind = re.sub(r"[0-9a-f]{32,}|\d{8}", "*", re.sub(r"users/.*", "users/*.json", name))
        kind = re.sub(r"checkpoints/\*/arrays/.*", "checkpoints/*/arrays/*", kind)
        kind = re.sub(r"runs/\w+/(?=checkpoints|environment|inputs|metrics|config)", "runs/*/", kind)
        found[kind].append((path, reader))
    return found


def flip(path: Path, reader: Reader, rng: random.Random) -> dict[str, Any]:
    """Turn one bit, read, put it back."""
    from rewards.errors import UserError

    expected = value_of(reader, path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    place = rng.randrange(len(whole))
    damaged[place] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    try:
        found = value_of(reader, path)
    except UserError as error:
        named = any(
            part in str(error) for part in (path.name, path.stem, path.parent.name, "weights", "config")
        )
        return {"refused": 1} if named and "\n" not in str(error) else {"problem": f"not named: {error}"}
    except BaseException as error:
        return {"problem": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        path.write_bytes(whole)
    if found == expected:
        return {"same": 1}
    torn = reader is metrics and len(found) < len(
        expected
    )  # a last line that looks torn by a kill is left out
    return {"refused": 1} if torn else {"problem": f"used: byte {place} of {len(whole)}"}


def value_of(reader: Reader, path: Path) -> str:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        found = reader(path)
    return plain(found)


def plain(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    return digest(value) if hasattr(value, "dtype") else repr(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--compiled", type=Path)
    parser.add_argument("--out", type=Path, default=page.PATH)
    args = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        world = World(args.folder or Path(temporary), every=1, compiled=args.compiled)
        for name in COMMANDS:
            if (
                name != "quickstart" and not world.directory(name).is_dir()
            ):  # of an earlier call with this folder
                world.make(name)
        shutil.rmtree(world.folder / "cache", ignore_errors=True)
        os.environ["CHORUS_CACHE"] = str(world.folder / "cache")
        out = args.out.resolve()
        os.chdir(world.folder)
        embeddings(Path())
        rng, found = random.Random(args.seed), []
        every = kinds(world.folder)
        for files in every.values():
            value_of(files[0][1], files[0][0])
        for number in range(args.flips):
            kind = list(every)[number % len(every)]
            path, reader = rng.choice(every[kind])
            one = flip(path, reader, rng)
            found.append({"command": f"`{kind}`", **one})
            if "problem" in one:
                print(kind, path, one["problem"], flush=True)
    page.add(out, "flips", found, fresh=True)
    page.write(out)
    print(f"{len(found)} flips of {len(every)} kinds, {sum('problem' in one for one in found)} not right")


if __name__ == "__main__":
    main()
