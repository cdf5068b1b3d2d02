"""Linear layers with LoRA and the K-direction conditioner; what adapters a decoder carries.

    y = x W + b + s (x A) B + ((x A_c) ⊙ g(z)) B_c,   g(z) = z repeated r times, s = alpha / rank

The conditioner is ΔW(z) = Σ_k z_k A_k B_k: linear in z, exactly zero at z = 0, and at initialisation
(B = B_c = 0) the layer is the frozen one. Every row of a batch may carry another z at the cost of two thin
products whose inner width is K·r. The other kinds of conditioner are in `conditioners.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rewards.files import JSONObject
from rlhf.models import quantised
from rlhf.models.config import Kept
from rlhf.models.layout import HostOrDevice


class Lora(nnx.Variable):
    """A LoRA factor."""


class Conditioner(nnx.Variable):
    """A factor of the K-direction conditioner."""


@dataclasses.dataclass(frozen=True)
class Words:
    """Coefficients as text, already tokenised, so that a traced z can choose among it.

    Attributes:
      phrases: token ids of [axis][level]; the middle level, z near 0, is empty.
      begin: tokens that open every plain prompt (`Tokenizer.begin_ids`); the words follow them.
    """

    phrases: tuple[tuple[tuple[int, ...], ...], ...]
    begin: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """Which adapters a decoder carries; LoRA and what acts on layers only on those of the top stage.

    Attributes:
      lora_rank: 0 for none.
      lora_alpha: scale numerator, s = alpha / rank.
      num_basis: K, the length of z; 0 for no conditioner.
      basis_rank: r directions for each basis output; total inner width K·r (at most 64 keeps the cost near 15 %).
      kind: of conditioner, a key of `conditioner_kinds.KINDS`.
      slots: M, extra attention slots a layer (prefix).
      shift: whether FiLM also shifts (film).
      words: what each level of each axis reads (text).
    """

    lora_rank: int = 0
    lora_alpha: float = 32.0
    num_basis: int = 0
    basis_rank: int = 0
    kind: str = "low_rank"
    slots: int = 0
    shift: bool = True
    words: Words | None = None

    def has(self, kind: str) -> bool:
        """Whether there is a conditioner, of this kind."""
        return bool(self.num_basis) and self.kind == kind

    def record(self) -> JSONObject:
        """Plain values for policy.json; what a low-rank conditioner does not need is left out."""
        values, plain = dataclasses.asdict(self), dataclasses.asdict(AdapterSpec())
        kept = ("lora_rank", "lora_alpha", "num_basis", "basis_rank")
        return {name: value for name, value in values.items() if name in kept or value != plain[name]}

    @classmethod
    def from_record(cls, record: JSONObject) -> "AdapterSpec":
        """Read what `record` wrote (and JSON turned into lists)."""
        words = record.get("words")
        if words:
            phrases = tuple(tuple(tuple(ids) for ids in axis) for axis in words["phrases"])
            words = Words(phrases, tuple(words["begin"]))
        return cls(**{**record, "words": words})

    @property
    def lora_scale(self) -> float:
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


class Linear(nnx.Module):
    """[in, out] kernel with optional bias, LoRA and conditioner; `kept`: how the kernel is kept, None as `dtype`."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        bias: bool,
        spec: AdapterSpec | None,
        dtype,
        rngs: nnx.Rngs,
        kept: Kept | None = None,
    ):
        uniform = jax.nn.initializers.he_uniform()
        self.kept = kept
        if kept in quantised.CODES:
            codes, scales = quantised.shapes(kept, (num_in, num_out))
            self.codes = nnx.Param(jnp.zeros(codes.shape, codes.dtype))
            self.scales = nnx.Param(jnp.ones(scales.shape, scales.dtype))
        else:
            kernel = jax.nn.initializers.lecun_normal()(rngs.params(), (num_in, num_out), kept or dtype)
            self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros((num_out,), dtype)) if bias else None
        self.lora_scale = spec.lora_scale if spec else 0.0
        self.has_lora = bool(spec and spec.lora_rank)
        self.has_basis = bool(spec and spec.has("low_rank"))
        if spec is not None and self.has_lora:
            self.lora_a = Lora(uniform(rngs.params(), (num_in, spec.lora_rank), jnp.float32))
            self.lora_b = Lora(jnp.zeros((spec.lora_rank, num_out), jnp.float32))
        if spec is not None and self.has_basis:
            inner = spec.num_basis * spec.basis_rank
            self.basis_a = Conditioner(uniform(rngs.params(), (num_in, inner), jnp.float32))
            self.basis_b = Conditioner(jnp.zeros((inner, num_out), jnp.float32))

    def __call__(self, x: jax.Array, gate: jax.Array | None) -> jax.Array:
        """x: [batch, time, in]; gate: [batch, 1, K·r] or None where nobody is addressed (z = 0)."""
        y = self.product(x)
        if self.bias is not None:
            y = y + self.bias[...]
        if self.has_lora:
            inner = x @ self.lora_a[...].astype(x.dtype)
            y = y + (inner * self.lora_scale) @ self.lora_b[...].astype(x.dtype)
        if self.has_basis and gate is not None:
            inner = (x @ self.basis_a[...].astype(x.dtype)) * gate.astype(x.dtype)
            y = y + inner @ self.basis_b[...].astype(x.dtype)
        return y

    def product(self, x: jax.Array) -> jax.Array:
        """x W, in the type of x."""
        if self.kept is None:
            return x @ self.kernel[...]
        if self.kept in quantised.CODES:
            return quantised.matmul(x, quantised.Quantised(self.codes[...], self.scales[...]))
        return quantised.matmul(x, self.kernel[...])


def gate_of(z: jax.Array, spec: AdapterSpec) -> jax.Array:
    """z: [batch, K] → [batch, 1, K·r]."""
    return jnp.repeat(z, spec.basis_rank, axis=-1)[:, None, :]


def merged_kernel(layer: dict[str, jax.Array], spec: AdapterSpec, z: HostOrDevice | None) -> jax.Array:
    """Fold LoRA, and the conditioner at one z[K], into a (possibly stacked) kernel [..., in, out].

    Args:
      layer: the arrays of one `Linear` by name.
      spec: what the adapters mean.
      z: coefficients of the one person to merge, or None for the aggregate policy.
    Returns:
      float32 whatever the kernel's type: a change is smaller than the kernel, and rounded away in bfloat16 for half of
      its entries; whoever stores or runs the result rounds it, once.
    """
    kernel = layer["kernel"].astype(jnp.float32)
    if "lora_a" in layer:
        kernel = kernel + spec.lora_scale * (layer["lora_a"] @ layer["lora_b"])
    if "basis_a" in layer and z is not None:
        kernel = kernel + (layer["basis_a"] * jnp.repeat(z, spec.basis_rank)) @ layer["basis_b"]
    return kernel
