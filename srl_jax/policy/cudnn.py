"""cuDNN's attention of packed rows in lines, with a gradient that keeps arrays of tokens only.

JAX's function keeps its arguments and its result for the backward pass, and here these are lines:
a prompt is in as many lines as it has responses, and lines are padded, so they have five to ten
times as many entries as the row has tokens. `attend_in_lines` keeps queries, keys, values and the
output once for each token, and of the lines only softmax's statistics, one float32 for each entry
and head. All copies of a token have the same output, so the backward pass gathers it into lines
again and needs no second forward pass of the kernel.

The two calls of the kernel are private in JAX, because its public function returns the statistics
in bfloat16 and takes none. tests/policy/cudnn_test.py traces them with every JAX that is supported.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from srl_jax.policy.kernels import gather_tokens, sum_tokens

KEPT = "attention"  # the checkpoint name of the output and of softmax's statistics


def _static(head_dim: int) -> tuple:
  """The arguments of JAX's rules that are no arrays: causal, with the lengths of the rows."""
  from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn  # a GPU's runs only

  scale, seed, dropout_rate, has_bias_and_its_gradient = (
    1 / math.sqrt(head_dim),
    42,
    0.0,
    (False,) * 2,
  )
  mask, layout, window = (
    jax_cudnn.MaskType.PADDING_CAUSAL,
    jax_cudnn.AttentionLayout.BTNH.value,
    None,
  )
  version, return_residual = jax_cudnn.check_cudnn_version(), False
  return (
    *(scale, seed, dropout_rate, has_bias_and_its_gradient),
    *(mask, layout, window, version, return_residual),
  )


def forward(q_btnh, k_btkh, v_btkh, lengths_b):
  """(out_btnh, stats_bnt) of causal rows; stats are the float32 logarithms of softmax's sums.

  lengths_b: int32, at least 1; outputs and statistics at padding are undefined.
  """
  from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

  none = jnp.zeros(0, q_btnh.dtype)
  arrays = q_btnh, k_btkh, v_btkh, none, lengths_b, lengths_b, none, none, none, none
  out, kept = jax_cudnn._dot_product_attention_fwd_rule(*arrays, *_static(q_btnh.shape[-1]))
  return out, kept[10]


def backward(q_btnh, k_btkh, v_btkh, lengths_b, out_btnh, stats_bnt, grad_btnh):
  """The gradients of q_btnh, k_btkh and v_btkh from that of the output; undefined at padding."""
  from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

  none = jnp.zeros(0, q_btnh.dtype)
  arrays = q_btnh, k_btkh, v_btkh, none, lengths_b, lengths_b, none, none, none, none
  kept = (*arrays, stats_bnt, out_btnh)
  return jax_cudnn._dot_product_attention_bwd_rule(*_static(q_btnh.shape[-1]), kept, grad_btnh)[:3]


@jax.custom_vjp
def attend_in_lines(q_btnh, k_btkh, v_btkh, lines):
  """out_btnh of packed rows; 0 at padding. `lines` is an attention.Lines."""
  return _forward(q_btnh, k_btkh, v_btkh, lines)[0]


def _in_lines(x_btnh, lines):
  """x_zlnh: the tokens of each line; z are the b * m lines of all rows, padding is 0."""
  b, m, l = lines.token_index_bml.shape
  x_bsnh = gather_tokens(x_btnh, lines.token_index_bml.reshape(b, m * l))
  return x_bsnh.reshape(b * m, l, *x_btnh.shape[2:])


def _lengths(lines):
  lengths_bm = (lines.token_index_bml >= 0).sum(axis=-1, dtype=jnp.int32)
  return jnp.maximum(lengths_bm.reshape(-1), 1)  # a row without a token has no softmax


def _forward(q_btnh, k_btkh, v_btkh, lines):
  b, m, l = lines.token_index_bml.shape
  inputs = (_in_lines(x, lines) for x in (q_btnh, k_btkh, v_btkh))
  out_zlnh, stats_znl = forward(*inputs, _lengths(lines))
  out_bsnh = out_zlnh.reshape(b, m * l, *q_btnh.shape[2:])
  return gather_tokens(out_bsnh, lines.copy_index_btg[:, :, 0]), stats_znl


def _attend_fwd(q_btnh, k_btkh, v_btkh, lines):
  out_btnh, stats_znl = (checkpoint_name(x, KEPT) for x in _forward(q_btnh, k_btkh, v_btkh, lines))
  return out_btnh, (q_btnh, k_btkh, v_btkh, lines, out_btnh, stats_znl)


def _attend_bwd(kept, grad_btnh):
  q_btnh, k_btkh, v_btkh, lines, out_btnh, stats_znl = kept
  b, m, l = lines.token_index_bml.shape
  # The output of a token is its first copy's, so the others have the gradient 0.
  token_bs, first_bt = lines.token_index_bml.reshape(b, m * l), lines.copy_index_btg[:, :, 0]
  first_bs = jnp.take_along_axis(first_bt, jnp.maximum(token_bs, 0), axis=1)
  is_first_bml = (first_bs == jnp.arange(m * l)).reshape(b, m, l)
  only_first = lines._replace(token_index_bml=jnp.where(is_first_bml, lines.token_index_bml, -1))
  grads = backward(
    *(_in_lines(x, lines) for x in (q_btnh, k_btkh, v_btkh)),
    *(_lengths(lines), _in_lines(out_btnh, lines), stats_znl, _in_lines(grad_btnh, only_first)),
  )
  dq, dk, dv = (x.reshape(b, m * l, *x.shape[2:]) for x in grads)
  # A query whose output has no gradient has none either, so the first copy's is the whole gradient.
  dq_btnh = gather_tokens(dq, first_bt)
  return dq_btnh, *(sum_tokens(x, lines.copy_index_btg) for x in (dk, dv)), None


attend_in_lines.defvjp(_attend_fwd, _attend_bwd)
