"""README.md and docs/: files they mention exist, their commands are valid, quick ones run.

Comments that a reader does not see may precede a code block of a document:
  <!-- file NAME -->        the block is the content of a file that the commands use
  <!-- tested -->           the block's commands are run by these tests
  <!-- tested --dry-run --> they are run with that flag
"""

import ast
import importlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from srl_jax import config as configs
from srl_jax.data.examples import REMARKS
from tests.launch.conftest import tool

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "benchmarks").glob("*.md"))
GUIDES = [page for page in PAGES if page.parent != ROOT / "benchmarks" and page.name != "swe.md"]
GROUPS = "|".join(key for key, value in configs.defaults().items() if hasattr(value, "items"))
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# ---------------------------------------------------------------------------------- parts of a page


def blocks(page: pathlib.Path) -> list[tuple[str, str]]:
  """(comment before it, text) of every code block, indented or fenced; "" without a comment."""
  text = page.read_text("utf-8")
  fenced = r"```\w*\n(?P<fenced>.*?)\n```"
  indented = r"(?P<indented>(?:    [^\n]*\n|\n(?=    ))+)"
  found = []
  comment = r"(?:<!-- (?P<comment>[^\n]*?) -->\n)?"
  for match in re.finditer(rf"(?:\A|(?<=\n)){comment}(?:{fenced}|{indented})", text, re.DOTALL):
    body = match["fenced"] or re.sub(r"(?m)^    ", "", match["indented"])
    found.append((match["comment"] or "", body))
  return found


def commands(page: pathlib.Path) -> list[list[str]]:
  """Returns the words of every command that starts a script of launch/ or a module of ours."""
  texts = re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
  for _, body in blocks(page):
    texts += body.replace("\\\n", " ").splitlines()
  found = []
  for text in texts:
    text = re.sub(r"^(\w+=\S+ )+", "", text.strip())
    if text.startswith(("launch/", "python -m srl_jax.", "python -m benchmarks.")):
      found.append(shlex.split(text, comments=True))
  return found


def all_commands() -> list[list[str]]:
  return [command for page in PAGES for command in commands(page)]


# ---------------------------------------------------------------------------------- names


def test_readme_has_at_most_150_lines():
  assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_readme_tree_has_every_folder():
  readme = (ROOT / "README.md").read_text("utf-8")
  tree = readme.partition("## The tree\n")[2].partition("\n\nRead next")[0]
  named = set(re.findall(r"(?m)^    (\S+)/ ", tree))
  expected = {"configs", "launch", "benchmarks", "docs", "tests"}
  expected |= {f"srl_jax/{path.parent.name}" for path in (ROOT / "srl_jax").glob("*/__init__.py")}
  assert named == expected


def test_readme_links_every_document():
  readme = (ROOT / "README.md").read_text("utf-8")
  for page in (ROOT / "docs").iterdir():
    linked = f"docs/{page.name}" in readme
    assert (
      linked
      or page.suffix == ".svg"
      and f"({page.name})" in "".join(guide.read_text("utf-8") for guide in GUIDES)
    )


def slug(heading: str) -> str:
  """Returns the anchor of a heading on GitHub."""
  return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@by_name
def test_links_lead_to_files_and_headings_that_exist(page):
  for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text("utf-8")):
    name, _, anchor = (target[0] or target[1]).partition("#")
    if "://" in name:
      continue
    path = (page.parent / name).resolve() if name else page
    assert path.exists(), target
    if anchor:
      headings = re.findall(r"(?m)^#+ (.*)$", path.read_text("utf-8"))
      assert anchor in map(slug, headings), target


@by_name
def test_files_of_the_repository_that_are_named_exist(page):
  named = r"(?:launch|configs|srl_jax|benchmarks|tests|docs|learner|data|rollout|tasks|policy)/"
  for name in re.findall(rf"\b{named}[\w./]+\.(?:py|sh|md|yaml|svg)\b", page.read_text("utf-8")):
    places = [ROOT / name, ROOT / "srl_jax" / name, page.parent / name]
    assert any(place.exists() for place in places), name


@by_name
def test_keys_of_the_config_that_are_named_exist(page):
  text = page.read_text("utf-8")
  keys = set(re.findall(r"--config\.([a-z_][\w.]*\w)", text))
  keys |= set(re.findall(rf"`((?:{GROUPS})\.[a-z_][a-z_.]*[a-z])[`=]", text))
  for key in keys - {"train.jsonl"}:
    group = configs.defaults()
    for part in key.split("."):
      assert part in group, key
      group = group[part]


