"""Bad inputs of somebody outside: reward models trained end to end, processes of a job, streams, sentence encoders, experts,
probes, comparisons of policies, other engines, for `bad_inputs`."""

# ruff: noqa: E501  (what is attacked with stands on one line)
import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from tests.rlhf.models.sentence_files import write as write_encoder
from tests.rlhf.tiny import write_model
from tests.test_bad_input import World, write

Make = Callable[[World], list[str]]


def trained(world: World, *words: str, rows: list[Any] | None = None, **change: Any) -> list[str]:
    """`rewards train` of a small model."""
    write_model(world.root / "model")
    data = world.data if rows is None else world.rows(rows, "own.jsonl")
    values: dict[str, Any] = {"seed": 0, "output_dir": str(world.out), "data": {"path": str(data)}, "model": {"name": str(world.root / "model")},
              "optimizer": {"learning_rate": 1e-3}, "train": {"steps": 2, "batch_rows": 2}}  # fmt: skip
    for name, value in change.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    path = write(world.root / "reward.yaml", yaml.safe_dump(values))
    return ["rewards", "train", str(path), *words]


def with_margins(world: World, margin: Any) -> list[str]:
    rows = [row | {"margin": 1.0} for row in world.good_rows()]
    rows[2]["margin"] = margin
    return trained(world, "head.margin_column=margin", rows=rows)


def reward_models() -> Iterator[tuple[str, Make]]:
    for word in ("head.num_basis=99999", "head.num_basis=1024", "head.num_basis=-1", "head.num_basis=17", "head.margin_column=margin", "head.margin_column=''",
                 "head.pool=mean", "head.pool=max", "head.prior_sd=0", "head.centring=-1", "head.centring=1e300", "head={num_basis: 2, fit: 3}",
                 "fit.dims=2", "evaluation.seeds=3", "mesh.processes=2", "mesh.process=1", "mesh.coordinator=a:1", "model.base=nf5", "data.stream=true",
                 "train.keep_best=eval/accuracy", "train.max_skips=2", "train.epochs=1", "optimizer.warmup_steps=2", "track=wandbb", "columns=[]", "loss.kind=dpo",
                 "tune={mode: full, lora_rank: 3}", "model.adapter_layers=9", "train.evaluate_share=0.5"):  # fmt: skip
        yield f"rewards train {word}", lambda w, word=word: trained(w, word)
    for margin in (None, "2", True, float("nan"), float("inf"), 1e300, 10**400, [1], {}):
        yield f"rewards train, margin {str(margin)[:10]}", lambda w, margin=margin: with_margins(w, margin)
    yield "rewards train, full weights in codes", lambda w: trained(w, "tune.mode=full", "model.base=int8")
    yield (
        "rewards train, tastes of nobody",
        lambda w: trained(
            w,
            "head.num_basis=1",
            rows=[{k: v for k, v in row.items() if k != "user_id"} for row in w.good_rows()],
        ),
    )
    yield (
        "rewards train, one person's tastes",
        lambda w: trained(w, "head.num_basis=1", rows=w.good_rows(people=1)),
    )
    yield "rewards train, tastes and axes", lambda w: trained(w, "head.num_basis=2", "fit.num_basis=500")
    yield "rewards train, tastes and folds", lambda w: trained(w, "head.num_basis=2", "fit.model=howse")


