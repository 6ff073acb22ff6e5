"""What a run shows while it goes: an opening, a live line, and a word when something is unusual."""

import collections
import sys
import time

from srl_jax import hosts
from srl_jax.learner.dynamic_sampling import Batch


class Line:
  """The live line: rewritten in place on a terminal, a plain line now and then elsewhere.

  Of several processes the first alone speaks.
  """

  def __init__(self, total: int, every: float = 10.0):
    self.total, self.every = total, every
    self.ends = collections.deque(maxlen=30)  # (time, step) of the last steps: what is left is
    self.last = 0.0  # told by their pace, which the first step's compiling does not spoil
    self.live = sys.stdout.isatty()
    self.said = set()

  def show(self, step: int, parts: dict[str, str]) -> None:
    """Shows step `step` of `total` and the parts, name and value."""
    now = time.monotonic()
    self.ends.append((now, step))
    if not self.live and now - self.last < self.every and step < self.total:
      return
    self.last = now
    if not hosts.is_writer():
      return
    line = f"step {step}/{self.total}  " + "  ".join(f"{k} {v}" for k, v in parts.items())
    begun, first = self.ends[0]
    if step > first:
      line += f"  left {clock((self.total - step) * (now - begun) / (step - first))}"
    if self.live:
      print("\r\033[K" + line, end="\n" if step == self.total else "", flush=True)
    else:
      print(line, flush=True)

  def say(self, message: str) -> None:
    """A line of its own, kept on the terminal."""
    if hosts.is_writer():
      print(("\r\033[K" if self.live else "") + message, flush=True)

  def say_once(self, kind: str, message: str) -> None:
    """`say`, for the first message of its kind."""
    if kind not in self.said:
      self.said.add(kind)
      self.say(message)


def clock(seconds: float) -> str:
  """Seconds as 1:23:45 or 4:05."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def opening(config, run) -> str:
  """One line on what is about to run; `run` is a start.Run."""
  size, progress = run.policy.model.config, run.policy.progress
  state = f"continued from step {progress.step}" if run.policy.resumed else "from the start"
  source = ", ".join(f"{name} {n}" for name, n in run.examples.counts.items())
  return (
    f"{config.method}: {config.model} ({size.num_hidden_layers} layers, width {size.hidden_size}); "
    f"source: {source}; {len(run.asked.examples)} prompts to train on, "
    f"{held_out(run)}; {run.steps} steps, {state}"
  )


def held_out(run) -> str:
  """How many examples are held out, and how many were left out because they are too long."""
  too_long = f", {run.asked.too_long} too long" if run.asked.too_long else ""
  return f"{len(run.held_out.examples)} held out{too_long}"


def parts_of(row: dict) -> dict[str, str]:
  """What the live line shows of a step's metrics."""
  out = {
    "reward": f"{row['reward_mean']:.3f}",
    "kept": f"{row['kept_share']:.0%}",
    "groups": f"{row['groups_kept']:.0f}",
    "format failures": f"{row['format_failures']:.1%}",
    "tokens/s": f"{row['tokens_per_second']:,.0f}",
  }
  if "validation_accuracy" in row:
    out["held-out accuracy"] = f"{row['validation_accuracy']:.0%}"
  return out


def far_apart(step: int, gap: float) -> str:
  """What to say when trainer and engine disagree; `gap` is logprob_gap_exp."""
  return (
    f"warning: step {step + 1}: the engine's log-probs differ from the trainer's by a factor of "
    f"{gap:.3f} a token; the importance weights (algorithm.importance_cap) correct for it up to "
    "their cap. Serve in the type of config.dtype, or in float32; logprob_gap_* in metrics.jsonl "
    "tell how it goes on"
  )


def not_full(step: int, batch: Batch, wanted: int) -> str:
  """What to say when the rounds of dynamic sampling did not fill a batch."""
  does = "training on these" if batch.kept else "no update is made"
  reasons = collections.Counter(group.dropped for group in batch.groups if group.dropped)
  dropped = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
  return (
    f"step {step + 1}: {batch.rounds} rounds gave {len(batch.kept)} groups of {wanted} (dropped: "
    f"{dropped}); {does}. algorithm.max_rounds allows more rounds, algorithm.std_epsilon drops "
    "less; from here on the live line tells how many groups there were"
  )
