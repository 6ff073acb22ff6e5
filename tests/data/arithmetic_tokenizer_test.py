"""The miniature's tokenizer: loses nothing, knows every word of the family, stays short."""

import pytest
import transformers

from srl_jax.data import arithmetic, arithmetic_tokenizer


@pytest.fixture(scope="module", params=["AutoTokenizer", "PreTrainedTokenizerFast"])
def tokenizer(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("miniature")
  arithmetic_tokenizer.save(folder)
  return getattr(transformers, request.param).from_pretrained(folder)


def family(n):
  for steps, digits in [(6, 2), (6, 1), (2, 2)]:
    yield from arithmetic.problems("train", n, steps=steps, digits=digits)


def user_text(problem, done):
  """The user message after `done` steps, worded as data.prompts words it."""
  if done == 0:
    return problem.text
  return "\n\nPartial solution:\n".join([problem.text, "\n".join(problem.steps[:done])])


def render(tokenizer, text, system="Give the next step."):
  messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
  return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_round_trip_without_unknown_tokens(tokenizer):
  for problem in family(1000):
    done = len(problem.steps) - 1
    for text in (user_text(problem, done), "\n".join(problem.turns)):
      ids = tokenizer.encode(text)
      assert tokenizer.unk_token_id not in ids
      assert tokenizer.decode(ids) == text
      assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_digits_stand_alone_and_words_are_whole(tokenizer):
  words = [tokenizer.decode([i]) for i in tokenizer.encode("Start with 45. Subtract 8.")]
  assert words == ["Start with ", "4", "5", ". Subtract ", "8", "."]
  step = "<think>5-8=7b</think>1. **Subtract 8**: \\boxed{37}"
  words = [tokenizer.decode([i]) for i in tokenizer.encode(step)]
  assert words[:8] == ["<think>", "5", "-", "8", "=", "7", "b", "</think>"]
  assert words[8:] == ["1", ". **Subtract ", "8", "**: ", "\\boxed{", "3", "7", "}"]


def test_lengths(tokenizer):
  for problem in arithmetic.problems("train", 300):
    assert len(render(tokenizer, user_text(problem, 5))) <= 70
    assert max(len(tokenizer.encode(turn)) for turn in problem.turns) <= 25
    assert len(tokenizer.encode("\n".join(problem.turns))) <= 150


def test_foreign_characters_are_unknown_one_by_one(tokenizer):
  assert tokenizer.encode("4\u00e9\U0001f600x") == [
    *tokenizer.encode("4"),
    *[tokenizer.unk_token_id] * 3,
  ]


def test_chat_template(tokenizer):
  step, solution, turn, end = tokenizer.convert_tokens_to_ids(
    ["<|step|>", "<|solution|>", "<|turn|>", "<|end|>"]
  )
  problem = arithmetic.problems("train", 1)[0]
  body = tokenizer.encode(problem.text)
  assert render(tokenizer, problem.text) == [step, *body, turn]
  assert render(tokenizer, problem.text, "Solve it; \\boxed{} the end.") == [solution, *body, turn]
  user = {"role": "user", "content": problem.text}
  answer = {"role": "assistant", "content": problem.turns[0]}
  rendered = tokenizer.apply_chat_template([user, answer], return_dict=False)
  assert rendered == [step, *body, turn, *tokenizer.encode(problem.turns[0]), end]
  assert (tokenizer.eos_token_id, tokenizer.pad_token) == (end, "<|pad|>")
