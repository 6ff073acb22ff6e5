"""A run's summary, and the benchmark before its first step and after its last."""

import time

from srl_jax import hosts
from srl_jax.evals import math_benchmarks
from srl_jax.learner.setup import Run
from srl_jax.learner.workdir import length
from srl_jax.policy.lora import join, split


def measure_untrained(run: Run) -> None:
  """Measures the config's benchmark, if it has one, with the engine's weights before step 1."""
  if run.config.eval.benchmark and not run.progress.before:
    run.line.say(f"measuring the untrained model on {run.config.eval.benchmark} ...")
    run.progress.before = benchmark(run)


def benchmark(run: Run) -> dict[str, float]:
  """The config's benchmark with the engine's weights: greedy, avg@k, pass@k."""
  problems = math_benchmarks.load_benchmark(run.config.eval.benchmark)
  return hosts.broadcast(math_benchmarks.measure(run.solver, problems, run.config.eval.samples))


def summarise(run: Run) -> dict:
  """The run's summary; the benchmark is measured at the step with the best validation score."""
  best = hosts.broadcast(run.checkpoints.best_step())
  summary = {
    "method": run.config.method,
    "steps": run.state.step,
    "best_step": best,
    "validation": run.progress.scores,
    "train": length(run.config),
  }
  if run.config.eval.benchmark:
    run.line.say(f"measuring step {best} on {run.config.eval.benchmark} ...")
    # Not kept in a variable: the engine has a copy of its own, and the float32 weights are freed.
    trained, frozen = split(run.state.model)
    run.engine.load_weights(join(run.checkpoints.restore(best, trained)[0], frozen), best)
    summary |= {"before": run.progress.before, "after": benchmark(run)}
  return summary | {"seconds": time.monotonic() - run.start_time}
