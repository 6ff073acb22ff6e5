"""A plan's page and its verdict."""

import pytest

from srl_jax.planning import report
from srl_jax.planning.topologies import GIB


@pytest.fixture
def plan():
  """A plan that fits, with round figures."""
  programs = {
    name: dict(arguments=4 * GIB, temporaries=2 * GIB, resident=GIB, total=total * GIB)
    for name, total in [("apply", 12), ("accumulate", 40), ("score", 9), ("export", 8)]
  }
  sizes = dict(parameters=3 * GIB, moments=6 * GIB, gradients=3 * GIB, sampler=0, peak=40 * GIB)
  rates = dict(compute=5e14, peak=1e15, memory=2e12, link=3e11, packed=0.85)
  step = dict(
    micro_batches=44, tokens=4_864_000, tokens_in_flight=131_072, flops=2e17, apply_s=0.01
  )
  step |= dict(compute_s=77.0, link_s=38.0, score_s=0.0, step_s=77.0, mfu=0.351, host_s=0.3)
  return dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    topology="h100x8",
    devices=8,
    chip="H100",
    mesh="data=1,fsdp=8,tensor=1",
    engine="vllm",
    rows_shape=[8, 16384],
    memory=sizes | dict(programs=programs, limit=59 * GIB, fits=True),
    work=dict(prompt_tokens=1500, response_tokens=1000),
    rates=rates,
    step=step,
    push=None,
    change=[],
  )


def refused(plan):
  memory = plan["memory"] | dict(peak=70 * GIB, fits=False)
  change = ["batch.tokens_per_device = 8192 (now 16384)", "mesh = 'fsdp=16', more devices: ..."]
  return plan | dict(memory=memory, step=None, change=change, topology="v5e-8")


def test_text_has_every_figure(plan):
  page = report.text(plan)
  for part in [
    "Qwen/Qwen2.5-7B-Instruct on h100x8: 8 x H100, ",
    "mesh data=1,fsdp=8,tensor=1, rollout.engine vllm",
    "micro-batches of 8 x 16384 tokens",
    "3.00  weights",
    "44 micro-batches with 131,072 tokens in flight, 84% of them real",
    "77.0 s in all: MFU 35.1%",
    "0.30 CPU seconds of a host",
    "500 of 1000 TFLOP/s",
    "verdict: fits, 40.0 of 59.0 GiB a device",
  ]:
    assert part in page
  assert "sampler" not in page


def test_text_of_a_run_with_the_built_in_engine(plan):
  plan["engine"], plan["memory"]["sampler"] = "builtin", 14 * GIB
  page = report.text(plan)
  assert "rollout.engine builtin" in page and "14.00  sampler's copy of the weights" in page


def test_text_has_the_forecast_of_a_push_with_its_rates(plan):
  assert "push" not in report.text(plan)
  rates = dict(copy=8e9, memory=2e9, load=4e9, shared=4e9, host=2.5e9)
  local = dict(host_bytes=15.2e9, write_s=7.6, read_s=3.8, push_s=12.4)
  shared = dict(host_bytes=1.9e9, write_s=3.8, read_s=6.1, push_s=10.9)
  push = dict(bytes=15.2e9, hosts=8, rates=rates, check_s=1.0, local=local, shared=shared)
  page = report.text(plan | dict(push=push))
  for part in [
    "15.2 GB, hosts: 8",
    "15.2 GB in 7.6 s, each server reads 15.2 GB in 3.8 s: 12.4 s in all",
    "1.9 GB in 3.8 s, each server reads 15.2 GB in 6.1 s: 10.9 s in all",
    "8 from a device, 2 to /dev/shm, 4 from there by a server; shared: 4 of all hosts, 2.5 of one",
  ]:
    assert part in page


def test_verdict_names_the_peak_and_what_to_change(plan):
  assert report.verdict(refused(plan)) == (
    "does not fit: 70.0 of 59.0 GiB a device. Change, one after the other:\n"
    "  batch.tokens_per_device = 8192 (now 16384)\n"
    "  mesh = 'fsdp=16', more devices: ..."
  )
  assert "forecast of an update" not in report.text(refused(plan))
