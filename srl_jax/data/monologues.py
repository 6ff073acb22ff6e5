"""Short monologues before single steps, for teaching the form of a response by fine-tuning.

With config.data.learn_steps a model that does not follow the format learns to think inside the tags
and to write one step after them. Every monologue names quantities of its step, and the wording
varies, so that the model does not memorise one fixed text.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

from srl_jax.data.examples import StepExample
from srl_jax.data.responses import CLOSE, OPEN
from srl_jax.data.thoughts import without_tags

LONGEST = 400  # characters of a monologue
NAMED = 3  # at most so many quantities in a sentence

# A formula on one line between dollars or \( \); the numbers of a text are used if it has none.
_FORMULA = re.compile(r"\\\((.{1,50}?)\\\)|\$([^$\n]{1,50})\$")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
# The marks and the number in front of a step's title: "### Step 2: ", "**3.** ", "4. **".
_MARKS = re.compile(r"^[\s#*_>-]*(?:step\s*)?\d*\s*[.:)]*[\s*_:]*", re.IGNORECASE)

# Sentences of a monologue in their order; {last} and {title} are titles of steps, {named} and
# {result} quantities of the step.
_FIRST = ("What is given?", "First I look at what I know.", "I start from the problem itself.")
_LATER = ("The last step was: {last}.", "Done so far: {last}.", "I go on after: {last}.")
_NAMES = ("Here I need {named}.", "This is about {named}.", "I have {named} to work with.")
_AIMS = ("Next: {title}.", "So the next thing is: {title}.", "What helps now: {title}.")
_CHECKS = ("I should get {result}.", "Then comes {result}.", "Let me check {result}.", "")


def with_monologue(example: StepExample, reasoning: str = "") -> StepExample:
  """Returns the example with a response to learn as its target: a monologue, then the step.

  Args:
    example: a single step of an expert's solution.
    reasoning: the expert's reasoning about the whole problem, or "".
  """
  thought = without_tags(_from_reasoning(example.target, reasoning) or _from_step(example))
  return dataclasses.replace(example, target=f"{OPEN}\n{thought}\n{CLOSE}\n{example.target}")


def _from_reasoning(step: str, reasoning: str) -> str:
  """Returns the sentence that shares most quantities with the step, with the sentences around it.

  Returns "" if no sentence shares any quantity.
  """
  wanted, best, most = set(_quantities(step)), "", 0
  sentences = [text for text in _SENTENCE.split(without_tags(reasoning)) if text.strip()]
  for i, sentence in enumerate(sentences):
    shared = len(wanted.intersection(_quantities(sentence)))
    if shared > most:
      # At most one sentence on either side gives the quantities some context.
      best, most = " ".join(sentences[max(0, i - 1) : i + 2]), shared
  return _shortened(best)


def _from_step(example: StepExample) -> str:
  """Returns sentences about the step's title and quantities, worded at random."""
  draw = random.Random(example.id)  # the same example always gets the same monologue
  found = _quantities(example.target)
  is_first = example.id.endswith("/1")  # its context, if any, is the preamble
  last = _title(example.context[-1]) if example.context and not is_first else ""
  parts = [draw.choice(_LATER).format(last=last) if last else draw.choice(_FIRST)]
  if found:
    parts.append(draw.choice(_NAMES).format(named=_joined(found[:NAMED])))
  parts.append(draw.choice(_AIMS).format(title=_title(example.hint or example.target)))
  # The last quantity of a step is usually its result; it is named only if _NAMES left it out.
  if len(found) > NAMED:
    parts.append(draw.choice(_CHECKS).format(result=found[-1]))
  return _shortened(" ".join(filter(None, parts)))


def _quantities(text: str) -> list[str]:
  """Returns a text's short formulas, or its numbers if it has no formula; unique, in order."""
  formulas = [(first or second).strip() for first, second in _FORMULA.findall(text)]
  return list(dict.fromkeys(filter(None, formulas or _NUMBER.findall(text))))


def _joined(parts: Sequence[str]) -> str:
  """Returns "a, b and c"."""
  *first, last = parts
  return f"{', '.join(first)} and {last}" if first else last


def _title(step: str) -> str:
  """Returns the first line of a step without markup and number, shortened to some 80 characters."""
  line = without_tags(step).strip().split("\n", 1)[0]
  title = _MARKS.sub("", line).replace("**", "").strip(" *_#:.") or line
  return title if len(title) <= 80 else title[:80].rpartition(" ")[0]


def _shortened(text: str) -> str:
  """Returns at most LONGEST characters of the text."""
  return text if len(text) <= LONGEST else f"{text[: LONGEST - 4].rstrip()} ..."
