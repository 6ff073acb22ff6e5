"""What a step at the paper's scale costs on the host: 512 prompts x 8 responses, no device.

  python -m benchmarks.host --tokenizer=FOLDER            Qwen2.5's; writes benchmarks/host.md
  python -m benchmarks.host --fit=../shared --tokenizer=FOLDER   prints LENGTHS from real files

Every phase runs the code that a run does: prompts are encoded, a vLLM server's answers are read and
checked, responses decoded and scored, groups filtered, packed and written down. Texts are made from
a distribution of lengths fitted to the real data files (host_texts.LENGTHS). Wall time and the CPU
time of this process are taken of each phase, because a machine may be shared.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time
from collections import Counter

import jax
import numpy as np

from benchmarks import arguments
from benchmarks.host_texts import (
  CASES,
  LONGEST,
  Case,
  Writer,
  fit,
  make_answer,
  make_example,
)
from srl_jax import command_line
from srl_jax.config import defaults
from srl_jax.data.batches import PromptQueue
from srl_jax.data.tokenizer import encode, load_tokenizer
from srl_jax.learner import metrics
from srl_jax.learner.batch import pack_groups
from srl_jax.learner.dynamic_sampling import Batch, Group, add_round, draw_size
from srl_jax.learner.log import Log
from srl_jax.learner.packing import Lengths, row_shapes
from srl_jax.learner.rollouts import WORKERS
from srl_jax.policy.sharding import AXES
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.rollout.vllm_server import read_group
from srl_jax.tasks import TASKS, system_prompt
from srl_jax.tasks.scoring import score_group

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL_PARAMETERS = 6.53e9  # of Qwen2.5-7B in matmuls over all tokens: without embedding and head
HEAD_PARAMETERS = 0.545e9  # over response tokens
CHIPS, CHIP_FLOPS, MFU = 8, 989e12, 0.40  # the prediction of notes/performance.md


# ---------------------------------------------------------------------------------- a step


def lengths_of(groups: list[Group], longest: int, samples: int) -> Lengths:
  """The lengths as a run knows them before its first step: of its prompts, and the limits."""
  prompts = [len(group.prompt.token_ids) for group in groups]
  responses = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
  expected = sum(prompts) / len(prompts) / samples + sum(responses) / len(responses)
  return Lengths(max(prompts), longest - min(prompts), longest, samples, expected, longest)


class Clock:
  """Wall and CPU seconds of each phase."""

  def __init__(self):
    self.wall, self.cpu = Counter(), Counter()

  @contextlib.contextmanager
  def __call__(self, phase: str):
    wall, cpu = time.perf_counter(), time.process_time()
    try:
      yield
    finally:
      self.wall[phase] += time.perf_counter() - wall
      self.cpu[phase] += time.process_time() - cpu


def measure(
  case: Case, folder: str, *, groups: int, samples: int, shrink: float, seed: int
) -> dict:
  """One step of `groups` kept groups; what it took and what came out, as JSON.

  Args:
    case: the kind of step.
    folder: of the policy's tokenizer.
    groups, samples: prompts of a batch, responses to each.
    shrink: all lengths are divided by it; 1 is the paper's scale.
    seed: of the texts.
  """
  tokenizer = load_tokenizer(folder)
  writer, clock = Writer(np.random.default_rng(seed), tokenizer, case.words), Clock()
  config = defaults()
  system = system_prompt(TASKS[case.task])
  longest = int(LONGEST / shrink)

  def one_group(ticket) -> Group:
    example = make_example(writer, case, ticket[1], shrink)
    with clock("prompts"):
      messages = TASKS[case.task].build_messages(example.problem, [], None, system)
      prompt = Prompt(example.id, tuple(encode(tokenizer, messages).token_ids))
    room = longest - len(prompt.token_ids)
    answer = make_answer(writer, example.target, samples, room, shrink)
    with clock("answers"):
      choices = read_group(json.loads(answer), samples, room, [tokenizer.eos_token_id])
    with clock("texts"):
      rollouts = [
        Rollout(
          prompt.id, ids, logprobs, reason, 0, tokenizer.decode(ids, skip_special_tokens=True)
        )
        for ids, logprobs, reason, _ in choices
      ]
    with clock("rewards"):
      scores = score_group(
        example,
        [rollout.text for rollout in rollouts],
        [rollout.finish_reason for rollout in rollouts],
        reward=config.reward,
        workers=WORKERS,
      )
    return Group(ticket, example, prompt, rollouts, scores)

  start = memory()
  queue = PromptQueue(4 * groups, seed)
  batch = Batch()
  while len(batch.kept) < groups and batch.rounds < 10:
    sampled = [one_group(ticket) for ticket in queue.take(draw_size(batch, groups, None, 10))]
    with clock("filter"):
      batch = add_round(batch, sampled, groups, config.algorithm.std_epsilon)
  config.batch.tokens_per_device, config.rollout.max_tokens = 2 * longest, longest
  lengths = lengths_of(batch.kept, longest, samples)
  mesh = jax.sharding.AbstractMesh((1, CHIPS, 1), AXES)
  with jax.sharding.use_abstract_mesh(mesh):  # rows for CHIPS devices
    with clock("pack"):
      rows = pack_groups(batch.kept, config, row_shapes(lengths, 2 * longest, "blocks"))
    with clock("pack in lines"):
      lines = pack_groups(batch.kept, config, row_shapes(lengths, 2 * longest, "lines"))
  with tempfile.TemporaryDirectory() as folder:
    log = Log(pathlib.Path(folder), config.log, step=0, name="host", config={})
    with clock("metrics"):
      log.write_rollouts(1, batch.groups)
      log.step(1, metrics.batch_metrics(batch))
    log.close()
  return dict(
    wall=dict(clock.wall),
    cpu=dict(clock.cpu),
    groups_sampled=len(batch.groups),
    groups_kept=len(batch.kept),
    memory_start=start,
    memory_peak=memory(),
    **shape_of(batch, rows, lines),
  )


def shape_of(batch, rows, lines) -> dict:
  """Lengths, micro-batches, the share of real tokens, and the update's predicted seconds."""
  prompt = np.array([len(group.prompt.token_ids) for group in batch.kept])
  response = np.array([[len(r.token_ids) for r in group.rollouts] for group in batch.kept])
  tokens = prompt.sum() + response.sum()
  flops = 6 * MODEL_PARAMETERS * tokens + 6 * HEAD_PARAMETERS * response.sum()
  return dict(
    prompt_mean=float(prompt.mean()),
    response_mean=float(response.mean()),
    longest=int((prompt[:, None] + response).max()),
    micro_batches=len(rows),
    rows=list(rows[0].tokens_bt.shape),
    packed_share=metrics.packed_share(rows),
    lines_packed_share=metrics.packed_share(lines),
    lines_share=sum((part.layout.token_index_bml >= 0).sum() for part in lines)
    / sum(part.layout.token_index_bml.size for part in lines),
    update_seconds=float(flops / (CHIPS * CHIP_FLOPS * MFU)),
  )


