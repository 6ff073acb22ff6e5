"""Rewards by task, one group at a time and many together; rewards of a user's own."""

import dataclasses
import types

import pytest

from srl_jax.data.sources import StepExample
from srl_jax.rewards import SIMILARITIES
from srl_jax.rewards.similarity import similarity
from srl_jax.tasks import TASKS, Score
from srl_jax.tasks.scoring import score_group, score_groups


def settings(autojunk=False, format_penalty=-1.0, similarity="difflib"):
  """A config's group `reward`."""
  return types.SimpleNamespace(
    autojunk=autojunk, format_penalty=format_penalty, similarity=similarity
  )


REWARD = settings()


def make(task, target="2. Add 3: 10", answer="10", **fields):
  return StepExample(
    id="p/2",
    problem_id="p",
    task=task,
    problem="Start with 7. Add 3.",
    context=["1. Start: 7"],
    hint=None,
    target=target,
    answer=answer,
    **fields,
  )


def score(task, text, finish_reason="stop", reward=REWARD, think_opened=False, **fields):
  example = make(task, **fields)
  [one] = score_group(example, [text], [finish_reason], reward=reward, think_opened=think_opened)
  return one


# ---------------------------------------------------------------------------------- srl


def test_score_group_srl_compares_the_action_only():
  got = score("srl", "<think>7+3=10</think>\n2. Add 3: 10\n")
  assert got == Score(1.0, None, "2. Add 3: 10", "7+3=10")
  other = score("srl", "<think>something else entirely</think>2. Add 3: 10")
  assert other.reward == 1.0


def test_score_group_srl_is_the_similarity_of_stripped_texts():
  got = score("srl", "<think>m</think>\n\n  2. Add 3: 11 \n", target=" 2. Add 3: 10\n")
  assert got.reward == similarity("2. Add 3: 11", "2. Add 3: 10") == 22 / 24


def test_score_group_srl_compares_action_then_target():
  assert score("srl", "<think>m</think>tide", target="diet").reward == 0.25


def test_score_group_srl_passes_autojunk_on():
  target = "the quick brown fox jumps over the lazy dog " * 6
  text = "<think>m</think>" + target.replace("fox", "cat")
  off = score("srl", text, target=target).reward
  on = score("srl", text, target=target, reward=settings(autojunk=True)).reward
  assert on < 0.5 < off


@pytest.mark.parametrize(
  ("text", "finish_reason", "failure"),
  [
    ("2. Add 3: 10", "stop", "no_open"),
    ("<think>2. Add 3: 10", "stop", "no_close"),
    ("<think>a</think><think>b</think>2. Add 3: 10", "stop", "several"),
    ("<think>a</think>\n", "stop", "empty_action"),
    ("<think>a</think>2. Add 3: 10", "length", "cut_off"),
  ],
)
def test_score_group_srl_gives_format_failures_the_penalty(text, finish_reason, failure):
  got = score("srl", text, finish_reason)
  assert (got.reward, got.failure) == (-1.0, failure)
  mild = settings(format_penalty=-0.25)
  assert score("srl", text, finish_reason, reward=mild).reward == -0.25


def test_score_group_srl_with_a_block_that_the_template_opened():
  assert score("srl", "7+3</think>2. Add 3: 10", think_opened=True) == Score(
    1.0, None, "2. Add 3: 10", "7+3"
  )
  assert score("srl", "7+3</think>2. Add 3: 10").failure == "no_open"


def test_score_group_keeps_the_order():
  texts = ["<think>m</think>2. Add 3: 10", "no", "<think>m</think>x", "<think>m</think>2. Add"]
  got = score_group(make("srl"), texts, ["stop"] * 4, reward=REWARD)
  assert [s.reward for s in got] == [1.0, -1.0, 0.0, similarity("2. Add", "2. Add 3: 10")]


# ---------------------------------------------------------------------------------- one_step


def test_score_group_one_step_compares_text_outside_the_blocks():
  text = "<think>a</think>1. x\n<think>b</think>2. y"
  assert score("one_step", text, target="1. x\n2. y\n") == Score(1.0, None, "1. x\n2. y", "a\nb")
  assert score("one_step", "1. x\n2. y", target="1. x\n2. y").reward == 1.0


@pytest.mark.parametrize(
  ("text", "finish_reason", "reward", "failure"),
  [
    ("1. x <think>b", "stop", -1.0, "no_close"),
    ("1. x <think>b", "length", -1.0, "cut_off"),
    ("a</think> 1. x", "stop", -1.0, "no_open"),
    ("<think>a<think>b</think>c</think>1. x", "stop", -1.0, "several"),
    ("<think>all of it</think> ", "stop", -1.0, "empty_action"),
    ("<think>a</think>1. x", "length", 1.0, None),  # cut off, but every block is closed
  ],
)
def test_score_group_one_step_checks_the_format(text, finish_reason, reward, failure):
  got = score("one_step", text, finish_reason, target="1. x")
  assert (got.reward, got.failure) == (reward, failure)


# ---------------------------------------------------------------------------------- rlvr


