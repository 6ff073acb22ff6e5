"""Time and memory to write the page of a large run, whose workdir is made up.

  python -m benchmarks.report_page --steps=600 --groups=16 --words=20
  python -m benchmarks.report_page --steps=1000 --groups=512 --words=800

Responses have 8 samples a group; their lengths are exponentially distributed with a mean of
--words. Steps share 20 different files by hard links, so that a run of gigabytes takes megabytes.
"""

import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks import machine
from srl_jax import command_line
from srl_jax.config import defaults

flags = command_line.own_flags()
_STEPS = flags.DEFINE_integer("steps", 600, "Of the run.", 1)
_GROUPS = flags.DEFINE_integer("groups", 16, "Of a step.", 1)
_WORDS = flags.DEFINE_integer("words", 20, "Mean of a response.", 1)

FILES, SAMPLES = 20, 8
# As many as a line of a real run has.
METRICS = ["reward_mean", "reward_formed_mean", "reward_group_std", "entropy", "grad_norm", "loss"]
METRICS += ["logprob", "logprob_gap_mean", "logprob_gap_p99", "importance_weight", "clip_fraction"]
METRICS += ["response_tokens_mean", "response_tokens_max", "truncated_share", "kept_share"]
METRICS += ["seconds_sample", "seconds_update", "seconds_sync", "tokens_per_second", "packed_share"]


def main(argv: list[str]) -> None:
  del argv
  print(machine.cores_and_memory())
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    size = write_run(workdir, _STEPS.value, _GROUPS.value, _WORDS.value)
    start = time.perf_counter()
    command = [sys.executable, "-m", "srl_jax.report", f"--workdirs={workdir}"]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    page = (workdir / "report.html").stat().st_size
  cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6
  print(
    f"{_STEPS.value} steps x {_GROUPS.value} groups x {SAMPLES}, {size / 1e9:.2f} GB of rollouts:"
    f" {seconds:.1f} s (CPU {cpu:.1f} s), {memory:.2f} GB of memory, page of {page / 1e6:.1f} MB"
  )


def write_run(workdir: pathlib.Path, steps: int, groups: int, words: int) -> int:
  """Writes a workdir; returns the bytes of its rollouts."""
  rng = random.Random(0)
  (workdir / "rollouts").mkdir(parents=True)
  (workdir / "config.json").write_text(defaults().to_json())
  size, metrics = 0, []
  for step in range(1, steps + 1):
    path = workdir / "rollouts" / f"step_{step:06d}.jsonl"
    if step <= FILES:
      lines = [json.dumps(group(rng, f"p{step}-{i}", words)) for i in range(groups)]
      path.write_text("\n".join(lines) + "\n")
    else:
      os.link(workdir / "rollouts" / f"step_{1 + step % FILES:06d}.jsonl", path)
    size += path.stat().st_size
    counts = {"groups_sampled": groups, "groups_kept": groups, "sampled_tokens": 1000}
    metrics.append(json.dumps({"step": step} | counts | {name: rng.random() for name in METRICS}))
  (workdir / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
  return size


def text(rng: random.Random, mean: float) -> str:
  """Returns words, of which there are about `mean`."""
  count = max(3, int(rng.expovariate(1 / mean)))
  return " ".join(f"word{rng.randrange(2000)}" for _ in range(count))


def group(rng: random.Random, id: str, words: int) -> dict:
  """Returns a line of rollouts/: a quarter of each response is its action."""
  target = f"1. **{text(rng, 4)}**: {text(rng, words / 4)}"
  actions, texts, rewards = [], [], []
  for _ in range(SAMPLES):
    kept = rng.randrange(len(target))
    actions.append(f"{target[:kept]} {text(rng, words / 8)}")
    texts.append(f"<think>{text(rng, 3 * words / 4)}</think>{actions[-1]}")
    rewards.append(kept / len(target))  # about the similarity, which would take minutes
  return {
    "prompt_id": f"{id}/{rng.randrange(1, 9)}",
    "problem": text(rng, 60),
    "context": [text(rng, words / 4) for _ in range(3)],
    "hint": None,
    "target": target,
    "texts": texts,
    "actions": actions,
    "rewards": rewards,
    "failures": [None] * SAMPLES,
    "dropped": rng.choice([None, None, None, "low_std", "surplus"]),
  }


if __name__ == "__main__":
  command_line.run(main, flags.values)
