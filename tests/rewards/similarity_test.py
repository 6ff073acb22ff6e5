import difflib
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srl_jax.rewards import similarity as module
from srl_jax.rewards.similarity import blocks, similarities, similarity
from srl_jax.rewards.workers import Workers

# Any code point, including lone surrogates; few letters give many matches; long texts trigger
# autojunk.
ANY_TEXT = st.text(st.characters(), max_size=60)
FEW_LETTERS = st.text("ab \n", max_size=400)
LONG = st.builds(
  lambda part, n: (part * n)[:700], st.text(st.characters(), min_size=1), st.just(700)
)
TEXT = st.one_of(ANY_TEXT, FEW_LETTERS, LONG)


def reference(action, target, autojunk):
  return difflib.SequenceMatcher(None, action, target, autojunk=autojunk).ratio()


@settings(max_examples=400, deadline=None)
@given(action=TEXT, target=TEXT, autojunk=st.booleans())
@example(action="", target="", autojunk=False)
@example(action="", target="a", autojunk=True)
@example(action="\ud800x\udfff", target="x\ud800", autojunk=False)
@example(action="a" * 300, target="a" * 200, autojunk=True)
@example(action="\0a😀e\u0301", target="😀a\0é", autojunk=False)
def test_similarity_equals_the_standard_library_to_the_last_bit(action, target, autojunk):
  assert similarity(action, target, autojunk=autojunk) == reference(action, target, autojunk)


@settings(max_examples=100, deadline=None)
@given(action=TEXT, target=TEXT, autojunk=st.booleans())
def test_sizes_of_blocks_are_those_of_the_ratio(action, target, autojunk):
  found = blocks(action, target, autojunk=autojunk)
  for i, j, size in found:
    assert size > 0 and action[i : i + size] == target[j : j + size]
  total = len(action) + len(target)
  ratio = 2.0 * sum(block.size for block in found) / total if total else 1.0
  assert ratio == similarity(action, target, autojunk=autojunk)


def test_similarity_by_hand():
  # Longest block "bcd" (3), nothing left of it on both sides: R = 2 * 3 / (4 + 4).
  assert similarity("abcd", "bcde") == 0.75
  assert similarity("same", "same") == 1.0
  assert similarity("abc", "xyz") == 0.0


def test_similarity_takes_the_action_first():
  # "tide" against "diet": the matcher's greedy choice depends on which string is searched.
  assert similarity("tide", "diet") == 0.25
  assert similarity("diet", "tide") == 0.5


def test_similarity_autojunk_ignores_frequent_letters_of_long_targets():
  expert = "the quick brown fox jumps over the lazy dog " * 6
  policy = expert.replace("fox", "cat").replace("lazy", "calm")
  assert similarity(policy, expert) > 0.8
  assert similarity(policy, expert, autojunk=True) < 0.2
  assert similarity(policy[:199], expert[:199], autojunk=True) == similarity(
    policy[:199], expert[:199]
  )


def test_similarity_of_real_steps_equals_the_standard_library(shared):
  lines = (shared / "data/steps/mathodyssey_deepseek_v3.jsonl").read_text().splitlines()[:12]
  steps = [step[:600] for line in lines for step in line.split("\\n\\n")[2:6]]
  for action, target in zip(steps, steps[1:]):
    for autojunk in (False, True):
      assert similarity(action, target, autojunk=autojunk) == reference(action, target, autojunk)


def random_pairs(n, length):
  rng = random.Random(0)
  text = lambda: "".join(rng.choices("abcdefgh ", k=rng.randrange(length)))
  return [(text(), text()) for _ in range(n)]


def test_similarities_computes_equal_pairs_once():
  calls = []
  count = lambda *pair, **options: calls.append(pair) or similarity(*pair, **options)
  pairs = [("ab", "abc"), ("b", "abc"), ("ab", "abc"), ["ab", "abc"]]
  assert similarities(pairs, measure=count) == [0.8, 0.5, 0.8, 0.8]
  assert calls == [("ab", "abc"), ("b", "abc")]


def test_similarities_of_no_pairs_is_empty():
  assert similarities([]) == []
  assert similarities([], workers=2) == []


@pytest.mark.parametrize("autojunk", [False, True])
def test_similarities_with_workers_are_the_same(autojunk, monkeypatch):
  monkeypatch.setattr(module, "_SECONDS_WORTH_WORKERS", 0)
  monkeypatch.setattr(module, "_SECONDS_PER_JOB", 0.001)
  pairs = random_pairs(200, 500)
  pairs += pairs[:50] + [("\ud800", "\ud800a")]
  expected = [similarity(*pair, autojunk=autojunk) for pair in pairs]
  assert similarities(pairs, autojunk=autojunk, workers=2) == expected


def test_similarities_jobs_are_of_like_cost_and_lose_nothing():
  pairs = random_pairs(6000, 2000)
  chunks = module._chunks(pairs, module.seconds)
  costs = [sum(map(module.seconds, chunk)) for chunk in chunks]
  assert sorted(pair for chunk in chunks for pair in chunk) == sorted(pairs)
  assert max(costs) <= module._SECONDS_PER_JOB
  assert min(costs[:-1]) > module._SECONDS_PER_JOB / 2


def test_similarities_replaces_a_killed_worker(monkeypatch):
  monkeypatch.setattr(module, "_SECONDS_WORTH_WORKERS", 0)
  pairs = random_pairs(20, 100)
  expected = similarities(pairs, workers=2)
  for child in module._pool(2)._idle:
    child.process.kill()
    child.process.wait()
  assert similarities(pairs, workers=2) == expected


def test_similarities_raises_for_pairs_that_kill_every_worker(monkeypatch):
  monkeypatch.setattr(module, "_SECONDS_WORTH_WORKERS", 0)
  pool = Workers("tests.rewards.workers_test:end_process", 1)
  monkeypatch.setattr(module, "_pool", lambda workers: pool)
  with pytest.raises(RuntimeError, match=" 1 pairs"):
    similarities([("a", "b")], workers=1)