def jobs() -> Iterator[tuple[str, Make]]:
    tries = [("--processes", "0"), ("--processes", "-1"), ("--processes", "x"), ("--processes", "1e3"), ("--processes", "2"), ("--process", "3"), ("--process", "-1"),
             ("--coordinator", "host"), ("--coordinator", ":80"), ("--coordinator", ""), ("--processes", "2", "--process", "2", "--coordinator", "127.0.0.1:9"),
             ("--processes", "2", "--process", "0", "--coordinator", "127.0.0.1:99999"), ("--processes", "2", "--process", "0", "--coordinator", "http://127.0.0.1:80/x"),
             ("--processes", "2", "--process", "0", "--coordinator", "ada:secret@127.0.0.1:80"), ("--processes", "2", "--process", "0", "--coordinator", "a b:80"),
             ("--processes", "2", "--process", "0", "--coordinator", "\x1b[2J:80"), ("--processes", "1", "--process", "1"), ("--processes", "2", "--process", "0"),
             ("--processes", "1", "--coordinator", "host"), ("--processes", "1", "--process", "7"),
             ("mesh.data=0",), ("mesh.data=3",), ("mesh.fsdp=2",), ("mesh.tensor=1000000",), ("mesh.tensor=-1", "mesh.fsdp=-1"), ("mesh.data=-2",), ("mesh.tensor=1.5",)]  # fmt: skip
    for words in tries:
        for kind in ("sft", "grpo"):
            yield (
                f"job: {kind} {' '.join(words)}",
                lambda w, words=words, kind=kind: [*modelled(w).config(kind), *words],
            )
    for variable, value in (("JAX_NUM_PROCESSES", "x"), ("JAX_NUM_PROCESSES", "2"), ("OMPI_COMM_WORLD_SIZE", "two"), ("SLURM_JOB_ID", "1")):  # fmt: skip

        def environment(w: World, variable: str = variable, value: str = value) -> list[str]:
            w.monkeypatch.setenv(variable, value)
            return [*modelled(w).config("sft"), "mesh.process=5"]

        yield f"job: {variable}={value}", environment


def modelled(world: World) -> World:
    write_model(world.root / "model")
    return world


def streamed(
    world: World, content: str | bytes, name: str = "s.jsonl", kind: str = "sft", *words: str
) -> list[str]:
    path = write(world.root / name, content)
    return [*modelled(world).config(kind, data={"path": str(path)}), "data.stream=true", *words]


def streams() -> Iterator[tuple[str, Make]]:
    pair = {"prompt": "Which ?", "chosen": "item 1", "rejected": "item 2"}
    bad: dict[str, str | bytes] = {"empty": "", "blank": "\n\n", "text": "hello there, this is a line of no JSON at all\n", "array": "[1, 2]\n",
        "number": "3\n", "NUL": b"\x00" * 99, "not UTF-8": b'{"prompt": "\xff", "chosen": "item 1", "rejected": "item 2"}\n',
        "no rejected": json.dumps({"prompt": "x", "chosen": "item 1"}) + "\n", "outcome 7": json.dumps(pair | {"outcome": 7}) + "\n",
        "same twice": json.dumps(pair | {"rejected": "item 1"}) + "\n", "surrogate": json.dumps(pair | {"prompt": "\ud800"}) + "\n",
        "long": json.dumps(pair | {"prompt": "Which " * 90}) + "\n", "misspelt": json.dumps(pair | {"shown_frist": "chosen"}) + "\n",
        "key twice": '{"prompt": "a", "prompt": "b", "chosen": "item 1", "rejected": "item 2"}\n', "torn": json.dumps(pair)[:-9],
        "deep": '{"a":' * 100_000, "gzip": gzip.compress(json.dumps(pair).encode() * 9), "two on a line": json.dumps(pair) * 2 + "\n",
        "cr": json.dumps(pair) + "\r" + json.dumps(pair) + "\r"}  # fmt: skip
    for name, content in bad.items():
        for kind in ("sft", "dpo"):
            if (name, kind) != ("no rejected", "sft"):
                yield (
                    f"stream: {kind} {name}",
                    lambda w, content=content, kind=kind: streamed(w, content, "s.jsonl", kind),
                )
    good = (json.dumps(pair) + "\n") * 8
    for word in ("data.chosen_column=chosne", "train.evaluate_every=1", "train.batch_rows=null", "groups.completions=null", "loss.kind=observed", "loss.annotation=mixture",
                 "data.split=test", "guardrails={worst: {}}"):  # fmt: skip
        yield f"stream: dpo {word}", lambda w, word=word: streamed(w, good, "s.jsonl", "dpo", word)
    for path in ("*.jsonl", "none-*.jsonl", "[", "**", ".", "/dev/zero", "s.csv", "hf:none", "electricity"):
        yield (
            f"stream: path {path}",
            lambda w, path=path: [*modelled(w).config("sft", data={"path": path}), "data.stream=true"],
        )
    yield "stream: parquet of text", lambda w: streamed(w, b"PAR1xxxxPAR1", "s.parquet")
    yield (
        "stream: row length",
        lambda w: streamed(
            w, good.replace("Which ?", "Which ? " * 9), "s.jsonl", "sft", "train.row_length=8"
        ),
    )


