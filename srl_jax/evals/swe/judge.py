"""Judges which predictions resolve their issue, by running the tests of SWE-bench.

  python -m srl_jax.evals.swe.judge --data=FILE --predictions=DIR/predictions.jsonl --output=DIR \\
      --by=sandbox
  python -m srl_jax.evals.swe.judge --data=verified --predictions=... --output=DIR --by=docker
  python -m srl_jax.evals.swe.judge --data=FILE --predictions=... --output=DIR --by=REPORT.json
  python -m srl_jax.evals.swe.judge --data=FILE --output=DIR --by=sandbox --gold

docker      the official harness, swebench 5, with its images: the figures of the paper's Table 4.
            Needs a docker or podman service, 120 GB of disk or more, and the hub's rows.
sandbox     bubblewrap on this machine, graded by swebench's own code, on the commits of
            --repositories, or else on source releases from the package index that are close to
            them. Not Table 4: only some rows have an environment in which the gold patch passes.
REPORT.json a report of sb-cli, or of the official harness on another machine.

--gold judges the gold patches and so validates the environments; the sandbox then keeps them in
--cache. DIR/judged.jsonl has one line per instance: instance_id, resolved (true, false, or null if
it could not be judged), reason, f2p and p2p (passed/all of FAIL_TO_PASS and PASS_TO_PASS), by, and
patch, a checksum. The same command continues an interrupted run. In a folder of evaluate_swe its
table is updated.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable

from srl_jax import command_line, folders
from srl_jax.data import rows
from srl_jax.errors import UserError
from srl_jax.evals.swe import instances, official, sandbox, table, trials
from srl_jax.evals.swe.instances import Instance

flags = command_line.own_flags()
_DATA = flags.DEFINE_string("data", instances.VERIFIED, "File of rows with tests, or hub name.")
_PREDICTIONS = flags.DEFINE_string("predictions", None, "predictions.jsonl of evaluate_swe.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of judged.jsonl.", required=True)
_BY = flags.DEFINE_string("by", None, "docker, sandbox or REPORT.json.", required=True)
_GOLD = flags.DEFINE_bool("gold", False, "Judge the gold patches of --data.")
_REPOSITORIES = flags.DEFINE_string(
  "repositories", None, "Bare clones (launch/swe_repositories.sh): the sandbox takes the commits."
)
_CACHE = flags.DEFINE_string("cache", ".cache/swe", "Environments, releases, validations.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Instances side by side.", 1)
_TIMEOUT = flags.DEFINE_integer("timeout", 1800, "Seconds of a test run.", 1)

JUDGED = "judged.jsonl"
GOLD = "gold"  # prefix of `by` in the lines of gold patches


def main(argv: list[str]) -> None:
  del argv
  _check_flags()
  output, by = pathlib.Path(_OUTPUT.value), _name_of_judge()
  # Lines are appended to judged.jsonl, so only one judge may use the folder.
  with folders.locked(output):
    # None selects the gold patches.
    patches = None if _GOLD.value else read_predictions(pathlib.Path(_PREDICTIONS.value))
    done = read_done(output / JUDGED, by, patches)
    if _BY.value == "sandbox":
      chosen = _instances(patches)
      todo = [instance for instance in chosen if instance.id not in done]
      try:
        _judge_in_sandbox(todo, patches, by, output / JUDGED)
      except KeyboardInterrupt:
        print(f"\nstopped; the same command continues from the lines in {output}", flush=True)
        raise SystemExit(130) from None
    else:
      _take_over(patches, by, output)
  print(summary(_lines(output / JUDGED)))
  # The folder is a setting's of evaluate_swe: its table gets the verdicts.
  if (output / "repairs.jsonl").exists() and (output.parent / "settings.json").exists():
    print(table.write(output.parent))


def _check_flags() -> None:
  """Raises UserError for flags that do not go together."""
  if _BY.value not in ("docker", "sandbox") and not _BY.value.endswith(".json"):
    raise UserError(f"--by={_BY.value}: use docker, sandbox or a report's file, NAME.json")
  if _GOLD.value == bool(_PREDICTIONS.value):
    raise UserError("--predictions=FILE or --gold: give one of the two")
  if _GOLD.value and _BY.value.endswith(".json"):
    raise UserError("--gold: a report needs no gold patches; use --by=docker or --by=sandbox")
  if _REPOSITORIES.value and _BY.value != "sandbox":
    raise UserError("--repositories is for --by=sandbox; the official harness has its images")


def _name_of_judge() -> str:
  """Returns the judge's name for the lines and the table."""
  if _BY.value == "docker":
    name = f"docker, swebench {official.SWEBENCH}"
  elif _BY.value == "sandbox":
    name = "sandbox on commits" if _REPOSITORIES.value else "sandbox on releases"
  else:
    name = f"report {pathlib.Path(_BY.value).name}"
  return f"{GOLD}, {name}" if _GOLD.value else name


