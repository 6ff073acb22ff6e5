#!/usr/bin/env bash
# A run on Kubernetes nodes with GPUs: a JobSet of trainer pods and vLLM server pods, a node each.
#
#   SRL_IMAGE=IMAGE SRL_CLAIM=CLAIM launch/kubernetes.sh [--dry-run] FILE[:args] \
#     [--workdir=/shared/DIR] [--config.a.b=value ...]
#
# --dry-run prints the manifest; without it `kubectl apply` gets it, in the current context and
# namespace. The cluster needs JobSet (jobset.sigs.k8s.io) 0.10 or newer.
#
# Environment: SRL_IMAGE, an image whose working directory is this folder, with .venv and .venv-vllm
# made. Where it is built there may be no GPU, so say that there will be one:
#   ENV SRL_JAX_EXTRA=cuda12
#   RUN launch/trainer.sh --install-only && launch/vllm_server.sh --install-only
# SRL_CLAIM, a PersistentVolumeClaim that many nodes can write to, mounted as /shared: workdir,
# weights on their way to the servers, downloaded models. SRL_TRAINER_NODES, SRL_SERVER_NODES
# (default 1 each), SRL_CARDS_PER_NODE (8), SRL_CARDS_PER_SERVER, SRL_VLLM_PORT, SRL_VLLM_FLAGS
# (launch/servers.sh). The trainer's mesh is fsdp over a node's cards and data over the nodes unless
# --config.mesh says otherwise.
#
# A pod that is evicted or preempted gets SIGTERM, saves within ten minutes and ends with code 75,
# which is a failure for Kubernetes: the JobSet starts anew and the run continues, however often.
# After a crash, or when servers were away for too long (code 69), it does so 20 times. Bad input
# (code 2) fails the JobSet at once. `kubectl delete jobset NAME` stops a run; the same command again
# continues it.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
dry=""
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
[ -n "${SRL_IMAGE:-}" ] || die "SRL_IMAGE: name the image to run"
[ -n "${SRL_CLAIM:-}" ] || die "SRL_CLAIM: name the PersistentVolumeClaim that the nodes share"
config="$1"
shift
workdir="$(flag_of workdir "/shared/runs/$(basename "${config%%:*}" .py)" "$@")"
[[ "$workdir" == /shared/* ]] || die "--workdir=$workdir: has to be below /shared, where SRL_CLAIM is"
check_servers_are_ours "$@"
weights="$(flag_of config.rollout.weights_root "$workdir/weights" "$@")"
cards="$(card_list "$cards_per_node")"

# A name that suits a host name, with room for what Kubernetes adds to it.
name="$(basename "$workdir" | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9\n' - | cut -c1-40 |
  sed 's/^-*//; s/-*$//')"
name="srl${name:+-$name}"
mapfile -t hosts < <(seq -f "$name-servers-0-%g.$name" 0 $((server_count - 1)))
urls="$(server_urls "$cards" "${hosts[@]}")"
# Servers come back by themselves here, so the trainer may wait for them.
flags=("--config.mesh=$(mesh_of "$trainer_count" "$cards_per_node")" --config.rollout.engine=vllm
  --config.rollout.patience=1800 "--config.rollout.weights_root=$weights" "--workdir=$workdir" "$@")

# text WORD, words WORD...: as YAML, on one line.
text() {
  echo "'${1//\'/\'\'}'"
}
words() {
  local word all=""
  for word in "$@"; do all+="${all:+, }$(text "$word")"; done
  echo "[$all]"
}
limits="{}" devices=""
if ((cards_per_node)); then
  limits="{nvidia.com/gpu: $cards_per_node}"
  devices="              - {name: JAX_LOCAL_DEVICE_IDS, value: '$cards'}"
fi
# Either side may be the first to look for the folder.
# shellcheck disable=SC2016
with_weights=(bash -c 'mkdir -p "$SRL_WEIGHTS_ROOT" && exec "$@"' bash)

manifest() {
  cat << YAML
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy # the servers' weight routes are open to all who reach them
metadata:
  name: $name
spec:
  podSelector: {matchLabels: {jobset.sigs.k8s.io/jobset-name: $name}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {jobset.sigs.k8s.io/jobset-name: $name}}
---
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  network: {enableDNSHostnames: true, subdomain: $name, publishNotReadyAddresses: true}
  successPolicy: {operator: All, targetReplicatedJobs: [trainer]} # the servers end with it
  failurePolicy:
    maxRestarts: $RESTARTS # those that no rule is about
    rules: # the Job's message alone tells which rule of its podFailurePolicy it was
    - name: badInput
      action: FailJobSet
      targetReplicatedJobs: [trainer]
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: [' exit code 2 ']
    - name: preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      targetReplicatedJobs: [trainer]
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: [' exit code $SAVED ', ' condition DisruptionTarget ']
  replicatedJobs:
  - name: servers
    template:
      spec:
        completionMode: Indexed
        completions: $server_count
        parallelism: $server_count
        backoffLimit: 10
        template:
          spec:
            restartPolicy: OnFailure
            containers:
            - name: servers
              image: $(text "$SRL_IMAGE")
              command: $(words "${with_weights[@]}" launch/servers.sh "$cards" "$config" "${flags[@]}")
              env:
              - {name: SRL_SERVER_HOST, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
              - {name: SRL_CARDS_PER_SERVER, value: '$cards_per_server'}
              - {name: SRL_VLLM_PORT, value: '$first_port'}
              - {name: SRL_VLLM_FLAGS, value: $(text "${SRL_VLLM_FLAGS:-}")}
$(common_environment)
              readinessProbe: {httpGet: {path: /health, port: $first_port}, periodSeconds: 10}
$(common_volumes)
  - name: trainer
    dependsOn: [{name: servers, status: Ready}]
    template:
      spec:
        completionMode: Indexed
        completions: $trainer_count
        parallelism: $trainer_count
        backoffLimit: 0 # one process cannot go on without the others: the JobSet starts anew
        podFailurePolicy:
          rules:
          - {action: FailJob, onExitCodes: {containerName: trainer, operator: In, values: [2, $SAVED]}}
          # Evicted, and ended before it could save, or its node is gone.
          - {action: FailJob, onPodConditions: [{type: DisruptionTarget, status: 'True'}]}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 600 # to save
            containers:
            - name: trainer
              image: $(text "$SRL_IMAGE")
              command: $(words "${with_weights[@]}" launch/trainer.sh "$config" "${flags[@]}" "--config.rollout.servers=$urls")
              env:
              - {name: JAX_COORDINATOR_ADDRESS, value: '$name-trainer-0-0.$name:8476'}
              - {name: JAX_NUM_PROCESSES, value: '$trainer_count'}
$devices
              - name: JAX_PROCESS_ID
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
$(common_environment)
$(common_volumes)
YAML
}

common_environment() {
  cat << YAML
              - {name: SRL_WEIGHTS_ROOT, value: $(text "$weights")}
              - {name: HF_HOME, value: /shared/huggingface}
YAML
}

common_volumes() {
  cat << YAML
              resources: {limits: $limits}
              volumeMounts:
              - {name: shared, mountPath: /shared}
              - {name: shm, mountPath: /dev/shm} # NCCL and vLLM want more than the usual 64 MB
            volumes:
            - {name: shared, persistentVolumeClaim: {claimName: $(text "$SRL_CLAIM")}}
            - {name: shm, emptyDir: {medium: Memory}}
YAML
}

if [ -n "$dry" ]; then
  manifest
else
  manifest | kubectl apply -f -
fi
