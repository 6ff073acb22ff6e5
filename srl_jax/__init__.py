"""Supervised Reinforcement Learning (SRL) in JAX: teach a language model from expert trajectories.

An expert solution becomes one prompt for each of its steps: the problem and the steps so far. The
policy thinks in a monologue of its own and then writes the next step; the reward is how similar
that step is to the expert's (difflib's ratio), and the policy learns by GRPO. The paper:
"Supervised Reinforcement Learning: From Expert Trajectories to Step-wise Reasoning".

  the commands, python -m srl_jax.<name>:
    train      runs the experiment that a config selects
    prepare    expert solutions or agents' runs -> step examples
    evaluate   benchmarks -> a table; evaluate_swe: SWE-bench; measuring.py has what both share
    teacher    problems -> expert solutions, from an OpenAI-compatible server
    export     checkpoint -> Hugging Face folder
    plan       does a config fit hardware that is not there
  config.py  every key with the paper's value and its reason; checks, meshes, arguments of configs
  tasks/     prompt, format, reward    one file a task; scoring of rollouts by their task
  data/      text in, examples out     solutions, trajectories, sources, tokenizer, built-in sums
  rewards/   text in, numbers out      similarity, final answers
  policy/    the network               Qwen2, Qwen3, Llama in Flax nnx, attention, sharding, weights
  rollout/   who samples               the engine protocol, the built-in sampler, vLLM, episodes
  evals/     benchmarks                figures and tables, the analysis of reasoning, hard problems
  learner/   the update and its loop   GRPO, dynamic sampling, packing, checkpoints, several hosts

Imports point one way: commands -> learner -> evals -> rollout -> tasks -> rewards, data, policy ->
config.py, hosts.py, folders.py, addresses.py, command_line.py, errors.py. data/ and rewards/ never
import JAX.

Shape letters, in array names, einsums and layouts alike: b batch, t tokens, g group (the responses
of a prompt), p prompt tokens, r response tokens, s trained tokens of a row, c a chunk of them,
d model, n query heads, k key/value heads, h head size, f mlp, v vocabulary, l layers, j the rank of
adapters; a and w are b and v as sharding.ACT_AXES cuts them for the loss.
"""

__version__ = "0.2.0"
