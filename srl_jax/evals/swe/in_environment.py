"""A server for swebench's environment (see official.py); run by its interpreter, never imported.

Each line of standard input is a request in JSON, answered by one line of JSON:

  {"do": "grade", "row": {...}, "patch": "...", "log": "FILE", "log_parser": "..."}
      -> swebench's report of an instance with the status of its tests
  {"do": "releases", "project": "Sphinx"}
      -> a list of source releases: version, minor, uploaded (ISO 8601 or null), file
  {"do": "download", "project": "Sphinx", "version": "3.4.3", "folder": "DIR"} -> the file's path
  {"do": "docker"} -> {"version": "..."} of the docker or podman service, or an error

An error is {"error": "..."}. Releases are listed by pip's package finder from the index that pip is
configured with; `pip download` would run the release's setup.py to learn its metadata.
"""

import functools
import json
import os
import sys


def main():
  """Answers requests until standard input is closed."""
  # Answers go to the original standard output. File descriptor 1 then becomes standard error, so
  # that output of libraries does not mix with answers.
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    do = {"grade": grade, "releases": releases, "download": download, "docker": docker}
    try:
      answer = do[request.pop("do")](**request)
    except Exception as error:  # three libraries and the network may fail; the caller reports it
      answer = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def grade(row, patch, log, log_parser):
  """Returns swebench's report for an instance, from the log of a test run."""
  from swebench.harness.constants import EvalType
  from swebench.harness.grading import get_eval_report
  from swebench.types import TestSpec

  # Only the fields that grading reads; image and script are those of docker.
  spec = TestSpec(
    instance_id=row["instance_id"],
    image="",
    eval_script_list=[],
    repo=row["repo"],
    version=row["version"],
    FAIL_TO_PASS=row["FAIL_TO_PASS"],
    PASS_TO_PASS=row["PASS_TO_PASS"],
    log_parser=log_parser,
    eval_type=EvalType.PASS_AND_FAIL.value,
  )
  prediction = {"instance_id": row["instance_id"], "model_patch": patch}
  return get_eval_report(spec, prediction, log, True)[row["instance_id"]]


@functools.cache
def _candidates(project):
  """Returns pip's session and {version: candidate} of a project's source releases."""
  # pip has no public API for this; official.py pins pip's version.
  from pip._internal.commands import create_command

  command = create_command("index")
  options, _ = command.parse_args(["versions", "--quiet", project])
  # Uses pip's own configuration of index, proxies and certificates.
  session = command._build_session(options)
  finder = command._build_package_finder(options, session, ignore_requires_python=True)
  found = {}
  # Only source releases: wheels usually lack the tests.
  for candidate in finder.find_all_candidates(project):
    if candidate.link.filename.endswith((".tar.gz", ".zip")):
      found[str(candidate.version)] = candidate
  return session, found


def releases(project):
  """Returns the source releases of a project, sorted by version."""
  _, found = _candidates(project)
  listed = []
  for candidate in sorted(found.values(), key=lambda candidate: candidate.version):
    uploaded = candidate.link.upload_time
    listed.append(
      {
        "version": str(candidate.version),
        "minor": [candidate.version.major, candidate.version.minor],
        "uploaded": uploaded.isoformat() if uploaded else None,
        "file": candidate.link.filename,
      }
    )
  return listed


def download(project, version, folder):
  """Downloads a source release, verifies the index's hash and returns the file's path."""
  from pip._internal.network.download import Downloader

  session, found = _candidates(project)
  link = found[version].link
  path, _ = Downloader(session, "off")(link, folder)
  hashes = link.as_hashes()
  if hashes:
    hashes.check_against_path(path)
  return path


def docker():
  """Returns the version of the docker or podman service."""
  import docker

  return {"version": docker.from_env().version()["Version"]}


if __name__ == "__main__":
  main()
