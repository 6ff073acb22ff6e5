"""launch/kubernetes.yaml against Kubernetes' schemas, JobSet's reference, and its own commands."""

import json
import os
import pathlib
import re
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG_MAP, POLICY, JOBSET = yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text())
SETTINGS = CONFIG_MAP["data"]
JOBS = {job["name"]: job["template"]["spec"] for job in JOBSET["spec"]["replicatedJobs"]}

# The fields of a JobSet that we use, as its API reference (v1alpha2) has them: required, allowed.
FIELDS = {
  "spec": (["replicatedJobs"], ["network", "successPolicy", "failurePolicy", "suspend"]),
  "network": ([], ["enableDNSHostnames", "subdomain", "publishNotReadyAddresses"]),
  "successPolicy": (["operator"], ["targetReplicatedJobs"]),
  "failurePolicy": ([], ["maxRestarts", "restartStrategy", "rules"]),
  "rule": (
    ["name", "action"],
    ["onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"],
  ),
  "replicatedJob": (["name", "template"], ["replicas", "dependsOn", "groupName"]),
  "dependsOn": (["name", "status"], []),
}


def check_fields(kind, value):
  required, allowed = FIELDS[kind]
  assert set(required) <= set(value) <= {*required, *allowed}, kind


def container(name):
  (only,) = JOBS[name]["template"]["spec"]["containers"]
  return only


def test_manifest_is_valid_for_kubernetes():
  schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
  newest = schemas.latest_version()
  for document in (CONFIG_MAP, POLICY):
    schemas.validate(document, newest, strict=True)
  for job in JOBSET["spec"]["replicatedJobs"]:
    whole = dict(apiVersion="batch/v1", kind="Job", metadata={"name": job["name"]})
    schemas.validate(whole | job["template"], newest, strict=True)


def test_manifest_uses_only_fields_of_jobset():
  assert (JOBSET["apiVersion"], JOBSET["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  spec = JOBSET["spec"]
  check_fields("spec", spec)
  for kind in ("network", "successPolicy", "failurePolicy"):
    check_fields(kind, spec[kind])
  for rule in spec["failurePolicy"]["rules"]:
    check_fields("rule", rule)
    assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
  names = [job["name"] for job in spec["replicatedJobs"]]
  for number, job in enumerate(spec["replicatedJobs"]):
    check_fields("replicatedJob", job)
    for needed in job.get("dependsOn", []):
      check_fields("dependsOn", needed)
      assert needed["name"] in names[:number] and needed["status"] in ("Ready", "Complete")
  assert spec["successPolicy"]["targetReplicatedJobs"] == ["trainer"]


def test_manifest_repeats_names_and_numbers_consistently():
  name = JOBSET["metadata"]["name"]
  assert JOBSET["spec"]["network"]["subdomain"] == CONFIG_MAP["metadata"]["name"] == name
  labels = {"jobset.sigs.k8s.io/jobset-name": name}
  assert POLICY["spec"]["podSelector"]["matchLabels"] == labels
  assert POLICY["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels}}]}]
  for job, key in (("trainer", "SRL_TRAINER_NODES"), ("servers", "SRL_SERVER_NODES")):
    assert JOBS[job]["completions"] == JOBS[job]["parallelism"] == int(SETTINGS[key])
    assert container(job)["envFrom"] == [{"configMapRef": {"name": name}}]
    limits = container(job)["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": int(SETTINGS["SRL_CARDS_PER_NODE"])}
  probe = container("servers")["readinessProbe"]["httpGet"]
  assert probe == {"path": "/health", "port": int(SETTINGS["SRL_VLLM_PORT"])}
  for key in ("WORKDIR", "SRL_WEIGHTS_ROOT", "HF_HOME"):
    assert SETTINGS[key].startswith("/shared/")
  places = {entry["name"]: entry for entry in container("trainer")["env"]}
  assert places["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-trainer-0-0.{name}:8476"
  field = places["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def run_command(job, checkout, tmp_path, **more):
  """Runs the command of a job's container in the checkout, on CPUs; returns the process."""
  local = {key: value.replace("/shared", str(tmp_path)) for key, value in SETTINGS.items()}
  environment = os.environ | local | {"SRL_CARDS_PER_NODE": "0", "JAX_LOCAL_DEVICE_IDS": "0"}
  return subprocess.Popen(
    container(job)["command"],
    cwd=checkout,
    env=environment | more,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_trainer_command_starts_the_trainer_with_the_servers_addresses(checkout, tmp_path):
  process = run_command("trainer", checkout, tmp_path, JAX_PROCESS_ID="0", SRL_SERVER_NODES="2")
  assert process.wait(timeout=60) == 0, process.stderr.read()
  workdir = tmp_path / "runs/srl_math"
  _, _, *started = json.loads((workdir / "started").read_text())  # process and cards first
  flags = dict(flag[2:].split("=", 1) for flag in started if flag.startswith("--"))
  assert flags["config"] == SETTINGS["CONFIG"] and flags["workdir"] == str(workdir)
  assert flags["config.mesh"] == "data=2,fsdp=1,tensor=1"
  assert flags["config.rollout.servers"] == ",".join(
    f"http://srl-run-servers-0-{pod}.srl-run:8101" for pod in (0, 1)
  )
  assert flags["config.rollout.weights_root"] == str(workdir / "weights")
  assert (workdir / "weights").is_dir()
  assert started[-1] == SETTINGS["FLAGS"]  # the user's flags override ours


def test_servers_command_serves_on_the_pods_address(checkout, tmp_path):
  process = run_command("servers", checkout, tmp_path, SRL_SERVER_HOST="10.0.0.7")
  lines = []
  for line in process.stdout:
    lines.append(line)
    if "all servers are ready" in line:
      break
  process.terminate()
  process.communicate(timeout=60)
  assert any("--host=10.0.0.7 --port=8101" in line for line in lines), lines
  assert (tmp_path / "runs/srl_math/weights").is_dir()


# The messages of Kubernetes' Job controller, by the rule of the podFailurePolicy that matched.
EXITED = (
  "Container trainer for pod a/b-trainer-0-0-x failed with exit code {} matching FailJob rule"
)
EVICTED = "Pod a/b-trainer-0-0-x has condition DisruptionTarget matching FailJob rule at index 1"


@pytest.mark.parametrize(
  "message, action",
  [
    (EXITED.format(2), "FailJobSet"),
    (EXITED.format(75), "RestartJobSetAndIgnoreMaxRestarts"),
    (EVICTED, "RestartJobSetAndIgnoreMaxRestarts"),
    (EXITED.format(275), None),  # JobSet's default: a restart that counts
  ],
)
def test_failure_policy_restarts_saved_runs_but_not_bad_input(message, action):
  exits, evicted = JOBS["trainer"]["podFailurePolicy"]["rules"]
  assert exits["action"] == evicted["action"] == "FailJob"
  assert exits["onExitCodes"]["values"] == [2, 75]  # not 69: servers may never recover
  assert JOBS["trainer"]["backoffLimit"] == 0  # any other failure goes to the JobSet at once
  policy = JOBSET["spec"]["failurePolicy"]
  for rule in policy["rules"]:
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  matching = [
    rule["action"]
    for rule in policy["rules"]
    if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
  ]
  assert matching == ([action] if action else [])
  assert policy["maxRestarts"] > 0
  assert JOBS["trainer"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 600