def sentence(world: World, file: str, change: Any) -> list[str]:
    folder = write_encoder(world.root / "encoder")
    path = folder / file
    if isinstance(change, dict):
        change = json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | change)
    if change is None:
        path.unlink()
    else:
        write(path, change)
    return [*world.config("rewards", encoder={"kind": "sentence"}, model={"name": str(folder)})]


def sentences() -> Iterator[tuple[str, Make]]:
    changes: list[tuple[str, Any]] = [("modules.json", "{}"), ("modules.json", "[1]"), ("modules.json", None), ("modules.json", "[]"), ("config.json", {"hidden_size": 0}),
        ("config.json", {"vocab_size": 3}), ("config.json", {"num_attention_heads": 7}), ("config.json", {"layer_norm_eps": -1}), ("config.json", {"hidden_act": "swish"}),
        ("config.json", {"is_decoder": True}), ("config.json", {"position_embedding_type": "relative_key"}), ("config.json", {"max_position_embeddings": 10**12}),
        ("config.json", {"new_key": 1}), ("config.json", {"model_type": "roberta"}), ("1_Pooling/config.json", {"pooling_mode_mean_tokens": 1}),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}), ("1_Pooling/config.json", {"include_prompt": False}), ("1_Pooling/config.json", {"word_embedding_dimension": 9}),
        ("1_Pooling/config.json", "{"), ("1_Pooling/config.json", None), ("sentence_bert_config.json", {"max_seq_length": 0}), ("sentence_bert_config.json", {"max_seq_length": 10**9}),
        ("sentence_bert_config.json", {"max_seq_length": True}), ("sentence_bert_config.json", {"do_lower_case": "yes"}), ("sentence_bert_config.json", {"max_sequence": 7}),
        ("sentence_bert_config.json", {"lowercase": True}), ("sentence_bert_config.json", "[]"), ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
        ("config_sentence_transformers.json", {"similarity_fn": "x", "truncate_dim": 4}), ("config_sentence_transformers.json", "7"),
        ("tokenizer.json", None), ("tokenizer.json", "{}"), ("tokenizer_config.json", "{"), ("model.safetensors", None), ("model.safetensors", b"\x00" * 99)]  # fmt: skip
    for file, change in changes:
        yield (
            f"sentence: {file} {str(change)[:50]}",
            lambda w, file=file, change=change: sentence(w, file, change),
        )
    for word in ("encoder.layer=1", "encoder.pool=last", "encoder.columns=[]"):
        yield f"sentence: {word}", lambda w, word=word: [*sentence(w, "config.json", {}), word]
    yield (
        "sentence: to write text",
        lambda w: ["generate", "--model", str(write_encoder(w.root / "e")), "--prompt", "x"],
    )
    yield (
        "sentence: a language model",
        lambda w: [
            *modelled(w).config(
                "rewards", encoder={"kind": "sentence"}, model={"name": str(w.root / "model")}
            )
        ],
    )


MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def mixed(world: World, **change: Any) -> list[str]:
    path = write_model(world.root / "model", **MIXTRAL) / "config.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))
    return ["generate", "--model", str(path.parent), "--prompt", "x", "--max-new-tokens", "2"]


def experts() -> Iterator[tuple[str, Make]]:
    changes: list[dict[str, Any]] = [
        {"num_local_experts": n} for n in (0, -1, None, "4", 10**9, 3, 5, 1.5, True)
    ]
    changes += [{"num_experts_per_tok": n} for n in (0, 5, None, "two", -2, 0.5)]
    changes += [{"num_experts": 8}, {"num_experts": 4, "num_local_experts": 8}, {"moe_intermediate_size": 9}, {"norm_topk_prob": "x"}, {"router_jitter_noise": 0.5},
                {"sliding_window": 0}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}, {"shared_expert_intermediate_size": 5}, {"model_type": "qwen2_moe"}, {"model_type": "llama"}]  # fmt: skip
    for change in changes:
        yield f"experts: {change}", lambda w, change=change: mixed(w, **change)


