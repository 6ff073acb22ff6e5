"""What the policy reads, and how its answer is taken apart.

Every task asks by one system and one user message, rendered by the model's own chat template:

    system   how to answer: the next step only, or the whole solution
    user     the problem
             <blank line> Partial solution:            if there are earlier steps
             the steps
             <blank line> Title of the next step: ...  if a hint is given

and the policy answers with a monologue in think tags and then its action (paper, 4.2). The number
of messages never depends on the number of steps, so that training and turn-by-turn evaluation
build their prompts with the same function.
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from srl_jax.errors import UserError

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>")
# A block ends at its tag, or runs to the end of a text that never closes it.
_BLOCK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)

# What stands between the parts of the user message; the miniature's tokenizer knows the same words.
PARTIAL_SOLUTION = "\n\nPartial solution:\n"
STEP_JOINER = "\n\n"  # as between the paragraphs and headings of real solutions
HINT = "\n\nTitle of the next step: "
# The same place in software engineering: there the context is the agent's last calls.
LAST_CALLS = "\n\nThe last function calls, each with what it showed:\n"
OBSERVATION = "\n\nOBSERVATION:\n"  # between a call and what it showed, as SWE-agent writes it

# The paper's system prompt (Appendix B) in our own words. It must not speak of a box: to the
# miniature's chat template that word means that the whole solution is wanted.
NEXT_STEP = (
  "You help people solve mathematics problems. The user gives you a problem and, in most cases, a"
  " partial solution. Continue it with the very next logical step.\n"
  "First think inside <think> and </think>. Treat that space as scratch paper: explore, calculate,"
  " doubt and correct yourself as freely and for as long as you need.\n"
  "After </think> write the next step of the solution and nothing else: one step, in the style of"
  " the steps before it, and not the rest of the solution. If the title of that step is given,"
  " write what comes after the title.\n"
  "Your answer always has this form:\n"
  "<think>\n"
  "your thoughts\n"
  "</think>\n"
  "the next step"
)
# The system prompt of Qwen2.5-Math's evaluation, word for word: the paper's protocol.
WHOLE_PLAIN = "Please reason step by step, and put your final answer within \\boxed{}."
WHOLE_THINK = (
  "You help people solve mathematics problems. Write the complete solution as a sequence of"
  " numbered steps.\n"
  "Before each step think inside <think> and </think>, as freely and for as long as you need; then"
  " write that step, open the next think block, and go on until the problem is solved.\n"
  "Put the final answer within \\boxed{} in the last step."
)
# The step prompt of software engineering (paper, 5.3 and Appendix A). The functions are those of
# the SWE-smith runs, the form of a call is the one that data.trajectories gives to every action.
NEXT_CALL = (
  "You are a software engineer who resolves issues of a code repository by calling functions. The"
  " user gives you the task and, in most cases, the last function calls with what each of them"
  " showed. Go on with the very next function call.\n"
  "The functions:\n"
  "bash runs a command in a terminal. Its parameter is command.\n"
  "str_replace_editor shows, creates and changes files. Its parameters are\n"
  "- command: view, create, str_replace, insert or undo_edit\n"
  "- path: of the file or folder, absolute\n"
  "- view_range (view, if wanted): first and last line, such as [11, 30]; a last line of -1 is the"
  " end of the file\n"
  "- file_text (create): the content of the new file\n"
  "- old_str and new_str (str_replace): the text to replace, which must stand in the file exactly"
  " once, white space included, and the new text\n"
  "- insert_line and new_str (insert): the new text comes after this line\n"
  "submit says that the work is done. It has no parameters.\n"
  "First think inside <think> and </think>. Treat that space as scratch paper: explore, doubt and"
  " correct yourself as freely and for as long as you need.\n"
  "After </think> write one function call and nothing else. The values of file_text, old_str and"
  " new_str stand on lines of their own. Your answer always has this form:\n"
  "<think>\n"
  "your thoughts\n"
  "</think>\n"
  "<function=name>\n"
  "<parameter=first_parameter>value</parameter>\n"
  "<parameter=old_str>\n"
  "a text of\n"
  "several lines\n"
  "</parameter>\n"
  "</function>"
)


class Response(NamedTuple):
  """A well-formed answer: `monologue` inside the think tags, `action` after them, both stripped."""

  monologue: str
  action: str


class EncodedPrompt(NamedTuple):
  """A prompt for the engine.

  Attributes:
    token_ids: ids, template included.
    think_opened: whether the prompt ends inside a think block that the template opened.
  """

  token_ids: list[int]
  think_opened: bool


# ---------------------------------------------------------------------------------- the answer


def parse_response(text: str, *, think_opened: bool = False) -> Response | None:
  """Returns the parts of a one-step answer, or None if `format_failure` has a reason against it.

  Args:
    text: what the policy wrote, without the prompt and the end-of-turn token.
    think_opened: the prompt ended inside a think block, so `text` begins in the monologue. A second
      open tag in `text` is then one too many ("several"): the rule is about the whole turn, however
      it was divided between template and policy.
  """
  if format_failure(text, think_opened=think_opened):
    return None
  monologue, action = _whole_turn(text, think_opened).split(CLOSE)
  return Response(monologue.lstrip().removeprefix(OPEN).strip(), action.strip())


def format_failure(
  text: str, finish_reason: str = "stop", *, think_opened: bool = False
) -> str | None:
  """Returns why a one-step answer breaks the format, or None if it keeps it.

  The format: leading white space, exactly one think block (its monologue may be empty), then an
  action that is not blank. The first reason that holds counts:
    cut_off       the answer did not end by itself, so that even a visible action may be half one
    no_open       something else stands before the think block, or there is none
    no_close      the think block is never closed
    several       a second open or close tag
    empty_action  nothing after the think block

  Args:
    text: as for `parse_response`.
    finish_reason: the engine's; anything but "stop" means cut off.
    think_opened: as for `parse_response`.
  """
  if finish_reason != "stop":
    return "cut_off"
  turn = _whole_turn(text, think_opened)
  if not turn.lstrip().startswith(OPEN):
    return "no_open"
  if CLOSE not in turn:
    return "no_close"
  if turn.count(OPEN) > 1 or turn.count(CLOSE) > 1:
    return "several"
  if not turn.partition(CLOSE)[2].strip():
    return "empty_action"
  return None


def strip_think_blocks(text: str, *, think_opened: bool = False) -> str | None:
  """Returns a whole solution without its think blocks, stripped, or None if it is malformed.

  Blocks may stand anywhere; the text around them is joined as it is. `whole_format_failure` says
  what is wrong with a malformed one.
  """
  if whole_format_failure(text, think_opened=think_opened):
    return None
  return outside_think_blocks(text, think_opened=think_opened)


def whole_format_failure(
  text: str, finish_reason: str = "stop", *, think_opened: bool = False
) -> str | None:
  """Returns why a whole solution is malformed, or None: any number of think blocks, and some text.

  The reasons have the names of `format_failure`: no_open (a close tag without its open tag),
  no_close (a block that is not closed), several (a block inside a block), empty_action (nothing
  outside the blocks); cut_off stands for any of them where the answer did not end by itself. An
  answer that was cut off outside its blocks is well-formed.
  """
  turn = _whole_turn(text, think_opened)
  tags = _TAG.findall(turn)
  if tags == [OPEN, CLOSE] * (len(tags) // 2):
    outside = outside_think_blocks(turn)
    failure = None if outside else "empty_action"
    if _TAG.search(outside):  # the pieces around a block make a tag of their own
      failure = "several"
  elif tags.count(OPEN) == tags.count(CLOSE):
    failure = "several"
  else:
    failure = "no_close" if tags.count(OPEN) > tags.count(CLOSE) else "no_open"
  return "cut_off" if failure and finish_reason != "stop" else failure


def outside_think_blocks(text: str, *, think_opened: bool = False) -> str:
  """Returns what a reader sees of any text: no think block, no unclosed one, stripped.

  Unlike `strip_think_blocks` it refuses nothing: final answers are judged without a format term.
  """
  return _BLOCK.sub("", _whole_turn(text, think_opened)).strip()


def monologues(text: str, *, think_opened: bool = False) -> list[str]:
  """Returns the stripped contents of all think blocks, an unclosed last one included."""
  blocks = _BLOCK.findall(_whole_turn(text, think_opened))
  return [block.removeprefix(OPEN).removesuffix(CLOSE).strip() for block in blocks]


def _whole_turn(text: str, think_opened: bool) -> str:
  return OPEN + text if think_opened else text


# ---------------------------------------------------------------------------------- the question


def system_prompt(
  task: str, style: str, system_file: str | None = None, *, domain: str = "math"
) -> str:
  """Returns the system message of a task.

  Args:
    task: srl asks for the next step; one_step, rlvr and sft ask for the whole solution.
    style: of whole solutions: "plain" is Qwen2.5-Math's evaluation prompt, "think" asks for a think
      block before each step. The next step is always asked for with a think block ("think").
    system_file: text file that replaces our wording (`prompt.system_file`).
    domain: math, or swe, where srl and sft ask for the next function call (`data.domain`).

  Raises:
    UserError: unknown task, style or domain, or a system_file that is missing or empty.
  """
  if system_file:
    return _read_system_file(pathlib.Path(system_file))
  if domain == "swe" and task in ("srl", "sft"):
    return NEXT_CALL
  if domain != "math":
    raise UserError(
      f"no system prompt for task={task!r} in the domain {domain!r}: swe takes srl and sft"
    )
  if task == "srl" and style == "think":
    return NEXT_STEP
  if task in ("one_step", "rlvr", "sft") and style in ("plain", "think"):
    return WHOLE_PLAIN if style == "plain" else WHOLE_THINK
  raise UserError(
    f"no system prompt for task={task!r} with prompt.style={style!r}: srl takes 'think';"
    " one_step, rlvr and sft take 'plain' or 'think'"
  )


def build_messages(
  problem: str,
  context: Sequence[str],
  hint: str | None,
  system: str,
  *,
  domain: str = "math",
) -> list[dict[str, str]]:
  """Returns one system and one user message.

  Args:
    problem: the question.
    context: the solution so far, in order: the expert's steps in training, the model's own actions
      in turn-by-turn evaluation. In software engineering: the last calls with their observations.
    hint: title of the step to come, or None.
    system: from `system_prompt`.
    domain: as for `system_prompt`; it decides what stands above the context.
  """
  user = problem
  if context:
    heading = LAST_CALLS if domain == "swe" else PARTIAL_SOLUTION
    user += heading + STEP_JOINER.join(context)
  if hint:
    user += HINT + hint
  return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def encode(tokenizer, messages: list[dict[str, str]]) -> EncodedPrompt:
  """Returns the token ids of messages in the model's chat template, up to where it is to answer."""
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  # The template has written its special tokens already.
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  return EncodedPrompt(ids, text.rstrip().endswith(OPEN))