def memory() -> int:
  """Most bytes that this process has held so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# ---------------------------------------------------------------------------------- the report

# What goes on while other responses are still sampled, and what the step waits for.
WHILE_SAMPLING = ("prompts", "answers", "texts", "rewards")
WAITED_FOR = ("filter", "pack", "metrics")
HEAD = """# Host time of a step at the paper's scale

{date}; {machine}; load {load:.1f} at the end.
CPU times are the process's own, without the processes that long rewards are dealt to; wall times
include what else the machine did. Made by

    python -m benchmarks.host {options}

{table}

`prompts` encodes them, `answers` reads and checks the JSON of a vLLM server, `texts` decodes and
`rewards` scores the responses; a run does these four while its servers sample the other groups.
The step waits for `filter`, `pack` and `metrics` alone. `pack in lines` replaces `pack` where
attention kernels are used. The predicted update is 6 FLOPs per matmul parameter of Qwen2.5-7B and
token, with the prompt computed once, on 8 H100s at 40 % (../shared/notes/performance.md: 68 s for
prompts of 1,500 and responses of 1,000 tokens); sampling takes 35 to 65 s besides. Lengths are
LENGTHS in benchmarks/host_texts.py, fitted to real solutions and trajectories with

    python -m benchmarks.host --fit=../shared --tokenizer=../shared/tokenizer_qwen2.5
