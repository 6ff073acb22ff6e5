"""Tests one instance in the sandbox: the tree for it, the test run, and grading by swebench.

Without docker images there is no official environment, so one is searched for and validated once:
in it, the tests FAIL_TO_PASS must fail without the gold patch and pass with it. Only those tests of
PASS_TO_PASS count later that pass there with the gold patch.
"""

import dataclasses
import hashlib
import json
import pathlib
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator

from srl_jax import folders
from srl_jax.errors import UserError
from srl_jax.evals.swe import official, recipes, releases, repositories, sandbox
from srl_jax.evals.swe.instances import Instance
from srl_jax.evals.swe.patches import git
from srl_jax.evals.swe.recipes import Recipe

# Threads share the cache; this lock lets one at a time add to it.
_filling = threading.RLock()
# Marks that swebench's log parsers look for.
START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
EXIT_CODE = ">>>>> Test Exit Code"
# Exit codes of a script that does not reach the tests, and the reason that is recorded.
_TEST_PATCH_FAILED, _MODEL_PATCH_FAILED = 97, 98
_NOT_RUN = {_TEST_PATCH_FAILED: "test_patch_not_applied", _MODEL_PATCH_FAILED: "not_applied"}
_MOST_RELEASES = 10  # that are tried per instance, each with two test runs
_RELEASES, _COMMITS = "releases", "commits"  # subfolders of the cache with the trees
# How a tree becomes the base commit's: a release before the fix is used unchanged; from one after
# the fix, both patches are reverted.
AS_IT_IS, BACKWARDS = "as it is", "patches taken back"


class NotJudged(Exception):
  """Raised for an instance that cannot be judged here; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Bench:
  """The setup for judging in the sandbox.

  Attributes:
    cache: folder of environments, trees and validations.
    call: see official.harness.
    clones: folder of bare clones, or None for releases.
    limits: of a test run.
  """

  cache: pathlib.Path
  call: official.Call
  clones: pathlib.Path | None
  limits: sandbox.Limits


@dataclasses.dataclass(frozen=True)
class Tree:
  """Files to run tests on.

  Attributes:
    folder: that contains them.
    name: for the record.
    direction: AS_IT_IS or BACKWARDS.
  """

  folder: pathlib.Path
  name: str
  direction: str


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a test run.

  Attributes:
    ended: of sandbox.Run, or a value of _NOT_RUN.
    f2p, p2p: the tests of FAIL_TO_PASS and PASS_TO_PASS that pass.
    resolved: swebench's verdict.
    seconds: wall-clock time.
  """

  ended: str
  f2p: tuple[str, ...]
  p2p: tuple[str, ...]
  resolved: bool
  seconds: float


def validated(instance: Instance, bench: Bench) -> dict:
  """Returns the instance's environment, validated on first use and kept in the cache.

  Returns:
    {tree, direction, recipe, python, p2p, seconds, tried}.

  Raises:
    NotJudged: there is none; the message is the reason.
  """
  # The stamp covers everything that the validation depends on; a change of it validates anew.
  facts = [dataclasses.astuple(instance), dataclasses.astuple(bench.limits), _recipe_text(instance)]
  stamp = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
  kind = _COMMITS if bench.clones is not None else _RELEASES
  file = bench.cache / "gold" / kind / f"{instance.id}.json"
  found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
  if found.get("stamp") != stamp:
    found = {"stamp": stamp, **_validate(instance, bench)}
    file.parent.mkdir(parents=True, exist_ok=True)
    folders.write_json(file, found)
  # Failures are cached too, so that they are not searched for again.
  if "reason" in found:
    raise NotJudged(found["reason"])
  return found


def _recipe_text(instance: Instance) -> list:
  """Returns the contents of the recipes for an instance's repository, for the stamp."""
  known = recipes.RECIPES.get(instance.repo, ())
  return [(recipe.name, recipe.pythons, recipe.packages, recipe.log_parser) for recipe in known]


def _validate(instance: Instance, bench: Bench) -> dict:
  """Returns the first environment that passes, or {"reason": why there is none}."""
  if not instance.test_patch or not instance.fail_to_pass:
    return {"reason": "the row has no tests"}
  version = _version(instance)
  recipe = recipes.recipe_of(instance.repo, version) if version else None
  if recipe is None:
    return {"reason": f"no recipe for {instance.repo} {instance.version}; known: {recipes.known()}"}
  try:
    _environment_of(recipe, bench)
  except UserError as error:  # raised instead of cached: the interpreter may be installed later
    raise NotJudged(f"no environment: {error}") from error
  tried = []
  for tree, own in _trees(instance, recipe, bench):
    found, reason = _try_tree(instance, tree, own, bench)
    if found:
      return {**found, "tried": tried}
    tried.append(f"{tree.name}: {reason}")
  if not tried:
    return {"reason": "the patches apply to no release near the commit"}
  return {"reason": f"no environment passes with the gold patch ({'; '.join(tried)})"}