@pytest.mark.parametrize(
  ("text", "reward"),
  [
    ("so \\boxed{10}", 1.0),
    ("<think>9?</think> \\boxed{10}", 1.0),
    ("\\boxed{10} <think>check \\boxed{9}</think>", 1.0),
    ("<think>\\boxed{10}", 0.0),  # never left the block
    ("so \\boxed{9}", 0.0),
    ("", 0.0),
  ],
)
def test_score_group_rlvr_is_one_or_zero_by_the_answer(text, reward):
  assert score("rlvr", text, target="")[:2] == (reward, None)


def test_score_group_rlvr_reports_truncation_without_a_penalty():
  assert score("rlvr", "\\boxed{10} and", "length")[:2] == (1.0, "cut_off")
  assert score("rlvr", "and so", "length")[:2] == (0.0, "cut_off")


def test_score_group_rlvr_refuses_a_missing_gold_answer():
  with pytest.raises(ValueError, match=r"p/2 .*data\.fields"):
    score("rlvr", "\\boxed{1}", answer=None)


def test_score_group_refuses_a_task_without_a_reward():
  with pytest.raises(ValueError, match="task 'sft'"):
    score("sft", "x")


# ---------------------------------------------------------------------------------- batches


def test_score_groups_equals_one_group_at_a_time():
  groups = [
    (make("srl"), ["<think>m</think>2. Add 3: 9", "bad"], ["stop", "stop"]),
    (make("rlvr"), ["\\boxed{10}", "\\boxed{1}", "\\boxed{10.0}"], ["stop", "length", "stop"]),
    (make("one_step"), ["2. Add 3: 10"], ["stop"]),
    (make("srl"), [], []),
  ]
  expected = [score_group(*group, reward=REWARD) for group in groups]
  assert score_groups(groups, reward=REWARD, workers=2) == expected
  assert [s.reward for s in expected[1]] == [1.0, 0.0, 1.0]


def test_score_group_refuses_a_missing_finish_reason():
  with pytest.raises(ValueError):
    score_group(make("srl"), ["a", "b"], ["stop"], reward=REWARD)


# ---------------------------------------------------------------------------------- a user's own


def test_score_group_picks_a_similarity_by_its_name(monkeypatch):
  same_length = lambda pairs: [float(len(action) == len(target)) for action, target in pairs]
  monkeypatch.setitem(SIMILARITIES, "same_length", same_length)
  texts = ["<think>m</think>xxxxxxxxxxxx", "<think>m</think>x", "no"]
  for task in ("srl", "swe"):
    scores = score_group(make(task), texts, ["stop"] * 3, reward=settings(similarity="same_length"))
    assert [score.reward for score in scores] == [1.0, 0.0, -1.0]


def test_score_group_uses_a_users_own_reward(monkeypatch):
  def length(responses, settings):
    return [len(response.action) / 4 + settings.format_penalty for response in responses]

  monkeypatch.setitem(TASKS, "mine", dataclasses.replace(TASKS["srl"], reward=length))
  groups = [
    (make("mine"), ["<think>m</think>ab", "<think>m</think>abcd"], ["stop"] * 2),
    (make("srl"), ["<think>m</think>2. Add 3: 10"], ["stop"]),
    (make("mine"), ["<think>m</think>a"], ["stop"]),
  ]
  scores = score_groups(groups, reward=REWARD)
  assert [[s.reward for s in group] for group in scores] == [[-0.5, 0.0], [1.0], [-0.75]]


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_score_group_refuses_a_reward_of_another_length(monkeypatch, values):
  wrong = dataclasses.replace(TASKS["srl"], reward=lambda responses, settings: values)
  monkeypatch.setitem(TASKS, "mine", wrong)
  with pytest.raises(ValueError, match="'mine'"):
    score_group(make("mine"), ["a", "b"], ["stop"] * 2, reward=REWARD)


def test_score_group_refuses_a_similarity_of_another_length(monkeypatch):
  monkeypatch.setitem(SIMILARITIES, "short", lambda pairs: [1.0])
  texts = ["<think>m</think>a", "<think>m</think>b"]
  with pytest.raises(ValueError, match="'short'"):
    score_group(make("srl"), texts, ["stop"] * 2, reward=settings(similarity="short"))


# ---------------------------------------------------------------------------------- equal rewards


@pytest.mark.parametrize(
  ("task", "rewards", "failures", "reason"),
  [
    ("srl", [0.5, 0.5], [None, None], "low_std"),
    ("srl", [-1.0, -1.0], ["no_open", "cut_off"], "all_failed"),
    ("swe", [-1.0, -1.0], ["no_open", None], "low_std"),
    ("one_step", [-1.0, -1.0], ["no_close", "no_close"], "all_failed"),
    ("rlvr", [1.0, 1.0], [None, "cut_off"], "all_right"),
    ("rlvr", [0.0, 0.0], ["cut_off", "cut_off"], "all_wrong"),
  ],
)
def test_equal_rewards_reason_names_the_group(task, rewards, failures, reason):
  scores = [Score(*pair, "", "") for pair in zip(rewards, failures)]
  assert TASKS[task].drop_reason(scores) == reason
