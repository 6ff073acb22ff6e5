import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl_jax.data import prompts
from srl_jax.data.prompts import (
  Response,
  build_messages,
  encode,
  format_failure,
  load_tokenizer,
  monologues,
  outside_think_blocks,
  parse_response,
  stop_ids,
  strip_think_blocks,
  system_prompt,
)

# ---------------------------------------------------------------------------------- one step


@pytest.mark.parametrize(
  ("text", "response"),
  [
    ("<think>m</think>a", Response("m", "a")),
    ("\n <think>\nm 1\nm 2\n</think>\n\na 1\na 2\n", Response("m 1\nm 2", "a 1\na 2")),
    ("<think></think>a", Response("", "a")),  # an empty thought is a thought
    ("<think>x < 3 </ think></think>a <b> </b>", Response("x < 3 </ think>", "a <b> </b>")),
  ],
)
def test_well_formed(text, response):
  assert format_failure(text) is None
  assert parse_response(text) == response


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "no_open"),
    ("a", "no_open"),
    ("a <think>m</think> a", "no_open"),
    ("</think>a", "no_open"),
    ("m</think>a", "no_open"),
    ("<THINK>m</THINK>a", "no_open"),
    ("<think>m", "no_close"),
    ("<think>m <think> m", "no_close"),
    ("<think>m</think>a<think>m</think>a", "several"),
    ("<think>m<think>m</think>a", "several"),
    ("<think>m</think>a</think>", "several"),
    ("<think>m</think></think>", "several"),
    ("<think>m</think>", "empty_action"),
    ("<think>m</think> \n\t", "empty_action"),
  ],
)
def test_each_reason(text, reason):
  assert format_failure(text) == reason
  assert parse_response(text) is None


@pytest.mark.parametrize("text", ["<think>m", "<think>m</think>half an act", "a", ""])
def test_what_was_cut_off_is_a_failure(text):
  assert format_failure(text, "length") == "cut_off"
  assert format_failure(text, finish_reason="abort") == "cut_off"


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("m</think>a", None),
    ("</think>a", None),
    ("m", "no_close"),
    ("<think>m</think>a", "several"),  # the tag that the template wrote, once more
    ("m</think>", "empty_action"),
    ("m</think>a</think>b", "several"),
  ],
)
def test_a_template_that_opens_the_block(text, reason):
  assert format_failure(text, think_opened=True) == reason
  assert (parse_response(text, think_opened=True) is None) == (reason is not None)


def test_the_opened_block_is_the_monologue():
  assert parse_response(" m \n</think> a ", think_opened=True) == Response("m", "a")


PIECES = st.lists(
  st.sampled_from(["<think>", "</think>", " ", "\n", "a", "think>", "<"]), max_size=9
)


@given(PIECES.map("".join), st.booleans())
def test_parsed_or_a_reason_never_both(text, opened):
  response = parse_response(text, think_opened=opened)
  assert (response is None) == (format_failure(text, think_opened=opened) is not None)
  if response:
    inside = "" if opened else "<think>"
    again = f"{inside}{response.monologue}</think>{response.action}"
    assert parse_response(again, think_opened=opened) == response


# ---------------------------------------------------------------------------------- whole solutions


@pytest.mark.parametrize(
  ("text", "solution"),
  [
    ("a", "a"),
    (" <think>m</think>1. a\n<think>m\nm</think>2. b\n", "1. a\n2. b"),
    ("a <think></think> b", "a  b"),
    ("a<think>verify</think>", "a"),
    ("", None),
    ("<think>m</think> ", None),
    ("a <think>m", None),
    ("a</think>b", None),
    ("<think>m<think>m</think>a", None),
    ("<think>m<think>m</think>m</think>a", None),
    ("<<think></think>think>", None),
  ],
)
def test_strip_think_blocks(text, solution):
  assert strip_think_blocks(text) == solution


def test_strip_think_blocks_of_an_opened_template():
  assert strip_think_blocks("m</think>a", think_opened=True) == "a"
  assert strip_think_blocks("a", think_opened=True) is None


@given(PIECES.map("".join), st.booleans())
def test_no_tag_is_left_in_a_stripped_solution(text, opened):
  solution = strip_think_blocks(text, think_opened=opened)
  failure = prompts.whole_format_failure(text, think_opened=opened)
  assert (solution is None) == (failure is not None)
  if solution:
    assert solution == solution.strip() != ""
    assert "<think>" not in solution and "</think>" not in solution


def test_outside_and_inside_of_any_text():
  text = "a<think> m1 </think>b<think>m2"
  assert outside_think_blocks(text) == "ab"
  assert monologues(text) == ["m1", "m2"]
  assert outside_think_blocks("m</think>a", think_opened=True) == "a"
  assert monologues("m</think>a", think_opened=True) == ["m"]
  assert outside_think_blocks("a</think>b") == "a</think>b"


# ---------------------------------------------------------------------------------- questions


def test_system_prompts():
  assert system_prompt("rlvr", "plain") == (
    "Please reason step by step, and put your final answer within \\boxed{}."
  )
  assert system_prompt("one_step", "think") == system_prompt("sft", "think") == prompts.WHOLE_THINK
  assert "<think>" in prompts.WHOLE_THINK and "\\boxed{}" in prompts.WHOLE_THINK
  # To the miniature's template a box means that the whole solution is wanted.
  assert "<think>" in system_prompt("srl", "think") and "box" not in system_prompt("srl", "think")