def _environment_of(recipe: Recipe, bench: Bench) -> tuple[pathlib.Path, recipes.Interpreter]:
  """Returns the recipe's virtual environment and interpreter; one thread at a time makes it."""
  with _filling:
    return recipes.environment_of(recipe, bench.cache)


def _version(instance: Instance) -> tuple[int, int] | None:
  """Returns the instance's version as (major, minor), None if it is not of this form."""
  parts = instance.version.split(".")
  if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
    return None
  return int(parts[0]), int(parts[1])


def _try_tree(
  instance: Instance, tree: Tree, recipe: Recipe, bench: Bench
) -> tuple[dict | None, str]:
  """Returns (the validated environment, "") or (None, why the tree is not usable)."""
  # Without the gold patch no test of FAIL_TO_PASS may pass; with it, all of them must.
  before = run(instance, "", tree, recipe, bench)
  if before.f2p:
    return None, f"{len(before.f2p)} of FAIL_TO_PASS pass without the patch"
  after = run(instance, instance.patch, tree, recipe, bench)
  if len(after.f2p) < len(instance.fail_to_pass):
    passed = f"{len(after.f2p)} of {len(instance.fail_to_pass)} of FAIL_TO_PASS pass with it"
    return None, passed if after.ended == sandbox.EXITED else f"{passed} ({after.ended})"
  _, python = _environment_of(recipe, bench)
  return {
    "tree": tree.name,
    "direction": tree.direction,
    "recipe": recipe.name,
    "python": python.version,
    "f2p": f"{len(before.f2p)}/{len(instance.fail_to_pass)} -> {len(after.f2p)}",
    "p2p": list(after.p2p),
    "seconds": round(after.seconds, 1),
  }, ""


def judge(instance: Instance, patch: str, bench: Bench) -> dict:
  """Judges a patch in the validated environment: {resolved, reason, f2p, p2p, tree, seconds}.

  Raises:
    NotJudged: there is no environment.
  """
  environment = validated(instance, bench)
  recipe = next(r for r in recipes.RECIPES[instance.repo] if r.name == environment["recipe"])
  tree = _tree_again(instance, environment, recipe, bench)
  # Only the tests of PASS_TO_PASS that pass with the gold patch in this environment count.
  counting = dataclasses.replace(instance, pass_to_pass=tuple(environment["p2p"]))
  result = run(counting, patch, tree, recipe, bench)
  reason = "tests" if result.ended == sandbox.EXITED else result.ended
  return {
    "resolved": result.resolved,
    "reason": "" if result.resolved else reason,
    "f2p": f"{len(result.f2p)}/{len(counting.fail_to_pass)}",
    "p2p": f"{len(result.p2p)}/{len(counting.pass_to_pass)}",
    "p2p_of_row": len(instance.pass_to_pass),
    "tree": f"{tree.name}, {tree.direction}",
    "python": environment["python"],
    "seconds": round(result.seconds, 1),
  }


# ---------------------------------------------------------------------------------- trees


def _trees(instance: Instance, recipe: Recipe, bench: Bench) -> Iterator[tuple[Tree, Recipe]]:
  """Yields the trees on which both patches apply, the best first, each with its recipe."""
  if bench.clones is not None:
    with _filling:
      tree = _commit_tree(instance, bench)
    yield tree, recipe
    return
  found = releases.listed(bench.call, recipe.project)
  version = _version(instance)
  near = releases.nearest(found, version, instance.created_at or "1970-01-01", _MOST_RELEASES)
  # Releases before the fix are preferred: reverting patches is a larger change of the tree.
  for direction, options in ((AS_IT_IS, ()), (BACKWARDS, ("-R",))):
    for release in near:
      with _filling:
        folder = releases.unpacked(bench.call, release, bench.cache)
      own = recipes.recipe_of(instance.repo, release.minor)  # the release may be of another series
      both = (instance.patch, instance.test_patch)
      if own and all(_applies(patch, folder, options) for patch in both):
        yield Tree(folder, folder.name, direction), own


def _tree_again(instance: Instance, environment: dict, recipe: Recipe, bench: Bench) -> Tree:
  """Returns the tree of a validated environment, without network access if it is in the cache."""
  for kind in (_RELEASES, _COMMITS):
    folder = bench.cache.resolve() / kind / environment["tree"]
    if folder.is_dir():
      return Tree(folder, folder.name, environment["direction"])
  for tree, _ in _trees(instance, recipe, bench):
    if tree.name == environment["tree"]:
      return tree
  raise NotJudged(f"the tree {environment['tree']} is no longer available")


def _applies(patch: str, folder: pathlib.Path, options: tuple[str, ...]) -> bool:
  """Returns whether git can apply a patch to a tree."""
  try:
    git("apply", "--check", *options, "-", folder=folder, stdin=patch.encode())
  except UserError:
    return False
  return True


