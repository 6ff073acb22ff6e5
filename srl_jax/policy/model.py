"""Dense Qwen2, Qwen2.5, Qwen3 and Llama models as Flax nnx modules, used as plain pytrees.

The families share one decoder layer: Qwen2 adds biases to queries, keys and values, Qwen3 an RMS
norm of each head's query and key, Llama neither. Attribute names follow Hugging Face's
(`layers.q_proj`); WEIGHT_LETTERS gives each weight's shape, `weight_letters` those of one model.
Weights are kept in the type they were loaded in, float32 masters in training, and cast to the
compute type `config.dtype` where they are used; norms, rotary angles, attention scores and logits
are float32.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from srl_jax.policy import cpu, cudnn, head, kernels, sharding
from srl_jax.policy.attention import Packed, attend
from srl_jax.policy.sharding import (
  all_gather_weight,
  lookup,
  param_spec,
  platform,
  reshard,
)

# The shape letters of every weight; those of `layers` have one more dimension in front, l.
WEIGHT_LETTERS = {
  "embed_tokens": "vd",
  "norm": "d",
  "lm_head": "vd",
  "layers": {
    "input_layernorm": "d",
    "q_proj": "dnh",
    "q_bias": "nh",
    "k_proj": "dkh",
    "k_bias": "kh",
    "v_proj": "dkh",
    "v_bias": "kh",
    "q_norm": "h",
    "k_norm": "h",
    "o_proj": "nhd",
    "post_attention_layernorm": "d",
    "gate_proj": "df",
    "up_proj": "df",
    "down_proj": "fd",
  },
}
# The weights of `layers` that only some families (Hugging Face's model_type) have.
OPTIONAL_WEIGHTS = {
  "qwen2": ("q_bias", "k_bias", "v_bias"),
  "qwen3": ("q_norm", "k_norm"),
  "llama": (),
}
_save = jax.checkpoint_policies.save_only_these_names
# Activations that a layer keeps for the backward pass. "none": all of them. "matmuls": the results
# of its matrix products and of cuDNN's attention, so that elementwise operations and attention
# without cuDNN are recomputed. "attention": these without the two widest, `gate` and `up`, which
# take more memory than all others together. "full": only its input.
REMAT = {
  "none": None,
  "matmuls": _save("projection", "mlp", cudnn.KEPT),
  "attention": _save("projection", cudnn.KEPT),
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Llama3Rope(NamedTuple):
  """The scaling of Llama 3.1's rotary embedding ("llama3" of Hugging Face's rope_scaling).

  Wavelengths above original_max_position_embeddings / low_freq_factor tokens become `factor` times
  as long, those below original_max_position_embeddings / high_freq_factor stay.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture of a dense model, in Hugging Face's names, and the type it computes in."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  max_position_embeddings: int = 32768
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = False
  model_type: str = "qwen2"  # of OPTIONAL_WEIGHTS
  rope_scaling: Llama3Rope | None = None
  dtype: str = "float32"
  attention: str = "xla"  # of kernels.KERNELS, see on_platform

  def on_platform(self, platform: str) -> "ModelConfig":
    """The same architecture with the attention kernel of a platform ("cpu", "gpu", "tpu")."""
    kernel = kernels.choose(platform, self.dtype, self.head_dim)
    return dataclasses.replace(self, attention=kernel)

  @property
  def on_cpu(self) -> bool:
    """Whether the functions of policy.cpu replace those of the main path."""
    return self.attention == "cpu"

  @property
  def by_layer(self) -> bool:
    """Whether the update uses separate weights for each layer; see policy.by_layer."""
    return self.attention == "cudnn"

  @property
  def layout(self) -> str:
    """The layout of packed rows that `attention` reads: "blocks" or "lines" (packing.pack)."""
    return kernels.layout(self.attention)

  def einsum(self, letters: str, a, b, dtype=None):
    """sharding.einsum, or cpu.einsum."""
    run = cpu.einsum if self.on_cpu else sharding.einsum
    return run(letters, a, b, dtype)

  def sizes(self) -> dict[str, int]:
    """Length of each shape letter of WEIGHT_LETTERS."""
    return dict(
      v=self.vocab_size,
      d=self.hidden_size,
      f=self.intermediate_size,
      l=self.num_hidden_layers,
      n=self.num_attention_heads,
      k=self.num_key_value_heads,
      h=self.head_dim,
    )


def weight_letters(config: ModelConfig) -> dict:
  """The entries of WEIGHT_LETTERS that `config` has."""
  other_families = {name for names in OPTIONAL_WEIGHTS.values() for name in names}
  other_families -= set(OPTIONAL_WEIGHTS[config.model_type])
  found = dict(WEIGHT_LETTERS)
  # WEIGHT_LETTERS itself must not change, so the nested dict is replaced, not edited.
  found["layers"] = {k: v for k, v in found["layers"].items() if k not in other_families}
  if config.tie_word_embeddings:
    del found["lm_head"]
  return found


