"""The built-in family of problems: chains of additions and subtractions.

A problem reads `Start with 45. Add 53. Subtract 61.`; every running value keeps the problem's
number of digits. The expert writes one numbered step per move and boxes the last value:

    1. **Add 53**: 98
    2. **Subtract 61**: \\boxed{37}

How to get there is left to the monologue: column-wise scratch work, with `c` for a carry and `b`
for a borrow (`<think>8-1=7;9-6=3</think>`), which the expert's text never shows. A hard problem
has six moves of two-digit numbers. Nothing is downloaded and nothing is drawn from the clock: a
set of problems is a pure function of its name, its size and a seed.

Whole problems belong to one of four splits by a hash of their text, so that no problem that a
setting was chosen on, or that a figure is reported on, can ever be trained on:
  train        to train on, the warm-up as well as SRL
  calibration  decides when the warm-up stops
  selection    chooses settings and checkpoints
  test         is reported
"""

import dataclasses
import hashlib
import random
import re

from srl_jax.data.prompts import CLOSE, OPEN
from srl_jax.data.sources import Examples, StepExample
from srl_jax.errors import UserError

DATA_SEED = 0  # of the sets of hard problems: the same problems for every run and every arm
HARD_STEPS, HARD_DIGITS = 6, 2
SPLIT_PERCENT = {"train": 70, "calibration": 10, "selection": 10, "test": 10}
# The warm-up's mix of problems: the share with one-digit numbers, the chance that a problem has yet
# another step (so long ones are a thin tail), and the share of responses with the whole solution.
EASY_SHARE, LONGER, WHOLE_SHARE = 0.5, 0.5, 0.25
# One-digit problems are short. Where most six-step problems had one digit, a base learned that a
# sixth step's box holds one digit, said so in all eight rollouts, and SRL never saw another.
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
    return [self.start + sum(self.moves[: k + 1]) for k in range(len(self.moves))]

  @property
  def answer(self) -> str:
    return str(self.values[-1])

  @property
  def steps(self) -> list[str]:
    """The expert's steps; joined by newlines they are the whole solution."""
    shown = [*map(str, self.values[:-1]), f"\\boxed{{{self.answer}}}"]
    return [f"{k}. **{_title(m)}**: {v}" for k, (m, v) in enumerate(zip(self.moves, shown), 1)]

  @property
  def turns(self) -> list[str]:
    """The steps, each after the monologue that leads to it: what a policy should answer."""
    before = [self.start, *self.values]
    return [
      f"<think>{_scratch_work(value, move)}</think>{step}"
      for value, move, step in zip(before, self.moves, self.steps)
    ]


