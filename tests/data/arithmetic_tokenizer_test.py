"""The miniature's tokenizer: loses nothing, knows every word of the family, stays short."""

import json
import pathlib

import pytest
import transformers

from srl_jax.data import arithmetic, arithmetic_tokenizer
from srl_jax.data.tokenizer import encode, load_tokenizer, stop_ids
from srl_jax.tasks import TASKS, PromptSettings, system_prompt


@pytest.fixture(scope="module", params=["AutoTokenizer", "PreTrainedTokenizerFast"])
def tokenizer(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("miniature")
  arithmetic_tokenizer.save(folder)
  return getattr(transformers, request.param).from_pretrained(folder)


def family(n):
  for steps, digits in [(6, 2), (6, 1), (2, 2)]:
    yield from arithmetic.problems("train", n, steps=steps, digits=digits)


def messages(problem, done, hint=None, task="srl", style="think"):
  system = system_prompt(TASKS[task], PromptSettings(style))
  return TASKS[task].build_messages(problem.text, problem.steps[:done], hint, system)


def test_tokenizer_decodes_what_it_encodes(tokenizer):
  for problem in family(1000):
    user = messages(problem, len(problem.steps) - 1, hint="Subtract 8")[1]["content"]
    for text in (user, "\n".join(problem.turns)):
      ids = tokenizer.encode(text)
      assert tokenizer.unk_token_id not in ids
      assert tokenizer.decode(ids) == text
      assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_tokenizer_has_single_digits_and_whole_words(tokenizer):
  words = [tokenizer.decode([i]) for i in tokenizer.encode("Start with 45. Subtract 8.")]
  assert words == ["Start with ", "4", "5", ". Subtract ", "8", "."]
  step = "<think>5-8=7b</think>1. **Subtract 8**: \\boxed{37}"
  words = [tokenizer.decode([i]) for i in tokenizer.encode(step)]
  assert words[:8] == ["<think>", "5", "-", "8", "=", "7", "b", "</think>"]
  assert words[8:] == ["1", ". **Subtract ", "8", "**: ", "\\boxed{", "3", "7", "}"]


def test_tokenizer_lengths_fit_the_quickstart(tokenizer):
  for problem in arithmetic.problems("train", 300):
    assert len(encode(tokenizer, messages(problem, 5)).token_ids) <= 70
    assert max(len(tokenizer.encode(turn)) for turn in problem.turns) <= 25
    assert len(tokenizer.encode("\n".join(problem.turns))) <= 150


def test_tokenizer_maps_foreign_characters_to_unknown(tokenizer):
  assert tokenizer.encode("4\u00e9\U0001f600x") == [
    *tokenizer.encode("4"),
    *[tokenizer.unk_token_id] * 3,
  ]


@pytest.mark.parametrize(
  "task, style, mode",
  [
    ("srl", "think", "<|step|>"),
    ("one_step", "plain", "<|solution|>"),
    ("rlvr", "think", "<|solution|>"),
    ("one_step", "think", "<|solution|>"),
    ("rlvr", "plain", "<|solution|>"),
  ],
)
def test_template_writes_the_system_message_as_one_token(tokenizer, task, style, mode):
  problem = arithmetic.problems("train", 1)[0]
  encoded = encode(tokenizer, messages(problem, 0, task=task, style=style))
  mode, turn = tokenizer.convert_tokens_to_ids([mode, "<|turn|>"])
  assert encoded == ([mode, *tokenizer.encode(problem.text), turn], False)


def test_template_defaults_to_the_next_step(tokenizer):
  user = {"role": "user", "content": "Start with 4. Add 3."}
  own = {"role": "system", "content": "Be brief."}
  usual = system_prompt(TASKS["srl"], PromptSettings())
  expected = tokenizer.apply_chat_template([{"role": "system", "content": usual}, user])
  assert tokenizer.apply_chat_template([own, user]) == expected
  assert tokenizer.apply_chat_template([user]) == expected


@pytest.mark.parametrize("system", ["Box the final answer.", "Put the final answer within a box."])
@pytest.mark.parametrize("task, mode", [("srl", "<|step|>"), ("rlvr", "<|solution|>")])
def test_template_goes_by_the_task_of_the_prompt(tokenizer, task, mode, system):
  messages = TASKS[task].build_messages("Start with 4.", [], None, system)
  assert encode(tokenizer, messages).token_ids[0] == tokenizer.convert_tokens_to_ids(mode)


@pytest.mark.parametrize("task, mode", [("srl", "<|step|>"), ("rlvr", "<|solution|>")])
def test_template_knows_our_prompts_without_the_task(tokenizer, task, mode):
  """As a server's chat route gets them, which knows role and content only."""
  problem = arithmetic.problems("train", 1)[0]
  for style in ("think", "plain"):
    sent = [
      {"role": m["role"], "content": m["content"]}
      for m in messages(problem, 0, task=task, style=style)
    ]
    assert encode(tokenizer, sent).token_ids[0] == tokenizer.convert_tokens_to_ids(mode)


def test_template_ends_an_answer_with_the_stop_token(tokenizer):
  problem = arithmetic.problems("train", 1)[0]
  answer = {"role": "assistant", "content": problem.turns[0]}
  text = tokenizer.apply_chat_template([*messages(problem, 0), answer], tokenize=False)
  prompt = tokenizer.apply_chat_template(
    messages(problem, 0), tokenize=False, add_generation_prompt=True
  )
  assert text == prompt + problem.turns[0] + "<|end|>"
  assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token == "<|pad|>"


def test_save_writes_the_committed_tokenizer(tmp_path):
  arithmetic_tokenizer.save(tmp_path)
  folder = pathlib.Path(__file__).parents[2] / "configs" / "miniature"
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (folder / name).read_text() == (tmp_path / name).read_text()
  config = json.loads((folder / "config.json").read_text())
  tokenizer = load_tokenizer(folder)
  assert config["vocab_size"] == len(tokenizer)
  assert stop_ids(tokenizer, folder) == [config["eos_token_id"]]
  assert config["pad_token_id"] == tokenizer.pad_token_id