def _param(config, name, letters, rngs):
  """A weight as Qwen2 initialises it: norms 1, biases 0, matrices normal with deviation 0.02."""
  shape = tuple(config.sizes()[letter] for letter in letters)
  if name.endswith("norm"):
    return nnx.Param(jnp.ones(shape))
  if name.endswith("bias"):
    return nnx.Param(jnp.zeros(shape))
  return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


class Layer(nnx.Module):
  """One decoder layer: attention and SwiGLU, each after an RMS norm and with a residual."""

  lora = None  # or the adapters of its matrices, lora.Lora

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    for name, letters in weight_letters(config)["layers"].items():
      setattr(self, name, _param(config, name, letters, rngs))

  def weight(self, name, dtype):
    """Weight `name`, all-gathered along fsdp, in the compute type."""
    return all_gather_weight(getattr(self, name)[...], WEIGHT_LETTERS["layers"][name], dtype)

  def multiply(self, equation, x, name):
    """einsum(equation, x, weight `name`), with what an adapter adds."""
    y = self.config.einsum(equation, x, self.weight(name, x.dtype))
    if self.lora is None or name not in self.lora.shape.targets:
      return y
    return y + self.lora.delta(self.config.einsum, equation, x, name)

  def project(self, y_btd, name):
    """Queries ("q"), keys ("k") or values ("v") of y_btd before rotation: btnh or btkh."""
    letters = WEIGHT_LETTERS["layers"][f"{name}_proj"]  # dnh or dkh
    x = self.multiply(f"btd,{letters}->bt{letters[1:]}", y_btd, f"{name}_proj")
    if hasattr(self, f"{name}_bias"):
      x += self.weight(f"{name}_bias", x.dtype)
    if hasattr(self, f"{name}_norm"):
      x = rms_norm(x, self.weight(f"{name}_norm", x.dtype), self.config.rms_norm_eps)
    return x

  def __call__(self, x_btd, rotary, state):
    """(x_btd, memory) after this layer; rotary = (cos_bth, sin_bth), state as attention.attend."""
    w = lambda name: self.weight(name, x_btd.dtype)
    kept = lambda x: checkpoint_name(x, "projection")
    y = rms_norm(x_btd, w("input_layernorm"), self.config.rms_norm_eps)
    q, k, v = (self.project(y, name) for name in "qkv")
    q, k, v = kept(rotate(q, rotary)), kept(rotate(k, rotary)), kept(v)
    out, memory = attend(q, k, v, state, self.config.attention)
    x_btd = kept(x_btd + self.multiply("btnh,nhd->btd", out, "o_proj"))
    y = rms_norm(x_btd, w("post_attention_layernorm"), self.config.rms_norm_eps)
    gate = checkpoint_name(self.multiply("btd,df->btf", y, "gate_proj"), "mlp")
    up = checkpoint_name(self.multiply("btd,df->btf", y, "up_proj"), "mlp")
    return x_btd + self.multiply("btf,fd->btd", jax.nn.silu(gate) * up, "down_proj"), memory


class Qwen2(nnx.Module):
  """A Qwen2 policy. `layers` is one Layer with its weights stacked along a leading dimension l, or
  a list of layers (lora.unstack, by_layer.cast).
  """

  lora = None  # or its adapters, lora.Lora

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.embed_tokens = _param(config, "embed_tokens", WEIGHT_LETTERS["embed_tokens"], rngs)
    keys = jax.random.split(rngs.params(), config.num_hidden_layers)
    self.layers = jax.vmap(lambda key: Layer(config, nnx.Rngs(key)))(keys)
    self.norm = _param(config, "norm", WEIGHT_LETTERS["norm"], rngs)
    if not config.tie_word_embeddings:
      self.lm_head = _param(config, "lm_head", WEIGHT_LETTERS["lm_head"], rngs)

  def embed(self, tokens_bt):
    """x_btd, the embeddings of tokens_bt (int32) in the compute type."""
    return lookup(self.embed_tokens[...], tokens_bt, self.config.dtype)

  def hidden(
    self, tokens_bt, positions_bt, segments_bt, branches_bt=None, layout=None, *, remat="none"
  ):
    """Final hidden states of packed rows.

    Args:
      tokens_bt: int32.
      positions_bt: int32, position of each token in its sequence; those of a response that shares
        its prompt start at the prompt's length.
      segments_bt: int32, 0 = padding, 1.. = sequences, which do not see each other.
      branches_bt: int32 or None; 0 for the tokens of a prompt, 1.. for the responses that share it.
      layout: attention.Lines, cpu.Blocks or None, see attention.Packed.
      remat: of REMAT, selects what the backward pass recomputes.

    Returns:
      hidden_btd in the compute type, after the final norm; garbage at padding.
    """
    state = Packed(positions_bt, segments_bt, branches_bt, layout)
    rotary = rotary_angles(positions_bt, self.config)

    # A scan over the stacked weights, so that one layer is compiled, not all of them.
    def body(x_btd, layer):
      return layer(x_btd, rotary, state)[0], None

    if remat != "none":
      body = jax.checkpoint(body, policy=REMAT[remat])
    layers = self.layers if self.lora is None else self.lora.onto(self.layers)
    x_btd = self.embed(tokens_bt)
    if isinstance(layers, nnx.List):
      for layer in layers:
        x_btd, _ = body(x_btd, layer)
    else:
      x_btd, _ = jax.lax.scan(body, x_btd, layers)
    return self.final_norm(x_btd)

  def final_norm(self, x_btd):
    """x_btd after the norm before the output head."""
    weight = all_gather_weight(self.norm[...], WEIGHT_LETTERS["norm"], x_btd.dtype)
    return rms_norm(x_btd, weight, self.config.rms_norm_eps)

  def logits(self, hidden_btd):
    """logits_btv in float32 from hidden states; v is sharded over the tensor axis."""
    head_vd = all_gather_weight(self._head(), WEIGHT_LETTERS["lm_head"], self.config.dtype)
    return self.config.einsum("btd,vd->btv", hidden_btd, head_vd, dtype=jnp.float32)

  def loss_logits(self):
    """A function hidden_acd -> logits_acw of the loss; see head.loss_logits."""
    return head.loss_logits(self._head(), self.config)

  def _head(self):
    tied = self.config.tie_word_embeddings
    return (self.embed_tokens if tied else self.lm_head)[...]


