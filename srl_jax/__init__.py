"""Supervised Reinforcement Learning (SRL) in JAX: trains language models on expert trajectories.

An expert solution becomes one prompt per step: the problem and the steps before it. The policy
thinks in its own monologue and then writes the next step. The reward is the similarity of that step
to the expert's (difflib's ratio), and the policy is trained with GRPO. The paper: "Supervised
Reinforcement Learning: From Expert Trajectories to Step-wise Reasoning".

  the commands, python -m srl_jax.<name>:
    train      runs the experiment that a config selects
    prepare    expert solutions or agents' runs -> step examples
    evaluate   benchmarks -> a table; evaluate_swe: SWE-bench; measuring.py: shared by both
    teacher    problems -> expert solutions, from an OpenAI-compatible server
    export     checkpoint -> Hugging Face folder
    plan       whether a config fits given hardware, without that hardware
    report     runs -> one HTML page
  config.py  every key with the paper's value and its reason; checks, meshes, arguments of configs
  tasks/     prompt, format, reward    one file per task; scoring of responses by task
  data/      text in, examples out     solutions, trajectories, sources, tokenizer, built-in sums
  rewards/   text in, numbers out      similarity, final answers
  policy/    the network               Qwen2, Qwen3, Llama in Flax nnx, attention, sharding, weights
  rollout/   sampling                  the engine protocol, the built-in sampler, vLLM, episodes
  evals/     benchmarks                figures, tables, analysis of reasoning, hard problems
  learner/   the update and its loop   GRPO, dynamic sampling, packing, checkpoints, several hosts
  reporting/ the page of a run         curves, rollouts with matched blocks, an audit of the reward

Imports point one way: commands -> learner, reporting -> evals -> rollout -> tasks -> rewards, data,
policy -> config.py, hosts.py, folders.py, addresses.py, command_line.py, errors.py. data/, rewards/
and reporting/ never import JAX.

Shape letters in array names, einsums and layouts: b batch, t tokens, g group (the responses to a
prompt), p prompt tokens, r response tokens, s trained tokens of a row, c a chunk of them, d model,
n query heads, k key/value heads, h head size, f mlp, v vocabulary, l layers, j the rank of
adapters; a and w are b and v as sharded for the loss by sharding.ACT_AXES.
"""

__version__ = "0.2.0"