def policies() -> Iterator[tuple[str, Make]]:
    """Comparisons of policies, and probes."""
    for words in (["--policies"], ["--policies", ""], ["--policies", "no/where"], ["--policies", "MODEL", "MODEL"], ["--policies", "a=MODEL", "a=MODEL", "--prompts", "P"],
                  ["--policies", "MODEL", "--prompts", "no"], ["--policies", "MODEL", "--prompts", "P", "--samples", "0"], ["--policies", "MODEL", "--prompts", "P", "--max-new-tokens", "0"],
                  ["--policies", "MODEL", "--prompts", "P", "--people", "3"], ["--policies", "MODEL@3", "--prompts", "P"], ["--policies", "MODEL@best-of-0", "--prompts", "P"],
                  ["--policies", "MODEL@best-of-2", "--prompts", "P"], ["--policies", "MODEL@in-context", "--prompts", "P"], ["--policies", "MODEL@aggregate", "--prompts", "P"],
                  ["--policies", "MODEL@", "--prompts", "P"], ["--policies", "MODEL@step", "--prompts", "P"], ["--policies", "=MODEL", "--prompts", "P"], ["--policies", "a=", "--prompts", "P"],
                  ["--policies", "http://ada:secret@127.0.0.1:9/v1#m", "--prompts", "P"], ["--policies", "http://127.0.0.1:9/v1", "--prompts", "P"], ["--policies", "http://127.0.0.1:9/v1#", "--prompts", "P"],
                  ["--policies", "http://127.0.0.1:x/v1#m", "--prompts", "P"], ["--policies", "ftp://127.0.0.1/v1#m", "--prompts", "P"], ["--policies", "MODEL", "--prompts", "P", "--judge", "f.py"],
                  ["--policies", "MODEL", "--prompts", "P", "--judge", "os:system"], ["--policies", "MODEL", "--prompts", "P", "--judge", ""], ["--policies", "MODEL", "--prompts", "P", "--rewards", "no"],
                  ["--policies", "MODEL", "--rewards", "RUN", "--people", "nobody", "--prompts", "P"], ["--policies", "MODEL", "--rewards", "RUN", "--people", "0", "--prompts", "P"],
                  ["--policies", "MODEL", "--rewards", "RUN", "--people", "held-out", "held-out", "--prompts", "P"], ["--policies", "MODEL", "--rewards", "RUN", "--people", "-3", "--prompts", "P"],
                  ["--policies", "MODEL", "--rewards", "RUN", "--people", "population", "--prompts", "P", "answers=-1"], ["--policies", "MODEL", "--prompts", "P", "answers=3"],
                  ["--policies", "MODEL", "--prompts", "P", "server.api_key_variable=HOME"], ["--policies", "http://127.0.0.1:9/v1#m", "--prompts", "P", "server.api_key_variable=AWS_SECRET_ACCESS_KEY"],
                  ["--policies", "MODEL", "--prompts", "P", "sampling.top_p=0"], ["--policies", "MODEL", "--prompts", "P", "--processes", "2"], ["--policies", "MODEL", "--prompts", "P", "reference=no/where"],
                  ["--policies", "reference", "--prompts", "P"], ["--policies", "MODEL", "--prompts", "E"], ["--policies", "\x1b[2J", "--prompts", "P"]):  # fmt: skip
        yield (
            f"evaluate: {' '.join(words)[:80]}",
            lambda w, words=words: [
                "evaluate",
                *named(w, words),
                "--output-dir",
                str(w.out),
            ],
        )
    for words in (["MODEL"], ["no/where", "--data", "DIR"], ["MODEL", "--data", "no/where"], ["MODEL", "--data", "P"], ["MODEL", "--data", "DIR", "--items", "0"],
                  ["MODEL", "--data", "DIR", "--people", "-1"], ["MODEL", "--data", "DIR", "--only", "biasses"], ["MODEL", "--data", "DIR", "--only", ""], ["MODEL", "--data", "DIR", "--seed", "-1"],
                  ["", "--data", "DIR"], ["RUN", "--data", "DIR"], ["MODEL", "--data", ""], ["MODEL", "--data", "DIR", "--output", "P"], ["MODEL", "--data", "DIR", "--items", "9" * 30]):  # fmt: skip
        yield f"probe: {' '.join(words)[:60]}", lambda w, words=words: ["probe", *named(w, words)]
    rows: dict[str, str | bytes] = {"text": "x\n", "array": "[]\n", "no bias": '{"prompt": "x"}\n', "NUL": b"\x00", "truth 2": json.dumps({"bias": "length", "prompt": "a", "biased": "b", "plain": "c", "human": 2}),
            "bias of nobody": json.dumps({"bias": "\x1b[2J", "prompt": "a", "biased": "b", "plain": "c", "human": 1}), "not UTF-8": b"\xff\n", "deep": '{"a":' * 100_000}  # fmt: skip
    for name, content in rows.items():
        yield (
            f"probe: rows {name}",
            lambda w, content=content: (
                write(w.root / "d" / "bias_probes" / "fff_human.jsonl", content),
                ["probe", *named(w, ["MODEL"]), "--data", str(w.root / "d")],
            )[1],
        )


