"""Causal self-attention of whole sequences, one per row: the kernel of each platform.

Everything here runs on one device's shard; attention.attend shards the batch and the heads.
NVIDIA GPUs use cuDNN's flash attention (bfloat16 and float16, head size <= 128; it takes the rows'
lengths but no segments), TPUs use splash attention (padding is a separate segment). Where neither
fits, attention is plain XLA.
"""

import math

import jax
import jax.numpy as jnp

KERNELS = ("cudnn", "splash", "xla", "cpu")
BLOCK = {"cudnn": 128, "splash": 128}  # these kernels need sequence lengths in multiples of it
NEGATIVE = -1e30  # finite, so that a row of padding only has finite outputs


def choose(platform: str, dtype: str, head_dim: int) -> str:
  """The attention of a platform ("gpu", "cuda", "tpu", "cpu", ...), compute type and head size.

  No other place selects the policy's code by the platform. Rows for "cpu" are packed in blocks
  (policy.cpu), rows for all others in lines (attention.Lines).
  """
  if platform in ("gpu", "cuda") and jnp.dtype(dtype).itemsize == 2 and head_dim <= 128:
    return "cudnn"
  if platform == "tpu" and head_dim % 64 == 0:
    return "splash"
  return "cpu" if platform == "cpu" else "xla"


def layout(kernel: str) -> str:
  """The layout of packed rows that a kernel of KERNELS reads: "blocks" or "lines"."""
  return "blocks" if kernel == "cpu" else "lines"


def decodes_by_row(kernel: str, head_dim: int) -> bool:
  """Whether a policy with that attention decodes with policy.decode_attention, made for GPUs."""
  return kernel == "cudnn" and head_dim in (16, 32, 64, 128)


