"""Scores on held-out problems while a run goes, and the benchmark before and after it."""

import dataclasses
import os
import time

import numpy as np

from srl_jax import hosts
from srl_jax.data.sources import StepExample
from srl_jax.evals import math_benchmarks
from srl_jax.learner import start
from srl_jax.learner.dynamic_sampling import Group
from srl_jax.policy.model import abstract
from srl_jax.rollout.engine import Prompt
from srl_jax.rollout.episodes import Question as Task
from srl_jax.tasks.scoring import score_group

# Processes for the similarities of a group, where they are work enough: the whole solutions of the
# one-step reward are.
WORKERS = min(8, os.cpu_count() or 1)


def score(config, asked: start.Asked, ticket, prompt: Prompt, rollouts) -> Group:
  """The scored group of a ticket's prompt."""
  example = asked.examples[ticket[1]]
  scores = score_group(
    example,
    [rollout.text for rollout in rollouts],
    [rollout.finish_reason for rollout in rollouts],
    reward=config.reward,
    think_opened=asked.think_opened,
    workers=WORKERS,
  )
  return Group(ticket, example, prompt, rollouts, scores)


def validate(config, solver, held_out: start.Asked) -> dict:
  """Greedy step reward on the held-out examples and, if eval.mode asks, their final answers."""
  found = {}
  if held_out.examples:
    params = dataclasses.replace(start.sampling_params(config), temperature=0.0)
    wanted = held_out.all_prompts()
    places = {prompt.id: i for i, prompt in enumerate(wanted)}
    scores = []
    for rollouts in solver.engine.sample(wanted, 1, params):
      place = places[rollouts[0].prompt_id]
      scores += score(config, held_out, (0, place), wanted[place], rollouts).scores
    found["validation_reward"] = float(np.mean([score.reward for score in scores]))
    found["validation_failures"] = float(np.mean([score.failure is not None for score in scores]))
  return hosts.broadcast(found | final_answers(config, solver, held_out))


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
  return hosts.broadcast(math_benchmarks.measure(solver, tasks, config.eval.samples))


def finish(config, run: start.Run) -> dict:
  """The summary; the benchmark is measured with the weights that validation liked best."""
  progress, best = run.policy.progress, hosts.broadcast(run.checkpoints.best_step())
  summary = {
    "method": config.method,
    "steps": progress.step,
    "best_step": best,
    "validation": progress.scores,
  }
  if config.eval.benchmark:
    run.bar.say(f"measuring step {best} on {config.eval.benchmark} ...")
    shapes = abstract(run.policy.model.config)
    run.engine.load_weights(run.checkpoints.restore(best, shapes)[0], best)
    summary |= {"before": progress.before, "after": measure(config, run.solver)}
  return summary | {"seconds": time.monotonic() - run.begun}
