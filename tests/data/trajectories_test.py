"""Agents' runs: both forms of messages, the facts of the real files, what is held out."""

import dataclasses
import json
import random

import pytest

from srl_jax import config as common
from srl_jax.data import runs, sources
from srl_jax.data.data_config import DataConfig
from srl_jax.data.responses import parse_response
from srl_jax.data.runs import shorten_observation
from srl_jax.data.tokenizer import load_tokenizer
from srl_jax.data.trajectories import AgentStep, shorten, split_actions
from srl_jax.errors import UserError
from srl_jax.tasks.examples import example_kind
from tests.stopwatch import Stopwatch

VIEW = (
  "<function=str_replace_editor>\n<parameter=command>view</parameter>\n"
  "<parameter=path>/testbed/a.py</parameter>\n<parameter=view_range>[1, 20]</parameter>\n"
  "</function>"
)
EDIT = (
  "<function=str_replace_editor>\n<parameter=command>str_replace</parameter>\n"
  "<parameter=path>/testbed/a.py</parameter>\n"
  "<parameter=old_str>\n    x = 1\n</parameter>\n<parameter=new_str>\n\n    x = 2\n</parameter>\n"
  "</function>"
)
SUBMIT = "<function=submit>\n</function>"
OPENED = "<function=a>\n"
HOSTILE = [f"\n{OPENED}" * 20_000, "<function=" + "a" * 99_999, OPENED + "</parameter>\n" * 9999]
HOSTILE += [
  f"{OPENED}{'<parameter=a>' * 20_000}</function>",
  OPENED * 9999 + "</function>" + " " * 99_999,
]


def bash(command):
  return f"<function=bash>\n<parameter=command>{command}</parameter>\n</function>"


def message(role, content, **more):
  return {"role": role, "content": content, **more}


def xml_run(*actions, issue="Fix it."):
  messages = [message("system", "S"), message("user", issue)]
  for k, action in enumerate(actions):
    messages += [message("assistant", f"Thought {k}.\n\n{action}")]
    messages += [message("user", f"OBSERVATION:\nshown {k}")]
  return messages


def tool_call(name, arguments):
  function = {"name": name, "arguments": json.dumps(arguments)}
  return [{"id": "x", "type": "function", "function": function}]


def called(name, arguments):
  """A run of one tool call, whose arguments are any text."""
  return [
    message("assistant", "", tool_calls=[{"function": {"name": name, "arguments": arguments}}])
  ]


# ---------------------------------------------------------------------------------- one run


def test_read_runs_reads_text_and_tool_calls_alike():
  steps = [
    AgentStep("Look.", VIEW, "  1\ta\n  2\tb"),
    AgentStep("", bash("ls"), "Your command ran."),
    AgentStep("Edit.\n\nNow.", EDIT, ""),
    AgentStep("Done.", SUBMIT, None),
  ]
  text = [
    message("system", "S"),
    message("user", "Fix it."),
    message("assistant", f"Look.\n\n{VIEW}"),
    message("user", "OBSERVATION:\n  1\ta\n  2\tb"),
    message("assistant", bash("ls")),
    message("user", "Your command ran."),
    message("assistant", f"Edit.\n\nNow.\n\n{EDIT}\n"),
    message("user", "OBSERVATION:\n"),
    message("assistant", f"Done.\n\n{SUBMIT}"),
  ]
  view = {"command": "view", "path": "/testbed/a.py", "view_range": [1, 20]}
  edit = {"command": "str_replace", "path": "/testbed/a.py"}
  edit |= {"old_str": "    x = 1", "new_str": "\n    x = 2"}
  part = lambda text: [{"type": "text", "text": text}]
  editor = "str_replace_editor"
  tools = [
    message("system", "S"),
    message("user", part("Fix it.")),
    message("assistant", "Look.", tool_calls=tool_call(editor, view)),
    message("tool", part("OBSERVATION:\n  1\ta\r\n  2\tb"), tool_call_ids=["x"]),
    message("assistant", None, tool_calls=tool_call("bash", {"command": "ls"})),
    message("tool", part("Your command ran."), tool_call_ids=["x"]),
    message("assistant", "Edit.\n\nNow.", tool_calls=tool_call(editor, edit)),
    message("tool", part("OBSERVATION:\n"), tool_call_ids=["x"]),
    message("assistant", "Done.", tool_calls=tool_call("submit", {})),
  ]
  assert split_actions(text) == steps
  assert split_actions(json.dumps(text)) == steps
  assert split_actions(tools) == steps


