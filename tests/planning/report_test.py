"""A plan's page, its verdict and the table."""

import json
import subprocess
import sys

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
  rates = dict(compute=5e14, peak=1e15, memory=2e12, link=3e11, network=0, host=2e10, files=2e9)
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
    collectives={"accumulate": {"all-gather": dict(calls=10, bytes=8e9, sent=7e9)}},
    work=dict(prompt_tokens=1500, response_tokens=1000),
    rates=rates | dict(packed=0.85),
    step=step | dict(push=dict(bytes=15e9, copies=1, seconds=16.0)),
    change=[],
  )


def refused(plan):
  memory = plan["memory"] | dict(peak=70 * GIB, fits=False)
  change = ["batch.tokens_per_device = 8192 (now 16384)", "mesh = 'fsdp=16', more devices: ..."]
  return plan | dict(memory=memory, step=None, change=change, topology="v5e-8")


def test_the_page_has_every_figure(plan):
  page = report.text(plan)
  for part in [
    "Qwen/Qwen2.5-7B-Instruct on h100x8: 8 x H100, ",
    "mesh data=1,fsdp=8,tensor=1, rollout.engine vllm",
    "micro-batches of 8 x 16384 tokens",
    "3.00  weights",
    "10 x     8.000 GB     7.000 GB sent",
    "44 micro-batches with 131,072 tokens in flight, 84% of them real",
    "77.0 s in all: MFU 35.1%",
    "weights to the servers: 15.0 GB in bfloat16, 16 s",
    "500 of 1000 TFLOP/s",
    "verdict: fits, 40.0 of 59.0 GiB a device",
  ]:
    assert part in page
  assert "between nodes" not in page and "sampler" not in page


def test_the_page_of_a_run_that_samples_itself(plan):
  plan["engine"], plan["memory"]["sampler"], plan["step"]["push"] = "builtin", 14 * GIB, None
  page = report.text(plan)
  assert "rollout.engine builtin" in page and "14.00  sampler's copy of the weights" in page
  assert "to the servers" not in page
  assert report.row(plan).endswith("| 77 s | 35% |  | fits |")


def test_copies_for_several_hosts_are_named(plan):
  plan["step"]["push"] = dict(bytes=15e9, copies=4, seconds=61.0)
  copies = "4 x 15.0 GB in bfloat16, one for each trainer process with servers, 60 GB, 61 s"
  assert copies in report.text(plan)


def test_a_refusal_names_the_figure_and_the_lines(plan):
  assert report.verdict(refused(plan)) == (
    "does not fit: 70.0 of 59.0 GiB a device. Change, one after the other:\n"
    "  batch.tokens_per_device = 8192 (now 16384)\n"
    "  mesh = 'fsdp=16', more devices: ..."
  )
  assert "forecast of an update" not in report.text(refused(plan))


def test_the_table_is_made_from_files(plan, tmp_path):
  files = [tmp_path / "b.json", tmp_path / "a.json"]
  for file, content in zip(files, (refused(plan), plan)):
    file.write_text(json.dumps(content))
  command = [sys.executable, "-m", "srl_jax.planning.report", *files]
  lines = subprocess.check_output(command, text=True).splitlines()
  assert len({line.count("|") for line in lines[:4]}) == 1
  assert lines[2].startswith("| h100x8 | 8 |") and lines[2].endswith("| 77 s | 35% | 16 s | fits |")
  assert any("7B-Instruct, rollout.engine vllm; memory in GiB" in line for line in lines)
  assert lines[3].startswith("| v5e-8 | 8 |") and lines[3].endswith("|  |  |  | refused |")
  assert lines[-3].startswith("v5e-8 does not fit: 70.0 of 59.0 GiB a device")


def test_the_page_gets_its_short_table(plan):
  page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
  new = report.into_page(page, [plan, refused(plan)])
  assert new.splitlines()[:3] == ["before", report.BEGIN, report.SHORT_HEADER.splitlines()[0]]
  assert "| h100x8 | data=1,fsdp=8,tensor=1 | 8 x 16384 | 40.0 of 59.0 GiB | 77 s | fits |" in new
  assert new.endswith(f" |  | refused |\n{report.END}\nafter\n") and "old" not in new
  assert report.into_page(new, [plan, refused(plan)]) == new


def test_a_page_without_marks_is_refused(plan):
  with pytest.raises(ValueError, match="no place for the table"):
    report.into_page("no marks", [plan])