def _read_system_file(path: pathlib.Path) -> str:
  if not path.is_file():
    raise UserError(
      f"prompt.system_file={str(path)!r} is no file: give a text file or leave it unset"
    )
  try:
    text = path.read_text(encoding="utf-8").strip()
  except UnicodeDecodeError as error:
    raise UserError(
      f"prompt.system_file={str(path)!r} is not UTF-8 ({error}): save it as UTF-8"
    ) from error
  if not text:
    raise UserError(
      f"prompt.system_file={str(path)!r} is empty: write the prompt or leave it unset"
    )
  return text


# ---------------------------------------------------------------------------------- the tokenizer


def load_tokenizer(folder: str | pathlib.Path):
  """Returns the transformers tokenizer of a model folder, with a chat template and a padding token.

  tokenizer.json is taken as it is. AutoTokenizer would rebuild it by the folder's model_type and
  so replace the pre-tokenizer of any other model that is written as a qwen2 (SmolLM2).

  Raises:
    UserError: no tokenizer.json, one that cannot be read, or no chat template, or one that fails.
  """
  folder = pathlib.Path(folder)
  if not (folder / "tokenizer.json").is_file():
    raise UserError(
      f"{folder} has no tokenizer.json: give a model folder with its fast tokenizer"
      " (tokenizer.json and tokenizer_config.json)"
    )
  # It says that PyTorch is missing, which nothing here wants.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import PreTrainedTokenizerFast  # slow to import: only who tokenizes pays

  try:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
  except Exception as error:  # the tokenizers library raises bare Exceptions
    raise UserError(f"{folder}: the tokenizer cannot be read ({error}): copy it again") from error
  if not tokenizer.chat_template:
    raise UserError(
      f"{folder}: its tokenizer has no chat template (chat_template in tokenizer_config.json, or"
      " chat_template.jinja): use an instruct model's tokenizer"
    )
  try:
    encode(tokenizer, build_messages("A question.", [], None, "A system prompt."))
  except Exception as error:  # jinja2's own, and whatever an expression of the template raises
    raise UserError(
      f"{folder}: its chat template cannot write a system and a user message"
      f" ({type(error).__name__}: {error}): use a model with another one, or mend it"
    ) from error
  # Qwen2.5-Instruct pads with a token of its vision models.
  if tokenizer.pad_token == "<|vision_pad|>":
    tokenizer.pad_token = "<|endoftext|>"
  elif tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  return tokenizer


