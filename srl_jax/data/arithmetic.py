"""The built-in problems: chains of additions and subtractions.

A problem reads `Start with 45. Add 53. Subtract 61.`; every running value has as many digits as the
problem's numbers. The expert writes one numbered step per move and boxes the last value:

    1. **Add 53**: 98
    2. **Subtract 61**: \\boxed{37}

The monologue computes each value column by column, with `c` for a carry and `b` for a borrow
(`<think>8-1=7;9-6=3</think>`); the expert's text never shows this scratch work. A hard problem has
six moves of two-digit numbers. Nothing is downloaded, and a set of problems is a pure function of
its split, its size and a seed.

Each problem belongs to one of four splits by a hash of its text, so that a problem used to choose a
setting or to report a result can never be trained on:
  train        training, both warm-up and SRL
  calibration  decides when the warm-up stops
  selection    selects settings and checkpoints
  test         reported results
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

# Of the hard problems, which are the same for every run and every arm of a comparison.
DATA_SEED = 0
HARD_STEPS, HARD_DIGITS = 6, 2
SPLIT_PERCENT = {"train": 70, "calibration": 10, "selection": 10, "test": 10}
# The warm-up's mix of problems: the share with one-digit numbers, the probability of one more step
# (so the number of steps is geometric), and the share of responses with the whole solution.
EASY_SHARE, LONGER, WHOLE_SHARE = 0.5, 0.5, 0.25
# One-digit problems have few steps. When most six-step problems had one digit, a base model learnt
# to box one digit in a sixth step: all eight rollouts of a group did, so SRL had no signal.
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
    """The running value after each move (without the start value)."""
    return list(itertools.accumulate(self.moves, initial=self.start))[1:]

  @property
  def answer(self) -> str:
    return str(self.values[-1])

  @property
  def steps(self) -> list[str]:
    """The expert's steps; joined by newlines they are the whole solution."""
    # The last step boxes its value, the others state it.
    results = [*map(str, self.values[:-1]), f"\\boxed{{{self.answer}}}"]
    steps = []
    for number, (move, result) in enumerate(zip(self.moves, results), start=1):
      steps.append(f"{number}. **{_title(move)}**: {result}")
    return steps

  @property
  def turns(self) -> list[str]:
    """The responses of an ideal policy: each step after the monologue that computes it."""
    before = [self.start, *self.values]  # one longer than `moves`; zip drops the final value
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
  """Returns n distinct problems of a split, by default hard ones.

  A shorter list is a prefix of a longer one with the same split and seed.

  Args:
    split: train | calibration | selection | test.
    n: how many.
    seed: of the draw; it never moves a problem from one split to another.
    steps: moves per problem.
    digits: of every number of the problem, 1 or 2.

  Raises:
    UserError: the split is unknown, or there are fewer than n such problems.
  """
  if split not in SPLIT_PERCENT:
    raise UserError(f"data.split={split!r} of the built-in problems: use one of {[*SPLIT_PERCENT]}")
  rng = random.Random(f"arithmetic/{split}/{steps}/{digits}/{seed}")
  found: dict[str, Problem] = {}  # by text, so that repeats are drawn again
  # Few distinct problems exist for one or two steps, so the number of draws must be bounded.
  for _ in range(100 * n + 1000):
    if len(found) == n:
      return list(found.values())
    problem = _draw(rng, split, steps, digits)
    found.setdefault(problem.text, dataclasses.replace(problem, id=f"{split}-{len(found)}"))
  raise UserError(
    f"found only {len(found)} of {n} distinct problems with {steps} steps and {digits} digits:"
    " reduce data.path's number"
  )


def split_of(text: str) -> str:
  """Returns the split that a problem's text belongs to."""
  # The first 64 bits of the hash, modulo 100: the bias of the modulo is negligible.
  bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
  for split, percent in SPLIT_PERCENT.items():
    if bucket < percent:
      return split
    bucket -= percent
  raise AssertionError("the percentages of the splits sum to 100")


def _draw(rng: random.Random, split: str, steps: int, digits: int) -> Problem:
  """Returns one problem of the split; it may repeat an earlier one, and its id is empty."""
  # Smallest and largest number of this many digits, for terms and running values alike.
  low, high = (1, 9) if digits == 1 else (10, 99)
  while True:
    start = value = rng.randrange(low, high + 1)
    moves = []
    for _ in range(steps):
      # `room` is the largest term that keeps the value within [low, high]. Near either end only one
      # of the two signs leaves room for a term of at least `low`.
      room = {+1: high - value, -1: value - low}
      sign = (+1, -1)[rng.randrange(2)]
      if room[sign] < low:
        sign = -sign
      moves.append(sign * rng.randrange(low, room[sign] + 1))
      value += moves[-1]
    # Rejection sampling: a problem's split is a function of its text and cannot be chosen.
    problem = Problem("", start, tuple(moves))
    if split_of(problem.text) == split:
      return problem


