"""Instances -> predictions on a toy repository, with responses that the test writes."""

import dataclasses
import json

import pytest

from srl_jax.data.tokenizer import EncodedPrompt
from srl_jax.evals.swe import edits, instances, patches, prompting, solve
from srl_jax.rollout.engine import SamplingParams
from tests.evals.swe.conftest import change

GOLD = edits.render([("calc.py", ["  return a - b"], ["  return a + b"])])
WRONG = edits.render([("calc.py", ["  return a - b"], ["  return a * b"])])
SAME_AS_GOLD = edits.render([("calc.py", ["  return a - b"], ["  return (a + b)  # the sum"])])
NOT_FOUND = edits.render([("calc.py", ["  return a-b"], ["  return a + b"])])
SYNTAX = edits.render([("calc.py", ["  return a - b"], ["  return a +"])])
BLANK = edits.render([("calc.py", ["  return a - b"], ["  return a - b", ""])])


def encode(messages):
  text = "".join(message["content"] for message in messages)
  return EncodedPrompt(list(text.encode()), False)


def make_solver(engine, clones, **changes):
  settings = dict(
    engine=engine,
    encode=encode,
    words=prompting.wording("plain", None, None),
    clones=clones,
    params=SamplingParams(16),
    samples=1,
    max_prompt_tokens=10_000,
    name="model",
    progress=lambda stage, count: None,
  )
  return solve.Solver(**settings | changes)


@pytest.fixture
def run(toy, scripted, tmp_path):
  """run(respond, setting="oracle", **changes) -> (line of repairs.jsonl, prediction)."""
  file, clones = toy
  rows = instances.load(str(file))

  def solved(respond, setting=solve.ORACLE, **changes):
    engine = changes.pop("engine", None) or scripted(respond)
    solver = make_solver(engine, clones, **changes)
    solve.solve(solver, setting, rows, tmp_path / setting)
    read = lambda name: json.loads((tmp_path / setting / name).read_text())
    return read("repairs.jsonl"), read("predictions.jsonl")

  solved.folder = tmp_path
  return solved


def test_solve_oracle_shows_the_gold_files(run, toy):
  line, prediction = run(lambda id, sample: f"I think.\n{GOLD}")
  (row,) = instances.load(str(toy[0]))
  assert line["files"] == ["calc.py"] and line["reason"] == ""
  assert line["samples"][0]["edits"][0]["outcome"] == "applied"
  assert prediction == {
    "instance_id": "toy__calc-1",
    "model_name_or_path": "model",
    "model_patch": row.patch,
  }
  prompt = json.loads((run.folder / "oracle" / "prompts.jsonl").read_text())
  assert "add(2, 3) is -1" in prompt["messages"][1]["content"]
  assert prompt["tokens"] == line["prompt_tokens"] == len(encode(prompt["messages"]).token_ids)


@pytest.mark.parametrize(
  "response, reason",
  [
    ("There is no bug.", patches.NO_EDIT),
    (GOLD.replace("=======", "===="), patches.NO_EDIT),
    (f"<think>{GOLD}</think>No.", patches.NO_EDIT),  # a monologue is no answer
    (NOT_FOUND, patches.NOT_APPLIED),
    (SYNTAX, patches.SYNTAX),
    (BLANK, patches.BLANK_LINES),
  ],
)
def test_solve_writes_empty_predictions(run, response, reason):
  """They have a line all the same, and the reason is recorded."""
  line, prediction = run(lambda id, sample: response)
  assert (line["patch"], line["reason"], line["chosen"]) == ("", reason, None)
  assert prediction["model_patch"] == ""