def read_predictions(path: pathlib.Path) -> dict[str, str]:
  """Returns {instance id: patch} of a file in SWE-bench's form; "" for an empty prediction.

  Raises:
    UserError: a line has another form, or two lines are for the same instance.
  """
  found: dict[str, str] = {}
  for place, row in rows.json_lines(path):
    id, patch = row.get("instance_id"), row.get("model_patch", "") or ""
    if not isinstance(id, str) or not isinstance(patch, str):
      raise UserError(f"{place}: instance_id or model_patch is not a string; it has {list(row)}")
    if id in found:
      raise UserError(f"{place}: a second prediction for {id!r}: remove one")
    found[id] = patch
  return found


def _instances(patches: dict[str, str] | None) -> list[Instance]:
  """Returns the rows to judge: all of --data, or those with a prediction."""
  chosen = instances.load(_DATA.value)
  if patches is None:
    return chosen
  # A prediction without a row would otherwise be left out silently.
  unknown = patches.keys() - {instance.id for instance in chosen}
  if unknown:
    raise UserError(
      f"--data={_DATA.value} has no row for {sorted(unknown)[0]!r} ({len(unknown)} in all), which"
      " has a prediction; give the data that was evaluated"
    )
  return [instance for instance in chosen if instance.id in patches]


# ---------------------------------------------------------------------------------- the file


def checksum(patch: str) -> str:
  """Returns the checksum of a patch, as in judged.jsonl."""
  return hashlib.sha256(patch.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _lines(path: pathlib.Path) -> list[dict]:
  """Returns the lines of a file that may not exist; a truncated last line is removed."""
  return [row for _, row in rows.json_lines(path)] if folders.cut_to_whole_lines(path) else []


def read_done(path: pathlib.Path, by: str, patches: dict[str, str] | None) -> set[str]:
  """Returns the ids that are judged already; removes lines without a verdict or of another patch.

  Raises:
    UserError: the file was written by another judge.
  """
  lines = _lines(path)
  kept = []
  for line in lines:
    if line["by"] != by:
      raise UserError(f"{path} is by {line['by']!r}, not {by!r}: give another --output")
    same = patches is None or line["patch"] == checksum(patches.get(line["instance_id"], ""))
    # Instances that could not be judged are tried again: the environment may work now.
    if line["resolved"] is not None and same:
      kept.append(line)
  if len(kept) < len(lines):
    folders.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
  return {line["instance_id"] for line in kept}


def judged_line(id: str, by: str, patch: str, about: dict) -> dict:
  """Returns a line of judged.jsonl; `about` has the verdict and its details."""
  blank = {"instance_id": id, "resolved": None, "reason": "", "f2p": None, "p2p": None}
  return {**blank, **about, "by": by, "patch": checksum(patch)}


def summary(lines: Iterable[dict]) -> str:
  """Returns one line with the number of resolved instances and the reasons for the others."""
  lines, reasons = list(lines), {}
  for line in lines:
    if not line["resolved"]:
      # Reasons may end in details; only the part before them is counted.
      reason = re.split("[:;(]", line["reason"])[0].strip()
      kind = reason if line["resolved"] is False else f"not judged, {reason}"
      reasons[kind] = reasons.get(kind, 0) + 1
  resolved = sum(line["resolved"] is True for line in lines)
  others = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
  return f"{resolved} of {len(lines)} resolved" + (f"; {others}" if others else "")


# ---------------------------------------------------------------------------------- judges


def _judge_in_sandbox(
  todo: list[Instance], patches: dict[str, str] | None, by: str, path: pathlib.Path
) -> None:
  """Judges instances in the sandbox and appends each line as soon as it is known."""
  if not todo:
    return
  if complaint := sandbox.missing():
    raise UserError(complaint)
  cache = pathlib.Path(_CACHE.value)
  cache.mkdir(parents=True, exist_ok=True)
  clones = pathlib.Path(_REPOSITORIES.value) if _REPOSITORIES.value else None
  limits = sandbox.Limits(seconds=_TIMEOUT.value)
  # One process of swebench's environment grades all instances.
  with official.harness(cache) as call, path.open("a", encoding="utf-8") as file:
    bench = trials.Bench(cache, call, clones, limits)

    def judge_one(instance: Instance) -> dict:
      patch = instance.patch if patches is None else patches[instance.id]
      about = _try_one(lambda: _verdict(instance, patch, patches is None, bench))
      return judged_line(instance.id, by, patch, about)

    for line in _side_by_side(judge_one, todo, _WORKERS.value):
      file.write(json.dumps(line) + "\n")
      file.flush()
      print(_said(line), flush=True)


def _side_by_side(work: Callable, items: list, workers: int):
  """Yields work(item) in order of completion; after an error or Ctrl-C no further item starts."""
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(work, item) for item in items]
    try:
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    finally:
      for future in futures:
        future.cancel()