# ---------------------------------------------------------------------------------- commands


def config_of(command: list[str]) -> str | None:
  """Returns the config that a command trains or plans, or None."""
  words = [word for word in command if re.match(r"(--config=)?configs/\w[\w/]*\.py", word)]
  return words[0].removeprefix("--config=") if words else None


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_documents_name_flags_that_exist(command):
  module = command[2] if command[0] == "python" else ""
  if module.startswith("srl_jax.") and module not in ("srl_jax.train", "srl_jax.plan"):
    known = importlib.import_module(module).flags.values
    for word in command[3:]:
      name = word.removeprefix("--").partition("=")[0]
      assert not word.startswith("--") or name in known or name.removeprefix("no") in known, word
  elif command[0].startswith("launch/"):
    assert os.access(ROOT / command[0], os.X_OK), command[0]


@pytest.mark.parametrize("command", list(filter(config_of, all_commands())), ids=" ".join)
def test_documents_name_configs_that_are_valid(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  overrides = [word for word in command if word.startswith("--config.")]
  name = config_of(command).replace("seed=N", "seed=1")
  # ml_collections reads the names of overrides from sys.argv.
  monkeypatch.setattr(sys, "argv", ["train", f"--config={name}", *overrides])
  values(sys.argv)
  config = values.config
  adds_servers = {"launch/node.sh", "launch/slurm.sh", "srl_jax.plan"}  # what the config needs
  if adds_servers & {*command}:
    config.rollout.update(engine="vllm", servers="http://127.0.0.1:8101")
  configs.check(config)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A copy of the files that the commands use, as current folder, with a .venv."""
  for folder in ("launch", "configs", "srl_jax"):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  shutil.copy(ROOT / "requirements.txt", tmp_path)
  programs = tmp_path / ".venv" / "bin"
  programs.mkdir(parents=True)
  tool(programs, "python", f'[ "$2" = pip ] || exec {sys.executable} "$@"')
  (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
  monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs" / "look").mkdir(
    parents=True
  )  # a run's folder, with the files that the documents use
  (tmp_path / "runs" / "look" / "metrics.jsonl").write_text('{"step": 1, "reward_mean": 0.5}\n')
  return tmp_path


def has_tested_commands(page: pathlib.Path) -> bool:
  return any(comment.startswith("tested") for comment, _ in blocks(page))


@pytest.mark.parametrize(
  "page", list(filter(has_tested_commands, GUIDES)), ids=lambda page: page.name
)
def test_commands_of_a_document_run(page, checkout):
  for comment, body in blocks(page):
    kind, _, argument = comment.partition(" ")
    if kind == "file":
      (checkout / argument).write_text(body + "\n", "utf-8")
    if kind != "tested":
      continue
    if argument:
      body = re.sub(r"(?m)^(\w+=\S+ )*launch/\w+\.sh", rf"\g<0> {argument}", body)
    done = subprocess.run(["bash", "-euc", body], capture_output=True, text=True)
    assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
    assert done.stdout, body


# ---------------------------------------------------------------------------------- data.md


def reasons_in_the_code() -> set[str]:
  """Returns the reasons for dropping rows that the code returns, assigns or counts."""
  found = set()
  for name in ("data/problems.py", "data/runs.py", "prepare.py"):
    for node in ast.walk(ast.parse((ROOT / "srl_jax" / name).read_text("utf-8"))):
      texts = []
      if isinstance(node, ast.FunctionDef) and node.returns:
        if ast.unparse(node.returns) == "str | None":
          texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Return)]
      elif isinstance(node, ast.Assign) and re.search(r"\breason\b", ast.unparse(node.targets[0])):
        texts = [node.value]
      elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "counts":
        texts = [node.slice]
      elif isinstance(node, ast.Dict) and "counts" in map(ast.unparse, node.values):
        texts = node.keys
      for text in filter(None, texts):
        for part in ast.walk(text):
          if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
  return {text for text in found if re.fullmatch(r"[a-z]+(_[a-z]+)*", text)}


def test_documents_have_exactly_the_reasons_for_dropping_a_row():
  page = (ROOT / "docs" / "data.md").read_text("utf-8")
  table = page.partition("## Why a row is dropped\n")[2].partition("\n\nTwo counts")[0]
  documented = set(re.findall(r"(?m)^\| `(\w+)` \|", table))
  # "hard" is the reason for keeping a row.
  assert documented == reasons_in_the_code() - {"rows", "kept", "hard", *REMARKS}
  assert all(f"`{remark}`" in page for remark in REMARKS)
