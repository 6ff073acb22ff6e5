"""The shapes of a run's arrays, decided once from its config and the lengths of its prompts.

Every shape is a few programs to compile, so there are at most three of micro-batches and two of the
built-in sampler's slots. Lengths that grow during a run (prompts turn by turn, responses) have a
limit in the config.
"""

import functools
from typing import NamedTuple

import numpy as np

from srl_jax.evals.math_benchmarks import load_benchmark
from srl_jax.learner.packing import Lengths, RowShape, row_shapes
from srl_jax.policy.model import ModelConfig
from srl_jax.policy.sharding import shards
from srl_jax.rollout.episodes import PromptBuilder, Question
from srl_jax.rollout.prompt_set import PromptSet
from srl_jax.rollout.slots import SlotShape, slot_shape

LEAST_RESPONSE = 1 / 16  # floor of a response's expected length, as a share of rollout.max_tokens
MORE_ENTRIES = 3  # KV cache entries of evaluation, at most, as a multiple of those of training
LONGEST_OF_GROUP = 4  # length of a group's longest response, as a multiple of the mean response's


def expected_lengths(config, train_prompts: PromptSet, held_out: PromptSet) -> Lengths:
  """The lengths of a run's sequences as far as its config and its prompts determine them.

  The lengths of responses are not known yet; they are estimated by those of the expert's targets.
  """
  prompts, targets = train_prompts.prompt_tokens, train_prompts.target_tokens
  if config.method == "sft":  # the held-out loss has the same shapes
    prompts, targets = prompts + held_out.prompt_tokens, targets + held_out.target_tokens
    sums = [sum(pair) for pair in zip(prompts, targets)]
    typical = int(np.quantile(sums, 0.9))
    return Lengths(max(prompts), max(targets), max(sums), 1, float(np.mean(sums)), typical)
  samples, most = config.rollout.samples, config.rollout.max_tokens
  response = float(np.clip(np.mean(targets), LEAST_RESPONSE * most, most))
  # A prompt is packed once for its group, so each response adds 1 / samples of it.
  expected = float(np.mean(prompts)) / samples + response
  typical = int(np.quantile(prompts, 0.9) + min(most, LONGEST_OF_GROUP * response))
  return Lengths(max(prompts), most, max(prompts) + most, samples, expected, typical)


class Prompts(NamedTuple):
  """The prompts of a run.

  Fields: train, held_out: to train on and to validate with; problems: of held_out that have an
  answer; data: the fingerprint of the examples and the tokenizer (run_data.fingerprint).
  """

  train: PromptSet
  held_out: PromptSet
  problems: list[Question]
  data: dict


class Shapes(NamedTuple):
  """The shapes of a run: rows of its micro-batches, slots of the built-in sampler."""

  rows: list[RowShape]
  slots: list[SlotShape]


def shapes_of_run(
  config,
  architecture: ModelConfig,
  prompts: Prompts,
  build_prompt: PromptBuilder,
) -> Shapes:
  """The shapes of a run; call it with the mesh set.

  Args:
    architecture: of the policy, on the platform.
    prompts: of the run.
    build_prompt: of whole problems, as the run's solver builds them.
  """
  lengths = expected_lengths(config, prompts.train, prompts.held_out)
  rows = row_shapes(lengths, config.batch.tokens_per_device, architecture.layout)
  if config.rollout.engine != "builtin":
    return Shapes(rows, [])
  rollout, slots = config.rollout, []
  of = functools.partial(slot_shape, rows=shards("b"), kernel=architecture.attention)
  if config.method != "sft":  # for groups; evaluation needs another shape, of one response a prompt
    slots.append(of(rollout.width, rollout.samples, lengths.prompt, rollout.max_tokens))
  prompt, response = longest_of_evaluation(config, prompts, build_prompt)
  if prompt:
    single = of(rollout.width, 1, prompt, response)
    # Evaluation has longer sequences; its KV cache must not need much more memory than training's,
    # or a run that fits would fail at its first validation. Fewer slots decode at a time instead.
    if slots:
      entries = slots[0].b * (slots[0].p + slots[0].g * slots[0].r)
      most = MORE_ENTRIES * entries // (single.p + single.r)
      single = of(min(rollout.width, most), 1, prompt, response)
    slots.append(single)
  return Shapes(rows, slots)


def longest_of_evaluation(
  config, run_prompts: Prompts, build_prompt: PromptBuilder
) -> tuple[int, int]:
  """Tokens of the longest prompt and response of validation and benchmark; (0, 0) without them."""
  held_out, problems, prompts, responses = run_prompts.held_out, run_prompts.problems, [], []
  if config.train.eval_every and held_out.examples:
    prompts += held_out.prompt_tokens
    responses.append(config.rollout.max_tokens)
  if config.eval.benchmark or (config.train.eval_every and config.eval.mode != "off" and problems):
    responses.append(config.eval.max_tokens)
    if config.eval.mode == "stepwise":  # the prompt grows by a step every turn, up to its limit
      prompts.append(config.data.max_prompt_tokens)
    else:
      found = load_benchmark(config.eval.benchmark) if config.eval.benchmark else []
      for question in [*problems, *found]:
        prompts.append(len(build_prompt(question.problem, ()).token_ids))
  return max(prompts, default=0), max(responses, default=0)
