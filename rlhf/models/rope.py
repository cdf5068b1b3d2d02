"""Rotary positions: what `config.json` says of them, frequencies, tables.

Every kind is what transformers computes for as many positions as the decoder takes (`modeling_rope_utils`). Two kinds change
with the length of the sequence, and are taken up to where they do:
  dynamic   is the default up to `max_position_embeddings`;
  longrope  is its short form up to `original_max_position_embeddings`, which becomes the decoder's limit.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rlhf.models.families import ROPE_THETA
from rlhf.models.hf_values import Values, cut

KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
_ALWAYS = frozenset({"rope_type", "type", "rope_theta"})
_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        "factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim truncate".split()
    ),
    "longrope": frozenset(
        "factor original_max_position_embeddings attention_factor short_factor long_factor".split()
    ),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer.

    Attributes:
      theta: base of the frequencies.
      kind: "default", "linear" (frequencies divided by `factor`), "llama3" and "yarn" (only the low ones, with a ramp), or
        "longrope" (each divided by a number of its own).
      factor, low_freq_factor, high_freq_factor, original_positions: parameters of the scaled kinds; for yarn the low and high
        factor are its `beta_slow` and `beta_fast`.
      share: of a head's width that is turned.
      amplitude: what cos and sin are multiplied with.
      truncate: whether yarn rounds the ends of its ramp outwards.
      divisors: of longrope.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192
    share: float = 1.0
    amplitude: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()

    def width(self, head_dim: int) -> int:
        """Numbers of a head that are turned."""
        return int(head_dim * self.share)

    def limit(self, max_positions: int) -> int:
        """Positions for which the frequencies are these."""
        return min(max_positions, self.original_positions) if self.kind == "longrope" else max_positions


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Inverse wavelengths, float32, half as many as numbers are turned."""
    width = rope.width(head_dim)
    plain = 1.0 / rope.theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    scaled = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}.get(rope.kind)
    return (plain if scaled is None else scaled(rope, plain)).astype(np.float32)


def _linear(rope: Rope, plain: np.ndarray) -> np.ndarray:
    return plain / rope.factor


def _longrope(rope: Rope, plain: np.ndarray) -> np.ndarray:
    return plain / np.array(rope.divisors)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Short wavelengths stay, long ones are stretched, a ramp between."""
    wavelength = 2 * math.pi / plain
    low = rope.original_positions / rope.low_freq_factor
    high = rope.original_positions / rope.high_freq_factor
    ramp = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - ramp) * plain / rope.factor + ramp * plain
    scaled = np.where(wavelength > low, plain / rope.factor, plain)
    return np.where((wavelength <= low) & (wavelength >= high), between, scaled)


def _yarn(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Dimensions that turn more than β_fast times over the original positions stay, less than β_slow are stretched."""
    width = 2 * len(plain)

    def dimension(turns: float) -> float:
        return width * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.high_freq_factor), dimension(rope.low_freq_factor)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if low == high else high
    stretched = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    return plain / rope.factor * stretched + plain * (1 - stretched)


