"""The built-in family of problems: chains of additions and subtractions.

A problem reads `Start with 45. Add 53. Subtract 61.`; every running value keeps the problem's
number of digits. The expert writes one numbered step per move and boxes the last value:

    1. **Add 53**: 98
    2. **Subtract 61**: \\boxed{37}

The monologue has the way to each value: column-wise scratch work, with `c` for a carry and `b` for
a borrow (`<think>8-1=7;9-6=3</think>`), which the expert's text never shows. A hard problem has six
moves of two-digit numbers. Nothing is downloaded, and a set of problems is a pure function of its
name, its size and a seed.

Whole problems belong to one of four splits by a hash of their text, so that no problem that a
setting was chosen on, or that a figure is reported on, can ever be trained on:
  train        to train on, the warm-up as well as SRL
  calibration  decides when the warm-up stops
  selection    chooses settings and checkpoints
  test         is reported
"""

import dataclasses
import hashlib
import itertools
import random
import re

from srl_jax.data.data_config import DataConfig
from srl_jax.data.examples import ExampleKind, Examples, StepExample
from srl_jax.data.responses import CLOSE, OPEN
from srl_jax.errors import UserError

DATA_SEED = 0  # of the sets of hard problems: the same problems for every run and every arm
HARD_STEPS, HARD_DIGITS = 6, 2
SPLIT_PERCENT = {"train": 70, "calibration": 10, "selection": 10, "test": 10}
# The warm-up's mix of problems: the share with one-digit numbers, the chance that a problem has one
# more step (so long problems are rare), and the share of responses with the whole solution.
EASY_SHARE, LONGER, WHOLE_SHARE = 0.5, 0.5, 0.25
# One-digit problems are short. Where most six-step problems had one digit, a base learned that a
# sixth step's box holds one digit: all eight rollouts had one, so SRL had nothing to learn from.
EASY_STEPS = 3
DEFAULT_COUNT = {"hard": 100, "reasoned": 100, "mix": 100_000}  # problems; mix: responses


# ---------------------------------------------------------------------------------- problems


@dataclasses.dataclass(frozen=True)
class Problem:
  """A start value and the moves from it.

  Attributes:
    id: unique within one call of `problems`.
    start: the first value.
    moves: signed terms, one per step: +53 is "Add 53", -61 is "Subtract 61".
  """

  id: str
  start: int
  moves: tuple[int, ...]

  @property
  def text(self) -> str:
    return ". ".join([f"Start with {self.start}", *map(_title, self.moves)]) + "."

  @property
  def values(self) -> list[int]:
    """The running value after each move."""
    return list(itertools.accumulate(self.moves, initial=self.start))[1:]

  @property
  def answer(self) -> str:
    return str(self.values[-1])

  @property
  def steps(self) -> list[str]:
    """The expert's steps; joined by newlines they are the whole solution."""
    results = [*map(str, self.values[:-1]), f"\\boxed{{{self.answer}}}"]
    steps = []
    for number, (move, result) in enumerate(zip(self.moves, results), start=1):
      steps.append(f"{number}. **{_title(move)}**: {result}")
    return steps

  @property
  def turns(self) -> list[str]:
    """The responses of an ideal policy: each step after the monologue that leads to it."""
    before = [self.start, *self.values]
    turns = []
    for value, move, step in zip(before, self.moves, self.steps):
      turns.append(f"<think>{_scratch_work(value, move)}</think>{step}")
    return turns


def problems(
  split: str,
  n: int,
  seed: int = DATA_SEED,
  *,
  steps: int = HARD_STEPS,
  digits: int = HARD_DIGITS,
) -> list[Problem]:
  """Returns n different problems of a split, by default hard ones.

  A shorter list is the beginning of a longer one with the same split and seed.

  Args:
    split: train | calibration | selection | test.
    n: how many.
    seed: of the draw; it never moves a problem from one split to another.
    steps: moves per problem.
    digits: of every number of the problem, 1 or 2.

  Raises:
    UserError: unknown split, or fewer than n such problems within reach.
  """
  if split not in SPLIT_PERCENT:
    raise UserError(f"data.split={split!r} of the built-in problems: use one of {[*SPLIT_PERCENT]}")
  rng = random.Random(f"arithmetic/{split}/{steps}/{digits}/{seed}")
  found: dict[str, Problem] = {}
  for _ in range(100 * n + 1000):
    if len(found) == n:
      return list(found.values())
    problem = _draw(rng, split, steps, digits)
    found.setdefault(problem.text, dataclasses.replace(problem, id=f"{split}-{len(found)}"))
  raise UserError(
    f"{n} different problems of {steps} steps and {digits} digits are wanted, {len(found)} found:"
    " reduce data.path's number"
  )


def split_of(text: str) -> str:
  """Returns the split that a problem's text belongs to."""
  bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
  for split, percent in SPLIT_PERCENT.items():
    if bucket < percent:
      return split
    bucket -= percent
  raise AssertionError("the percentages of the splits sum to 100")


def _draw(rng: random.Random, split: str, steps: int, digits: int) -> Problem:
  """One problem of the split; repeats are possible, and the id is left empty."""
  low, high = (1, 9) if digits == 1 else (10, 99)
  while True:
    start = value = rng.randrange(low, high + 1)
    moves = []
    for _ in range(steps):
      # Near an end of the range only one of the two moves has a term that stays inside.
      room = {+1: high - value, -1: value - low}
      sign = (+1, -1)[rng.randrange(2)]
      if room[sign] < low:
        sign = -sign
      moves.append(sign * rng.randrange(low, room[sign] + 1))
      value += moves[-1]
    problem = Problem("", start, tuple(moves))
    if split_of(problem.text) == split:
      return problem


def _title(move: int) -> str:
  return f"{'Add' if move > 0 else 'Subtract'} {abs(move)}"


