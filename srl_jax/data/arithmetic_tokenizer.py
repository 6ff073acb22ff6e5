"""A tokenizer of some fifty words for the built-in problems: one token per digit or word.

Saved as a Hugging Face folder, so that everything downstream (transformers, the vLLM server,
`prepare`) treats the miniature like any other model. Think tags are ordinary tokens, because the
text of a response must show them; only turns, padding and the kind of request are special.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from srl_jax.data.responses import CLOSE, OPEN

PAD, UNKNOWN = "<|pad|>", "<|unknown|>"
STEP, SOLUTION = "<|step|>", "<|solution|>"  # replace the system message
TURN, END = "<|turn|>", "<|end|>"  # begin and end the policy's turn
SPECIAL = (PAD, UNKNOWN, STEP, SOLUTION, TURN, END)
WORDS = (
  *"0123456789",
  *("Start with ", ". Add ", ". Subtract ", "."),  # problem
  # The separators that srl_jax.tasks.task writes between the parts of a prompt.
  *("\n\nPartial solution:\n", "\n\n", "\n\nTitle of the next step: ", "\n"),
  *(". **Add ", ". **Subtract ", "**: ", "\\boxed{", "}", "Add ", "Subtract "),  # steps, titles
  *(OPEN, CLOSE, "+", "-", "=", ";", "c", "b"),  # monologue
)

# A system message becomes one token, STEP or SOLUTION, selected by its field `form`, which
# srl_jax.tasks.task sets. Messages of other programs (a chat client) have no such field: for them a
# phrase of our prompts for whole solutions selects SOLUTION.
CHAT_TEMPLATE = (
  "{%- if messages[0].role != 'system' -%}" + STEP + "{%- endif -%}"
  "{%- for message in messages -%}"
  "{%- if message.role == 'system' -%}"
  "{%- set whole = 'final answer within' in message.content -%}"
  "{%- set form = message.form or ('solution' if whole else 'step') -%}"
  "{%- if form == 'solution' -%}" + SOLUTION + "{%- else -%}" + STEP + "{%- endif -%}"
  "{%- elif message.role == 'user' -%}{{- message.content -}}"
  "{%- else -%}{{- '" + TURN + "' + message.content + '" + END + "' -}}"
  "{%- endif -%}"
  "{%- endfor -%}"
  "{%- if add_generation_prompt -%}" + TURN + "{%- endif -%}"
)


def build() -> Tokenizer:
  """Returns the tokenizer; `decode(encode(text)) == text` for texts of the built-in problems."""
  vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
  # Longest word first, as the regex takes the first alternative that matches. Every other character
  # becomes one unknown token.
  words = sorted(WORDS, key=len, reverse=True)
  pattern = "|".join([*map(_escape, words), r"[\s\S]"])
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
  tokenizer.decoder = decoders.Fuse()  # concatenates the tokens; words include their spaces
  tokenizer.add_special_tokens(
    [AddedToken(word, special=True, normalized=False) for word in SPECIAL]
  )
  return tokenizer


def save(folder: str | pathlib.Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json into an existing folder."""
  folder = pathlib.Path(folder)
  build().save(str(folder / "tokenizer.json"))
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 256,
    "eos_token": END,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "chat_template": CHAT_TEMPLATE,
  }
  text = json.dumps(settings, indent=2) + "\n"
  (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _escape(word: str) -> str:
  """Returns the word as a literal of the tokenizers library's regex dialect (Oniguruma)."""
  return "".join(rf"\{c}" if c in r".*\{}+-=" else c for c in word)
