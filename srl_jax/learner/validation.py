"""Scores on held-out problems during a run. `run` is a setup.Run."""

import dataclasses

import numpy as np

from srl_jax import hosts
from srl_jax.errors import EngineError, Stopped
from srl_jax.learner.rollouts import sampling_params, score


def validate_if_due(run) -> dict[str, float]:
  """The scores of a step that is validated, every train.eval_every steps; else {}."""
  if not run.is_due(run.config.train.eval_every):
    return {}
  with run.stop.held():  # a stop is delayed until the metrics of this step have the scores
    found = hosts.broadcast(held_out_rewards(run) | final_answers(run))
  # The score by which the best checkpoint is kept.
  value = found.get("validation_accuracy", found.get("validation_reward"))
  if value is not None:
    run.progress.scores[str(run.state.step)] = value
  return found


def held_out_rewards(run) -> dict[str, float]:
  """The mean reward of greedy responses to the held-out prompts; {} if nothing is held out."""
  prompts = run.held_out.all_prompts()
  if not prompts:
    return {}
  params = dataclasses.replace(sampling_params(run.config), temperature=0.0)
  index_of = {prompt.id: i for i, prompt in enumerate(prompts)}
  own, error = [], None
  try:
    for rollouts in run.engine.sample(prompts, 1, params):
      index = index_of[rollouts[0].prompt_id]
      (found,) = score(run.config, run.held_out, index, rollouts)
      own.append((index, found.reward, found.failure is not None))
  except (EngineError, Stopped) as ended:
    error = ended  # raised on every process by the collective below
  row = np.dtype([("index", np.int32), ("reward", np.float64), ("failed", np.bool_)])
  rows = np.concatenate(hosts.all_gather_rows(np.array(own, row), error))
  rows.sort(order="index")  # floating-point sums depend on the order
  return {
    "validation_reward": float(rows["reward"].mean()),
    "validation_failures": float(rows["failed"].mean()),
  }


def final_answers(run) -> dict[str, float]:
  """The accuracy of greedy final answers to held-out problems; {} if none has a gold answer, or
  eval.mode is off.
  """
  if run.config.eval.mode == "off" or not run.held_out_problems:
    return {}
  return {"validation_accuracy": run.solver.accuracy(run.held_out_problems)}