def test_read_runs_leaves_out_submits_after_the_first():
  run = xml_run(VIEW, SUBMIT, bash("rm x.py"), SUBMIT, SUBMIT)
  steps = split_actions(run)
  assert [step.action for step in steps] == [VIEW, SUBMIT, bash("rm x.py")]
  assert [step.observation for step in steps] == ["shown 0", "shown 1", "shown 2"]


def test_read_runs_accepts_tags_in_thoughts_and_values():
  thought = "I call <function=bash> now: </function>"
  action = bash("cat <<X\n<function=bash>\nX")
  (step,) = split_actions([message("assistant", f"{thought}\n\n{action}")])
  assert step == AgentStep(thought, action, None)


@pytest.mark.parametrize(
  ("messages", "complaint"),
  [
    ("[{", "broken JSON"),
    ("{}", "expected a list of messages"),
    ([], "expected a list of messages"),
    ([{"content": "x"}], "message 0 is no object with a role"),
    ([message("assistant", "I give up.")], "message 0: it does not end with a function call"),
    ([message("assistant", bash("a") + "\nSo.")], "does not end with a function call"),
    ([message("assistant", bash("a") + "\n" + bash("b"))], "expected one function call"),
    ([message("assistant", 3)], "neither a text nor a list of texts"),
    ([message("assistant", [{"type": "image"}])], "neither a text nor a list of texts"),
    (
      [message("assistant", "", tool_calls=tool_call("submit", {}) * 2)],
      "message 0: 2 function calls, expected one",
    ),
    (
      [message("assistant", "", tool_calls=[{"function": {"name": "bash", "arguments": "{"}}])],
      "no function with arguments in JSON",
    ),
    ("[" * 100_000, "broken JSON"),
    (
      [message("assistant", "", tool_calls={"function": {}})],
      "message 0: its tool_calls are a dict",
    ),
    ([message("assistant", "", tool_calls=7)], "message 0: its tool_calls are a int"),
    ([message("assistant", "", tool_calls=[7])], "message 0: .* no function with arguments"),
    (called("bash", '{"a": ' * 100_000), "message 0: .* no function with arguments"),
    (called(["bash"], "{}"), "message 0: .* no name of a function"),
    (called("bash", '{"a>b": 1}'), "message 0: 'a>b' is no name of a function or a parameter"),
  ],
)
def test_read_runs_counts_broken_messages_as_malformed(messages, complaint):
  with pytest.raises(ValueError, match=complaint):
    split_actions(messages)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_read_runs_is_fast_on_hostile_messages(text):
  with Stopwatch() as stopwatch, pytest.raises(UserError):
    split_actions([message("assistant", text)])
  assert stopwatch.last < 0.5


def test_shorten_observation_keeps_both_ends(shared):
  """By tokens of the model: of Qwen2.5 a digit is one, a line of blanks is few."""
  tokenizer = load_tokenizer(shared / "tokenizer_qwen2.5")
  digits = "0123456789"
  assert shorten(digits, 10, tokenizer) == digits
  assert shorten(digits, 5, tokenizer) == "012\n[... 5 tokens left out ...]\n89"
  assert shorten(digits, 1, tokenizer) == "0\n[... 9 tokens left out ...]\n"
  blanks = " " * 1000
  count = len(tokenizer(blanks)["input_ids"])
  assert count < 50 and shorten(blanks, count, tokenizer) == blanks
  for text in ("日本語のテキスト" * 20, "🙂é" * 30, "a\r\n\x0c<|im_end|>" * 20):
    for limit in (1, 2, 7, 30):
      short = shorten(text, limit, tokenizer)
      head, _, tail = short.partition("\n[... ")
      assert text.startswith(head) and text.endswith(tail.partition("...]\n")[2])
      kept = head + tail.partition("...]\n")[2]
      assert len(kept) < len(text) and "\ufffd" not in kept


def test_shorten_observation_changes_no_call(shared):
  tokenizer = load_tokenizer(shared / "tokenizer_qwen2.5")
  call = "<function=bash>\n<parameter=command>ls</parameter>\n</function>"
  pair = f"{call}\n\nOBSERVATION:\n{'0123456789' * 10}"
  short = shorten_observation(pair, 10, tokenizer)
  assert short == f"{call}\n\nOBSERVATION:\n01234\n[... 90 tokens left out ...]\n56789"
  for text in (call, "1. **Add 3**: " + "4 + 3 = 7 " * 100):
    assert shorten_observation(text, 10, tokenizer) == text