def named(world: World, words: list[str]) -> list[str]:
    """MODEL, RUN, P (prompts), E (no prompts), DIR in words as places of the world."""
    write(world.root / "prompts.txt", "Which ?\n")
    write(world.root / "none.txt", "\n\n")
    (world.root / "sets").mkdir(exist_ok=True)
    if any("MODEL" in word for word in words):
        write_model(world.root / "model")
    if "RUN" in words:
        world.reward_run()
    names = {"RUN": "run", "P": "prompts.txt", "E": "none.txt", "DIR": "sets"}
    return [
        str(world.root / names[word]) if word in names else word.replace("MODEL", str(world.root / "model"))
        for word in words
    ]


def engines() -> Iterator[tuple[str, Make]]:
    plan = ["data", "plan", "--labels", "100"]
    tries: list[tuple[str, ...]] = [("kubernetes",), ("kubernetes", "--image", ""), ("kubernetes", "--image", "a b"), ("kubernetes", "--image", "a\nb: c"), ("kubernetes", "--image", "x", "--node", "a"),
        ("kubernetes", "--image", "x", "--node", "a=1", "--node", "a=2"), ("kubernetes", "--image", "x", "--volume", "a"), ("kubernetes", "--image", "x", "--volume", "a:b"), ("kubernetes", "--image", "x", "--volume", "A_:/b"),
        ("kubernetes", "--image", "x", "--volume", "a:/b", "--volume", "c:/b"), ("kubernetes", "--image", "x", "--tpu", "v5"), ("kubernetes", "--image", "x", "--tpu", "a:0x4"), ("kubernetes", "--image", "x", "--time", "soon"),
        ("kubernetes", "--image", "x", "--time", "0:00:00"), ("kubernetes", "--image", "x", "--memory", "much"), ("kubernetes", "--image", "x", "--memory", "-1G"), ("kubernetes", "--image", "x", "--queue", "A b"),
        ("kubernetes", "--image", "x", "--namespace", "../x"), ("kubernetes", "--image", "x", "--secret", "$(x)"), ("kubernetes", "--image", "x", "--folder", "rel"),
        ("ray", "--address", "127.0.0.1"), ("ray", "--address", "http://ada:secret@127.0.0.1:8265"), ("ray", "--address", "ftp://x"), ("ray", "--memory", "lots"), ("ray", "--devices", "-1"), ("ray", "--folder", ""),
        ("skypilot", "--accelerator", "H100:8"), ("skypilot", "--mount", "a"), ("skypilot", "--mount", "/a="), ("skypilot", "--mount", "a=s3://b"), ("skypilot", "--mount", "/a=s3://u:p@b"),
        ("skypilot", "--memory", "x"), ("skypilot", "--spot", "--devices", "1", "--cpus", "0"), ("slurm", "--tasks", "2"), ("slurm", "--time", "1 day"), ("slurm", "--memory", "16 G"),
        ("slurm", "--option", ""), ("slurm", "--option", "--output=x"), ("local", "--tasks", "2"), ("local", "--devices", "1")]  # fmt: skip
    for words in tries:
        yield (
            f"engine: {' '.join(words)[:70]}",
            lambda w, words=words: ["launch", *words, "--dry-run", "--", *plan],
        )


def outside() -> Iterator[tuple[str, Make]]:
    """Name and preparation of every one."""
    for part in (reward_models, jobs, streams, sentences, experts, policies, engines):
        yield from part()