"""


def table(found: dict[str, dict]) -> str:
  """Results by case as Markdown."""
  each = lambda label, show: "| " + " | ".join([label, *map(show, found.values())]) + " |"
  wall_and_cpu = lambda r, phases: "{:.2f} ({:.2f})".format(
    *(sum(r[kind][phase] for phase in phases) for kind in ("wall", "cpu"))
  )
  share = lambda r, phases: f"{sum(r['cpu'][phase] for phase in phases) / r['update_seconds']:.1%}"
  phases = (*WHILE_SAMPLING, *WAITED_FOR, "pack in lines")
  lines = [
    "| | " + " | ".join(found) + " |",
    "|---" * (len(found) + 1) + "|",
    each("groups sampled, kept", lambda r: f"{r['groups_sampled']}, {r['groups_kept']}"),
    each("prompt tokens, mean", lambda r: f"{r['prompt_mean']:,.0f}"),
    each("response tokens, mean", lambda r: f"{r['response_mean']:,.0f}"),
    each("longest prompt + response", lambda r: f"{r['longest']:,}"),
    *(
      each(f"`{phase}`, s wall (CPU)", lambda r, p=phase: wall_and_cpu(r, [p])) for phase in phases
    ),
    each("while sampling, s wall (CPU)", lambda r: wall_and_cpu(r, WHILE_SAMPLING)),
    each("waited for, s wall (CPU)", lambda r: wall_and_cpu(r, WAITED_FOR)),
    each("predicted update, s", lambda r: f"{r['update_seconds']:.0f}"),
    each("waited for / update (CPU)", lambda r: share(r, WAITED_FOR)),
    each("all / update (CPU)", lambda r: share(r, WHILE_SAMPLING + WAITED_FOR)),
    each("micro-batches of rows x tokens", lambda r: f"{r['micro_batches']} of {r['rows']}"),
    each("share of real tokens", lambda r: f"{r['packed_share']:.3f}"),
    each("the same, in lines", lambda r: f"{r['lines_packed_share']:.3f}"),
    each("lines' places in use", lambda r: f"{r['lines_share']:.3f}"),
    each("memory before, GB", lambda r: f"{r['memory_start'] / 1e9:.2f}"),
    each("memory at most, GB", lambda r: f"{r['memory_peak'] / 1e9:.2f}"),
  ]
  return "\n".join(lines)


def in_its_own_process(*arguments, **settings) -> dict:
  """`measure`, in a process whose memory is the case's alone."""
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(measure, *arguments, **settings).result()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tokenizer", required=True, help="folder with Qwen2.5's tokenizer")
  parser.add_argument("--fit", help="folder of the real data files: print their LENGTHS and end")
  cases = arguments.some_of(CASES, ";")
  parser.add_argument("--cases", type=cases, default=list(CASES), help="of " + "; ".join(CASES))
  parser.add_argument("--groups", type=arguments.at_least(1), default=512)
  parser.add_argument("--samples", type=arguments.at_least(2), default=8)
  parser.add_argument("--shrink", type=float, default=1.0, help="divides all lengths")
  output = ROOT / "benchmarks" / "host.md"
  parser.add_argument("--output", type=arguments.new_file, default=output)
  given = parser.parse_args()
  tokenizer = load_tokenizer(given.tokenizer)  # here, too, for its errors
  if given.fit:
    for name, lengths in fit(pathlib.Path(given.fit), tokenizer).items():
      print(f'  "{name}": {lengths},')
    return
  found = {}
  for name in given.cases:
    found[name] = in_its_own_process(
      *(CASES[name], given.tokenizer),
      **dict(groups=given.groups, samples=given.samples, shrink=given.shrink, seed=0),
    )
    print(json.dumps({name: found[name]}), flush=True)
  with open("/proc/cpuinfo", encoding="utf-8") as file:
    cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
  text = HEAD.format(
    date=datetime.date.today(),
    machine=f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}",
    load=os.getloadavg()[0],
    options=" ".join(sys.argv[1:]),
    table=table(found),
  )
  given.output.write_text(text, encoding="utf-8")
  print(text)


if __name__ == "__main__":
  with command_line.in_one_line():
    main()