@pytest.mark.parametrize(("task", "style"), [("srl", "plain"), ("rlvr", "loud"), ("ppo", "think")])
def test_unknown_prompts_are_an_error(task, style):
  with pytest.raises(ValueError, match=f"task='{task}' with prompt.style='{style}'"):
    system_prompt(task, style)


def test_a_file_replaces_the_system_prompt(tmp_path):
  (tmp_path / "own.txt").write_text("Do it — now.\n", encoding="utf-8")
  assert system_prompt("srl", "think", str(tmp_path / "own.txt")) == "Do it — now."


def test_a_bad_system_file_is_one_clear_line(tmp_path):
  (tmp_path / "empty.txt").write_text(" \n")
  (tmp_path / "latin1.txt").write_bytes("Löse".encode("latin-1"))
  with pytest.raises(ValueError, match=r"prompt\.system_file=.*missing\.txt' is no file"):
    system_prompt("srl", "think", str(tmp_path / "missing.txt"))
  with pytest.raises(ValueError, match=r"prompt\.system_file=.*empty\.txt' is empty"):
    system_prompt("srl", "think", str(tmp_path / "empty.txt"))
  with pytest.raises(ValueError, match=r"prompt\.system_file=.*latin1\.txt' is not UTF-8"):
    system_prompt("srl", "think", str(tmp_path / "latin1.txt"))


def test_one_system_and_one_user_message():
  assert build_messages("P?", [], None, "S") == [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "P?"},
  ]
  [_, user] = build_messages("P?", ["1. a", "2. b"], "3. **Sum**", "S")
  assert user == {
    "role": "user",
    "content": "P?\n\nPartial solution:\n1. a\n\n2. b\n\nTitle of the next step: 3. **Sum**",
  }


# ---------------------------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def qwen(shared):
  return shared / "tokenizer_qwen2.5"


@pytest.fixture
def copy(qwen, tmp_path):
  """A function that copies Qwen's tokenizer with some settings changed (None removes one)."""

  def make(**changes):
    for name in ("tokenizer.json", "tokenizer_config.json"):
      shutil.copyfile(qwen / name, tmp_path / name)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | changes
    kept = {key: value for key, value in settings.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
    return tmp_path

  return make


def test_same_ids_as_autotokenizer_for_a_real_qwen(qwen, shared):
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
  messages = build_messages("P?", ["1. a"], None, system_prompt("srl", "think"))
  expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
  assert encode(ours, messages) == (expected, False)


def test_padding_is_not_a_vision_token(qwen):
  tokenizer = load_tokenizer(qwen)
  assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.pad_token_id == 151643


def test_padding_where_none_is_named(copy):
  tokenizer = load_tokenizer(copy(pad_token=None))
  assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_template_that_opens_the_block_is_noticed(copy):
  tokenizer = load_tokenizer(copy(chat_template="{{ messages[1].content }}:<think>\n"))
  assert encode(tokenizer, build_messages("P?", [], None, "S")).think_opened
  closed = load_tokenizer(copy(chat_template="{{ messages[1].content }}:<think>\n\n</think>\n\n"))
  assert not encode(closed, build_messages("P?", [], None, "S")).think_opened


def test_special_tokens_are_not_added_twice(copy):
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
  ids, _ = encode(tokenizer, build_messages("P?", [], None, "S"))
  assert ids.count(151644) == 1


def test_a_folder_without_a_tokenizer_is_one_clear_line(tmp_path):
  with pytest.raises(ValueError, match="has no tokenizer.json"):
    load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_one_clear_line(copy):
  folder = copy()
  (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 3')
  with pytest.raises(ValueError, match="the tokenizer cannot be read"):
    load_tokenizer(folder)


def test_a_tokenizer_without_a_template_is_one_clear_line(copy):
  with pytest.raises(ValueError, match="has no chat template"):
    load_tokenizer(copy(chat_template=None))


@pytest.mark.parametrize(
  ("template", "reason"),
  [
    ("{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template"),
    ("{{ raise_exception('no system role') }}", "TemplateError: no system role"),
  ],
)
def test_a_template_that_fails_is_one_clear_line(copy, template, reason):
  with pytest.raises(ValueError, match=f"cannot write a system and a user message .{reason}"):
    load_tokenizer(copy(chat_template=template))


def test_stop_ids_come_from_everywhere(copy):
  folder = copy()
  tokenizer = load_tokenizer(folder)
  assert stop_ids(tokenizer, folder) == [151645]
  (folder / "config.json").write_text('{"eos_token_id": 151643}')
  assert stop_ids(tokenizer, folder) == [151645, 151643]
  (folder / "generation_config.json").write_text('{"eos_token_id": [151645, 7]}')
  assert stop_ids(tokenizer, folder) == [151645, 7, 151643]


def test_a_base_model_stops_where_its_template_ends_a_turn(copy):
  # Qwen2.5's base models name <|endoftext|> as the end; their template writes <|im_end|>.
  folder = copy(eos_token="<|endoftext|>")
  assert stop_ids(load_tokenizer(folder), folder) == [151645, 151643]


def test_a_broken_config_is_named(copy):
  folder = copy()
  tokenizer = load_tokenizer(folder)
  (folder / "generation_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"generation_config\.json is no JSON object"):
    stop_ids(tokenizer, folder)
