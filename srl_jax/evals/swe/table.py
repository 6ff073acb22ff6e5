"""The results of SWE-bench evaluations, beside the paper's Table 4, with paired differences.

  python -m srl_jax.evals.swe.table --evaluations=base=evals/swe/base,srl=evals/swe/srl \\
      --output=evals/swe/table.txt

The name before a folder can be any; base, swe_gym_7b and srl have figures in the paper. Further
evaluations are compared with the first one by a paired bootstrap over their common instances.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from srl_jax import command_line, folders
from srl_jax.data import rows
from srl_jax.errors import UserError
from srl_jax.evals import paired
from srl_jax.evals.columns import aligned
from srl_jax.evals.figures import mean_and_error
from srl_jax.evals.swe import edits, patches

ORACLE, END_TO_END = "oracle", "end_to_end"
VERIFIED_SIZE = 500  # instances of SWE-bench Verified
# Table 4: resolved in percent, (oracle file edit, end to end). All are whole counts of 500
# instances, from which the standard errors follow.
PAPER = {"base": (5.8, 3.2), "swe_gym_7b": (8.4, 4.2), "srl": (14.8, 8.6)}
_HEAD = ["", "n", "resolved", "judged", "patch", "well-formed", "strict", "applied", "too long"]
_HEAD += ["cut off", "all files", "any file", "shown", "flagged", "tokens"]
_FOOT = (
  "in percent of all instances, +- the standard error over them; resolved: an instance that is not"
  " judged counts as not resolved; strict: in a fence that begins with ```python; all files, any"
  " file: of those that the fix changes, named by localisation; shown: files in the prompt;"
  " flagged: patches that touch tests, conftest.py or configuration; tokens: per response"
)

flags = command_line.own_flags()
_EVALUATIONS = flags.DEFINE_list(
  "evaluations", None, "NAME=FOLDER of evaluate_swe, ...", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "File that takes the text, besides the terminal.")


def main(argv: list[str]) -> None:
  del argv
  found = {}
  for spec in _EVALUATIONS.value:
    name, given, folder = spec.partition("=")
    if not given:
      raise UserError(f"--evaluations={spec}: write NAME=FOLDER")
    found[name] = pathlib.Path(folder)
  text = side_by_side(found)
  print(text)
  if _OUTPUT.value:
    folders.write_text(pathlib.Path(_OUTPUT.value), text + "\n")


# ---------------------------------------------------------------------------------- figures


def read(folder: pathlib.Path) -> dict[str, list[dict]] | None:
  """Returns {repairs, locations, judged} of a setting's folder, or None if it is empty."""
  if not (folder / "repairs.jsonl").exists():
    return None
  found = {}
  for name in ("repairs", "locations", "judged"):
    path = folder / f"{name}.jsonl"
    # Only end_to_end has locations.jsonl, and judged.jsonl is missing before judging.
    has_lines = path.exists() and path.stat().st_size > 0
    found[name] = [row for _, row in rows.json_lines(path)] if has_lines else []
  return found


def figures(lines: Mapping[str, Sequence[dict]]) -> dict:
  """Returns the figures of a setting; shares are in [0, 1].

  Args:
    lines: from `read`.

  Returns:
    n; resolved ({value, se}, None if nothing is judged); judged (share) and by; patch, well_formed,
    strict, applied, cut_off (means over samples, then over instances); too_long; empty ({reason:
    instances}); all_found, any_found (None except for end_to_end); shown; flagged; several,
    ambiguous (numbers of edits); tokens; by_repository ({repository: {n, patch, resolved}}).
  """
  repairs = lines["repairs"]
  verdicts = _verdicts(lines)
  judged = [verdict for verdict in verdicts.values() if verdict["resolved"] is not None]
  # Means over an instance's samples first, so that every instance has the same weight.
  shares = [_sample_shares(line) for line in repairs]
  found: dict = {"n": len(repairs), "resolved": None, "by": None}
  if judged:
    found["resolved"] = mean_and_error(resolved(repairs, verdicts))
    found["by"] = judged[0]["by"]
  found["judged"] = len(judged) / len(repairs)
  for name in shares[0]:
    found[name] = float(np.mean([share[name] for share in shares]))
  found["patch"] = float(np.mean([bool(line["patch"]) for line in repairs]))
  found["too_long"] = float(np.mean([line["reason"] == patches.TOO_LONG for line in repairs]))
  found["empty"] = _counts(line["reason"] for line in repairs if line["reason"])
  found["shown"] = float(np.mean([len(line["files"]) for line in repairs]))
  found["flagged"] = sum(bool(line["touches"]) for line in repairs)
  found |= _edit_counts(repairs)
  for name in ("all_found", "any_found"):
    # Only end_to_end has locations.
    values = [line[name] for line in lines["locations"]]
    found[name] = float(np.mean(values)) if values else None
  found["by_repository"] = _by_repository(repairs, verdicts)
  return found


