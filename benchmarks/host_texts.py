"""Synthetic texts for benchmarks/host.py, as long as real solutions and trajectories are."""

import dataclasses
import json
import pathlib

import numpy as np

from configs import srl_math, srl_swe
from srl_jax.data.examples import StepExample
from srl_jax.data.responses import CLOSE, OPEN
from srl_jax.data.runs import shorten_observation
from srl_jax.tasks.examples import load_examples

# Tokens at these quantiles; between two of them the logarithm goes straight. Fitted by --fit to
# 260 MathOdyssey solutions of DeepSeek-V3 and 16 SWE-smith trajectories, in Qwen2.5's tokens,
# without the system message. Monologues of a trained policy are not at hand: they are taken to be
# as long as whole solutions, the longest hundredth running on to the limit.
QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
LENGTHS = {
  "math prompt": (54, 141, 215, 354, 539, 793, 1454, 2126),
  "math action": (12, 51, 73, 110, 177, 281, 784, 1288),
  "swe prompt": (490, 832, 1133, 1631, 2596, 3079, 4675, 5277),
  "swe action": (8, 24, 27, 42, 133, 410, 1245, 2175),
  "solution": (241, 412, 547, 826, 1161, 1632, 2342, 2600),
  "monologue": (241, 412, 547, 826, 1161, 1632, 2342, 8192),
}
LONGEST = 8192  # tokens of a prompt and its response

MATH = r"""we have the value of and by so that equation then substitute both sides square root let
be if for all positive integers sum over terms first second therefore this gives using identity mod
prime \( x \) \( a_n = 2n + 1 \) \[ \frac{a}{b} = \sqrt{c} \] \( \tan^2 a_n + 1 \)"""
CODE = r"""def return self value if not in for line import path str None True raise else with open
as the ( ) : = == [ ] , . _name test_case result index data args kwargs # module error when assert
call /testbed/src/package/core.py print old new file text function class"""


@dataclasses.dataclass(frozen=True)
class Case:
  """A kind of step: its prompts, actions and words; monologues are as long as whole solutions."""

  task: str
  prompt: str
  action: str
  words: str


CASES = {
  "SRL, math": Case("srl", "math prompt", "math action", MATH),
  "SRL, software engineering": Case("swe", "swe prompt", "swe action", CODE),
  "one-step reward, math": Case("one_step", "math prompt", "solution", MATH),
}


# ---------------------------------------------------------------------------------- lengths


def draw(rng, name: str, count: int, shrink: float = 1.0) -> np.ndarray:
  """`count` lengths in tokens from LENGTHS[name], divided by `shrink`."""
  logs = np.interp(rng.random(count), QUANTILES, np.log(LENGTHS[name]))
  return np.maximum(1, np.exp(logs) / shrink).astype(int)


def fit(shared: pathlib.Path, tokenizer) -> dict[str, tuple[int, ...]]:
  """LENGTHS of the data files in `shared`/data."""
  count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
  solutions = shared / "data/steps/mathodyssey_deepseek_v3.jsonl"
  runs = shared / "data/swe/swesmith_trajectories_xml.jsonl"
  math = srl_math.get_config(f"data={solutions},problem=problem,solution=response,answer=answer")
  swe = srl_swe.get_config(f"data={runs},expert=,resolved=false,id=")
  found = {}
  for name, config in (("math", math), ("swe", swe)):
    config.data.holdout = 0
    examples = load_examples(config)
    examples = examples.train + examples.validation
    limit, prompts = config.prompt.observation_tokens, []
    for example in examples:
      context = [shorten_observation(text, limit, tokenizer) for text in example.context]
      prompts.append(count("\n\n".join([example.problem, *context])))
    found[f"{name} prompt"] = prompts
    found[f"{name} action"] = [count(e.target) for e in examples]
  math.method = "one_step"
  whole = load_examples(math)
  found["solution"] = [count(e.target) for e in whole.train + whole.validation]
  quantiles = lambda lengths: tuple(int(x) for x in np.quantile(lengths, QUANTILES))
  lengths = {name: quantiles(found[name]) for name in found}
  return lengths | {"monologue": (*lengths["solution"][:-1], LONGEST)}


# ---------------------------------------------------------------------------------- texts


class Writer:
  """Texts of a given number of tokens, cut from one long one of a few words in random order."""

  def __init__(self, rng, tokenizer, words: str):
    self.rng, self.tokenizer = rng, tokenizer
    self.words = rng.choice(words.split(), 4 * LONGEST).tolist()
    self.ids = self.encode(" ".join(self.words))
    self.tokens_per_word = len(self.ids) / len(self.words)

  def encode(self, text: str) -> list[int]:
    return self.tokenizer(text, add_special_tokens=False)["input_ids"]

  def tokens(self, count: int) -> list[int]:
    """That many tokens."""
    start = self.rng.integers(len(self.ids) - count)
    return self.ids[start : start + count]

  def text(self, tokens: int) -> str:
    """About that many tokens, as text."""
    count = max(1, round(tokens / self.tokens_per_word))
    start = self.rng.integers(len(self.words) - count)
    return " ".join(self.words[start : start + count])

  def like(self, text: str, changed: float) -> str:
    """The text with that share of its words replaced."""
    words = np.array(text.split(" "), object)
    other = self.rng.random(len(words)) < changed
    words[other] = self.rng.choice(self.words, int(other.sum()))
    return " ".join(words)


def make_example(writer: Writer, case: Case, index: int, shrink: float) -> StepExample:
  """An example whose problem stands for problem and context."""
  prompt, action = (draw(writer.rng, name, 1, shrink)[0] for name in (case.prompt, case.action))
  texts = writer.text(prompt), writer.text(action)
  return StepExample(
    f"{index}/1", str(index), case.task, texts[0], [], None, target=texts[1], answer=None
  )


def make_answer(writer: Writer, target: str, samples: int, room: int, shrink: float) -> bytes:
  """A server's answer in JSON: `samples` responses of at most `room` tokens.

  A tenth of the groups teach nothing (all actions are the target), a twentieth of the responses are
  cut off.
  """
  rng, end = writer.rng, writer.tokenizer.eos_token_id
  dull = rng.random() < 0.1
  choices = []
  for number, thought in enumerate(draw(rng, "monologue", samples, shrink)):
    said = target if dull else writer.like(target, rng.uniform(0.1, 0.9))
    ids = [
      *writer.encode(OPEN + "\n"),
      *writer.tokens(thought),
      *writer.encode(f"\n{CLOSE}\n{said}"),
    ]
    stopped = rng.random() > 0.05 and len(ids) < room
    ids = [*ids, end] if stopped else ids[:room]
    content = [
      {"token_id": id, "logprob": -float(x)} for id, x in zip(ids, rng.exponential(0.3, len(ids)))
    ]
    choices.append(
      dict(
        index=number,
        token_ids=ids,
        logprobs=dict(content=content),
        finish_reason="stop" if stopped else "length",
        weight_versions=[dict(version="0")],
      )
    )
  return json.dumps(dict(choices=choices)).encode()
