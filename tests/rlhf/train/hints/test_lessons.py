"""`hints` of `chorus train ppo|grpo`: who moves and who does not, decisions, resuming, bad rows; on a tiny random model."""

import contextlib
import json
import re
import shlex
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from rewards.basis.store import load_reward_run
from rewards.people import edits, records
from rlhf.apps import cli
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.run.config.load import load
from rlhf.run.metrics import read_metrics
from rlhf.train.hints import lessons as rl_hints
from rlhf.train.rl import prompts as rl_data
from rlhf.train.rl import sources as rl_rewards
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import GRPOConfig
from rlhf.train.sft import fresh_policy
from tests.rlhf import tiny
from tests.rlhf.train.rl.reward_runs import PEOPLE, make_run

# Rewards that tell the samples of π_ref apart and say nothing of the prompts that are trained on: only hints teach.
FUNCTIONS = """
import jax.numpy as jnp

def length(prompts, completions):
    return [float(len(text.split())) if "Which" in prompt else 0.0 for prompt, text in zip(prompts, completions)]

def first(prompts, completions):
    return [float(text.startswith("item")) if "Which" in prompt else 0.0 for prompt, text in zip(prompts, completions)]

def jit_length(prompt_tokens, completion_mask):
    return jnp.where((prompt_tokens == 2).any(axis=1), completion_mask.sum(axis=1), 0).astype(jnp.float32)

def jit_first(prompt_tokens, completion_tokens):
    return jnp.where((prompt_tokens == 2).any(axis=1), completion_tokens[:, 0] == 4, False).astype(jnp.float32)
"""
T, BETA = 5, 1e-30  # so small a price of KL that LoRA does not move by a bit
HINT = {"user_id": "ada", "prompt": "item 3 ?", "completion": "item 4 item ?", "hint": "shorter, please"}
WORLD_ROWS = [
    HINT,
    HINT | {"prompt": "item 5 ?", "completion": "1 2 3 4 5", "hint": "item 9, use bullets 7 8"},
    {"user_id": "ada", "prompt": "item 1 ?", "completion": "6 7", "hint": "just say I'm right"},
    {"user_id": "bob", "prompt": "item 1 ?", "completion": "6 7", "hint": "be warmer"},
    {"user_id": "bob", "prompt": "item 1 ?", "completion": "6 7", "hint": "that's wrong, it was 7"},
    HINT | {"user_id": "bob", "hint": "that's wrong, it was 7", "verified": True},
    HINT | {"user_id": "eve", "hint": "use a list"},
]


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("hints")
    tiny.write_model(root / "model")
    write_lines(root / "prompts.jsonl", [{"prompt": f"item {number} ?"} for number in range(4)])
    texts = ["item 4", "2", "item", "5 6 7", "item 8 9", "1 2"]
    reference = [{"prompt": f"Which {n % 3} ?", "completion": text} for n, text in enumerate(texts)]
    write_lines(root / "reference.jsonl", reference)
    write_lines(root / "hints.jsonl", WORLD_ROWS)
    (root / "functions.py").write_text(FUNCTIONS)
    base = policy_store.load_base(root / "model", adapter_layers=1, dtype="float32")
    make_run(base, root / "fitted")
    for kind, prefix in (("function", ""), ("jit", "jit_")):
        columns = [
            {"name": name, "kind": kind, "function": f"{root / 'functions.py'}:{prefix}{name}"}
            for name in ("length", "first")
        ]
        reference = {"reference": str(root / "reference.jsonl"), "standardise": False}
        population = {"mean": [0.5, 0.0], "sd": [1.0, 1.0], **reference}
        path = write(root, f"build_{kind}", rewards=None, hints=None, columns=columns, population=population)
        config = load(path, [], GRPOConfig)
        prompts = rl_data.prompt_set(config, base)
        rl_rewards.build_run(
            config, root / kind, rl_rewards._with_model(config, config.columns), base, prompts
        )
        run = load_reward_run(root / kind)
        for name, axes in {"ada": ["length=-1.0", "first=1.5"], "bob": ["first=-1.0"], "eve": []}.items():
            records.add(run.users, run, name, edits=[edits.from_axis(run, axis) for axis in axes])
    return root


