"""What is written down is not sampled again."""

import json

import pytest

from srl_jax.evals.journal import Journal
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.episodes import Question

PARAMS = SamplingParams(16)
PROMPTS = [Prompt(f"p{i}", (1, 2, i)) for i in range(5)]


def sample(engine, path, prompts=PROMPTS, n=2):
  """({prompt id: group}, the counts told)."""
  counts = []
  groups = Journal(engine, path, counts.append).sample(prompts, n, PARAMS)
  return {group[0].prompt_id: group for group in groups}, counts


def respond(id, sample):
  return f"{id}/{sample} <think>é\n</think>"


def test_journal_replays_what_it_wrote(scripted, tmp_path):
  path = tmp_path / "folder" / "j.jsonl"
  first, counts = sample(scripted(respond), path)
  assert counts == [2, 4, 6, 8, 10]
  again, counts = sample(scripted(respond, stop_after=0), path)
  assert counts == [2, 4, 6, 8, 10]
  assert again.keys() == first.keys()
  for id, group in first.items():
    assert [one.text for one in again[id]] == [one.text for one in group]
    assert again[id][0].token_ids == group[0].token_ids
    assert again[id][0].sampler_logprobs == pytest.approx(group[0].sampler_logprobs, abs=1e-5)


def test_journal_continues_where_it_stopped(scripted, tmp_path):
  path = tmp_path / "j.jsonl"
  with pytest.raises(KeyboardInterrupt):
    sample(scripted(respond, stop_after=3), path)
  with path.open("a") as file:  # a process that is killed in the middle of a line
    file.write('{"prompt_id": "p1", "prom')
  engine = scripted(respond)
  found, _ = sample(engine, path)
  assert engine.asked == ["p1", "p0"]  # p4, p3, p2 were written
  whole, _ = sample(scripted(respond), tmp_path / "whole.jsonl")
  text = lambda groups: {id: [one.text for one in group] for id, group in groups.items()}
  assert text(found) == text(whole)
  assert len([json.loads(line) for line in path.read_text().splitlines()]) == 5


@pytest.mark.parametrize("prompts, n", [([Prompt("p0", (1, 2, 99))], 2), (PROMPTS[:1], 3)])
def test_journal_refuses_other_prompts(scripted, tmp_path, prompts, n):
  path = tmp_path / "j.jsonl"
  sample(scripted(respond), path)
  with pytest.raises(ValueError, match="'p0'.*--output"):
    sample(scripted(respond), path, prompts, n)


def test_journal_continues_inside_a_stepwise_episode(scripted, solver, tmp_path):
  """Stopped in the second turn: the first turns are not sampled again."""
  turns = lambda id, sample: (
    "<think>a</think>1. one" if id.endswith("/0") else r"<think>b</think>2. \boxed{3}"
  )
  questions = [Question(f"t{i}", f"problem {i}", "3") for i in range(3)]
  path = tmp_path / "j.jsonl"
  solve = lambda engine: solver(Journal(engine, path, print), "stepwise").solve(questions, 1, 0.0)
  with pytest.raises(KeyboardInterrupt):
    solve(scripted(turns, stop_after=4))
  engine = scripted(turns)
  episodes = solve(engine)
  assert engine.asked == ["t1#0/1", "t0#0/1"]
  assert [episode.ended for episode in episodes] == ["boxed"] * 3
  assert episodes[0].actions == ["1. one", r"2. \boxed{3}"]