def test_solve_of_a_response_that_was_cut_off(run, scripted):
  """What it has finished counts; only an empty one is called cut off."""

  class Cut(scripted):
    def sample(self, prompts, n, params):
      for group in super().sample(prompts, n, params):
        yield [dataclasses.replace(rollout, finish_reason="length") for rollout in group]

  line, _ = run(None, engine=Cut(lambda id, sample: GOLD + "\n```python\n### calc.py"))
  assert line["patch"] and line["samples"][0]["cut_off"]
  (run.folder / "oracle" / "repair.rollouts.jsonl").unlink()
  half = GOLD.partition("=======")[0]
  assert run(None, engine=Cut(lambda id, sample: half))[0]["reason"] == patches.CUT_OFF


def test_solve_without_room_for_the_prompt(run):
  line, _ = run(lambda id, sample: GOLD, max_prompt_tokens=1000)
  assert (line["reason"], line["samples"], line["prompt_tokens"]) == (patches.TOO_LONG, [], 0)
  assert line["left_out"]["calc.py"].startswith("too long")


def test_solve_votes_over_samples(run):
  """Three of five samples do the same in other words; the first of them is the prediction."""
  responses = [WRONG, "nothing", SAME_AS_GOLD, GOLD, GOLD]
  line, prediction = run(lambda id, sample: responses[sample], samples=5)
  assert line["chosen"] == 2 and "the sum" in prediction["model_patch"]
  assert [bool(sample["patch"]) for sample in line["samples"]] == [True, False, True, True, True]


def test_solve_end_to_end(run, scripted):
  """Localisation sees names without tests; its files are what repair is shown."""
  answers = iter(["helpers/text.py\n- `calc.py`\nnone.py", GOLD])
  line, prediction = run(lambda id, sample: next(answers), setting=solve.END_TO_END)
  assert line["files"] == ["helpers/text.py", "calc.py"] and prediction["model_patch"]
  folder = run.folder / "end_to_end"
  location = json.loads((folder / "locations.jsonl").read_text())
  assert location["files"] == ["helpers/text.py", "calc.py"] and location["lenient"] == 1
  assert location["all_found"] and location["any_found"]
  first, second = map(json.loads, (folder / "prompts.jsonl").read_text().splitlines())
  tree = first["messages"][1]["content"]
  assert "helpers/\n  __init__.py\n  text.py" in tree and "test_calc" not in tree
  assert [first["stage"], second["stage"]] == ["localize", "repair"]


def test_solve_of_a_localisation_that_names_nothing(run):
  line, prediction = run(lambda id, sample: "No idea.", setting=solve.END_TO_END)
  assert (line["reason"], prediction["model_patch"]) == (patches.NO_FILE, "")
  location = json.loads((run.folder / "end_to_end" / "locations.jsonl").read_text())
  assert not location["any_found"] and location["gold"] == ["calc.py"]


def test_solve_flags_patches_of_test_files(run, toy, scripted, tmp_path):
  """A policy that is shown conftest.py may forge results: the patch stays, and is flagged."""
  file, clones = toy
  row = json.loads(file.read_text())
  row["patch"] = change("conftest.py", "", "x = 1\n")
  (tmp_path / "rows.jsonl").write_text(json.dumps(row))
  forged = edits.render([("calc.py", ["  return a - b"], ["  return 5"])])
  solver = make_solver(scripted(lambda id, sample: forged), clones)
  solve.solve(solver, "oracle", instances.load(str(tmp_path / "rows.jsonl")), tmp_path / "oracle")
  line = json.loads((tmp_path / "oracle" / "repairs.jsonl").read_text())
  assert line["files"] == ["conftest.py"] and line["reason"] == patches.NOT_APPLIED
  assert patches.touches(row["patch"]) == ["conftest.py"]


def test_solve_continues_after_a_stop(run, scripted):
  """What was sampled before is not sampled again, in both stages."""
  respond = lambda id, sample: "calc.py\n" + GOLD
  with pytest.raises(KeyboardInterrupt):
    run(None, setting=solve.END_TO_END, engine=scripted(respond, stop_after=1))
  again = scripted(respond)
  _, prediction = run(None, setting=solve.END_TO_END, engine=again)
  assert len(again.asked) == 1 and prediction["model_patch"]  # localisation is recorded
