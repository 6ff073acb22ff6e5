"""Scores on held-out problems while a run goes, and the benchmark before and after it."""

import dataclasses
import time

import jax
import numpy as np

from srl_jax.data.sources import StepExample
from srl_jax.evals import math_benchmarks
from srl_jax.learner import start
from srl_jax.learner.dynamic_sampling import Group
from srl_jax.rewards.scoring import score_group
from srl_jax.rollout.episodes import Task


def score(config, asked: start.Asked, ticket, rollouts) -> Group:
  """The scored group of a ticket's rollouts."""
  example = asked.examples[ticket[1]]
  scores = score_group(
    example,
    [rollout.text for rollout in rollouts],
    [rollout.finish_reason for rollout in rollouts],
    reward=config.reward,
    think_opened=asked.think_opened,
  )
  return Group(ticket, example, asked.prompts[ticket[1]], rollouts, scores)


def validate(config, engine, solver, held_out: start.Asked) -> dict:
  """Greedy step reward on the held-out examples and, if eval.mode asks, their final answers."""
  found = {}
  if held_out.examples:
    params = dataclasses.replace(start.sampling_params(config), temperature=0.0, top_p=1.0)
    index = {prompt.id: i for i, prompt in enumerate(held_out.prompts)}
    groups = [
      score(config, held_out, (0, index[rollouts[0].prompt_id]), rollouts)
      for rollouts in engine.sample(held_out.prompts, 1, params)
    ]
    scores = [group.scores[0] for group in groups]
    found["validation_reward"] = float(np.mean([score.reward for score in scores]))
    found["validation_failures"] = float(np.mean([score.failure is not None for score in scores]))
  return found | final_answers(config, solver, held_out)


def final_answers(config, solver, held_out: start.Asked) -> dict:
  """Accuracy of greedy decoding on the held-out problems with a gold answer; {} if eval.mode is off
  or there are none.
  """
  tasks = held_out_tasks(held_out.examples) if config.eval.mode != "off" else []
  return {"validation_accuracy": math_benchmarks.accuracy(solver, tasks)} if tasks else {}


def held_out_tasks(examples: list[StepExample]) -> list[Task]:
  """The problems of examples that have a gold answer."""
  tasks = {e.problem_id: Task(e.problem_id, e.problem, e.answer) for e in examples if e.answer}
  return list(tasks.values())


def measure(config, solver) -> dict:
  """The config's benchmark: greedy, avg@k, pass@k."""
  tasks = math_benchmarks.load_benchmark(config.eval.benchmark)
  return math_benchmarks.measure(solver, tasks, config.eval.samples)


def finish(config, policy, engine, solver, checkpoints, bar, begun) -> dict:
  """The summary; the benchmark is measured with the weights that validation liked best."""
  best = checkpoints.best_step()
  progress = policy.progress
  summary = {
    "method": config.method,
    "steps": progress.step,
    "best_step": best,
    "validation": progress.scores,
  }
  if config.eval.benchmark:
    bar.say(f"measuring step {best} on {config.eval.benchmark} ...")
    shapes = jax.tree.map(checkpoints.abstract, policy.model)
    engine.load_weights(checkpoints.restore(best, shapes)[0], best)
    summary |= {"before": progress.before, "after": measure(config, solver)}
  engine.close()
  checkpoints.close()
  return summary | {"seconds": time.monotonic() - begun}