def resolved(repairs: Sequence[dict], verdicts: Mapping[str, dict]) -> list[bool]:
  """Returns whether each instance is resolved; one that is not judged counts as not resolved."""
  judged = [verdicts.get(line["instance_id"], {}) for line in repairs]
  return [verdict.get("resolved") is True for verdict in judged]


def _verdicts(lines: Mapping[str, Sequence[dict]]) -> dict[str, dict]:
  """Returns {instance id: line of judged.jsonl}."""
  return {line["instance_id"]: line for line in lines["judged"]}


def _sample_shares(line: dict) -> dict[str, float]:
  """Returns shares over an instance's samples; 0 without a prompt, and so without samples."""
  kept = {"well_formed": [], "strict": [], "applied": [], "cut_off": [], "tokens": []}
  for sample in line["samples"]:
    well_formed = [edit for edit in sample["edits"] if edit["outcome"] not in edits.MALFORMED]
    outcomes = {edit["outcome"] for edit in well_formed}
    kept["well_formed"].append(bool(well_formed))
    kept["strict"].append(any(not edit["lenient"] for edit in well_formed))
    kept["applied"].append(bool(outcomes & {edits.APPLIED, edits.SEVERAL}))
    kept["cut_off"].append(sample["cut_off"])
    kept["tokens"].append(sample["tokens"])
  return {name: float(np.mean(values)) if values else 0.0 for name, values in kept.items()}


def _edit_counts(repairs: Sequence[dict]) -> dict[str, int]:
  """Returns the number of edits that were found several times, and of ambiguous ones."""
  counts = {"several": 0, "ambiguous": 0}
  for line in repairs:
    for sample in line["samples"]:
      for edit in sample["edits"]:
        counts["several"] += edit["outcome"] == edits.SEVERAL
        counts["ambiguous"] += edit["ambiguous"]
  return counts


def _counts(words) -> dict[str, int]:
  """Returns {word: number of occurrences}."""
  counts: dict[str, int] = {}
  for word in words:
    counts[word] = counts.get(word, 0) + 1
  return counts


def _by_repository(repairs: Sequence[dict], verdicts: Mapping[str, dict]) -> dict[str, dict]:
  """Returns the counts of instances, patches and resolved instances per repository."""
  found: dict[str, dict] = {}
  for line, is_resolved in zip(repairs, resolved(repairs, verdicts)):
    # "owner__name-number" -> "owner/name".
    repository = line["instance_id"].rpartition("-")[0].replace("__", "/")
    about = found.setdefault(repository, {"n": 0, "patch": 0, "resolved": 0})
    about["n"] += 1
    about["patch"] += bool(line["patch"])
    about["resolved"] += is_resolved
  return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------- text


def write(output: pathlib.Path) -> str:
  """Writes table.{txt,md,json} of an evaluation's folder and returns the text."""
  found = _all_figures(output)
  settings = json.loads((output / "settings.json").read_text(encoding="utf-8"))
  table = [_HEAD, *(_row(setting, about) for setting, about in found.items())]
  foot = [*_details(found), _FOOT]
  heading = f"{_title(found)}\n{_heading(settings)}"
  text = "\n".join([heading, *aligned(table), *foot])
  rendered = {
    "txt": text,
    "md": "\n".join([heading, "", *_markdown(table), "", *foot]),
    "json": json.dumps({"settings": settings, "figures": found}, indent=1),
  }
  for suffix, content in rendered.items():
    folders.write_text(output / f"table.{suffix}", content + "\n")
  return text


def _all_figures(output: pathlib.Path) -> dict[str, dict]:
  """Returns {setting: figures} of an evaluation's folder; UserError if it has none."""
  found = {}
  for setting in (ORACLE, END_TO_END):
    lines = read(output / setting)
    if lines:
      found[setting] = figures(lines)
  if not found:
    raise UserError(f"{output} has no results of evaluate_swe yet")
  return found


def is_table_4(about: Mapping) -> bool:
  """Returns whether figures are comparable to Table 4: the official harness, on all instances."""
  # A report (--by=REPORT.json) is the official harness's too.
  official = str(about["by"]).startswith(("docker", "report"))
  return official and about["n"] == VERIFIED_SIZE and about["judged"] == 1


def _title(found: Mapping[str, dict]) -> str:
  """Returns the first line; it states whether the figures are comparable to Table 4."""
  if all(is_table_4(about) for about in found.values()):
    return "SWE-bench Verified, Table 4"
  judges = ", ".join(dict.fromkeys(str(about["by"] or "not judged") for about in found.values()))
  sizes = ", ".join(dict.fromkeys(str(about["n"]) for about in found.values()))
  return f"SWE-bench, not Table 4: {sizes} of {VERIFIED_SIZE} instances, judged by: {judges}"