def rms_norm(x, weight, eps):
  """x / rms(x) * weight over the last dimension; the mean is taken in float32."""
  exact = x.astype(jnp.float32)
  exact *= jax.lax.rsqrt(jnp.mean(exact * exact, axis=-1, keepdims=True) + eps)
  return exact.astype(x.dtype) * weight


def rotary_angles(positions_bt, config):
  """(cos_bth, sin_bth) in float32 for positions_bt; h is the half of the head size."""
  # In Hugging Face's order of operations: at position 10,000 the last bit of float32 matters.
  exponent_h = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
  frequency_h = np.float32(1.0) / np.float32(config.rope_theta) ** exponent_h
  if config.rope_scaling is not None:
    frequency_h = _stretch(frequency_h, config.rope_scaling)
  angle_bth = positions_bt[:, :, None].astype(jnp.float32) * frequency_h
  return jnp.cos(angle_bth), jnp.sin(angle_bth)


def _stretch(frequency_h, rope: Llama3Rope):
  """Frequencies (radians a token) of Llama 3.1, with a linear transition between the two limits."""
  # Turns of each frequency over the original context: below low_freq_factor it is stretched, above
  # high_freq_factor kept, and in between a weighted mean of both.
  turns_h = rope.original_max_position_embeddings * frequency_h / np.float32(2 * np.pi)
  keep_h = (turns_h - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
  keep_h = np.clip(keep_h, 0, 1).astype(np.float32)
  return (1 - keep_h) * frequency_h / np.float32(rope.factor) + keep_h * frequency_h


def rotate(x_btnh, rotary):
  """Rotary embedding in Hugging Face's layout: dimension i of a head is paired with i + h."""
  cos, sin = (angle[:, :, None, :] for angle in rotary)
  # (first, second) are the two coordinates of each pair, turned by the angle of the position.
  first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_btnh.dtype)


def partition_specs(config: ModelConfig) -> dict:
  """{weight name: PartitionSpec}, nested as WEIGHT_LETTERS, for the weights that `config` has."""
  letters = weight_letters(config)
  specs = {name: param_spec(s) for name, s in letters.items() if name != "layers"}
  specs["layers"] = {name: param_spec("l" + s) for name, s in letters["layers"].items()}
  return specs


def abstract(config: ModelConfig) -> Qwen2:
  """The model with ShapeDtypeStruct in place of its weights, sharded if a mesh is set."""
  return jax.eval_shape(lambda: shard(Qwen2(config, nnx.Rngs(0))))


def shard(model: Qwen2) -> Qwen2:
  """The model with every weight sharded as `partition_specs` on the mesh that is set."""
  specs = partition_specs(model.config)
  for name, spec in specs.items():
    if name == "layers":
      for inner, inner_spec in spec.items():
        param = getattr(model.layers, inner)
        param.set_value(reshard(param[...], inner_spec))
    else:
      param = getattr(model, name)
      param.set_value(reshard(param[...], spec))
  return model


def init(config: ModelConfig, seed: int) -> Qwen2:
  """A model with random float32 weights, the same on every mesh up to rounding."""
  config = config.on_platform(platform())
  return jax.jit(lambda key: shard(Qwen2(config, nnx.Rngs(key))))(jax.random.key(seed))