# ---------------------------------------------------------------------------------- a source


def config(path, **changes):
  data = common.defaults().unlock().data
  data.source, data.path, data.domain = "jsonl", str(path), "swe"
  data.fields.solution = "messages"
  data.keep_last_step, data.holdout = True, 0
  for key, value in changes.items():
    (data.swe if key in data.swe else data)[key] = value
  return data


def load_examples(data, *, method, seed):
  """The examples of a config's group `data` for a method."""
  kind = example_kind(method, data.get("domain"))
  return sources.load_examples(DataConfig.from_group(data), kind, seed=seed)


def row(messages, **changes):
  expert = {"resolved": True, "model": "claude-3-7-sonnet-20250219"}
  return {"messages": messages, **expert, **changes}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
  return path


def test_make_examples_has_the_last_two_pairs_and_the_action(tmp_path):
  actions = [bash("a"), VIEW, EDIT, SUBMIT]
  data = config(write(tmp_path / "a.jsonl", [row(xml_run(*actions), traj_id="t")]))
  data.fields.id = "traj_id"
  examples = load_examples(data, method="srl", seed=0).train
  pairs = [f"{action}\n\nOBSERVATION:\nshown {k}" for k, action in enumerate(actions)]
  assert [e.id for e in examples] == ["t/1", "t/2", "t/3", "t/4"]
  assert [e.context for e in examples] == [[], pairs[:1], pairs[:2], pairs[1:3]]
  assert [e.target for e in examples] == actions
  assert {(e.problem_id, e.task, e.problem, e.hint, e.answer) for e in examples} == {
    ("t", "swe", "Fix it.", None, None)
  }
  data.keep_last_step = False
  assert load_examples(data, method="srl", seed=0).train == examples[:3]
  data.swe.pairs = 0
  assert all(e.context == [] for e in load_examples(data, method="srl", seed=0).train)


def test_make_examples_of_sft_has_well_formed_targets(tmp_path):
  messages = xml_run(VIEW, EDIT)
  messages[4]["content"] = EDIT  # no thought
  data = config(write(tmp_path / "a.jsonl", [row(messages)]))
  with_thought, without = load_examples(data, method="sft", seed=0).train
  assert parse_response(with_thought.target) == ("Thought 0.", VIEW)
  assert parse_response(without.target) == ("", EDIT)
  srl = load_examples(data, method="srl", seed=0).train
  assert [(e.problem, e.context) for e in srl] == [
    (e.problem, e.context) for e in (with_thought, without)
  ]


def test_load_examples_reads_step_examples_of_version_0_1(tmp_path):
  data = config(write(tmp_path / "a.jsonl", [row(xml_run(VIEW, EDIT))]))
  examples = load_examples(data, method="srl", seed=0).train
  rows = [{**dataclasses.asdict(e), "task": "srl"} for e in examples]
  data.path = str(write(tmp_path / "b.jsonl", rows))
  assert load_examples(data, method="srl", seed=0).train == examples


def test_split_actions_reads_arguments_that_are_an_object():
  wanted = split_actions(called("bash", '{"command": "ls"}'))
  assert split_actions(called("bash", {"command": "ls"})) == wanted
  assert split_actions(called("submit", None)) == split_actions(called("submit", "{}"))


def test_split_actions_leaves_out_a_closing_remark_and_nothing_else():
  whole = xml_run(VIEW, EDIT)
  assert split_actions([*whole, message("assistant", "All tests pass now.")]) == split_actions(
    whole
  )
  with pytest.raises(UserError, match="message 4"):
    split_actions(xml_run(VIEW, "a remark", EDIT))
  with pytest.raises(UserError, match="message 4"):  # a broken call is no remark
    split_actions(xml_run(VIEW, "<function=bash>\n<parameter=command>ls"))


@pytest.mark.parametrize(
  "changes, named, not_named",
  [
    ({}, "--noresolved", "--expert="),
    ({"resolved": True, "model": "x"}, "--expert=", "--noresolved"),
  ],
)
def test_the_hint_names_flags_that_would_help(tmp_path, changes, named, not_named):
  data = config(write(tmp_path / "a.jsonl", [{"messages": xml_run(VIEW, SUBMIT), **changes}]))
  with pytest.raises(UserError) as raised:
    load_examples(data, method="srl", seed=0)
  assert named in str(raised.value) and not_named not in str(raised.value)


