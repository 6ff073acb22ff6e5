"""Tokenizers of model folders: chat template, end-of-turn tokens, prompts in and responses out."""

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from srl_jax.data.responses import CLOSE, OPEN
from srl_jax.errors import UserError

# Special tokens that end a text or a turn in released models.
ENDS = {"</s>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"}
ENDS |= {"<|end|>", "<end_of_turn>"}
# The messages of every task have these roles.
_TRIAL = [
  {"role": "system", "content": "A system prompt."},
  {"role": "user", "content": "A question."},
]


class EncodedPrompt(NamedTuple):
  """A prompt for the engine.

  Attributes:
    token_ids: ids, template included.
    think_opened: whether the prompt ends inside a think block that the template opened.
  """

  token_ids: list[int]
  think_opened: bool


def encode(tokenizer, messages: list[dict[str, str]], open_think: bool = False) -> EncodedPrompt:
  """Returns the token ids of messages in the model's chat template, up to where its turn begins.

  Args:
    open_think: append an opened think block, unless the template ends with one.

  Raises UserError if the template leaves out a part of what the user says.
  """
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  for message in messages:
    # Templates may strip a message. Many leave out a system message, which is theirs to decide.
    if message["role"] == "user" and message["content"].strip() not in text:
      raise UserError(
        f"{tokenizer.name_or_path}: its chat template leaves the question out of the prompt, or a"
        f" part of it (user message {_shortened(message['content'])}, prompt {_shortened(text)});"
        " use a model with another template, or mend it"
      )
  if open_think and not text.rstrip().endswith(OPEN):
    text += f"{OPEN}\n"
  # The template has written its special tokens already.
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  return EncodedPrompt(ids, text.rstrip().endswith(OPEN))


def _shortened(text: str) -> str:
  return repr(text if len(text) < 120 else f"{text[:60]} ... {text[-60:]}")


def decode(tokenizer, token_ids: Sequence[int]) -> str:
  """Returns the text of a response: special tokens are left out, but think tags are not.

  Some tokenizers mark <think> and </think> as special. Without them no response has the format.
  """
  hidden = _hidden_with_tags(tokenizer)
  if hidden is None:
    return tokenizer.decode(token_ids, skip_special_tokens=True)
  return tokenizer.decode([i for i in token_ids if i not in hidden], skip_special_tokens=False)


@functools.lru_cache(8)  # a tokenizer decodes thousands of responses a step
def _hidden_with_tags(tokenizer) -> frozenset[int] | None:
  """The ids of all special tokens but think tags; None where no think tag is special."""
  special = {}
  # The engines need no more than `decode` of a tokenizer; benchmarks give them one without tokens.
  added = getattr(tokenizer, "added_tokens_decoder", {})
  for token_id, token in added.items():
    if token.special:
      special[token_id] = token.content
  hidden = frozenset(i for i, text in special.items() if text not in (OPEN, CLOSE))
  return hidden if len(hidden) < len(special) else None


def load_tokenizer(folder: str | pathlib.Path):
  """Returns the transformers tokenizer of a model folder, with a chat template and a padding token.

  tokenizer.json is taken as it is. AutoTokenizer would rebuild it by the folder's model_type and
  so replace the pre-tokenizer of any other model that is written as a qwen2 (SmolLM2).

  Raises:
    UserError: no tokenizer.json, one that cannot be read or that has tokens beyond the model's
      embedding, or no chat template, or one that fails or leaves the question out.
  """
  folder = pathlib.Path(folder)
  if not (folder / "tokenizer.json").is_file():
    raise UserError(
      f"{folder} has no tokenizer.json: give a model folder with its fast tokenizer"
      " (tokenizer.json and tokenizer_config.json)"
    )
  # Without it transformers warns that PyTorch is missing, which nothing here needs.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import PreTrainedTokenizerFast  # slow to import

  try:
    # False: else transformers suspects a Mistral in some folders of other models, and warns.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, fix_mistral_regex=False)
  except Exception as error:  # the tokenizers library raises bare Exceptions
    raise UserError(f"{folder}: the tokenizer cannot be read ({error}): copy it again") from error
  _check_vocabulary(tokenizer, folder)
  if not tokenizer.chat_template:
    raise UserError(
      f"{folder}: its tokenizer has no chat template (chat_template in tokenizer_config.json, or"
      " chat_template.jinja): use an instruct model's tokenizer"
    )
  try:
    encode(tokenizer, _TRIAL)
  except UserError:
    raise
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


def _check_vocabulary(tokenizer, folder: pathlib.Path) -> None:
  """Raises UserError if a token's id has no row in the embedding of the folder's config.json.

  JAX clamps an index that is out of range: such a token would be read as the last row's.
  """
  rows = _read_settings(folder / "config.json").get("vocab_size")
  token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
  if isinstance(rows, int) and last >= rows:
    raise UserError(
      f"{folder}: the tokenizer has the token {token!r} with id {last}, but the embedding has"
      f" vocab_size={rows} rows (config.json): use the tokenizer of the same model, or enlarge the"
      f" embedding to at least {last + 1} rows (transformers: resize_token_embeddings)"
    )


def _read_settings(path: pathlib.Path) -> dict:
  """The JSON object in a file, {} if there is no file; UserError if it is anything else."""
  if not path.is_file():
    return {}
  try:
    settings = json.loads(path.read_text(encoding="utf-8"))
  except (RecursionError, ValueError) as error:
    raise UserError(f"{path} is no JSON object ({error}): copy it again") from error
  if not isinstance(settings, dict):
    raise UserError(f"{path} is no JSON object: copy it again")
  return settings


def stop_ids(tokenizer, folder: str | pathlib.Path) -> list[int]:
  """Returns all token ids that end an answer; first the one that the chat template writes there.

  Base and instruct models name different ends, and tokenizer, generation config and template need
  not agree: an answer that runs past any of them would be scored with what follows. Supervised
  targets end with the first.

  Args:
    tokenizer: from `load_tokenizer`.
    folder: the model folder; generation_config.json and config.json in it may name more.

  Raises:
    UserError: no end is named anywhere, one that is no token of the tokenizer, or a file of the
      folder is not JSON.
  """
  known = set(tokenizer.get_vocab().values())
  found = [_end_of_turn(tokenizer), tokenizer.eos_token_id]
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(folder) / name
    eos = _read_settings(path).get("eos_token_id")
    named = eos if isinstance(eos, list) else [eos]
    if not all(i is None or type(i) is int for i in named):
      raise UserError(f"{path}: eos_token_id is no token's number, nor a list of them: copy it")
    unknown = [i for i in named if i is not None and i not in known]
    if unknown:
      raise UserError(
        f"{path}: eos_token_id {unknown[0]} is no token of the tokenizer (the last is"
        f" {max(known)}): no response could end with it; use the file of the same model"
      )
    found += named
  for token_id, token in tokenizer.added_tokens_decoder.items():
    if token.special and token.content in ENDS:  # marked in tokenizer.json alone
      found.append(token_id)
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
  if not after:
    return None
  # all_special_ids has the tokens that tokenizer_config.json names; a base model's may name none of
  # those that only its template writes.
  added = tokenizer.added_tokens_decoder.get(after[0])
  special = after[0] in tokenizer.all_special_ids or (added is not None and added.special)
  return after[0] if special else None
