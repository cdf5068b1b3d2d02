"""Surface form of a text as numbers: what can be seen without understanding a word.

Two kinds, because they mean different things when they predict a choice. *Traits* (length, punctuation,
markdown) are things that people have tastes about. *Artefacts* (list syntax, special tokens, stray
whitespace) are traces of how a text was rendered; nobody prefers them, so one that goes with a side is a
fault of the data.
"""

import math
import re
import unicodedata
from collections.abc import Callable

_WORD = re.compile(r"\w+")

TRAITS: dict[str, Callable[[str], float]] = {
    "log characters": lambda text: math.log1p(len(text)),
    "log words": lambda text: math.log1p(len(text.split())),
    "mean word length": lambda text: sum(map(len, words := _WORD.findall(text))) / max(1, len(words)),
    "log lines": lambda text: math.log1p(text.count("\n")),
    "commas": lambda text: math.log1p(text.count(",")),
    "full stops": lambda text: math.log1p(text.count(".")),
    "exclamation marks": lambda text: math.log1p(text.count("!")),
    "question marks": lambda text: math.log1p(text.count("?")),
    "colons and semicolons": lambda text: math.log1p(text.count(":") + text.count(";")),
    "dashes": lambda text: math.log1p(text.count("-") + text.count("–") + text.count("—")),
    "quotation marks": lambda text: math.log1p(sum(text.count(mark) for mark in "\"'“”‘’")),
    "round brackets": lambda text: math.log1p(text.count("(")),
    "square and curly brackets": lambda text: math.log1p(text.count("[") + text.count("{")),
    "digits": lambda text: math.log1p(sum(map(str.isdigit, text))),
    "share of capitals": lambda text: sum(map(str.isupper, text)) / max(1, len(text)),
    "share of non-ASCII": lambda text: sum(letter > "\x7f" for letter in text) / max(1, len(text)),
    "bullets": lambda text: math.log1p(len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s", text, re.M))),
    "headings": lambda text: math.log1p(len(re.findall(r"^#{1,6}\s", text, re.M))),
    "bold": lambda text: math.log1p(text.count("**")),
    "code": lambda text: math.log1p(text.count("`")),
    "links": lambda text: math.log1p(len(re.findall(r"https?://|\]\(", text))),
}


def _matches(pattern: str, flags: int = 0) -> Callable[[str], bool]:
    compiled = re.compile(pattern, flags)
    return lambda text: compiled.search(text) is not None


HARD_ARTEFACTS: dict[str, Callable[[str], bool]] = {
    "Python or JSON list syntax": _matches(r"\A\s*[\[(]\s*(?:[bru]?['\"]|\{\s*['\"]).*[\])]\s*\Z", re.S),
    "Python or JSON dictionary syntax": _matches(r"\A\s*\{\s*['\"]\w+['\"]\s*:.*\}\s*\Z", re.S),
    "bytes or array syntax": _matches(r"\Ab(['\"]).*\1\Z|\A(?:array|tensor|Array)\(", re.S),
    "escape sequences written out": _matches(r"\\[nrt'\"]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}"),
    "special tokens": _matches(
        r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    ),
    "role label": _matches(r"\A\s*(?:#+\s*)?(?:assistant|human|user|ai|bot|response|answer)\s*:", re.I),
    "wrong encoding": _matches("\ufffd|\ufeff|â€|Ã[\u0080-\u00bf]|Â[\u00a0-\u00bf]"),
    "HTML entities": _matches(r"&(?:amp|lt|gt|quot|nbsp|#\d{1,5});"),
    "nothing but a null word": _matches(r"\A\s*(?:None|nan|NaN|null|N/A|undefined)\s*\Z"),
}
"""Present or not; a handful one-sided is enough to suspect the rendering."""

SOFT_ARTEFACTS: dict[str, Callable[[str], bool]] = {
    "whitespace at the start": lambda text: text[:1].isspace(),
    "whitespace at the end": lambda text: text[-1:].isspace(),
    "carriage returns": lambda text: "\r" in text,
    "tabs": lambda text: "\t" in text,
    "several spaces in a row": lambda text: "  " in text,
    "invisible or non-breaking spaces": _matches("[\u00a0\u00ad\u200b-\u200f\u2060\u202f]"),
    "decomposed accents": lambda text: not unicodedata.is_normalized("NFC", text),
    "curly quotation marks": _matches("[“”‘’]"),
    "HTML tags": _matches(r"<(?:br|p|/p|div|/div|b|/b|i|/i)\s*/?>", re.I),
    "wrapped in quotation marks": _matches(r"\A\s*(?:\".*\"|'.*'|“.*”)\s*\Z", re.S),
    "no punctuation at the end": _matches(r"\w\s*\Z"),
    "starts with a small letter": lambda text: text.lstrip()[:1].islower(),
    "small letters only": lambda text: text.islower(),
    "capitals only": lambda text: text.isupper(),
    "odd character at the start": _matches(r"\A[^\w\s\"'“‘*#(\-–—>•]"),
    "odd character at the end": _matches(r"[^\w\s.!?…:;\"'”’)*`]\Z"),
}
"""Present or not; possible as a matter of taste, so only an almost perfect and frequent split is
suspicious.
"""
