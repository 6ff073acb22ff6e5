"""Loads a model folder's tokenizer, encodes prompts in its chat template, decodes responses."""

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
# The trial prompt of `load_tokenizer` has the roles that every task's messages have.
_TRIAL = [
  {"role": "system", "content": "A system prompt."},
  {"role": "user", "content": "A question."},
]


class EncodedPrompt(NamedTuple):
  """A prompt as token ids.

  Attributes:
    token_ids: ids of the prompt, including the chat template.
    think_opened: whether the prompt ends inside a think block, which the response then continues.
  """

  token_ids: list[int]
  think_opened: bool


def encode(tokenizer, messages: list[dict[str, str]], open_think: bool = False) -> EncodedPrompt:
  """Returns the token ids of messages in the model's chat template, with the generation prompt.

  Args:
    tokenizer: from `load_tokenizer`.
    messages: {"role": ..., "content": ...} each.
    open_think: append an open think tag, unless the template already ends with one.

  Raises:
    UserError: the template omits a part of a user message.
  """
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  for message in messages:
    # Templates may strip white space. Many ignore the system message; that is allowed.
    if message["role"] == "user" and message["content"].strip() not in text:
      raise UserError(
        f"{tokenizer.name_or_path}: its chat template omits the question or a part of it from the"
        f" prompt (user message {_shortened(message['content'])}, prompt {_shortened(text)}):"
        " use a model with another template, or correct it"
      )
  if open_think and not text.rstrip().endswith(OPEN):
    text += f"{OPEN}\n"
  # The template already wrote the special tokens, such as the begin-of-text token.
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  return EncodedPrompt(ids, text.rstrip().endswith(OPEN))


def _shortened(text: str) -> str:
  return repr(text if len(text) < 120 else f"{text[:60]} ... {text[-60:]}")


def decode(tokenizer, token_ids: Sequence[int]) -> str:
  """Returns the text of a response without special tokens, but with think tags.

  Some tokenizers mark <think> and </think> as special. Skipping them would make every response
  malformed.
  """
  hidden = _hidden_with_tags(tokenizer)
  if hidden is None:
    return tokenizer.decode(token_ids, skip_special_tokens=True)
  return tokenizer.decode([i for i in token_ids if i not in hidden], skip_special_tokens=False)


@functools.lru_cache(8)  # a tokenizer decodes thousands of responses a step
def _hidden_with_tags(tokenizer) -> frozenset[int] | None:
  """Returns the ids of all special tokens except think tags; None if no think tag is special."""
  special = {}
  # The sampler's benchmarks pass a tokenizer with nothing but `decode`.
  added = getattr(tokenizer, "added_tokens_decoder", {})
  for token_id, token in added.items():
    if token.special:
      special[token_id] = token.content
  hidden = frozenset(i for i, text in special.items() if text not in (OPEN, CLOSE))
  return hidden if len(hidden) < len(special) else None


def load_tokenizer(folder: str | pathlib.Path):
  """Returns the transformers tokenizer of a model folder, with a chat template and a padding token.

  tokenizer.json is used unchanged. AutoTokenizer would convert it by the folder's model_type, which
  replaces the pre-tokenizer of any other model that is stored as a qwen2 (SmolLM2).

  Raises:
    UserError: tokenizer.json is missing, unreadable or has ids beyond the model's embedding; the
      chat template is missing, fails, or omits the question.
  """
  folder = pathlib.Path(folder)
  if not (folder / "tokenizer.json").is_file():
    raise UserError(
      f"{folder} has no tokenizer.json: give a model folder with its fast tokenizer"
      " (tokenizer.json and tokenizer_config.json)"
    )
  # Prevents transformers' warning that PyTorch is not installed; nothing here needs it.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import PreTrainedTokenizerFast  # slow to import

  try:
    # False: transformers otherwise takes some folders for a Mistral model and warns.
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
  except Exception as error:  # jinja2's exceptions, and any that a template's expression raises
    raise UserError(
      f"{folder}: its chat template cannot render a system and a user message"
      f" ({type(error).__name__}: {error}): use a model with another template, or correct it"
    ) from error
  # Qwen2.5-Instruct uses a token of its vision models as padding.
  if tokenizer.pad_token == "<|vision_pad|>":
    tokenizer.pad_token = "<|endoftext|>"
  elif tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  return tokenizer


def _check_vocabulary(tokenizer, folder: pathlib.Path) -> None:
  """Raises UserError if a token's id has no row in the embedding of the folder's config.json.

  JAX clamps an index that is out of range, so such a token would silently use the last row.
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
  """Returns the JSON object in a file, {} if there is no file; UserError if it is anything else."""
  if not path.is_file():
    return {}
  try:
    settings = json.loads(path.read_text(encoding="utf-8"))
  except (RecursionError, ValueError) as error:
    raise UserError(f"{path} is not a JSON object ({error}): copy it again") from error
  if not isinstance(settings, dict):
    raise UserError(f"{path} is not a JSON object: copy it again")
  return settings


def stop_ids(tokenizer, folder: str | pathlib.Path) -> list[int]:
  """Returns all token ids that end a response, the one that the chat template writes first.

  Base and instruct models have different end tokens, and the tokenizer, generation config and chat
  template of one folder need not agree. A response that continues past any of them would be scored
  with the text after it. Targets of supervised fine-tuning end with the first id.

  Args:
    tokenizer: from `load_tokenizer`.
    folder: the model folder; its generation_config.json and config.json may define further ids.

  Raises:
    UserError: there is no end token, one has an id that the tokenizer does not know, or a file of
      the folder is not JSON.
  """
  known = set(tokenizer.get_vocab().values())
  found = [_end_of_turn(tokenizer), tokenizer.eos_token_id]
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(folder) / name
    eos = _read_settings(path).get("eos_token_id")
    named = eos if isinstance(eos, list) else [eos]
    if not all(i is None or type(i) is int for i in named):
      raise UserError(f"{path}: eos_token_id is not a token id or a list of ids: copy it again")
    unknown = [i for i in named if i is not None and i not in known]
    if unknown:
      raise UserError(
        f"{path}: eos_token_id {unknown[0]} is not an id of the tokenizer (the largest is"
        f" {max(known)}), so no response could end with it: use the file of the same model"
      )
    found += named
  # Some folders mark an end only in tokenizer.json, as a special token with a known name.
  for token_id, token in tokenizer.added_tokens_decoder.items():
    if token.special and token.content in ENDS:
      found.append(token_id)
  ids = list(dict.fromkeys(i for i in found if i is not None))  # unique, in order
  if not ids:
    raise UserError(f"{folder}: no end-of-text token: set eos_token in tokenizer_config.json")
  return ids


def _end_of_turn(tokenizer) -> int | None:
  """Returns the special token that the chat template writes after an assistant's turn, if any."""
  answer = "An answer."
  messages = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": answer}]
  text = tokenizer.apply_chat_template(messages, tokenize=False)
  # Everything that the template appends to the answer; its first token ends the turn.
  after = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
  if not after:
    return None
  # all_special_ids only has the tokens named in tokenizer_config.json. A base model's may not name
  # the ones that only its template uses; these are special in tokenizer.json.
  added = tokenizer.added_tokens_decoder.get(after[0])
  special = after[0] in tokenizer.all_special_ids or (added is not None and added.special)
  return after[0] if special else None
