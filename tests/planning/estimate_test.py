"""Forecasts by hand-computed figures; what to change when a plan does not fit."""

import pytest

from srl_jax import config as common
from srl_jax.planning import estimate
from srl_jax.planning.models import architecture
from srl_jax.planning.programs import Program
from srl_jax.planning.topologies import GIB, H100, TOPOLOGIES

QWEN = architecture("Qwen/Qwen2.5-7B-Instruct", "bfloat16")
NODE = TOPOLOGIES["h100x8"]
MESH = {"data": 1, "fsdp": 8, "tensor": 1}


def config(**batch):
  config = common.defaults()
  config.batch.update(batch)
  return config


def test_work_counts_a_prompt_once():
  work = estimate.work_of(config(), 1500, 1000)
  assert work.tokens() == 512 * (1500 + 8 * 1000)
  longer = estimate.work_of(config(), 10**6, 10**6)
  assert (longer.prompt_tokens, longer.response_tokens) == (4096, 2048)
  sft = config()
  sft.method = "sft"
  assert estimate.work_of(sft, 100, 10).tokens() == 512 * 110


def test_work_flops_are_six_times_weights_and_tokens():
  """A response alone, so short that attention is negligible: 6 x matmul weights x tokens."""
  work = estimate.Work(prompts=1, samples=1, prompt_tokens=0, response_tokens=1)
  head = QWEN.vocab_size * QWEN.hidden_size
  weights = 7_615_616_512 - head  # all but the embedding; norms and biases are 0.002 %
  assert work.flops(QWEN) == pytest.approx(6 * weights, rel=1e-4)


def test_link_seconds_are_those_of_rings():
  """Two gathers and a reduce-scatter of 7.6e9 bfloat16 weights, 7/8 of which a device sends."""
  sent = 3 * 2 * 7_615_616_512 * 7 / 8
  assert estimate.link_seconds(QWEN, NODE, MESH) == pytest.approx(sent / (0.8 * H100.link))
  assert estimate.link_seconds(QWEN, NODE, MESH | {"fsdp": 1}) == 0


def test_host_seconds_are_those_of_the_benchmark():
  """Process 0 with 2, 8 and 64 processes (benchmarks/hosts.md); the goal is 1 s at 64."""
  work = estimate.work_of(config(), 1500, 1000)
  for hosts, measured in ((2, 1.60), (8, 0.81), (64, 0.79)):
    assert estimate.host_seconds(work, hosts) == pytest.approx(measured, rel=0.05)


def test_step_by_hand():
  """Compute hides the links; the optimiser's step and further passes are added."""
  work = estimate.work_of(config(), 1500, 1000)
  programs = {"apply": Program("apply", 10**10, 0, 10**10, 0)}
  found = estimate.step(config(), QWEN, NODE, work, MESH, programs, peak=1e15)
  padded = 44 * 8 * 16384 / 4_864_000  # places for each real token, those of the last batch too
  compute = work.flops(QWEN) * padded * 4 / 3 / (8 * 0.55e15)
  apply = 2e10 / (0.8 * H100.hbm)
  assert found["micro_batches"] == 44  # 4,864,000 tokens / (8 x 16,384 x 0.85) = 43.7
  assert found["tokens_in_flight"] == 8 * 16384
  assert found["link_s"] == pytest.approx(44 * estimate.link_seconds(QWEN, NODE, MESH))
  assert found["step_s"] == pytest.approx(compute + apply)
  assert found["mfu"] == pytest.approx(work.flops(QWEN) / (8e15 * found["step_s"]))
  twice = config()
  twice.algorithm.steps_per_batch = 2
  again = estimate.step(twice, QWEN, NODE, work, MESH, programs, peak=1e15)
  old = work.flops(QWEN) / 3 * padded / (8 * 0.55e15)
  assert again["step_s"] == pytest.approx(compute + 2 * apply + old)