def tables(rope: Rope, head_dim: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, h/2], or less where only a share of a head is turned."""
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies(rope, head_dim)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if rope.amplitude == 1.0 else (cos * rope.amplitude, sin * rope.amplitude)


def still(tables: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Tables of the same shape that turn nothing, for layers without positions."""
    return jnp.ones_like(tables[0]), jnp.zeros_like(tables[1])


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the two halves of what is turned of each head of x[B, T, heads, h] (Hugging Face's layout)."""
    cos, sin = tables
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(parts + [rest] * (rest.shape[-1] > 0), axis=-1).astype(x.dtype)


def read(values: Values, family: str, head_dim: int) -> tuple[Rope, Rope]:
    """Global and local rotary embeddings; both spellings, `rope_theta`/`rope_scaling` and `rope_parameters`."""
    raw, default = values.raw, ROPE_THETA.get(family, 10_000.0)
    parameters, scaling = values.section("rope_parameters"), values.section("rope_scaling")
    local = 10_000.0 if family == "gemma3_text" else default
    if "full_attention" in parameters:
        parts = []
        for name, base in (("full_attention", default), ("sliding_attention", local)):
            key, part = f"rope_parameters.{name}", parameters.get(name)
            if not isinstance(part, Mapping):
                raise values.refuse(key, f"must be a section, not {cut(part)}")
            theta = _theta(values, {f"{key}.rope_theta": part}, base)
            parts.append(_read_one(values, key, part, theta, head_dim))
        return parts[0], parts[1]
    theta = _theta(values, {"rope_parameters.rope_theta": parameters, "rope_theta": raw}, default)
    key, section = ("rope_parameters", parameters) if parameters else ("rope_scaling", scaling)
    rope = _read_one(values, key, section, theta, head_dim)
    if family == "gemma3_text":
        return rope, Rope(values.number("rope_local_base_freq", 10_000.0))
    # OLMo 3 stretches the layers that see everything alone; its first files gave rope_theta to those of both kinds.
    return rope, Rope(theta) if family == "olmo3" else rope


def _theta(values: Values, places: Mapping[str, Mapping[str, object]], default: float) -> float:
    """The first base that is given; every one that is given is checked, null included where the file writes it."""
    found = None
    for key, section in places.items():
        if "rope_theta" not in section:
            continue
        value = section["rope_theta"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise values.refuse(key, f"must be a number above 0, not {cut(value)}")
        found = float(value) if found is None else found
    return default if found is None else found


def _read_one(values: Values, key: str, scaling: Mapping[str, object], theta: float, head_dim: int) -> Rope:
    """One rotary embedding from the section `key` of the file."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if values.family == "phi3" and kind in ("su", "yarn"):  # its first files' names for longrope
        kind = "longrope"
    if not isinstance(kind, str) or kind not in KINDS:
        raise values.refuse(key, f"{cut(kind)} is not supported; use one of {', '.join(KINDS)}")
    for name, value in scaling.items():
        known = _ALWAYS | _KEYS[kind] | ({"partial_rotary_factor"} if values.family == "phi3" else set())
        if name not in known and value is not None and (name, value) != ("partial_rotary_factor", 1.0):
            raise values.refuse(
                f"{key}.{name}", f"{cut(value)}: not known for {kind} positions; use another model"
            )
    part = _Section(values, key, scaling)
    rope = Rope(theta, kind, share=_share(values, part, head_dim))
    if kind in ("default", "dynamic"):
        return dataclasses.replace(rope, kind="default")
    if kind == "linear":
        return dataclasses.replace(rope, factor=part.number("factor"))
    if kind == "longrope":
        return _read_longrope(values, part, rope, head_dim)
    if kind == "yarn":
        return _read_yarn(values, part, rope)
    original = int(part.number("original_max_position_embeddings"))
    rope = dataclasses.replace(rope, factor=part.number("factor"), original_positions=original)
    low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
    if low >= high:
        raise values.refuse(f"{key}.low_freq_factor", f"must be below high_freq_factor {high}, not {low}")
    return dataclasses.replace(rope, low_freq_factor=low, high_freq_factor=high)


class _Section:
    """Numbers of one section."""

    def __init__(self, values: Values, key: str, raw: Mapping[str, object]):
        self.values, self.key, self.raw = values, key, raw

    def optional(self, name: str) -> float | None:
        return None if self.raw.get(name) is None else self.number(name)

    def number(self, name: str, value: object = None) -> float:
        value = self.raw.get(name) if value is None else value
        if value is None:
            raise self.values.refuse(
                f"{self.key}.{name}", "missing; take the file that came with the weights"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.values.refuse(f"{self.key}.{name}", f"must be a number above 0, not {cut(value)}")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        value = self.raw.get(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.values.refuse(f"{self.key}.{name}", f"must be {count} numbers, not {cut(value)}")
        return tuple(self.number(name, one) for one in value)


def _share(values: Values, part: _Section, head_dim: int) -> float:
    """Share of a head that is turned; the section's word counts before the file's."""
    if values.family != "phi3":
        return 1.0
    share = part.optional("partial_rotary_factor")
    if share is None:
        share = values.number("partial_rotary_factor", 1.0)
    if share > 1 or int(head_dim * share) < 2 or int(head_dim * share) % 2:
        raise values.refuse(
            "partial_rotary_factor", f"must turn an even number of a head's {head_dim}, not {share}"
        )
    return share


def _stretched(values: Values, part: _Section) -> tuple[int, float]:
    """Positions that the model was first trained with, and by how much they are stretched: by default, to all there are."""
    name, most = "original_max_position_embeddings", values.number("max_position_embeddings")
    if values.family == "phi3":  # whose files give it outside the section
        original = values.number(name)
    else:
        original = part.optional(name) or most
    factor = part.optional("factor")
    return int(original), most / original if factor is None else factor


def _read_longrope(values: Values, part: _Section, rope: Rope, head_dim: int) -> Rope:
    half = rope.width(head_dim) // 2
    original, factor = _stretched(values, part)
    part.numbers("long_factor", half)  # checked; of longer texts than the decoder takes
    amplitude = part.optional("attention_factor")
    if amplitude is None:
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return dataclasses.replace(
        rope,
        divisors=part.numbers("short_factor", half),
        original_positions=original,
        amplitude=amplitude,
    )


def _read_yarn(values: Values, part: _Section, rope: Rope) -> Rope:
    original, factor = _stretched(values, part)

    def mscale(scale: float, by: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0

    amplitude = part.optional("attention_factor")
    if amplitude is None:
        one, all_dim = part.optional("mscale"), part.optional("mscale_all_dim")
        amplitude = mscale(factor)
        if one is not None and all_dim is not None:
            amplitude = mscale(factor, one) / mscale(factor, all_dim)
    truncate = part.raw.get("truncate", True)
    if not isinstance(truncate, bool):
        raise values.refuse(f"{part.key}.truncate", f"must be true or false, not {cut(truncate)}")
    fast, slow = part.optional("beta_fast") or 32.0, part.optional("beta_slow") or 1.0
    if slow >= fast:
        raise values.refuse(f"{part.key}.beta_slow", f"must be below beta_fast {fast}, not {slow}")
    rope = dataclasses.replace(rope, factor=factor, original_positions=original, amplitude=amplitude)
    return dataclasses.replace(rope, truncate=truncate, low_freq_factor=slow, high_freq_factor=fast)