def write(root, name, **changes):
    config = {
        "seed": 3,
        "output_dir": str(root / name),
        "data": {"path": str(root / "prompts.jsonl")},
        "model": {"name": str(root / "model"), "adapter_layers": 1},
        "rewards": str(root / "function"),
        "tune": {"lora_rank": 2},
        "conditioner": {"rank": 2},
        "rollout": {"prompts_per_step": 2, "users_per_prompt": 1, "completions": 2, "max_new_tokens": T},
        "algorithm": {"scaling": "none"},
        "kl": {"coef": BETA},
        "optimizer": {"learning_rate": 3e-2, "schedule": "constant"},
        "train": {"steps": 6, "checkpoint_every": 3, "samples_every": 0},
        "hints": {"path": str(root / "hints.jsonl"), "rows_per_step": 2, "anchor_rows": 2},
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config | changes))
    return root / f"{name}.yaml"


def metrics(folder):
    rows = read_metrics(folder)
    return [{k: v for k, v in row.items() if not re.match(r"perf/|time", k)} for row in rows]


@contextlib.contextmanager
def the_start_teaches(steps):
    """In every one of so many iterations the teacher has adapters as they begin: with outputs' factors of 0."""
    seen, real = [], rl_hints.Lessons.rows

    def watched(self, number, params, term):
        tensors = policy_store.flatten(params.lora) | policy_store.flatten(params.conditioner)
        seen.append([np.abs(leaf).max() for name, leaf in tensors.items() if name.endswith("_b")])
        return real(self, number, params, term)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl_hints.Lessons, "rows", watched)
        yield
    assert len(seen) == steps and all(len(found) > 2 and max(found) == 0.0 for found in seen), seen


@pytest.fixture(scope="module")
def hosted(world):
    """A GRPO run whose rewards are computed on the host."""
    with the_start_teaches(6):
        assert cli.main(["train", "grpo", str(write(world, "hosted"))]) == 0
    return world / "hosted"


@pytest.fixture(scope="module")
def compiled(world):
    """A PPO run that is one program an iteration; it must compile once, and nothing in it may visit the host."""
    calls, real = [], updates.iterate

    def guarded(*args, **settings):
        with jax.transfer_guard("disallow"):
            calls.append(real._cache_size())
            return real(*args, **settings)

    before, of_rows = real._cache_size(), rl_hints._rows._cache_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "iterate", guarded)
        config = write(world, "compiled", rewards=str(world / "jit"), critic={"hidden": 8})
        assert cli.main(["train", "ppo", str(config)]) == 0
    # The rows of another run of this structure may be compiled already.
    assert (
        len(calls) == 6 and real._cache_size() == before + 1 and rl_hints._rows._cache_size() <= of_rows + 1
    )
    return world / "compiled"


def plain_logits(policy, params, row, z, hinted=False):
    """Logits of the slots of a completion and its closing, from unpadded tokens and a causal mask alone."""
    encode = policy.base.tokenizer.encode_prompt
    prompt = encode(f"{row['hint']}\n\n{row['prompt']}") if hinted else encode(row["prompt"])
    completion = policy.base.tokenizer.encode_completion(row["completion"])[:T]
    tokens = jnp.asarray([[*prompt, *completion]], jnp.int32)
    logits = tiny.causal_logits(policy.graphdef, params, tokens, None if z is None else jnp.asarray(z)[None])
    return np.asarray(logits[0, len(prompt) - 1 : -1], np.float64)


def kl(teacher, student):
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (teacher, student))
    return float(np.sum(p * np.log(p / q)) / len(p))


