"""Scores on held-out problems during a run, and the benchmark before and after it."""

import dataclasses
import time

import numpy as np

from srl_jax import hosts
from srl_jax.data.examples import StepExample
from srl_jax.evals import math_benchmarks
from srl_jax.learner.rollouts import sampling_params, score
from srl_jax.learner.run import Run
from srl_jax.policy.model import abstract
from srl_jax.rollout.episodes import Task


def validate_if_due(run: Run) -> dict[str, float]:
  """The scores of a step that is validated, every train.eval_every steps; else {}."""
  if not run.is_due(run.config.train.eval_every):
    return {}
  with run.stop.held():  # a stop waits until the line of this step has the scores
    found = validate(run)
  score = found.get("validation_accuracy", found.get("validation_reward"))
  if score is not None:
    run.progress.scores[str(run.state.step)] = score
  return found


def validate(run: Run) -> dict[str, float]:
  """Mean reward of greedy responses to the held-out prompts and, unless eval.mode is off, the
  accuracy of final answers; {} if nothing is held out.
  """
  found, prompts = {}, run.held_out.all_prompts()
  if prompts:
    params = dataclasses.replace(sampling_params(run.config), temperature=0.0)
    index_of = {prompt.id: i for i, prompt in enumerate(prompts)}
    scores = []
    for rollouts in run.solver.engine.sample(prompts, 1, params):
      scores += score(run.config, run.held_out, index_of[rollouts[0].prompt_id], rollouts)
    found["validation_reward"] = float(np.mean([score.reward for score in scores]))
    found["validation_failures"] = float(np.mean([score.failure is not None for score in scores]))
  return hosts.broadcast(found | final_answers(run))


def final_answers(run: Run) -> dict[str, float]:
  """Accuracy of greedy decoding on the held-out problems with a gold answer; {} if eval.mode is off
  or there are none.
  """
  problems = held_out_problems(run.held_out.examples) if run.config.eval.mode != "off" else []
  if not problems:
    return {}
  return {"validation_accuracy": math_benchmarks.accuracy(run.solver, problems)}


def held_out_problems(examples: list[StepExample]) -> list[Task]:
  """The problems of examples that have a gold answer."""
  problems = {e.problem_id: Task(e.problem_id, e.problem, e.answer) for e in examples if e.answer}
  return list(problems.values())


def measure_untrained(run: Run) -> None:
  """Measures the config's benchmark before the first step, if it has one; into run.progress."""
  if run.config.eval.benchmark and not run.progress.before:
    run.line.say(f"measuring the untrained model on {run.config.eval.benchmark} ...")
    run.progress.before = benchmark(run)


def benchmark(run: Run) -> dict[str, float]:
  """The config's benchmark with the engine's weights: greedy, avg@k, pass@k."""
  problems = math_benchmarks.load_benchmark(run.config.eval.benchmark)
  samples = run.config.eval.samples
  return hosts.broadcast(math_benchmarks.measure(run.solver, problems, samples))


def summarise(run: Run) -> dict:
  """The run's summary; the benchmark is measured at the step with the best validation score."""
  best = hosts.broadcast(run.checkpoints.best_step())
  summary = {
    "method": run.config.method,
    "steps": run.state.step,
    "best_step": best,
    "validation": run.progress.scores,
  }
  if run.config.eval.benchmark:
    run.line.say(f"measuring step {best} on {run.config.eval.benchmark} ...")
    model, _, _ = run.checkpoints.restore(best, abstract(run.state.model.config))
    run.engine.load_weights(model, best)
    summary |= {"before": run.progress.before, "after": benchmark(run)}
  return summary | {"seconds": time.monotonic() - run.start_time}
