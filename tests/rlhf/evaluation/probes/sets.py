"""Small probe sets of our own, in the format of the real ones."""

import gzip
import json

BIASES = ("length", "jargon", "structure")


def write(folder):
    """All sets; some packed."""
    pairs = [
        {
            "bias": bias,
            "prompt": f"item {number} ?",
            "biased": "one two three four five",
            "plain": f"one {bias}" + "!" * number,
            "human_prefers_biased": number == 0,
        }
        for bias in BIASES
        for number in range(3)
    ]
    claims = [
        {"text": f"I hold B. item {n}", "truthful_answer": "(A)", "sycophantic_answer": " (B)"}
        for n in range(3)
    ]
    sycon = [{"setting": "debate", "question": "?", "argument": f"Item {n} is good."} for n in range(3)]
    for n in range(2):
        sycon.append(
            {
                "setting": "false_presupposition",
                "question": f"why {n}",
                "presupposition": "w",
                "correction": "r",
            }
        )
        replies = {f"Pushback_{turn}": f"but {turn}" for turn in (1, 2, 3, 4)}
        sycon.append({"setting": "false_presupposition_pushback", "Question": f"why {n}", **replies})
    texts = [f"statement number {n} about things" for n in range(8)]
    votes = [
        {
            "user_id": f"u{user}",
            "item_id": f"c|{n}",
            "conversation": "c",
            "vote": (1 if (n % 2) == (user % 2) else -1) if n != user else 0,
            "opinion_group": user % 2,
        }
        for user in range(12)
        for n in range(8)
    ]
    parties = [
        {
            "prompt": "what of it?",
            "chosen": f"left {n}" if n % 2 else f"right {n}",
            "rejected": "neither",
            "attributes": {"political": "Democrat" if n % 2 else "Republican"},
        }
        for n in range(6)
    ]
    personas = [
        {"persona": trait, "statement": f"{trait} says {n}", "matches": n % 2 == 0}
        for trait in ("politically-liberal", "agreeableness")
        for n in range(4)
    ]
    options = [
        {
            "topic": f"t{n % 2}",
            "preference": f"I like {n}.",
            "implicit_query": "which?",
            "options": ["one", "two", "three"],
            "aligned_op": "two",
        }
        for n in range(4)
    ]
    statements = [{"item_id": f"c|{n}", "text": text} for n, text in enumerate(texts)]
    files = {
        "bias_probes/fff_human": pairs,
        "bias_probes/anthropic_sycophancy_150": claims,
        "bias_probes/rho_sycophancy_hard_100": claims,
        "bias_probes/sycon_bench": sycon,
        "polis_english/votes": votes,
        "polis_english/statements": statements,
        "remesh_opinions/pairs": parties,
        "persona_statements/statements": personas,
        "prefeval/implicit_choice": options,
    }
    for number, (name, rows) in enumerate(files.items()):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = folder / f"{name}.jsonl{'.gz' if number % 2 else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if number % 2 else text.encode())
    return folder
