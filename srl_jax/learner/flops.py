"""The work of an update in floating-point operations, and the most that devices do.

Imports nothing: benchmarks.gpu runs where most of the requirements are not installed.
"""

# Dense bf16 peak of a device, FLOP/s, from the makers' data sheets; by a part of its device_kind.
PEAKS = {
  "H100": 989e12,
  "H200": 989e12,
  "A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
}


def update_flops(config, groups) -> float:
  """FLOPs of an update, forward and backward, that the maths needs; recomputation is not counted.

  6 x matmul weights x real tokens, a prompt counted once for its group; the output head on response
  tokens only; causal attention at half.

  Args:
    config: the policy's ModelConfig.
    groups: dynamic_sampling.Group, or what has its prompt.token_ids and rollouts' token_ids.
  """
  d, h = config.hidden_size, config.head_dim
  n, k, f = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
  layer = d * h * (2 * n + 2 * k) + 3 * d * f
  flops = 0.0
  for group in groups:
    prompt = len(group.prompt.token_ids)
    pairs, responses = prompt**2 / 2, 0  # pairs of tokens in causal attention
    for rollout in group.rollouts:
      length = len(rollout.token_ids)
      pairs += length * prompt + length**2 / 2
      responses += length
    flops += config.num_hidden_layers * (6 * layer * (prompt + responses) + 12 * n * h * pairs)
    flops += 6 * d * config.vocab_size * responses
  return flops