def _heading(settings: Mapping) -> str:
  """Returns one line about the evaluation, from its settings."""
  step = "" if settings["step"] is None else f", step {settings['step']}"
  how = "greedy"
  if settings["samples"] > 1:
    how = f"vote of {settings['samples']} samples at temperature {settings['temperature']:g}"
  return (
    f"{settings['model']}{step}: prompt style {settings['style']}, {how}, prompts of at most"
    f" {settings['max_prompt_tokens']} tokens, responses of {settings['max_tokens']},"
    f" {settings['engine']} engine"
  )


def _row(name: str, about: Mapping) -> list[str]:
  """Returns the cells of a setting, in the order of _HEAD."""
  cells = [name, str(about["n"]), _with_error(about["resolved"]), _percent(about["judged"])]
  shares = ("patch", "well_formed", "strict", "applied", "too_long", "cut_off")
  cells += [_percent(about[key]) for key in shares]
  cells += [_percent(about["all_found"]), _percent(about["any_found"]), f"{about['shown']:.1f}"]
  return [*cells, str(about["flagged"]), f"{about['tokens']:.0f}"]


def _details(found: Mapping[str, dict]) -> list[str]:
  """Returns lines below the table: reasons for empty predictions, and counts per repository."""
  lines = []
  for setting, about in found.items():
    empty = ", ".join(f"{reason} {count}" for reason, count in sorted(about["empty"].items()))
    several = f"edits found several times: {about['several']}; ambiguous: {about['ambiguous']}"
    lines.append(f"{setting}: empty: {empty or 'none'}; {several}; judged by: {about['by'] or '-'}")
    repositories = []
    for name, counts in about["by_repository"].items():
      repositories.append(f"{name} {counts['resolved']}/{counts['patch']}/{counts['n']}")
    lines.append(f"  resolved/patches/instances: {', '.join(repositories)}")
  return lines


def _percent(value: float | None) -> str:
  """Returns a share in percent, "-" for None."""
  return "-" if value is None else f"{100 * value:.1f}"


def _with_error(figure: Mapping | None) -> str:
  """Returns a figure in percent with its standard error, "-" for None."""
  if figure is None:
    return "-"
  error = "" if figure["se"] is None else f" +- {100 * figure['se']:.1f}"
  return f"{100 * figure['value']:.1f}{error}"


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table."""
  head, *body = (f"| {' | '.join(row)} |" for row in table)
  return [head, "|---|" + "---:|" * (len(table[0]) - 1), *body]


# ---------------------------------------------------------------------------------- several


def side_by_side(found: Mapping[str, pathlib.Path]) -> str:
  """Returns the figures of several evaluations beside the paper's, and their differences.

  Args:
    found: {name: folder of evaluate_swe}.
  """
  evaluations = {name: _all_figures(folder) for name, folder in found.items()}
  table = [["", "setting", "n", "resolved", "judged", "paper", "well-formed", "judged by"]]
  for name, settings in evaluations.items():
    for i, setting in enumerate((ORACLE, END_TO_END)):
      if setting in settings:
        about = settings[setting]
        cells = [name, setting, str(about["n"]), _with_error(about["resolved"])]
        cells += [_percent(about["judged"]), _paper(name, i), _percent(about["well_formed"])]
        table.append([*cells, about["by"] or "-"])
  whole = all(is_table_4(a) for settings in evaluations.values() for a in settings.values())
  title = "Table 4" if whole else "not Table 4: the paper's are 500 instances, official harness"
  first, *others = found
  lines = [title, *aligned(table)]
  for other in others:
    for setting in (ORACLE, END_TO_END):
      lines += _difference(first, other, setting, found)
  return "\n".join(lines)


def _paper(name: str, column: int) -> str:
  """Returns the paper's figure; its standard error is that of a share of 500."""
  if name not in PAPER:
    return "-"
  share = PAPER[name][column] / 100
  return _with_error({"value": share, "se": (share * (1 - share) / VERIFIED_SIZE) ** 0.5})


def _difference(
  first: str, other: str, setting: str, found: Mapping[str, pathlib.Path]
) -> list[str]:
  """Returns a line with other minus first over their common instances; [] without any."""
  by_id = []
  for name in (other, first):
    lines = read(found[name] / setting)
    if not lines or not lines["judged"]:
      return []
    judged = [line for line in lines["judged"] if line["resolved"] is not None]
    by_id.append({line["instance_id"]: line["resolved"] for line in judged})
  common = sorted(by_id[0].keys() & by_id[1].keys())
  if not common:
    return []
  # One seed each: the arrays are [1, instances].
  arms = [np.array([[verdicts[id] for id in common]], float) for verdicts in by_id]
  mean, low, high, _ = paired.difference(*arms)
  interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
  return [
    f"{other} - {first}, {setting}: {100 * mean:+.1f} points, 95 % {interval}, paired bootstrap"
    f" over {len(common)} instances that both judged"
  ]


if __name__ == "__main__":
  command_line.run(main, flags.values)
