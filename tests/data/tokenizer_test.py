"""Tokenizers of model folders: the ids of transformers, ends of turns, faults in one line."""

import json
import shutil

import pytest

from srl_jax.data.responses import format_failure
from srl_jax.data.tokenizer import decode, encode, load_tokenizer, stop_ids
from srl_jax.errors import UserError
from srl_jax.tasks import TASKS, PromptSettings, system_prompt

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "P?"}]


@pytest.fixture(scope="module")
def qwen(shared):
  return shared / "tokenizer_qwen2.5"


@pytest.fixture(scope="module")
def bytes_only(qwen, tmp_path_factory):
  """Qwen's tokenizer with its special tokens and ids, but without merges: it loads at once."""
  folder = tmp_path_factory.mktemp("bytes_only")
  whole = json.loads((qwen / "tokenizer.json").read_text())
  vocabulary = {word: i for word, i in whole["model"]["vocab"].items() if len(word) == 1}
  added = {token["content"]: token["id"] for token in whole["added_tokens"]}
  whole["model"] |= {"vocab": vocabulary | added, "merges": []}
  (folder / "tokenizer.json").write_text(json.dumps(whole))
  shutil.copyfile(qwen / "tokenizer_config.json", folder / "tokenizer_config.json")
  return folder


@pytest.fixture
def copy(bytes_only, tmp_path):
  """A function that copies the tokenizer with some settings changed (None removes one)."""

  def make(**changes):
    for name in ("tokenizer.json", "tokenizer_config.json"):
      shutil.copyfile(bytes_only / name, tmp_path / name)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | changes
    kept = {key: value for key, value in settings.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
    return tmp_path

  return make


def test_load_tokenizer_gives_the_ids_of_autotokenizer(qwen, shared):
  from transformers import AutoTokenizer

  ours, theirs = load_tokenizer(qwen), AutoTokenizer.from_pretrained(qwen)
  lines = (shared / "data/steps/mathodyssey_deepseek_v3.jsonl").read_text().splitlines()[:20]
  texts = [json.loads(line)["response"] for line in lines]
  texts += [
    "",
    " ",
    "\n\n\n x",
    "don 't , a .",
    "1234567",
    "é e\u0301 日本 😀\u00a0\u200b",
    "a\tb\r\n",
  ]
  texts += ["<|im_start|>user\nx<|im_end|>\n", "<think>\n</think>", "x" * 500, "\ufffd\ufeff"]
  for text in texts:
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
  messages = TASKS["srl"].build_messages(
    "P?", ["1. a"], None, system_prompt(TASKS["srl"], PromptSettings())
  )
  expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
  assert encode(ours, messages) == (expected, False)


def test_load_tokenizer_pads_with_qwens_end_of_text(qwen):
  tokenizer = load_tokenizer(qwen)
  assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.pad_token_id == 151643


def test_load_tokenizer_pads_with_the_end_where_none_is_named(copy):
  tokenizer = load_tokenizer(copy(pad_token=None))
  assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_encode_notices_a_template_that_opens_the_block(copy):
  tokenizer = load_tokenizer(copy(chat_template="{{ messages[1].content }}:<think>\n"))
  assert encode(tokenizer, MESSAGES).think_opened
  closed = load_tokenizer(copy(chat_template="{{ messages[1].content }}:<think>\n\n</think>\n\n"))
  assert not encode(closed, MESSAGES).think_opened


def test_encode_adds_special_tokens_once(copy):
  # A template writes its own beginning of text; a tokenizer may add one to whatever it is given.
  folder = copy(chat_template="<|im_start|>{{ messages[1].content }}", bos_token="<|im_start|>")
  tokens = json.loads((folder / "tokenizer.json").read_text())
  start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
  tokens["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
      "<|im_start|>": {"id": "<|im_start|>", "ids": [151644], "tokens": ["<|im_start|>"]}
    },
  }
  (folder / "tokenizer.json").write_text(json.dumps(tokens))
  tokenizer = load_tokenizer(folder)
  assert tokenizer("P?")["input_ids"].count(151644) == 1  # it does add one
  ids, _ = encode(tokenizer, MESSAGES)
  assert ids.count(151644) == 1