def test_read_runs_counts_rows_by_reason(tmp_path):
  rows = [
    row(xml_run(VIEW, SUBMIT)),
    row(json.dumps(xml_run(EDIT, SUBMIT))),
    row(xml_run(VIEW, SUBMIT), resolved=False),
    {"messages": xml_run(VIEW, SUBMIT)},
    row(xml_run(VIEW, SUBMIT), model="other"),
    row(xml_run("no call", VIEW)),
    row(xml_run(bash("half \ud83d"), SUBMIT)),
    row([message("assistant", VIEW)]),
    row(xml_run()),
    row(xml_run(VIEW, SUBMIT)),
    row([message("assistant", "", tool_calls=7)]),
  ]
  data = config(write(tmp_path / "a.jsonl", rows))
  counts = {"not_resolved": 2, "other_expert": 1, "malformed": 4, "no_steps": 1, "duplicate": 1}
  examples = load_examples(data, method="srl", seed=0)
  assert examples.counts == {"rows": 11, "kept": 2, **counts}
  assert len(examples.train) == 4
  data.swe.resolved, data.swe.expert = False, ""
  with_all = load_examples(data, method="srl", seed=0).counts
  assert with_all == {"rows": 11, "kept": 2, "malformed": 4, "no_steps": 1, "duplicate": 4}


def test_read_runs_leaves_out_runs_without_a_text_id(tmp_path):
  ids = ["a", 7, ["a"], None, "half \ud83d"]
  data = config(write(tmp_path / "a.jsonl", [row(xml_run(VIEW, SUBMIT), id=id) for id in ids]))
  data.fields.id = "id"
  examples = load_examples(data, method="srl", seed=0)
  assert examples.counts == {"rows": 5, "kept": 2, "malformed": 3}
  assert {example.problem_id for example in examples.train} == {"a", "7"}


def many(count=30):
  """Runs of four steps, two for each issue."""
  return [
    row(xml_run(bash(k), VIEW, EDIT, SUBMIT, issue=f"Issue {k // 2}."), id=f"run{k}")
    for k in range(count)
  ]


def test_make_examples_holds_out_whole_runs_and_their_issues(tmp_path):
  rows = many()
  data = config(write(tmp_path / "a.jsonl", rows), holdout=5, validation_steps=7)
  data.fields.id = "id"
  one = load_examples(data, method="srl", seed=3)
  assert len({e.problem_id for e in one.validation}) <= 5 and len(one.validation) == 7
  assert not {e.problem for e in one.train} & {e.problem for e in one.validation}
  assert len({e.problem for e in one.train}) == 10 and len(one.train) == 20 * 4
  assert one.counts == {"rows": 30, "kept": 25, "twin_of_held_out": 5}
  random.Random(0).shuffle(rows)
  write(tmp_path / "a.jsonl", rows)
  two = load_examples(data, method="srl", seed=3)
  assert {e.id for e in two.validation} == {e.id for e in one.validation}
  data.swe.validation_steps = 0
  whole = load_examples(data, method="srl", seed=3).validation
  assert len(whole) == 5 * 4 and len({e.problem for e in whole}) == 5
  assert {e.id for e in one.validation} < {e.id for e in whole}
  other = load_examples(data, method="srl", seed=4).validation
  assert {e.id for e in other} != {e.id for e in whole}


def test_read_runs_draws_by_seed_and_id(tmp_path):
  rows = many()
  data = config(write(tmp_path / "a.jsonl", rows), runs=8)
  data.fields.id = "id"
  one = load_examples(data, method="srl", seed=0)
  assert one.counts == {"rows": 30, "kept": 8, "not_drawn": 22}
  write(tmp_path / "a.jsonl", rows[::-1])
  two = load_examples(data, method="srl", seed=0)
  assert {e.id for e in one.train} == {e.id for e in two.train}


