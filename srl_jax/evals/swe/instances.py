"""Instances of SWE-bench: an issue, the commit that it speaks of, the fix and its tests."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from srl_jax.data import rows
from srl_jax.errors import UserError
from srl_jax.evals.swe import patches

# The dataset of the official harness's version 5: its rows also have image and eval_script.
VERIFIED, SPLIT = "SWE-bench/SWE-bench_Verified", "test"


@dataclasses.dataclass(frozen=True)
class Instance:
  """A row.

  Attributes:
    id: "owner__name-number".
    repo: "owner/name".
    base_commit: the commit to change.
    issue: its text.
    patch: the fix, in git's format; "" where the row has none.
    test_patch: changes of the tests; "" where the row has none.
    fail_to_pass, pass_to_pass: names of tests.
    version: of the repository, such as "3.1".
    created_at: time of the fix, ISO 8601; "" where the row has none.
  """

  id: str
  repo: str
  base_commit: str
  issue: str
  patch: str = ""
  test_patch: str = ""
  fail_to_pass: tuple[str, ...] = ()
  pass_to_pass: tuple[str, ...] = ()
  version: str = ""
  created_at: str = ""

  def gold_files(self) -> list[str]:
    """The files that the fix changes, in its order: what the oracle setting shows."""
    return patches.paths_of(self.patch)


def load(spec: str, limit: int | None = None) -> list[Instance]:
  """Returns the instances of a file of JSON lines or of a dataset on the Hugging Face hub.

  Args:
    spec: path of a file, or the hub's name (its split "test" is read).
    limit: the first so many only.

  Raises:
    UserError: no such file or dataset, a row without a column that every row needs, or the same id
      for two different rows.
  """
  found = rows.local_rows(spec, SPLIT) if rows.is_local(spec) else rows.hub_rows(spec, SPLIT)
  return _read(found)[:limit]


def _read(found: Iterable[tuple[str, dict[str, Any]]]) -> list[Instance]:
  instances: dict[str, Instance] = {}
  for place, row in found:
    instance = _instance(place, row)
    if instances.setdefault(instance.id, instance) != instance:
      raise UserError(f"{place}: the id {instance.id!r} already names another row; remove one")
  return list(instances.values())


def _instance(place: str, row: dict[str, Any]) -> Instance:
  for key in ("instance_id", "repo", "base_commit", "problem_statement"):
    if not isinstance(row.get(key), str) or not row[key].strip():
      raise UserError(f"{place}: no text under {key!r}; it has {', '.join(row)}")
  if "/" in row["instance_id"]:
    raise UserError(f"{place}: instance_id {row['instance_id']!r} has a slash in it")
  return Instance(
    id=row["instance_id"],
    repo=row["repo"],
    base_commit=row["base_commit"],
    issue=row["problem_statement"],
    patch=row.get("patch") or "",
    test_patch=row.get("test_patch") or "",
    fail_to_pass=_names(place, row, "FAIL_TO_PASS"),
    pass_to_pass=_names(place, row, "PASS_TO_PASS"),
    version=str(row.get("version") or ""),
    created_at=str(row.get("created_at") or ""),
  )


def _names(place: str, row: dict[str, Any], key: str) -> tuple[str, ...]:
  """A column of test names: a list, or its JSON text, as the hub has it."""
  value = row.get(key) or []
  if isinstance(value, str):
    try:
      value = json.loads(value)
    except ValueError as error:
      raise UserError(f"{place}: {key} is no JSON ({error})") from error
  if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
    raise UserError(f"{place}: {key} is no list of tests' names")
  return tuple(value)
