"""Finds hard problems (paper, 4.1): those that a model rarely or never solves in k samples.

The paper defines them by an upper bound on the success rate over k samples and states neither k nor
the bound. A solution is correct if its final answer is.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import jax

from srl_jax import folders
from srl_jax.data import rows
from srl_jax.data.tokenizer import load_tokenizer, stop_ids
from srl_jax.evals import passes
from srl_jax.evals.math_benchmarks import Solver, check_lengths
from srl_jax.policy import hf_files, sharding, weights
from srl_jax.rollout.engine import SamplingParams
from srl_jax.rollout.episodes import Question, prompt_builder
from srl_jax.rollout.sampler import Sampler
from srl_jax.tasks import PromptSettings, task_of_mode


@dataclasses.dataclass(frozen=True)
class Trial:
  """How success is measured.

  Attributes:
    model: Hugging Face folder or name.
    samples: k, the solutions per problem.
    style: prompt for whole solutions, "plain" or "think".
    max_tokens: limit of a solution.
    seed: of the samples.
  """

  model: str
  samples: int
  style: str
  max_tokens: int
  seed: int


def success_rates(
  trial: Trial,
  questions: Sequence[Question],
  folder: pathlib.Path,
  *,
  width: int,
  progress: Callable[[str, int], None],
) -> dict[str, float]:
  """Returns {question's id: share of correct solutions}, sampled at temperature 1 on all devices.

  Args:
    trial: model and sampling.
    questions: problems with gold answers.
    folder: every response is written to it as soon as it is sampled (evals.passes), so that a
      second call samples only what is missing.
    width: largest number of responses that decode at the same time.
    progress: called with the pass's name and the number of responses so far.

  Raises:
    UserError: the model does not exist, or the folder has samples of another trial.
  """
  model_folder = hf_files.resolve_model(trial.model)
  tokenizer = load_tokenizer(model_folder)
  # The prompt for whole solutions, which are graded by the final answer alone.
  build_prompt = prompt_builder(tokenizer, task_of_mode("whole"), PromptSettings(trial.style))
  limits = dict(mode="whole", max_tokens=trial.max_tokens, max_prompt_tokens=0)
  architecture = hf_files.load_config(model_folder)
  # Before the weights are loaded: lengths are checked and the folder is claimed.
  check_lengths(architecture, trial.model, build_prompt, questions, **limits)
  _claim(folder, trial)
  engine = Sampler(tokenizer, stop_ids(tokenizer, model_folder), width)
  solver = Solver(
    engine=engine,
    build_prompt=build_prompt,
    mode="whole",
    params=SamplingParams(trial.max_tokens, seed=trial.seed),
    max_turns=1,
    max_prompt_tokens=0,  # unused, like max_turns: a whole solution is one turn
  )
  dtype = hf_files.computation_dtype(model_folder)
  with jax.set_mesh(sharding.make_mesh(sharding.fitting_mesh(architecture.sizes()))):
    engine.load_weights(weights.load_hf(model_folder, dtype=dtype)[1], 0)
    passes.solve(solver, folder, questions, trial.samples, 1.0, progress)
  engine.close()
  # The pass's file has one line per problem, including those that an earlier call sampled.
  rates = {}
  for _, row in rows.json_lines(folder / f"{passes.SAMPLED}{trial.samples}.jsonl"):
    solved = sum(sample["right"] for sample in row["samples"])
    rates[row["id"]] = solved / trial.samples
  return rates


def _claim(folder: pathlib.Path, trial: Trial) -> None:
  """Writes the trial's settings to the folder; UserError if it has those of another trial."""
  path, now = folder / "settings.json", dataclasses.asdict(trial)
  # An interrupted trial continues; another one would mix its samples with these.
  if path.exists():
    before = json.loads(path.read_text("utf-8"))
    folders.check_same_settings(
      folder, before, now, holds="samples of another trial", flag="--output"
    )
  folder.mkdir(parents=True, exist_ok=True)
  folders.write_json(path, now)