def stop_ids(tokenizer, folder: str | pathlib.Path) -> list[int]:
  """Returns all token ids that end an answer; first the one that the chat template writes there.

  Base and instruct models name different ends, and tokenizer, generation config and template need
  not agree: an answer that runs past any of them would be scored with what follows. Supervised
  targets end with the first.

  Args:
    tokenizer: from `load_tokenizer`.
    folder: the model folder; generation_config.json and config.json in it may name more.

  Raises:
    UserError: no end is named anywhere, or a file of the folder is not JSON.
  """
  found = [_end_of_turn(tokenizer), tokenizer.eos_token_id]
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(folder) / name
    if path.is_file():
      try:
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
      except (AttributeError, ValueError) as error:
        raise UserError(f"{path} is no JSON object ({error}): copy it again") from error
      found += eos if isinstance(eos, list) else [eos]
  ids = list(dict.fromkeys(i for i in found if i is not None))
  if not ids:
    raise UserError(f"{folder}: no end-of-text token: set eos_token in tokenizer_config.json")
  return ids


def _end_of_turn(tokenizer) -> int | None:
  """The special token that the chat template puts right after an assistant's answer, if any."""
  answer = "An answer."
  messages = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": answer}]
  text = tokenizer.apply_chat_template(messages, tokenize=False)
  after = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
  return after[0] if after and after[0] in tokenizer.all_special_ids else None