def test_decode_keeps_think_tags_that_are_special_tokens(copy):
  """Other special tokens are left out; the tags are tokens of their own in both directions."""
  text = "<think>4 + 3</think>1. 7"
  plain = load_tokenizer(copy())
  folder = copy()
  tokens = json.loads((folder / "tokenizer.json").read_text())
  last = max(token["id"] for token in tokens["added_tokens"])
  for i, tag in enumerate(("<think>", "</think>"), start=1):
    token = {"id": last + i, "content": tag, "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    tokens["added_tokens"].append(token)
    tokens["model"]["vocab"][tag] = last + i
  (folder / "tokenizer.json").write_text(json.dumps(tokens))
  special = load_tokenizer(folder)
  for tokenizer in (plain, special):
    ids = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert decode(tokenizer, ids) == text and format_failure(decode(tokenizer, ids)) is None
  assert (last + 1 in ids) and (last + 2 in ids)
  assert "<think>" not in special.decode(ids, skip_special_tokens=True)  # what used to be rewarded


def test_load_tokenizer_refuses_a_folder_without_one(tmp_path):
  with pytest.raises(ValueError, match="tokenizer.json"):
    load_tokenizer(tmp_path)


def test_load_tokenizer_refuses_a_broken_file(copy):
  folder = copy()
  (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 3')
  with pytest.raises(ValueError, match="tokenizer"):
    load_tokenizer(folder)


def test_load_tokenizer_refuses_one_without_a_template(copy):
  with pytest.raises(ValueError, match="chat template"):
    load_tokenizer(copy(chat_template=None))


@pytest.mark.parametrize(
  ("template", "reason"),
  [
    ("{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template"),
    ("{{ raise_exception('no system role') }}", "TemplateError: no system role"),
  ],
)
def test_load_tokenizer_refuses_a_template_that_fails(copy, template, reason):
  with pytest.raises(ValueError, match=f"{reason}"):
    load_tokenizer(copy(chat_template=template))


@pytest.mark.parametrize(
  "user",
  ["", "{{ m.content | length }}", "{{ m.content[:8] }}", "{{ m.content | upper }}"],
)
def test_load_tokenizer_refuses_a_template_without_the_question(copy, user):
  parts = "{% if m.role == 'system' %}{{ m.content }}{% else %}" + user + "{% endif %}"
  with pytest.raises(UserError, match="chat template") as caught:
    load_tokenizer(copy(chat_template="{% for m in messages %}" + parts + "{% endfor %}"))
  assert "'A question.'" in str(caught.value) and "\n" not in str(caught.value)


def test_encode_refuses_a_template_that_cuts_questions_off(copy):
  """The trial fits; the real prompt does not."""
  template = "{% for m in messages %}{{ m.content[:30] }}{% endfor %}"
  tokenizer = load_tokenizer(copy(chat_template=template))
  with pytest.raises(UserError, match="leaves the question out"):
    encode(tokenizer, [{"role": "user", "content": "x" * 10_000}])


@pytest.mark.parametrize("user", ["{{ m.content | trim }}", "[INST] {{ m.content }}\n[/INST]"])
def test_load_tokenizer_accepts_a_template_without_the_system_prompt(copy, user):
  template = "{% for m in messages %}{% if m.role == 'user' %}" + user + "{% endif %}{% endfor %}"
  tokenizer = load_tokenizer(copy(chat_template=template))
  messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "\n What? \n"}]
  assert "What?" in decode(tokenizer, encode(tokenizer, messages).token_ids)


@pytest.mark.parametrize("eos", [151_700, 152_064, 2**40, -1, [151_645, 10**30]])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_stop_ids_refuses_an_id_beyond_the_vocabulary(copy, name, eos):
  """The last token is 151664."""
  folder = copy()
  (folder / name).write_text(json.dumps({"eos_token_id": eos, "vocab_size": 152_064}))
  with pytest.raises(UserError, match=f"/{name}: eos_token_id"):
    stop_ids(load_tokenizer(folder), folder)


def test_stop_ids_come_from_everywhere(copy):
  folder = copy()
  tokenizer = load_tokenizer(folder)
  # <|im_end|> of the template; <|endoftext|>, which tokenizer.json alone marks as special
  assert stop_ids(tokenizer, folder) == [151645, 151643]
  (folder / "config.json").write_text('{"eos_token_id": 8}')
  assert stop_ids(tokenizer, folder) == [151645, 8, 151643]
  (folder / "generation_config.json").write_text('{"eos_token_id": [151645, 7]}')
  assert stop_ids(tokenizer, folder) == [151645, 7, 8, 151643]


def test_stop_ids_of_a_base_model_has_the_templates_end(copy):
  # Qwen2.5's base models name <|endoftext|> as the end; their template writes <|im_end|>.
  folder = copy(eos_token="<|endoftext|>")
  assert stop_ids(load_tokenizer(folder), folder) == [151645, 151643]


def test_stop_ids_names_a_broken_config(copy):
  folder = copy()
  tokenizer = load_tokenizer(folder)
  (folder / "generation_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"generation_config\.json"):
    stop_ids(tokenizer, folder)


def test_stop_ids_refuses_wrong_types(copy):
  folder = copy()
  tokenizer = load_tokenizer(folder)
  for name in ("config.json", "generation_config.json"):
    for eos in ({}, "7", 7.5, [[7]], [{"id": 7}], True):
      (folder / name).write_text(json.dumps({"eos_token_id": eos}))
      with pytest.raises(UserError, match=f"/{name}: eos_token_id"):
        stop_ids(tokenizer, folder)
    (folder / name).write_text('{"a": ' * 100_000)
    with pytest.raises(UserError, match=f"/{name} is no JSON object"):
      stop_ids(tokenizer, folder)
    (folder / name).unlink()