def _verdict(instance: Instance, patch: str, gold: bool, bench: trials.Bench) -> dict:
  """Returns the verdict on one instance; with `gold`, the validation of its environment."""
  if gold:
    found = trials.validated(instance, bench)
    # Tests of PASS_TO_PASS that pass in this environment; only these count for predictions.
    passed = f"{len(found['p2p'])}/{len(instance.pass_to_pass)}"
    kept = {key: found[key] for key in ("f2p", "python", "seconds")}
    return {
      "resolved": True,
      "p2p": passed,
      "tree": f"{found['tree']}, {found['direction']}",
      **kept,
    }
  if not patch:
    return {"resolved": False, "reason": "empty"}
  return trials.judge(instance, patch, bench)


def _try_one(verdict: Callable[[], dict]) -> dict:
  """Returns the verdict, or null with the reason if the instance cannot be judged."""
  try:
    return verdict()
  except (trials.NotJudged, UserError) as error:
    return {"resolved": None, "reason": str(error)}


def _said(line: dict) -> str:
  """Returns the printed line for one instance."""
  verdict = {True: "resolved", False: "not resolved", None: "not judged"}[line["resolved"]]
  tests = f"  F2P {line['f2p']}  P2P {line['p2p']}" if line["f2p"] else ""
  reason = f"  ({line['reason']})" if line["reason"] else ""
  return f"{line['instance_id']}: {verdict}{tests}{reason}"


def _take_over(patches: dict[str, str] | None, by: str, output: pathlib.Path) -> None:
  """Writes the results of the official harness, run here by docker or elsewhere."""
  if _BY.value == "docker":
    found = official.judge_by_docker(
      _DATA.value,
      pathlib.Path(_PREDICTIONS.value or ""),
      output / "docker",
      cache=pathlib.Path(_CACHE.value),
      workers=_WORKERS.value,
      seconds=_TIMEOUT.value,
      gold=_GOLD.value,
    )
  else:
    found = official.read_report(pathlib.Path(_BY.value))
  chosen = patches if patches is not None else dict.fromkeys(found, "")  # --gold: all in the report
  lines = []
  for id, patch in chosen.items():
    # The report may lack instances, for example after an interrupted run.
    missing = {"resolved": None, "reason": "not in the report"}
    lines.append(judged_line(id, by, patch, found.get(id, missing)))
  folders.write_text(output / JUDGED, "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
  command_line.run(main, flags.values)