def _scratch_work(value: int, move: int) -> str:
  """Column by column from the right: 45+38 gives `5+8=3c;4+3+c=8`."""
  sign, mark = ("+", "c") if move > 0 else ("-", "b")
  columns, carry = [], 0
  for a, b in zip(reversed(str(value)), reversed(str(abs(move)))):
    term = int(b) + carry  # a carry is added with the digit, a borrow is subtracted with it
    total = int(a) + term if move > 0 else int(a) - term
    carried = sign + mark if carry else ""
    carry = int(not 0 <= total <= 9)
    columns.append(f"{a}{sign}{b}{carried}={total % 10}{mark if carry else ''}")
  return ";".join(columns)


# ---------------------------------------------------------------------------------- examples


def load(data: DataConfig, kind: ExampleKind, seed: int) -> Examples:
  """Returns the examples of the built-in family for a method.

  `data.path` names the problems, `data.split` their split, `data.holdout` the number of problems
  that are held out for validation:
    hard, hard:500   hard problems (100 unless a number is given), the same for every seed;
                     validation on the selection split. They give one example a step or one a
                     problem; supervised fine-tuning learns the expert's whole solution.
    reasoned         supervised only: the same problems; the response to learn is one think block
                     with the scratch work of all steps, then the whole solution, as DeepSeek-R1
                     answers.
    mix, mix:20000   supervised only: responses with monologues (100,000 unless a number is given),
                     drawn with `seed`, most of them on easy problems (`_warm_up`); validation on
                     the next steps of hard problems of the calibration split, for the stop rule.

  Args:
    data: source, path, split and holdout, and how steps are cut.
    kind: which examples to make.
    seed: of the warm-up's draw.

  Raises:
    UserError: a path or split that this family does not have, or a kind that a path does not have.
  """
  match = re.fullmatch(r"(hard|reasoned|mix)(?::([1-9]\d*))?", data.path)
  if not match:
    raise UserError(
      f"data.path={data.path!r} of the built-in problems: use 'hard', 'reasoned' or 'mix', with a"
      " number such as 'hard:500' if wanted"
    )
  path, count = match[1], int(match[2] or DEFAULT_COUNT[match[1]])
  if path != "hard" and not kind.supervised:
    raise UserError(
      f"data.path={path!r} holds responses to learn: method='sft', not {kind.method!r}"
    )
  counts = {"rows": count + data.holdout, "kept": count + data.holdout}
  if path == "mix":
    train = _warm_up(data.split, count, seed, kind)
    validation = []
    for problem in problems("calibration", data.holdout):
      validation += _step_responses(problem, kind.step_task)
    return Examples(train, validation, counts)
  train, validation = [], []
  for side, chosen in (
    (train, problems(data.split, count)),
    (validation, problems("selection", data.holdout)),
  ):
    for problem in chosen:
      side += _reasoned(problem, kind) if path == "reasoned" else _examples(problem, kind, data)
  return Examples(train, validation, counts)


def _example(problem: Problem, task: str, target: str) -> StepExample:
  """One example of a whole problem."""
  return StepExample(
    id=problem.id,
    problem_id=problem.id,
    task=task,
    problem=problem.text,
    context=[],
    hint=None,
    target=target,
    answer=problem.answer,
  )


def _examples(problem: Problem, kind: ExampleKind, data: DataConfig) -> list[StepExample]:
  """The examples of one hard problem."""
  if kind.unit != "steps":
    target = "" if kind.unit == "answer" else "\n".join(problem.steps)
    return [_example(problem, kind.task, target)]
  used = len(problem.steps) if data.keep_last_step else len(problem.steps) - 1
  examples = []
  for k in range(used):
    hint, target = None, problem.steps[k]
    if data.title_hint:
      hint = _title(problem.moves[k])
      target = target.split("**: ", 1)[1]
    examples.append(_step(problem, k, kind.task, target, hint))
  return examples


def _step(problem: Problem, k: int, task: str, target: str, hint: str | None = None) -> StepExample:
  """The example of a problem's step k (from 0)."""
  whole = _example(problem, task, target)
  return dataclasses.replace(
    whole, id=f"{problem.id}/{k + 1}", context=problem.steps[:k], hint=hint
  )


def _step_responses(problem: Problem, task: str) -> list[StepExample]:
  """The problem's single next steps as responses to learn, each with its monologue."""
  return [_step(problem, k, task, turn) for k, turn in enumerate(problem.turns)]


def _reasoned(problem: Problem, kind: ExampleKind) -> list[StepExample]:
  """The one response that has all the scratch work in one think block, then the solution."""
  before = [problem.start, *problem.values]
  thoughts = "\n".join(map(_scratch_work, before, problem.moves))
  target = "\n".join([f"{OPEN}{thoughts}{CLOSE}", *problem.steps])
  return [_example(problem, kind.task, target)]


def _warm_up(split: str, count: int, seed: int, kind: ExampleKind) -> list[StepExample]:
  """`count` responses, single steps and whole solutions, mostly on easy problems."""
  rng = random.Random(f"arithmetic/mix/{split}/{seed}")
  responses = []
  for i in range(count):
    digits = 1 if rng.random() < EASY_SHARE else 2
    most = EASY_STEPS if digits == 1 else HARD_STEPS
    steps = 1
    while steps < most and rng.random() < LONGER:
      steps += 1
    problem = dataclasses.replace(_draw(rng, split, steps, digits), id=f"mix-{i}")
    if rng.random() < WHOLE_SHARE:  # the whole solution, a think block before each step
      responses.append(_example(problem, kind.task, "\n".join(problem.turns)))
    else:
      responses.append(_step_responses(problem, kind.step_task)[rng.randrange(steps)])
  return responses