@pytest.mark.parametrize("kind", ["hosted", "compiled"])
def test_a_hint_moves_its_person_towards_the_hinted_policy_and_nobody_in_particular_stays(
    world, request, kind
):
    folder = request.getfixturevalue(kind)
    policy = policy_store.load_policy(folder)
    run = load_reward_run(policy.record["rewards"])
    empty = jax.tree.map(jnp.zeros_like, (policy.params.lora, policy.params.conditioner))
    before = policy.params._replace(lora=empty[0], conditioner=empty[1])
    z = policy_store.coefficients_to_z(policy, records.load(run.users, "ada", run).posterior.mean)
    for row in WORLD_ROWS[:2]:
        teacher = plain_logits(policy, before, row, None, hinted=True)
        start = kl(teacher, plain_logits(policy, before, row, z))
        end = kl(teacher, plain_logits(policy, policy.params, row, z))
        assert start > 1e-4 and end < 0.8 * start, (start, end)
        for nobody in (np.zeros_like(z), None):
            np.testing.assert_array_equal(
                plain_logits(policy, before, row, nobody), plain_logits(policy, policy.params, row, nobody)
            )
    rows = metrics(folder)
    assert all(row["train/reward"] == 0.0 for row in rows)
    assert all(row["train/hint_kl_nats"] > 0 and row["train/loss/hint"] > 0 for row in rows)