def problems(
  split: str,
  n: int,
  seed: int = DATA_SEED,
  *,
  steps: int = HARD_STEPS,
  digits: int = HARD_DIGITS,
) -> list[Problem]:
  """Returns n different problems of a split, hard ones unless told otherwise.

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
    f"{n} different problems of {steps} steps and {digits} digits asked for, {len(found)} found:"
    " ask for fewer"
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
  sign, borrow = ("+", "c") if move > 0 else ("-", "b")
  columns, over = [], 0
  for a, b in zip(reversed(str(value)), reversed(str(abs(move)))):
    total = int(a) + (int(b) + over) * (1 if move > 0 else -1)
    old, over = over, int(not 0 <= total <= 9)
    columns.append(
      f"{a}{sign}{b}{sign + borrow if old else ''}={total % 10}{borrow if over else ''}"
    )
  return ";".join(columns)


# ---------------------------------------------------------------------------------- examples


def load(data, method: str, seed: int) -> Examples:
  """Returns the examples of the built-in family for a method.

  `data.path` says which problems, `data.split` which split they come from, `data.holdout` how many
  problems are held out for validation:
    hard, hard:500   hard problems (100 unless a number is given), the same for every seed;
                     validation on the selection split. srl gives one example per step, one_step
                     and rlvr one per problem; sft learns the expert's whole solution.
    reasoned         sft only: the same problems; the response to learn is one think block with the
                     scratch work of all steps and then the whole solution, as DeepSeek-R1 answers.
    mix, mix:20000   sft only: responses with monologues (100,000 unless a number is given), drawn
                     with `seed`, most of them on easy problems (`_warm_up`); validation on the next
                     steps of hard problems of the calibration split, for the stop rule.

  Args:
    data: the config's group `data`.
    method: srl | one_step | rlvr | sft.
    seed: of the warm-up's draw.

  Raises:
    UserError: a path, split or method that this family does not have.
  """
  match = re.fullmatch(r"(hard|reasoned|mix)(?::([1-9]\d*))?", data.path)
  if not match:
    raise UserError(
      f"data.path={data.path!r} of the built-in problems: use 'hard', 'reasoned' or 'mix', with a"
      " number such as 'hard:500' if wanted"
    )
  kind, count = match[1], int(match[2] or DEFAULT_COUNT[match[1]])
  if kind != "hard" and method != "sft":
    raise UserError(f"data.path={kind!r} holds responses to learn: method='sft', not {method!r}")
  if kind == "mix":
    held_out = problems("calibration", data.holdout)
    train = _warm_up(data.split, count, seed)
    validation = [e for problem in held_out for e in _step_responses(problem)]
  else:
    chosen, held_out = problems(data.split, count), problems("selection", data.holdout)
    make = _examples if kind == "hard" else _reasoned_responses
    train, validation = (
      [e for problem in part for e in make(problem, method, data)] for part in (chosen, held_out)
    )
  counts = {"rows": count + data.holdout, "kept": count + data.holdout}
  return Examples(train, validation, counts)


def _examples(problem: Problem, method: str, data) -> list[StepExample]:
  """The examples of one hard problem."""
  whole = "\n".join(problem.steps)
  one = StepExample(
    id=problem.id,
    problem_id=problem.id,
    task=method,
    problem=problem.text,
    context=[],
    hint=None,
    target=whole,
    answer=problem.answer,
  )
  if method in ("one_step", "sft"):
    return [one]
  if method == "rlvr":
    return [dataclasses.replace(one, target="")]
  if method != "srl":
    raise UserError(f"method={method!r}: use srl, one_step, rlvr or sft")
  used = len(problem.steps) if data.keep_last_step else len(problem.steps) - 1
  examples = []
  for k in range(used):
    hint, target = None, problem.steps[k]
    if data.title_hint:
      hint = _title(problem.moves[k])
      target = target.split("**: ", 1)[1]
    examples.append(
      dataclasses.replace(
        one, id=f"{problem.id}/{k + 1}", context=problem.steps[:k], hint=hint, target=target
      )
    )
  return examples


def _step_responses(problem: Problem) -> list[StepExample]:
  """The problem's single next steps as responses to learn, each with its monologue."""
  return [
    StepExample(
      id=f"{problem.id}/{k + 1}",
      problem_id=problem.id,
      task="srl",
      problem=problem.text,
      context=problem.steps[:k],
      hint=None,
      target=turn,
      answer=problem.answer,
    )
    for k, turn in enumerate(problem.turns)
  ]


def _whole_response(problem: Problem) -> StepExample:
  """The problem's whole solution as one response to learn, a think block before each step."""
  return StepExample(
    id=problem.id,
    problem_id=problem.id,
    task="sft",
    problem=problem.text,
    context=[],
    hint=None,
    target="\n".join(problem.turns),
    answer=problem.answer,
  )


def _reasoned_responses(problem: Problem, method: str, data) -> list[StepExample]:
  """The one response that has all the scratch work in one think block, then the solution."""
  before = [problem.start, *problem.values]
  thoughts = "\n".join(map(_scratch_work, before, problem.moves))
  target = "\n".join([f"{OPEN}{thoughts}{CLOSE}", *problem.steps])
  return [dataclasses.replace(_whole_response(problem), target=target)]


def _warm_up(split: str, count: int, seed: int) -> list[StepExample]:
  """`count` responses in both forms, mostly on easy problems."""
  rng = random.Random(f"arithmetic/mix/{split}/{seed}")
  responses = []
  for i in range(count):
    digits = 1 if rng.random() < EASY_SHARE else 2
    most = EASY_STEPS if digits == 1 else HARD_STEPS
    steps = 1
    while steps < most and rng.random() < LONGER:
      steps += 1
    problem = dataclasses.replace(_draw(rng, split, steps, digits), id=f"mix-{i}")
    if rng.random() < WHOLE_SHARE:
      responses.append(_whole_response(problem))
    else:
      responses.append(_step_responses(problem)[rng.randrange(steps)])
  return responses
