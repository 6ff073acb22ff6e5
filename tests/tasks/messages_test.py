"""What each task asks: system prompts, files that replace them, the user message."""

import pytest

from srl_jax.data.responses import parse_response
from srl_jax.data.trajectories import split_actions
from srl_jax.tasks import TASKS, PromptSettings, opens_think, swe, system_prompt


def test_system_prompt_of_whole_solutions_is_plain_or_think():
  # Qwen2.5-Math's evaluation, word for word.
  plain = "Please reason step by step, and put your final answer within \\boxed{}."
  for name in ("one_step", "rlvr"):
    assert system_prompt(TASKS[name], PromptSettings("plain")) == plain
    assert "<think>" in system_prompt(TASKS[name], PromptSettings())
    with pytest.raises(ValueError, match=r"prompt\.style='loud'.*plain, think"):
      system_prompt(TASKS[name], PromptSettings("loud"))


@pytest.mark.parametrize("task", ["srl", "swe"])
def test_system_prompt_of_steps_shows_the_form(task):
  system = system_prompt(TASKS[task], PromptSettings("plain"))
  assert system == system_prompt(TASKS[task], PromptSettings())
  form = system.rpartition("this form:\n")[2]
  assert TASKS[task].format_failure(form, "stop") is None


def test_system_prompt_of_an_agent_shows_a_call():
  form = swe.SYSTEM.rpartition("this form:\n")[2]
  (step,) = split_actions([{"role": "assistant", "content": form}])
  assert parse_response(form).action == step.action
  assert all(name in swe.SYSTEM for name in ("bash", "str_replace_editor", "submit"))


@pytest.mark.parametrize("task", ["srl", "swe"])
def test_system_prompt_ends_with_a_worked_answer_of_the_form(task):
  shown = TASKS[task].example
  system = system_prompt(TASKS[task], PromptSettings(example=True))
  assert system == f"{system_prompt(TASKS[task], PromptSettings())}\n\n{shown}"
  answer = shown[shown.index("<think>") :]
  assert TASKS[task].format_failure(answer, "stop") is None
  assert opens_think(TASKS[task], PromptSettings(open_think=True))


@pytest.mark.parametrize("task", ["one_step", "rlvr"])
def test_system_prompt_of_whole_solutions_has_no_worked_answer(task):
  settings = PromptSettings(example=True, open_think=True)
  assert system_prompt(TASKS[task], settings) == system_prompt(TASKS[task], PromptSettings())
  assert not opens_think(TASKS[task], settings)


def test_system_prompt_is_replaced_by_a_file(tmp_path):
  (tmp_path / "own.txt").write_text("Do it — now.\n", encoding="utf-8")
  assert (
    system_prompt(TASKS["srl"], PromptSettings(system_file=str(tmp_path / "own.txt")))
    == "Do it — now."
  )


@pytest.mark.parametrize("name", ["missing.txt", "empty.txt", "latin1.txt"])
def test_system_prompt_names_a_bad_file(tmp_path, name):
  (tmp_path / "empty.txt").write_text(" \n")
  (tmp_path / "latin1.txt").write_bytes("Löse".encode("latin-1"))
  with pytest.raises(ValueError, match=rf"prompt\.system_file=.*{name}"):
    system_prompt(TASKS["srl"], PromptSettings(system_file=str(tmp_path / name)))


@pytest.mark.parametrize("task", TASKS)
def test_build_messages_has_a_system_and_a_user_message(task):
  system, user = TASKS[task].build_messages("P?", [], None, "S")
  assert (system["role"], system["content"]) == ("system", "S")
  assert user == {"role": "user", "content": "P?"}


def test_build_messages_has_the_steps_so_far_and_the_hint():
  _, user = TASKS["srl"].build_messages("P?", ["1. a", "2. b"], "3. **Sum**", "S")
  assert user["content"] == (
    "P?\n\nPartial solution:\n1. a\n\n2. b\n\nTitle of the next step: 3. **Sum**"
  )


def test_build_messages_has_the_last_calls_of_an_agent():
  _, user = TASKS["swe"].build_messages("I", ["call 1", "call 2"], None, "S")
  assert user["content"] == f"I{swe.LAST_CALLS}call 1\n\ncall 2"