def _commit_tree(instance: Instance, bench: Bench) -> Tree:
  """Returns the files of the base commit itself, exported from the clone on first use."""
  repository = repositories.open_repository(bench.clones, instance.repo, instance.base_commit)
  name = f"{instance.repo.replace('/', '__')}-{instance.base_commit[:12]}"
  folder = bench.cache.resolve() / _COMMITS / name
  if not folder.is_dir():
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside its final place and renamed at the end, so that `folder` is always complete.
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
      files = pathlib.Path(partial) / "files"
      files.mkdir()
      archive = git("archive", "--format=tar", instance.base_commit, folder=repository.folder)
      subprocess.run(["tar", "-xf", "-", "-C", str(files)], input=archive, check=True)
      files.rename(folder)
  return Tree(folder, name, AS_IT_IS)


# ---------------------------------------------------------------------------------- a test run


def run(instance: Instance, patch: str, tree: Tree, recipe: Recipe, bench: Bench) -> Result:
  """Runs an instance's tests with a patch in the sandbox and grades the log.

  Args:
    instance: its fail_to_pass and pass_to_pass are graded.
    patch: the model's, the gold one, or "".
    tree: the files to patch.
    recipe: interpreter, packages and command.
    bench: cache and limits.

  Raises:
    UserError: the environment cannot be made.
  """
  environment, python = _environment_of(recipe, bench)
  readable = [environment]
  if not python.prefix.is_relative_to("/usr"):  # /usr is in every box
    readable.append(python.prefix)
  files = {"model.patch": patch, "gold.patch": instance.patch, "test.patch": instance.test_patch}
  done = sandbox.run(
    _script(instance, tree.direction, recipe.command),
    tree.folder,
    files={name: text.encode() for name, text in files.items()},
    readable=readable,
    environment={
      "PATH": f"{environment}/bin:/usr/bin:/bin",
      "PYTHONPATH": sandbox.TESTBED,
      "PYTHONHASHSEED": "0",
    },
    limits=bench.limits,
  )
  if done.code in _NOT_RUN:
    return Result(_NOT_RUN[done.code], (), (), False, done.seconds)
  return _grade(instance, patch, recipe, done, bench)


def _grade(
  instance: Instance, patch: str, recipe: Recipe, done: sandbox.Run, bench: Bench
) -> Result:
  """Returns the result of a test run, graded by swebench from its log."""
  row = {
    "instance_id": instance.id,
    "repo": instance.repo,
    "version": instance.version,
    "FAIL_TO_PASS": instance.fail_to_pass,
    "PASS_TO_PASS": instance.pass_to_pass,
  }
  with tempfile.NamedTemporaryFile(suffix=".txt") as log:
    # swebench reads UTF-8, but tests may print any bytes.
    log.write(done.output.decode(errors="replace").encode())
    log.flush()
    report = bench.call("grade", row=row, patch=patch, log=log.name, log_parser=recipe.log_parser)
  status = report.get("tests_status")
  passed = lambda key: tuple(status[key]["success"]) if status else ()
  return Result(
    ended=done.ended,
    f2p=passed("FAIL_TO_PASS"),
    p2p=passed("PASS_TO_PASS"),
    # swebench does not know that a limit ended the run.
    resolved=report["resolved"] and done.ended == sandbox.EXITED,
    seconds=done.seconds,
  )


def _script(instance: Instance, direction: str, command: Callable) -> str:
  """Returns the script of a test run: apply the model's patch, restore the tests, run them.

  Test files that the test patch changes are restored first, so that a model's changes of them have
  no effect, as in the official harness.
  """
  tests = recipes.test_files(instance.test_patch)
  quoted = " ".join(map(shlex.quote, tests))
  lines = ['git() { command git -c core.autocrlf=false "$@"; }']
  # Reverting both patches turns a release after the fix into the base commit's state.
  if direction == BACKWARDS:
    for name in ("test", "gold"):
      lines.append(f"git apply -R /files/{name}.patch || exit {_TEST_PATCH_FAILED}")
  lines += [
    "mkdir /tmp/kept",
    f'for file in {quoted}; do [ -e "$file" ] && cp --parents "$file" /tmp/kept; done',
    "if [ -s /files/model.patch ]; then",
    "  git apply /files/model.patch || patch --batch --fuzz=5 -p1 -i /files/model.patch ||",
    f"    exit {_MODEL_PATCH_FAILED}",
    "fi",
    f"rm -rf {quoted}",
    "cp -r /tmp/kept/. .",
    f"git apply /files/test.patch || exit {_TEST_PATCH_FAILED}",
    "rm -rf /tmp/kept",
    f"echo '{START}'",
    command(tests),
    "code=$?",
    f"echo '{END}'",
    f'echo "{EXIT_CODE}: $code"',
    "exit 0",
  ]
  return "\n".join(lines) + "\n"
