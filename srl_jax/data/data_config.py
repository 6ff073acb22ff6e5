"""The config's group `data` as typed values. srl_jax/config.py explains each key."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of a source's columns; "" for a column that it does not have."""

  id: str = ""
  problem: str = ""
  solution: str = ""
  answer: str = ""
  reasoning: str = ""


@dataclasses.dataclass(frozen=True)
class TrajectoryConfig:
  """The config's group `data.swe`: which of an agent's runs are used, and how prompts show them."""

  expert: str
  resolved: bool
  runs: int
  pairs: int
  validation_steps: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The source of the examples and the options for cutting solutions into steps.

  `trajectories` is None unless the rows are an agent's runs.
  """

  source: str
  path: str
  split: str = "train"
  domain: str = "math"
  fields: Columns = Columns()
  title_hint: bool = False
  keep_last_step: bool = False
  holdout: int = 0
  solutions_per_problem: int = 0
  trajectories: TrajectoryConfig | None = None

  @classmethod
  def from_group(cls, group: Mapping[str, Any]) -> "DataConfig":
    """Returns a config's group `data` as a DataConfig; keys that it does not define are ignored."""
    names = [field.name for field in dataclasses.fields(cls)]
    values = {name: group[name] for name in names if name in group}
    values["fields"] = Columns(**values.get("fields", {}))
    # A domain with settings has a subgroup of the same name: domain="swe" reads data.swe.
    if values.get("domain") in group:
      values["trajectories"] = TrajectoryConfig(**group[values["domain"]])
    return cls(**values)
