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
  step |= dict(compute_s=77.0, link_s=38.0, score_s=0.0, step_s=77.0, mfu=0.351)
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
    "500 of 1000 TFLOP/s",
    "verdict: fits, 40.0 of 59.0 GiB a device",
  ]:
    assert part in page
  assert "sampler" not in page


def test_text_of_a_run_with_the_built_in_engine(plan):
  plan["engine"], plan["memory"]["sampler"] = "builtin", 14 * GIB
  page = report.text(plan)
  assert "rollout.engine builtin" in page and "14.00  sampler's copy of the weights" in page


def test_verdict_names_the_peak_and_what_to_change(plan):
  assert report.verdict(refused(plan)) == (
    "does not fit: 70.0 of 59.0 GiB a device. Change, one after the other:\n"
    "  batch.tokens_per_device = 8192 (now 16384)\n"
    "  mesh = 'fsdp=16', more devices: ..."
  )
  assert "forecast of an update" not in report.text(refused(plan))