def test_step_computes_the_last_micro_batch_whole():
  """256 devices hold 4.2 million tokens, so the 5.7 million of the step are two micro-batches."""
  pod = TOPOLOGIES["v6e-256"]
  work = estimate.work_of(config(), 1500, 1000)
  programs = {"apply": Program("apply", 0, 0, 0, 0)}
  mesh = {"data": 16, "fsdp": 16, "tensor": 1}
  found = estimate.step(config(), QWEN, pod, work, mesh, programs, peak=1e15)
  assert found["micro_batches"] == 2
  done = work.flops(QWEN) * 2 * 256 * 16384 / 4_864_000 * 4 / 3
  assert found["step_s"] == pytest.approx(done / (256 * 0.55e15))
  twice = config()
  twice.algorithm.steps_per_batch = 3  # each optimiser step has a separate micro-batch
  assert estimate.step(twice, QWEN, pod, work, mesh, programs, peak=1e15)["micro_batches"] == 3


def found(peak, kept=10, limit=59, sampler=0):
  """A result of estimate.memory, in GiB."""
  parts = {"parameters": kept / 4, "moments": kept / 2, "gradients": kept / 4}
  sizes = parts | {"sampler": sampler, "peak": peak, "limit": limit}
  return {name: int(size * GIB) for name, size in sizes.items()} | {"fits": peak <= limit}


def advice(config, found, mesh=MESH):
  return estimate.advice(config, found, mesh, QWEN.sizes())


def test_recomputed_is_the_part_of_the_forward_pass():
  """attention: gate and up, 2 of the 3 matrices of the MLP, among 233 million weights."""
  part = 2 * 3584 * 18944 / (3 * 3584 * 18944 + 3584 * 128 * 64)
  wanted = {"none": 0, "matmuls": 0, "attention": pytest.approx(part), "full": 1}
  assert {remat: estimate.recomputed(remat, QWEN) for remat in wanted} == wanted


def test_advice_is_empty_when_it_fits():
  assert advice(config(), found(peak=50)) == []


def test_advice_lowers_activations_first():
  least, first, second, third, last = advice(config(remat="none"), found(peak=70))
  assert least == "batch.remat = 'attention' (now 'none')"
  assert first == "batch.remat = 'full' (now 'none')"
  assert second == "batch.tokens_per_device = 8192 (now 16384)"
  assert third == "batch.logprob_chunk = 128 (now 512)"
  assert last.startswith("mesh = 'data=1,fsdp=16,tensor=1', more devices: ")


def test_advice_keeps_room_for_the_longest_sequence():
  first, *_ = advice(config(tokens_per_device=8192), found(peak=70))
  assert first == "batch.tokens_per_device = 6144 (now 8192)"
  first, *_ = advice(config(tokens_per_device=6144), found(peak=70))
  assert first.startswith("data.max_prompt_tokens and rollout.max_tokens lower (now 6144 together)")


def test_advice_adds_devices_for_weights_that_do_not_fit():
  """50 GiB of weights, moments and gradients on 16 GiB: 8 times the devices leave 6 GiB each."""
  (line,) = advice(config(), found(peak=70, kept=50, limit=16))
  assert line == (
    "mesh = 'data=1,fsdp=64,tensor=1', more devices: weights, moments and gradients take 50.0 GiB "
    "of 16.0 on each now, 6.2 then"
  )


def test_advice_names_meshes_that_divide_the_model():
  """A hidden size of 3,584 = 512 x 7 can be sharded in 512 parts, not in 1,024."""
  large = found(peak=700, kept=500, limit=16)
  (line,) = advice(config(), large, MESH | {"fsdp": 64})
  assert line.startswith("mesh = 'data=1,fsdp=512,tensor=1', more devices: ")
  (line,) = advice(config(), large, MESH | {"fsdp": 512})
  assert line == "model = a smaller one: fsdp=1024 does not divide hidden_size 3584 of this one"


def test_advice_removes_the_samplers_weights_first():
  first, second, *_ = advice(config(), found(peak=70, sampler=14.2))
  assert first.startswith("rollout.engine = 'vllm'") and "14.2 GiB" in first
  assert second == "batch.tokens_per_device = 8192 (now 16384)"


def test_peak_flops_of_every_chip():
  for kind, peak in [("NVIDIA H100 80GB HBM3", 989e12), ("TPU v5 lite", 197e12)]:
    assert estimate.peak_flops(kind) == peak
  for kind, peak in [("TPU v5", 459e12), ("TPU v6 lite", 918e12)]:
    assert estimate.peak_flops(kind) == peak
