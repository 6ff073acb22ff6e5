"""Tables name what was measured, and hold every finished pass."""

import json

from srl_jax.evals import tables

SETTINGS = {
  "model": "runs/srl",
  "step": 40,
  "mode": "whole",
  "style": "plain",
  "temperature": 1.0,
  "max_tokens": 4096,
  "engine": "builtin",
  "dtype": "bfloat16",
}


def write_pass(output, benchmark, name, rights):
  """Writes a finished pass; rights: for each problem, whether each sample is right."""
  folder = output / benchmark
  folder.mkdir(exist_ok=True)
  with (folder / f"{name}.jsonl").open("w") as file:
    for i, problem in enumerate(rights):
      samples = [
        {
          "answer": "1" if r else None,
          "right": r,
          "ended": "whole" if r else "cut_off",
          "tokens": 5,
        }
        for r in problem
      ]
      file.write(json.dumps({"id": f"{benchmark}-{i}", "samples": samples}) + "\n")


def test_write_writes_text_markdown_and_json(tmp_path):
  write_pass(tmp_path, "amc23", "greedy", [[True], [True], [False], [False]])
  write_pass(tmp_path, "amc23", "sampled-2", [[True, False], [True, True]] * 2)
  write_pass(tmp_path, "minerva_math", "greedy", [[True]])
  (tmp_path / "amc23" / "greedy.rollouts.jsonl").write_text("not a pass\n")
  text = tables.write(tmp_path, SETTINGS).splitlines()
  words = [" ".join(line.split()) for line in text]
  assert text[0] == (
    "runs/srl, step 40: mode whole, prompt style plain, @k at temperature 1, at most 4096 tokens a"
    " response, builtin engine, bfloat16"
  )
  assert words[1] == "benchmark problems greedy avg@2 pass@2 majority@2 unfinished"
  assert words[2] == "amc23 4 50.0 +- 28.9 75.0 +- 14.4 100.0 +- 0.0 100.0 +- 0.0 50.0/25.0"
  assert words[3] == "minerva_math 1 100.0 - - - 0.0"
  assert len({len(line) for line in text[1:4]}) == 1
  assert text[4] == "average of the greedy and avg@k figures: 75.0"
  markdown = (tmp_path / "table.md").read_text().splitlines()
  assert markdown[0] == text[0]
  assert markdown[2:5] == [
    "| benchmark | problems | greedy | avg@2 | pass@2 | majority@2 | unfinished |",
    "|---|---:|---:|---:|---:|---:|---:|",
    "| amc23 | 4 | 50.0 +- 28.9 | 75.0 +- 14.4 | 100.0 +- 0.0 | 100.0 +- 0.0 | 50.0/25.0 |",
  ]
  table = json.loads((tmp_path / "table.json").read_text())
  assert table["settings"] == SETTINGS
  assert table["benchmarks"]["amc23"]["avg_at_2"]["value"] == 0.75


def test_write_of_stepwise_passes_and_several_k(tmp_path):
  write_pass(tmp_path, "arithmetic", "sampled-8", [[True] * 8] * 2)
  write_pass(tmp_path, "arithmetic", "sampled-32", [[False] * 32] * 3)
  settings = SETTINGS | {"mode": "stepwise", "style": "think", "step": None, "engine": "vllm"}
  text = tables.write(tmp_path, settings).splitlines()
  assert "runs/srl: mode stepwise, prompt style next step" in text[0]
  assert text[0].endswith("vllm engine")
  heads = "benchmark problems avg@8 pass@8 majority@8 avg@32 pass@32 majority@32 unfinished"
  assert text[1].split() == heads.split()
  assert text[2].split()[:2] == ["arithmetic", "3/2"]