def _title(move: int) -> str:
  return f"{'Add' if move > 0 else 'Subtract'} {abs(move)}"


def _scratch_work(value: int, move: int) -> str:
  """Returns the sum column by column from the right: 45+38 gives `5+8=3c;4+3+c=8`."""
  sign, mark = ("+", "c") if move > 0 else ("-", "b")
  columns, carry = [], 0
  for a, b in zip(reversed(str(value)), reversed(str(abs(move)))):
    term = int(b) + carry  # both a carry and a borrow increase the digit of the second number
    total = int(a) + term if move > 0 else int(a) - term
    carried = sign + mark if carry else ""
    carry = int(not 0 <= total <= 9)  # of this column, for the next one
    columns.append(f"{a}{sign}{b}{carried}={total % 10}{mark if carry else ''}")
  return ";".join(columns)


# ---------------------------------------------------------------------------------- examples


def load(data: DataConfig, kind: ExampleKind, seed: int) -> Examples:
  """Returns the examples of the built-in problems for a method.

  `data.path` selects the problems, `data.split` their split, and `data.holdout` is the number of
  problems held out for validation:
    hard, hard:500   hard problems (100 unless a number is given), the same for every seed;
                     validation on the selection split. One example per step or per problem;
                     supervised fine-tuning learns the expert's whole solution.
    reasoned         supervised only: the same problems; the response to learn is one think block
                     with the scratch work of all steps, then the whole solution, the form in which
                     DeepSeek-R1 answers.
    mix, mix:20000   supervised only: responses with monologues (100,000 unless a number is given),
                     drawn with `seed`, half of them on easy problems (`_warm_up`); validation on
                     the single steps of hard problems of the calibration split, for the stop rule.

  Args:
    data: source, path, split and holdout, and how steps are cut.
    kind: which examples to make.
    seed: of the warm-up's draw.

  Raises:
    UserError: the path or split is unknown, or the path does not support the kind.
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
      f"data.path={path!r} needs method='sft', not {kind.method!r}: it holds responses to learn"
    )
  # Held-out problems are from another split, so `count` problems remain to train on.
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
  """Returns one example for a whole problem."""
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
  """Returns the examples of one hard problem."""
  if kind.unit != "steps":
    target = "" if kind.unit == "answer" else "\n".join(problem.steps)
    return [_example(problem, kind.task, target)]
  used = len(problem.steps) if data.keep_last_step else len(problem.steps) - 1
  examples = []
  for k in range(used):
    hint, target = None, problem.steps[k]
    if data.title_hint:
      hint = _title(problem.moves[k])
      target = target.split("**: ", 1)[1]  # the step without number and title
    examples.append(_step(problem, k, kind.task, target, hint))
  return examples


def _step(problem: Problem, k: int, task: str, target: str, hint: str | None = None) -> StepExample:
  """Returns the example of a problem's step k (from 0)."""
  whole = _example(problem, task, target)
  return dataclasses.replace(
    whole, id=f"{problem.id}/{k + 1}", context=problem.steps[:k], hint=hint
  )


def _step_responses(problem: Problem, task: str) -> list[StepExample]:
  """Returns the problem's single steps as responses to learn, each with its monologue."""
  return [_step(problem, k, task, turn) for k, turn in enumerate(problem.turns)]


def _reasoned(problem: Problem, kind: ExampleKind) -> list[StepExample]:
  """Returns the response with all scratch work in one think block, then the solution."""
  before = [problem.start, *problem.values]
  thoughts = "\n".join(map(_scratch_work, before, problem.moves))
  target = "\n".join([f"{OPEN}{thoughts}{CLOSE}", *problem.steps])
  return [_example(problem, kind.task, target)]


def _warm_up(split: str, count: int, seed: int, kind: ExampleKind) -> list[StepExample]:
  """Returns `count` responses to learn: single steps and whole solutions of random problems."""
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
      # Only one of the problem's single steps, so that no problem is repeated.
      responses.append(_step_responses(problem, kind.step_task)[rng.randrange(steps)])
  return responses
