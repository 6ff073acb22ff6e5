"""Supervised Reinforcement Learning (SRL) in JAX: teach a language model from expert trajectories.

An expert solution becomes one prompt for each of its steps: the problem and the steps so far. The
policy thinks in a monologue of its own and then writes the next step; the reward is how similar
that step is to the expert's (difflib's ratio), and the policy learns by GRPO. The paper:
"Supervised Reinforcement Learning: From Expert Trajectories to Step-wise Reasoning".

  train.py evaluate.py prepare.py export.py   the commands, python -m srl_jax.<name>
  data/      text in, examples out            solutions, sources, prompts, the built-in problems
  rewards/   text in, numbers out             similarity, final answers
  policy/    the network and its arrays       Qwen2 in Flax nnx, attention, sharding, weights
  rollout/   who samples                      the engine protocol, the built-in sampler
  evals/     benchmarks
  learner/   the update and its loop          GRPO, dynamic sampling, packing, checkpoints

Imports point one way: commands -> learner -> evals -> rollout, rewards -> policy, data.

Shape letters, in array names, einsums and layouts alike: b batch, t tokens, g group (the responses
of a prompt), p prompt tokens, r response tokens, s trained tokens of a row, c a chunk of them,
d model, n query heads, k key/value heads, h head size, f mlp, v vocabulary, l layers.
"""