@pytest.mark.parametrize(
  ("rows", "changes", "method", "complaint"),
  [
    ([{"m": 1}], {}, "srl", r"none of 1 rows .*not_resolved 1.*data.swe.resolved=False"),
    ([row(3, m=1)], {"fields": "x"}, "srl", r"a.jsonl:1: no field 'x', which data.fields.solution"),
    ([row(xml_run("no"))], {}, "srl", r"malformed 1; .*a.jsonl:1: message 2: it does not end"),
    (many(2), {"holdout": 1}, "srl", r"data.holdout=1: "),
    (many(2), {"title_hint": True}, "srl", r"data.title_hint=True: actions have no titles"),
    (many(2), {}, "rlvr", r"method='rlvr': .* no final answers"),
    (
      [row(xml_run(VIEW), id="a"), row(xml_run(EDIT), id="a")],
      {"id": "id"},
      "srl",
      r"a.jsonl:2: the id 'a' already names another run",
    ),
  ],
)
def test_read_runs_names_bad_input(tmp_path, rows, changes, method, complaint):
  data = config(write(tmp_path / "a.jsonl", rows))
  data.fields.solution = changes.pop("fields", "messages")
  data.fields.id = changes.pop("id", "")
  for key, value in changes.items():
    data[key] = value
  with pytest.raises(ValueError, match=complaint):
    load_examples(data, method=method, seed=0)


# ---------------------------------------------------------------------------------- real files


def real(shared, form, **changes):
  path = shared / "data" / "swe" / f"swesmith_trajectories_{form}.jsonl"
  return config(path, resolved=False, expert="", **changes)


@pytest.mark.parametrize(
  ("form", "count", "turns", "submits", "empty", "unanswered"),
  [("xml", 16, 499, 14, 44, 2), ("tool", 2, 54, 2, 2, 0)],
)
def test_read_runs_reads_every_turn_of_real_runs(
  shared, form, count, turns, submits, empty, unanswered
):
  data = real(shared, form)
  found, counts = runs.read_runs(DataConfig.from_group(data), seed=0)
  assert counts == {"rows": count, "kept": count}
  with open(data.path, encoding="utf-8") as file:
    messages = [json.loads(line)["messages"] for line in file]
  assert sum(m["role"] == "assistant" for run in messages for m in run) == turns
  steps = [step for run in found for step in run.steps]
  assert len(steps) == turns - submits
  assert sum(not step.thought for step in steps) == empty
  assert sum(step.observation is None for step in steps) == unanswered
  for run in messages:
    taken = [step.action for step in split_actions(run)]
    assert taken.count(SUBMIT) == 1
    assert split_actions(json.dumps(run)) == split_actions(run)
    if form == "xml":  # word for word
      said = [m["content"] for m in run if m["role"] == "assistant"]
      assert all(any(text.endswith(action) for text in said) for action in taken)


def test_read_runs_writes_real_actions_in_one_form(shared):
  """An action of a text run, read as a tool call, gives the same text again."""
  for run in runs.read_runs(DataConfig.from_group(real(shared, "xml")), seed=0)[0]:
    for step in run.steps:
      name = step.action.partition("=")[2].partition(">")[0]
      body = step.action.split("\n", 1)[1].removesuffix("</function>")
      values = {}
      while body:
        head, _, body = body.partition(">")
        value, _, body = body.partition("</parameter>\n")
        long = value.startswith("\n")
        values[head.removeprefix("<parameter=")] = value[1:-1] if long else value
      calls = tool_call(name, values)
      (again,) = split_actions([message("assistant", step.thought, tool_calls=calls)])
      assert again == dataclasses.replace(step, observation=None)


def test_make_examples_of_real_runs(shared):
  data = real(shared, "xml", holdout=3, validation_steps=50)
  examples = load_examples(data, method="srl", seed=0)
  assert len(examples.validation) == 50
  described = lambda e: e.problem.split("pr_description>")[1]
  assert len({described(e) for e in examples.train}) == 10  # of 13, one with two instructions
  assert not set(map(described, examples.train)) & set(map(described, examples.validation))
  both = examples.train + examples.validation
  assert all(e.target.startswith("<function=") and e.target.endswith("</function>") for e in both)
  assert all(len(e.context) == min(2, int(e.id.rpartition("/")[2]) - 1) for e in both)
  tokenizer = load_tokenizer(shared / "tokenizer_qwen2.5")
  lengths = []
  for pair in {pair for e in both for pair in e.context}:
    short = shorten_observation(pair, 300, tokenizer)
    assert (short != pair) == ("tokens left out ...]" in short)
    observation = short.partition(runs.OBSERVATION)[2]
    lengths.append(len(tokenizer(observation, add_special_tokens=False)["input_ids"]))
  # The mark has 8 to 10 tokens, and at the cuts a text may be divided in another way.
  assert 300 < max(lengths) <= 300 + 15
