"""The page's HTML: hostile texts stay data, nothing private is in it, only our scripts may run."""

import base64
import getpass
import hashlib
import html.parser
import json
import pathlib
import re
import socket

import pytest

from srl_jax.reporting import contents, page, reading
from tests.reporting.runs import CONFIG, group_line, write_run

HOSTILE = [
  "</script><script>document.title = 'taken'</script>",
  "<img src=x onerror=\"document.title = 'taken'\">",
  "<!-- <script> ]]> &lt;b&gt; \u2028 \u2029",
  "\0\x01\x1b[31m\ud800",
  "\u202egnirts desrever \u2066",
  "javascript:document.title='taken'",
]


class Parts(html.parser.HTMLParser):
  """The scripts of a page, their types, and its policy."""

  def __init__(self):
    super().__init__()
    self.scripts, self.policy, self._inside = [], "", False

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag == "script":
      self.scripts.append([attributes, ""])
      self._inside = True
    if attributes.get("http-equiv") == "Content-Security-Policy":
      self.policy = attributes["content"]

  def handle_endtag(self, tag):
    self._inside = self._inside and tag != "script"

  def handle_data(self, data):
    if self._inside:
      self.scripts[-1][1] += data


def parts_of(text):
  parts = Parts()
  parts.feed(text)
  return parts


@pytest.fixture
def made(tmp_path):
  lines = [group_line(HOSTILE, target=text, id=text, problem=text) for text in HOSTILE]
  lines[0]["dropped"] = HOSTILE[0]
  config = CONFIG | {
    "model": "/home/somebody/<b>tiny",
    "own": {"api_key": "12345", "path": "~/x/y"},
  }
  metrics = [{"step": 1, "reward_mean": 0.5, f"failure_{HOSTILE[0]}": 3}]
  write_run(tmp_path / "a<b>", {1: lines}, metrics, config)
  data = contents.contents(reading.read_runs([tmp_path / "a<b>"]))
  return data, page.page(data)


def test_hostile_texts_come_back_as_they_were(made):
  data, text = made
  parts = parts_of(text)
  block, library, own = parts.scripts
  assert block[0] == {"type": "application/json", "id": "data"} and "<" not in block[1]
  assert json.loads(block[1]) == json.loads(json.dumps(data))
  responses = json.loads(block[1])["groups"][0]["responses"]
  assert [response["action"] for response in responses] == HOSTILE
  assert library[0] == {"type": "text/plain", "id": "library"} and own[0] == {}
  assert "<title>a&lt;b&gt; - srl_jax</title>" in text


def test_the_policy_allows_the_two_scripts_and_nothing_else(made):
  parts = parts_of(made[1])
  rules = dict(rule.strip().split(" ", 1) for rule in parts.policy.split(";"))
  assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
  hashes = [hashlib.sha256(text.encode()).digest() for _, text in parts.scripts[1:]]
  allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
  assert rules["script-src"].split() == allowed
  assert rules["img-src"] == "data:"
  others = {"default-src", "base-uri", "form-action", "script-src", "style-src", "img-src"}
  assert rules.keys() == others


def test_nothing_private_is_in_the_page(made, tmp_path):
  shown = parts_of(made[1]).scripts[0][1]
  private = [str(tmp_path), str(pathlib.Path.home()) + "/", "/home/", "12345", "node7", "~/"]
  private += [name for name in (socket.gethostname(), getpass.getuser()) if name != "root"]
  for text in private:
    assert text not in shown, text


def test_scripts_put_no_markup_into_the_page():
  folder = pathlib.Path(page.__file__).parent
  found = "\n".join((folder / name).read_text("utf-8") for name in page.SCRIPTS)
  markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
  assert not re.search(markup, found)
  assert {path.name for path in folder.glob("*.js")} == set(page.SCRIPTS)


def test_numbers_that_are_no_json_are_refused():
  with pytest.raises(ValueError):
    page.as_json({"a": float("nan")})


def test_settings_of_two_runs_and_of_one(tmp_path):
  write_run(tmp_path / "a", {})
  write_run(tmp_path / "b", {}, config=CONFIG | {"seed": 1, "data": {"path": "/x/y/rows.jsonl"}})
  both = contents.settings_table(reading.read_runs([tmp_path / "a", tmp_path / "b"]))
  assert both["rows"] == [["data.path", "", "rows.jsonl"], ["seed", "0", "1"]]
  alone = contents.settings_table(reading.read_runs([tmp_path / "a"]))
  rows = {key: values for key, *values in alone["rows"]}
  assert alone["of_defaults"] and rows["rollout.samples"] == ["8", "2"]


def test_a_page_of_files_that_are_cut_anywhere(tmp_path):
  """Every file of a run is cut at every tenth of its length; the rest of the run is shown."""
  before = {"before": {"greedy": 1.0}}
  folder = write_run(tmp_path / "a", {1: [group_line(["x", "y"])]}, summary=before)
  for name in ("config.json", "metrics.jsonl", "summary.json", "rollouts/step_000001.jsonl"):
    whole = (folder / name).read_bytes()
    for tenth in range(10):
      (folder / name).write_bytes(whole[: len(whole) * tenth // 10])
      data = contents.contents(reading.read_runs([folder]))
      assert page.as_json(data)
      assert data["runs"][0]["faults"] or tenth == 0
      assert bool(data["groups"]) == (not name.startswith("rollouts"))
    (folder / name).write_bytes(whole)