def test_every_row_is_decided_and_the_file_says_why(world, hosted):
    lines = [json.loads(line) for line in (hosted / "hints.jsonl").read_text().splitlines()]
    found = [(line["user_id"], line["class"], line["distil"], len(line["edits"])) for line in lines]
    assert found == [
        ("ada", "style", True, 1),
        ("ada", "style", True, 0),
        ("ada", "stance", False, 0),
        ("bob", "bounded", False, 0),
        ("bob", "fact", False, 0),
        ("bob", "fact", True, 0),
        ("eve", "style", False, 0),  # nobody knows eve: z = 0, where no hint can be learned
    ]
    assert [line["row"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[2]["phrase"] == "i'm right" and "refused as stance" in lines[2]["reason"]
    assert "z is 0" in lines[6]["reason"]
    run = load_reward_run(world / "function")
    np.testing.assert_allclose(lines[0]["coef"], records.load(run.users, "ada", run).posterior.mean)


def test_the_terminal_names_the_command_of_a_statement_and_training_edits_nobody(world, capsys):
    """The command is run as printed; it appends the very edit that the decision holds."""
    rewards = world / "edited"
    shutil.copytree(world / "function", rewards)
    before = (rewards / "users" / "ada.json").read_bytes()
    path = write(world, "told", rewards=str(rewards), train={"steps": 1, "samples_every": 0})
    assert cli.main(["train", "grpo", str(path)]) == 0
    assert (rewards / "users" / "ada.json").read_bytes() == before
    said = capsys.readouterr().err
    assert "7 rows; teach the policy: 3, are statements about coefficients: 1, do nothing: 4 (" in said
    assert re.search(r"hints: nothing, row 3: refused as stance: \"i'm right\"", said)
    assert "hints.rows_per_step" in said  # the memory line
    (command,) = re.findall(r"^hints: statement.*: (chorus .*)$", said, flags=re.M)
    words = shlex.split(command)
    assert cli.main(words[1:]) == 0
    run = load_reward_run(rewards)
    edit = records.load(run.users, "ada", run).edits[-1]
    decided = json.loads((world / "told" / "hints.jsonl").read_text().splitlines()[0])["edits"][0]
    assert (edit.name, edit.value) == (decided["name"], pytest.approx(decided["value"]))


def test_a_run_that_fell_back_a_checkpoint_ends_with_the_same_numbers(world, hosted, capsys):
    """… although ada has edited her record meanwhile; other hints than those of the start are refused."""
    folder, run = world / "again", load_reward_run(world / "function")
    shutil.copytree(hosted, folder)
    shutil.copytree(run.users, world / "kept")
    for part in ("policy", "checkpoints/00000006"):
        shutil.rmtree(folder / part)
    for part in ("metrics.json", "report.html"):
        (folder / part).unlink()
    shutil.copytree(folder, world / "other")
    records.add(run.users, run, "ada", edits=[edits.from_axis(run, "first=-2.0")])
    try:
        with the_start_teaches(3):
            assert cli.main(["train", "grpo", str(world / "hosted.yaml"), f"output_dir={folder}"]) == 0
    finally:
        shutil.rmtree(run.users)
        shutil.copytree(world / "kept", run.users)
    assert metrics(folder) == metrics(hosted)
    for part in ("policy/weights.safetensors", "hints.jsonl"):
        assert (folder / part).read_bytes() == (hosted / part).read_bytes()
    resume = ["train", "grpo", str(world / "hosted.yaml"), f"output_dir={world / 'other'}"]
    text = (world / "hints.jsonl").read_text()
    try:
        write_lines(world / "hints.jsonl", WORLD_ROWS[:-1])
        assert cli.main(resume) == 2
    finally:
        (world / "hints.jsonl").write_text(text)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds other rows than those this run started with" in said
    write_lines(world / "other" / "hints.jsonl", ["{}"])
    assert cli.main(resume) == 2
    assert "hints.jsonl: missing or damaged" in capsys.readouterr().err.strip().splitlines()[-1]


BAD = {
    "unknown": ([HINT | {"user_id": "adda"}], "row 1: field 'user_id': is 'adda', whom .* does not know"),
    "typo": ([HINT, HINT | {"verifed": True}], "row 2: field 'verifed': .* did you mean 'verified'"),
    "flag": ([HINT | {"verified": "yes"}], "row 1: field 'verified': is 'yes'; use true or false"),
    "empty": ([HINT | {"hint": "  "}], "row 1: field 'hint': is empty"),
    "number": ([HINT | {"hint": 3}], "row 1: field 'hint': is int 3; it must be a string"),
    "nobody": ([HINT | {"user_id": None}], "row 1: field 'user_id': is missing"),
    "no_prompt": ([{k: v for k, v in HINT.items() if k != "prompt"}], "row 1: field 'prompt': is missing"),
    "chat": ([HINT | {"prompt": [{"role": "user", "content": "item"}]}], "row 1: field 'prompt': .*template"),
    "long": (
        [HINT | {"completion": "1 2 3 4 5 6"}],
        "'completion': has 6 tokens, rollout.max_new_tokens is 5",
    ),
    "prompt": ([HINT | {"prompt": "item " * 9}], "'prompt': has 9 tokens, rollout.max_prompt_tokens is 8"),
    "context": ([HINT | {"hint": "shorter " * 60}], "'hint': with its prompt has 63 tokens .* holds 64"),
    "broken": ([HINT, "{"], "row 2: field 'row': is not JSON"),
    "several": ([HINT | {"hint": ""}, HINT | {"hint": ""}], r"row 1: .*\(1 more bad rows\)"),
    "none": ([], "holds no rows"),
    "idle": ([HINT | {"hint": "agree"}], "none of 1 hints teaches the policy \\(row 1: refused as stance"),
    "statement": (
        [HINT | {"user_id": "eve", "hint": "shorter"}],
        "none of 1 hints .* there are statements .*: 1; .* chorus users edit eve --rewards .* --text shorter$",
    ),
}


def refused(capsys, path, *overrides):
    """The one line of a refusal; nothing is left of the run."""
    capsys.readouterr()
    assert cli.main(["train", "grpo", str(path), *overrides]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and not path.with_suffix("").exists(), lines
    return lines[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(world, capsys, name):
    rows, message = BAD[name]
    file = write_lines(world / f"bad_{name}.jsonl", rows)
    rollout = {"prompts_per_step": 2, "completions": 2, "max_new_tokens": T, "max_prompt_tokens": 8}
    line = refused(capsys, write(world, f"run_{name}", hints={"path": file}, rollout=rollout))
    assert file in line and re.search(message, line), line


def test_what_cannot_learn_from_hints_is_refused_in_one_line(world, capsys):
    path = write(world, "cannot")
    assert "no such file; check hints.path" in refused(capsys, path, f"hints.path={world / 'absent.jsonl'}")
    assert "hints.top: 99 exceeds the vocabulary of 45" in refused(capsys, path, "hints.top=99")
    text = ("conditioner={kind: text}", "model.adapter_layers=null")
    assert "conditioner.kind text has none" in refused(capsys, path, *text)
    columns = [{"name": "length", "kind": "function", "function": f"{world / 'functions.py'}:length"}]
    for people in ({}, {"population": {"mean": [0.0], "sd": [1.0]}}):
        path = write(world, "cannot", rewards=None, columns=columns, **people)
        assert "hints need people who are known by name" in refused(capsys, path)


@pytest.fixture(scope="module")
def lessons(world):
    """On a fitted run with six training people, two of whom teach; the rail halves everybody's z."""
    rows = [HINT | {"user_id": f"p{n % 2}", "prompt": f"item {n} ?"} for n in range(3)]
    hints = {"path": write_lines(world / "of_people.jsonl", rows), "rows_per_step": 2, "anchor_rows": 5}
    changes = {"kl": {"coef": 0.1}, "rail": {"eta": 0.1}, "hints": hints, "rewards": str(world / "fitted")}
    config = load(write(world, "lessons", **changes), [], GRPOConfig)
    base = policy_store.load_base(world / "model", adapter_layers=1, dtype="float32")
    job, source = (
        SimpleNamespace(directory=world / "lessons", resumed=False),
        SimpleNamespace(run=load_reward_run(world / "fitted")),
    )
    graphdef, params, _ = fresh_policy(config, base, AdapterSpec(2, 4.0, 3, 2))
    found = rl_hints.prepare(config, job, base, source)
    return found, params, found.term(graphdef), SimpleNamespace(base=base, graphdef=graphdef), rows


def test_rows_depend_on_seed_and_iteration_alone_and_hold_people_who_teach_nothing(world, lessons):
    found, params, term, _, _ = lessons
    made = [found.rows(number, params, term) for number in (*range(4), 0)]
    jax.tree.map(np.testing.assert_array_equal, made[0], made[4])
    tokens = [np.asarray(rows.student.tokens[:2]) for rows in made[:3]]
    assert len({rows.tobytes() for rows in tokens}) > 1 and found.size == (7, tokens[0].shape[1])
    seen = np.unique(np.concatenate(tokens), axis=0)
    assert len(seen) == 3  # three iterations of two rows: two passes over three rows
    run = load_reward_run(world / "fitted")
    from rewards.people.population import load_people

    means = np.array([belief.mean for belief in load_people(run).posteriors])
    halves = (means - 1.0) / 2.0  # μ = 1, Σ = I, β = η
    np.testing.assert_allclose(found.others, halves[2:], atol=1e-5)
    np.testing.assert_allclose(found.student.z, halves[[0, 1, 0]], atol=1e-5)
    held = np.concatenate([np.asarray(rows.student.z[2:]) for rows in made[:4]])
    nearest = np.abs(held[:, None] - halves[None]).max(axis=2)
    assert nearest.min(axis=1).max() < 1e-5 and set(nearest.argmin(axis=1)) <= set(range(2, PEOPLE))
    assert len(set(nearest.argmin(axis=1))) > 1
    np.testing.assert_allclose(made[0].weight @ np.asarray(made[0].mask.sum(axis=1)), 2.0, rtol=1e-5)


def test_the_teacher_reads_the_hint_before_plain_text_and_anchors_read_none(lessons):
    found, params, term, policy, file = lessons
    rows = found.rows(0, params, term)
    wanted = {}
    for row in file:
        for hinted in (True, False):
            logits = plain_logits(policy, params, row, None, hinted)
            ids = policy.base.tokenizer.encode_prompt(row["prompt"])
            wanted[tuple(ids), hinted] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for place in range(7):
        first = int(rows.student.starts[place])
        prompt = tuple(np.asarray(rows.student.tokens[place, first:-T]).tolist())
        count = int(rows.mask[place].sum())
        kept = np.full((T, 45), np.nan)
        np.put_along_axis(
            kept, np.asarray(rows.target.ids[place]), np.asarray(rows.target.logprobs[place]), axis=1
        )
        np.testing.assert_allclose(kept[:count], wanted[prompt, place < 2], atol=1e-4)
    assert np.abs(wanted[prompt, True] - wanted[prompt, False]).max() > 1e-3


def test_a_hint_for_a_chat_joins_the_last_user_message():
    from rlhf.train.hints.rows import _hinted

    base = SimpleNamespace(tokenizer=SimpleNamespace(has_chat_template=True))
    assert _hinted("Which?", "shorter", base) == "Which?\n\nshorter"
    chat = (("user", "a"), ("assistant", "b"), ("user", "c"))
    assert _hinted(chat, "shorter", base) == (*chat[:2], ("user", "c\n\nshorter"))
    assert _hinted(chat[:2], "shorter", base) == (*chat[:2], ("user", "shorter"))
