"""Short monologues before single steps, for teaching the form of a response by fine-tuning.

With config.data.learn_steps a model that does not follow the format learns to think inside the tags
and to write one step after them. Every monologue names quantities of its step, and the wording
varies, so that the model does not learn one fixed text.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

from srl_jax.data.examples import StepExample
from srl_jax.data.responses import CLOSE, OPEN
from srl_jax.data.thoughts import without_tags

LONGEST = 400  # characters of a monologue
NAMED = 3  # quantities in a sentence

# A formula between dollars or \( \) on one line, else a number.
_FORMULA = re.compile(r"\\\((.{1,50}?)\\\)|\$([^$\n]{1,50})\$")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
# The marks and the number in front of a step's title: "### Step 2: ", "**3.** ", "4. **".
_MARKS = re.compile(r"^[\s#*_>-]*(?:step\s*)?\d*\s*[.:)]*[\s*_:]*", re.IGNORECASE)

_FIRST = ("What is given?", "First I look at what I know.", "I start from the problem itself.")
_LATER = ("The last step was: {last}.", "Done so far: {last}.", "I go on after: {last}.")
_NAMES = ("Here I need {named}.", "This is about {named}.", "I have {named} to work with.")
_AIMS = ("Next: {title}.", "So the next thing is: {title}.", "What helps now: {title}.")
_CHECKS = ("I should get {result}.", "Then comes {result}.", "Let me check {result}.", "")


def with_monologue(example: StepExample, reasoning: str = "") -> StepExample:
  """The example with its step after a monologue as the response to learn.

  Args:
    example: a single step of an expert's solution.
    reasoning: what the expert thought about the whole problem, or "".
  """
  thought = _from_reasoning(example.target, reasoning) or _from_step(example)
  return dataclasses.replace(example, target=f"{OPEN}\n{thought}\n{CLOSE}\n{example.target}")


def _from_reasoning(step: str, reasoning: str) -> str:
  """The sentence of the reasoning that shares most quantities with the step, and its neighbours.

  Returns "" if no sentence shares any.
  """
  wanted, best, most = set(_quantities(step)), "", 0
  sentences = [text for text in _SENTENCE.split(without_tags(reasoning)) if text.strip()]
  for i, sentence in enumerate(sentences):
    shared = len(wanted.intersection(_quantities(sentence)))
    if shared > most:
      best, most = " ".join(sentences[max(0, i - 1) : i + 2]), shared
  return _shortened(best)


def _from_step(example: StepExample) -> str:
  """Remarks on the step's title and quantities; the example's id selects their wording."""
  draw = random.Random(example.id)
  found = _quantities(example.target)
  is_first = example.id.endswith("/1")  # its context, if any, is the preamble
  last = _title(example.context[-1]) if example.context and not is_first else ""
  parts = [draw.choice(_LATER).format(last=last) if last else draw.choice(_FIRST)]
  if found:
    parts.append(draw.choice(_NAMES).format(named=_joined(found[:NAMED])))
  parts.append(draw.choice(_AIMS).format(title=_title(example.hint or example.target)))
  if len(found) > NAMED:
    parts.append(draw.choice(_CHECKS).format(result=found[-1]))
  return _shortened(" ".join(filter(None, parts)))


def _quantities(text: str) -> list[str]:
  """The short formulas of a text or, where it has none, its numbers; each once, in their order."""
  formulas = [(first or second).strip() for first, second in _FORMULA.findall(text)]
  return list(dict.fromkeys(filter(None, formulas or _NUMBER.findall(text))))


def _joined(parts: Sequence[str]) -> str:
  *first, last = parts
  return f"{', '.join(first)} and {last}" if first else last


def _title(step: str) -> str:
  """The first line of a step without marks and number, its first words if it is long."""
  line = without_tags(step).strip().split("\n", 1)[0]
  title = _MARKS.sub("", line).replace("**", "").strip(" *_#:.") or line
  return title if len(title) <= 80 else title[:80].rpartition(" ")[0]


def _shortened(text: str) -> str:
  return text if len(text) <= LONGEST else f"{text[: LONGEST - 4].rstrip()} ..."
