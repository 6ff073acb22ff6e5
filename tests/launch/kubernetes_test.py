"""launch/kubernetes.sh: the manifest against Kubernetes' schemas and JobSet's documented fields."""

import re

import pytest
import yaml

from tests.launch.conftest import tool

RUN = dict(SRL_IMAGE="registry/srl:1", SRL_CLAIM="scratch")

# The fields of a JobSet that we use, as its API reference (v1alpha2) has them: required, allowed.
JOBSET = {
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
  required, allowed = JOBSET[kind]
  assert set(required) <= set(value) <= {*required, *allowed}, kind


@pytest.fixture
def manifest(call):
  """manifest(*flags, **environment) -> the NetworkPolicy and the JobSet of a dry run."""

  def dry_run(*flags, **environment):
    done = call("kubernetes.sh", "--dry-run", *flags, **(RUN | environment))
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))

  return dry_run


def pods(jobset):
  """{name of the replicated job: (its Job's spec, its container)}."""
  specs = {job["name"]: job["template"]["spec"] for job in jobset["spec"]["replicatedJobs"]}
  return {name: (s, s["template"]["spec"]["containers"][0]) for name, s in specs.items()}


def environment(container):
  return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_kubernetes_accepts_the_policy_and_the_jobs(manifest):
  schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
  policy, jobset = manifest("configs/a.py", SRL_TRAINER_NODES="4", SRL_SERVER_NODES="2")
  newest = schemas.latest_version()
  schemas.validate(policy, newest, strict=True)
  for job in jobset["spec"]["replicatedJobs"]:
    whole = dict(apiVersion="batch/v1", kind="Job", metadata={"name": job["name"]})
    schemas.validate(whole | job["template"], newest, strict=True)


def test_jobset_knows_the_fields(manifest):
  _, jobset = manifest("configs/a.py")
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  spec = jobset["spec"]
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


def test_trainers_find_each_other_and_the_servers_by_their_pods_names(manifest):
  policy, jobset = manifest(
    *("configs/a.py", "--workdir=/shared/My_Run"),
    SRL_TRAINER_NODES="4",
    SRL_SERVER_NODES="2",
    SRL_CARDS_PER_SERVER="4",
  )
  assert jobset["metadata"]["name"] == "srl-my-run"
  labels = {"jobset.sigs.k8s.io/jobset-name": "srl-my-run"}
  assert policy["spec"]["podSelector"]["matchLabels"] == labels
  (trainer, process), (servers, server) = (pods(jobset)[n] for n in ("trainer", "servers"))
  assert (trainer["completions"], servers["completions"]) == (4, 2)
  env = environment(process)
  assert env["JAX_COORDINATOR_ADDRESS"] == "srl-my-run-trainer-0-0.srl-my-run:8476"
  assert (env["JAX_NUM_PROCESSES"], env["JAX_LOCAL_DEVICE_IDS"]) == ("4", "0,1,2,3,4,5,6,7")
  assert env["JAX_PROCESS_ID"]["fieldRef"]["fieldPath"].endswith("job-completion-index']")
  urls = ",".join(
    f"http://srl-my-run-servers-0-{pod}.srl-my-run:{port}"
    for pod in (0, 1)
    for port in (8101, 8102)
  )
  assert process["command"][-1] == f"--config.rollout.servers={urls}"
  weights = environment(server)["SRL_WEIGHTS_ROOT"]
  assert weights == "/shared/My_Run/weights" == env["SRL_WEIGHTS_ROOT"]
  assert f"--config.rollout.weights_root={weights}" in process["command"]


def test_the_mesh_is_as_large_as_the_trainer_unless_a_flag_says_otherwise(manifest):
  nodes = dict(SRL_TRAINER_NODES="4", SRL_CARDS_PER_NODE="2")
  _, jobset = manifest("configs/a.py", "--config.mesh=h100x8", **nodes)
  given = [word for word in pods(jobset)["trainer"][1]["command"] if "--config.mesh" in word]
  assert given == ["--config.mesh=data=4,fsdp=2,tensor=1", "--config.mesh=h100x8"]


@pytest.mark.parametrize(
  "folder, name",
  [
    ("My_Run__", "srl-my-run"),
    ("__a.b", "srl-a-b"),
    ("___", "srl"),
    ("a" * 39 + "_b", "srl-" + "a" * 39),
  ],
)
def test_a_workdir_of_any_name_makes_a_host_name(manifest, folder, name):
  _, jobset = manifest("configs/a.py", f"--workdir=/shared/{folder}")
  assert jobset["metadata"]["name"] == jobset["spec"]["network"]["subdomain"] == name


def test_flags_arrive_letter_by_letter(manifest):
  strange = """--config.prompt.system_file=it's "a b": #1 $HOME {x}, `y` \\n"""
  _, jobset = manifest("configs/a.py:x=1", strange)
  for _, container in pods(jobset).values():
    assert strange in container["command"] and "configs/a.py:x=1" in container["command"]


# How Kubernetes' Job controller says which rule of a podFailurePolicy was met.
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
def test_a_saved_run_starts_anew_and_bad_input_does_not(manifest, message, action):
  _, jobset = manifest("configs/a.py")
  trainer, _ = pods(jobset)["trainer"]
  exits, evicted = trainer["podFailurePolicy"]["rules"]
  assert exits["action"] == evicted["action"] == "FailJob"
  assert exits["onExitCodes"]["values"] == [2, 75]  # not 69: servers may be away for ever
  assert trainer["backoffLimit"] == 0  # any other failure goes to the JobSet at once
  policy = jobset["spec"]["failurePolicy"]
  for rule in policy["rules"]:
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  matching = [
    rule["action"]
    for rule in policy["rules"]
    if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
  ]
  assert matching == ([action] if action else [])
  assert policy["maxRestarts"] > 0
  assert trainer["template"]["spec"]["terminationGracePeriodSeconds"] >= 600


def test_without_dry_run_kubectl_gets_the_same_manifest(call, tmp_path):
  tool(tmp_path / "tools", "kubectl", f'echo "$*" > {tmp_path}/args; cat > {tmp_path}/got')
  assert call("kubernetes.sh", "configs/a.py", **RUN).returncode == 0
  dry = call("kubernetes.sh", "--dry-run", "configs/a.py", **RUN)
  assert (tmp_path / "args").read_text() == "apply -f -\n"
  assert (tmp_path / "got").read_text() == dry.stdout


@pytest.mark.parametrize(
  "flags, environment, message",
  [
    ((), {"SRL_IMAGE": ""}, "SRL_IMAGE: name the image"),
    ((), {"SRL_CLAIM": ""}, "SRL_CLAIM: name the PersistentVolumeClaim"),
    (("--workdir=runs/a",), {}, "has to be below /shared"),
  ],
)
def test_what_is_missing_is_one_line(call, flags, environment, message):
  done = call("kubernetes.sh", "--dry-run", "configs/a.py", *flags, **(RUN | environment))
  assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
