"""The commands of `same_numbers.py`: (name, words after `chorus`), by part; paths are relative to the working folder."""

QUESTION = "Which electricity supplier should I pick?"

_REWARDS = "--rewards runs/rewards"
_PERSON = f"ada {_REWARDS}"
_FEW = "train.steps=3 train.log_every=1 train.checkpoint_every=3"

TINY = [
    ("data check", "data check inputs/pairs.jsonl"),
    ("rewards fit", "rewards fit inputs/rewards.yaml"),
    ("rewards evaluate", "rewards evaluate inputs/rewards.yaml"),
    ("users update", f"users update {_PERSON} --answers inputs/ada.jsonl"),
    ("users edit", f"users edit {_PERSON} --axis aggregate=0.5"),
    ("users ask batch", f"users ask {_PERSON} --batch 3"),
    ("users show", f"users show {_PERSON}"),
    (
        "rewards score",
        f"rewards score {_REWARDS} --user ada --input inputs/completions.jsonl --output scored.jsonl",
    ),
    ("train sft", "train sft inputs/sft.yaml"),
    ("train dpo", "train dpo inputs/dpo.yaml"),
    ("train grpo", "train grpo inputs/grpo.yaml"),
    ("train ppo", "train ppo inputs/ppo.yaml"),
    ("train ppo columns", "train ppo inputs/ppo_columns.yaml"),
    ("evaluate", "evaluate inputs/evaluation.yaml"),
    (
        "generate",
        "generate --policy runs/dpo --user ada --prompt Which --prompt item --max-new-tokens 5 --seed 3 --top-p 0.9",
    ),
    ("export", "export --policy runs/dpo --user ada --output runs/exported"),
]


def _dpo(kind: str, name: str, words: str = "") -> tuple[str, str]:
    """A short `train dpo` of the loss `kind` in a directory of its own."""
    return name, f"train dpo inputs/dpo.yaml output_dir=runs/{name} loss.kind={kind} {_FEW} {words}".strip()


def _grpo(kind: str, words: str = "") -> tuple[str, str]:
    """A short `train grpo` of the estimator `kind`."""
    name, few = f"grpo_{kind}", "train.steps=2 train.checkpoint_every=2 algorithm.relabel=0"
    return (
        name,
        f"train grpo inputs/grpo.yaml output_dir=runs/{name} algorithm.kind={kind} {few} {words}".strip(),
    )


_JIT = (
    "'columns=[{name: sum, kind: jit, function: inputs/functions.py:jit_sum}, "
    "{name: first, kind: jit, function: inputs/functions.py:jit_first}]'"
)
KINDS = [
    ("rewards fit", "rewards fit inputs/rewards.yaml"),
    (
        "rewards evaluate",
        "rewards evaluate inputs/rewards.yaml evaluation.seeds=1 "
        "evaluation.models=[per_user,pref,rfm,lore,pal_a,pal_b,offset,mixture,vpl,spl]",
    ),
    ("rewards mixture", "rewards fit inputs/rewards.yaml output_dir=runs/mixture fit.annotation=mixture"),
    ("rewards lore", "rewards fit inputs/rewards.yaml output_dir=runs/lore fit.model=lore"),
    (
        "sft full",
        f"train sft inputs/sft.yaml output_dir=runs/sft {_FEW} tune.mode=full model.dtype=bfloat16 "
        "model.remat=true model.adapter_layers=null train.accumulation_steps=2 completions=chosen",
    ),
    _dpo("soft", "low_rank", "model.name=inputs/model train.accumulation_steps=2"),
    _dpo("regression", "film", "model.name=inputs/model 'conditioner={kind: film}'"),
    _dpo("observed", "prefix", "model.name=inputs/model 'conditioner={kind: prefix, slots: 2}'"),
    _dpo("soft", "logit_heads", "model.name=inputs/model conditioner.kind=logit_heads"),
    _dpo("soft", "text", "model.name=inputs/model 'conditioner={kind: text}' model.adapter_layers=null"),
    _dpo("dpo", "plain", "model.name=inputs/model rewards=null rail.eta=0"),
    _dpo("ipo", "ipo", "model.name=inputs/model rewards=null rail.eta=0"),
    _dpo("cdpo", "cdpo", "model.name=inputs/model rewards=null rail.eta=0 loss.label_smoothing=0.1"),
    _dpo("simpo", "simpo", "model.name=inputs/model rewards=null rail.eta=0"),
    _grpo("rloo", "model.name=inputs/model algorithm.aggregation=token kl.controller=adaptive"),
    _grpo("grpo", "model.name=inputs/model algorithm.aggregation=sequence kl.place=loss kl.estimator=k2"),
    _grpo("reinforce++", "model.name=inputs/model kl.estimator=k3 algorithm.entropy_coef=0.01"),
    _grpo("gdpo", f"model.name=inputs/model rewards=null population.mean=[1,0] population.sd=[1,1] {_JIT}"),
    _grpo("centred", "model.name=inputs/model hints.path=inputs/hints.jsonl hints.rows_per_step=2"),
]

_SMALL = "rollout.prompts_per_step=2 rollout.completions=4 rollout.max_new_tokens=24 train.samples_every=1"
_SHORT = "train.log_every=1 model.adapter_layers=4"
_LINKS = "rewards=runs/rewards model.name=runs/sft"
REAL = [
    ("data check", "data check electricity"),
    ("rewards fit", "rewards fit configs/electricity/rewards.yaml output_dir=runs/rewards"),
    (
        "rewards evaluate",
        "rewards evaluate configs/electricity/rewards.yaml output_dir=runs/rewards evaluation.seeds=2",
    ),
    ("users ask", f"users ask {_PERSON} --answers ada.jsonl --max-questions 5"),
    ("users show", f"users show {_PERSON}"),
    ("rewards score", f"rewards score {_REWARDS} --user ada --input completions.jsonl --output scored.jsonl"),
    (
        "train sft",
        f"train sft configs/electricity/sft.yaml output_dir=runs/sft train.steps=10 {_SHORT}",
    ),
    (
        "train dpo",
        f"train dpo configs/electricity/dpo.yaml output_dir=runs/dpo {_LINKS} train.steps=20 train.batch_rows=1 "
        f"{_SHORT}",
    ),
    (
        "train grpo",
        f"train grpo configs/electricity/grpo.yaml output_dir=runs/grpo {_LINKS} train.steps=3 {_SHORT} "
        f"optimizer.warmup_steps=1 {_SMALL}",
    ),
    (
        "train ppo",
        f"train ppo configs/electricity/ppo.yaml output_dir=runs/ppo {_LINKS} train.steps=3 {_SHORT} "
        f"optimizer.warmup_steps=1 {_SMALL}",
    ),
    (
        "evaluate",
        f"evaluate configs/electricity/evaluate.yaml output_dir=runs/evaluation {_LINKS} policy=runs/dpo "
        "users.count=8 sampling.num_samples=2 sampling.max_new_tokens=24",
    ),
    ("generate", f"generate --policy runs/dpo --user ada --prompt '{QUESTION}' --max-new-tokens 24 --greedy"),
]
PARTS = {"tiny": TINY, "kinds": KINDS, "real": REAL}