def padded_length(length: int, kernel: str) -> int:
  """`length` rounded up to a length that the kernel accepts."""
  block = BLOCK.get(kernel, 1)
  return -(-length // block) * block


def causal(q_btnh, k_btkh, v_btkh, lengths_b, kernel: str):
  """out_btnh: every token attends to itself and to those before it.

  Args:
    lengths_b: int32, tokens of each row before its padding. The output at padding is 0.
    kernel: of KERNELS; t must be a multiple of its BLOCK.
  """
  run = {"cudnn": _cudnn, "splash": _splash, "xla": _xla, "cpu": _xla}[kernel]
  out_btnh = run(q_btnh, k_btkh, v_btkh, lengths_b)
  # A kernel's output at padding is undefined.
  real_bt = jnp.arange(q_btnh.shape[1]) < lengths_b[:, None]
  return jnp.where(real_bt[:, :, None, None], out_btnh, 0)


def merge(one, other):
  """The softmax statistics of two parts of the entries together, each (out, most, total).

  most is the largest score, total the sum of exp(score - most), out the sum of the values times it;
  out has one dimension more, the last.
  """
  most = jnp.maximum(one[1], other[1])
  # Each part's sums are relative to its own maximum.
  a, b = jnp.exp(one[1] - most), jnp.exp(other[1] - most)
  return one[0] * a[..., None] + other[0] * b[..., None], most, one[2] * a + other[2] * b


def masked(q_btnh, k_btkh, v_btkh, mask_bts):
  """Attention in plain XLA under a mask by which no token sees a later one.

  It is computed in parts of the queries, each without the keys after it. All scores of a part exist
  at one time, in float32.
  """
  parts = [
    _masked(q_btnh[:, start:end], k_btkh[:, :end], v_btkh[:, :end], mask_bts[:, start:end, :end])
    for start, end in query_parts(q_btnh.shape[1])
  ]
  return jnp.concatenate(parts, axis=1)


def query_parts(t: int) -> list[tuple[int, int]]:
  """(start, end) of the parts of t queries: four of them, which saves 3/8 of all pairs."""
  size = max(128, -(-t // 4))
  return [(start, min(start + size, t)) for start in range(0, t, size)]


def _masked(q_btnh, k_bskh, v_bskh, mask_bts):
  b, t, n, h = q_btnh.shape
  k = k_bskh.shape[2]
  q = q_btnh.reshape(b, t, k, n // k, h)
  scores = jnp.einsum("btkqh,bskh->bkqts", q, k_bskh, preferred_element_type=jnp.float32)
  # Softmax in float32, also for a bfloat16 policy.
  scores = jnp.where(mask_bts[:, None, None], scores / math.sqrt(h), NEGATIVE)
  probs = jax.nn.softmax(scores, axis=-1)
  out = jnp.einsum("bkqts,bskh->btkqh", probs.astype(v_bskh.dtype), v_bskh)
  return out.reshape(b, t, n, h)


def _xla(q_btnh, k_btkh, v_btkh, lengths_b):
  index = jnp.arange(q_btnh.shape[1])
  mask_bts = (index[:, None] >= index) & (index < lengths_b[:, None, None])
  return masked(q_btnh, k_btkh, v_btkh, mask_bts)


def _cudnn(q_btnh, k_btkh, v_btkh, lengths_b):
  lengths_b = jnp.maximum(lengths_b, 1)  # a row without a token has no softmax
  return jax.nn.dot_product_attention(
    q_btnh,
    k_btkh,
    v_btkh,
    is_causal=True,
    query_seq_lengths=lengths_b,
    key_value_seq_lengths=lengths_b,
    implementation="cudnn",
  )


def _splash(q_btnh, k_btkh, v_btkh, lengths_b, interpret=False):
  b, t, n, h = q_btnh.shape
  k = k_btkh.shape[2]
  run = _splash_kernel(t, n // k, interpret)
  # Real tokens are segment 1, padding is segment 0, so that neither attends to the other.
  segments_bt = (jnp.arange(t) < lengths_b[:, None]).astype(jnp.int32)
  # The kernel does not divide the scores by sqrt(h), so the queries are divided.
  q_bkqth = (q_btnh / math.sqrt(h)).astype(q_btnh.dtype).reshape(b, t, k, n // k, h)
  q_bkqth = q_bkqth.transpose(0, 2, 3, 1, 4)
  k_bkth, v_bkth = k_btkh.transpose(0, 2, 1, 3), v_btkh.transpose(0, 2, 1, 3)
  of_head = jax.vmap(run, in_axes=(0, 0, 0, None))  # over k
  out_bkqth = jax.vmap(of_head)(q_bkqth, k_bkth, v_bkth, _segment_ids(segments_bt))
  return out_bkqth.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _segment_ids(segments_bt):
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  return SegmentIds(q=segments_bt, kv=segments_bt)


def _splash_kernel(t: int, heads: int, interpret: bool):
  """The kernel of `heads` query heads on one key/value head, for rows of t tokens."""
  # Imported here, because the import takes a second that other platforms do not need.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  size = next(size for size in (512, 384, 256, 128, t) if t % size == 0)
  # Not the fused backward kernel: it stores the queries' gradient once for each block of keys.
  sizes = dict.fromkeys(
    ["block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"], size
  )
  mask = splash.MultiHeadMask([splash.CausalMask((t, t))] * heads)
  # Not cached between calls: its mask's tables belong to the program that is being traced.
  return splash.make_splash_mqa_single_device(
    mask, block_sizes=splash.BlockSizes(**sizes), interpret=interpret
  )


@jax.custom_vjp
def take_tokens(x_btnh, index_bs, inverse_btg):
  """x_bsnh: the tokens of each row at the given indices, 0 where an index is -1.

  The gradient is written as a gather as well: XLA would derive a scatter-add, which on GPUs is
  atomic additions in bfloat16.

  Args:
    index_bs: int32, indices into t.
    inverse_btg: int32, indices into s: the up to g outputs that are copies of the token, or -1. Its
      gradient is the sum of theirs.
  """
  del inverse_btg
  return gather_tokens(x_btnh, index_bs)


def gather_tokens(x_btnh, index_bs):
  """x_bsnh: the tokens of each row at the given indices, 0 where an index is -1."""
  # An index of -1 reads entry 0, which the mask below replaces by 0.
  taken = jax.vmap(lambda x, index: x[jnp.maximum(index, 0)])(x_btnh, index_bs)
  return jnp.where(index_bs[:, :, None, None] >= 0, taken, 0)


def sum_tokens(x_bsnh, index_btg):
  """x_btnh: the sums, in float32, of the entries at each token's up to g indices; -1 is none."""
  total_btnh = 0.0
  for g in range(index_btg.shape[2]):
    total_btnh += gather_tokens(x_bsnh, index_btg[:, :, g]).astype(jnp.float32)
  return total_btnh.astype(x_bsnh.dtype)


def _take_tokens_fwd(x_btnh, index_bs, inverse_btg):
  return gather_tokens(x_btnh, index_bs), inverse_btg


def _take_tokens_bwd(inverse_btg, grad_bsnh):
  return sum_tokens(grad_bsnh, inverse_btg), None, None


take_tokens.defvjp(_take_tokens_fwd, _take_tokens_bwd)
