"""The next call of a software agent, rewarded by its similarity to the expert's (paper, 5.3).

response  one think block, then one function call
reward    as in srl.py, of the call's text
"""

from collections.abc import Sequence

from srl_jax.data.responses import format_failure
from srl_jax.tasks import srl, task
from srl_jax.tasks.task import Task

LAST_CALLS = "\n\nThe last function calls, each with what it showed:\n"

# After Appendix A of the paper. The functions are those of the SWE-smith runs, the form of a call
# is the one that data.trajectories gives to every action.
SYSTEM = (
  "You are a software engineer who resolves issues of a code repository by calling functions. The"
  " user gives you the task and, in most cases, the last function calls with what each of them"
  " showed. Go on with the very next function call.\n"
  "The functions:\n"
  "bash runs a command in a terminal. Its parameter is command.\n"
  "str_replace_editor shows, creates and changes files. Its parameters are\n"
  "- command: view, create, str_replace, insert or undo_edit\n"
  "- path: of the file or folder, absolute\n"
  "- view_range (view, if wanted): first and last line, such as [11, 30]; a last line of -1 is the"
  " end of the file\n"
  "- file_text (create): the content of the new file\n"
  "- old_str and new_str (str_replace): the text to replace, which must stand in the file exactly"
  " once, white space included, and the new text\n"
  "- insert_line and new_str (insert): the new text comes after this line\n"
  "submit says that the work is done. It has no parameters.\n"
  "First think inside <think> and </think>. Treat that space as scratch paper: explore, doubt and"
  " correct yourself as freely and for as long as you need.\n"
  "After </think> write one function call and nothing else. The values of file_text, old_str and"
  " new_str stand on lines of their own. Your answer always has this form:\n"
  "<think>\n"
  "your thoughts\n"
  "</think>\n"
  "<function=name>\n"
  "<parameter=first_parameter>value</parameter>\n"
  "<parameter=old_str>\n"
  "a text of\n"
  "several lines\n"
  "</parameter>\n"
  "</function>"
)

EXAMPLE = (
  "An example of an answer:\n"
  "<think>\n"
  "The traceback ends in parse_date of utils/dates.py. I have not seen that function yet, so I look"
  " at it before I change anything.\n"
  "</think>\n"
  "<function=bash>\n"
  '<parameter=command>grep -n -A 20 "def parse_date" utils/dates.py</parameter>\n'
  "</function>"
)


def build_messages(
  problem: str, context: Sequence[str], hint: str | None, system: str
) -> list[dict[str, str]]:
  """As task.build_messages; the context holds the last calls with their observations."""
  return task.build_messages(problem, context, hint, system, heading=LAST_CALLS)


TASK = Task(
  system=SYSTEM,
  build_messages=build_messages,
  format_failure=format_failure,
  reward=srl.reward,
  drop_reason=srl.drop_reason,
  unit="steps",
  needs=("target",),
  example=EXAMPLE,
)
