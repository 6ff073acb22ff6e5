"""The config's group `data` as typed values. srl_jax/config.py explains each key."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Columns:
  """Columns of a source's rows; "" where it has none."""

  id: str = ""
  problem: str = ""
  solution: str = ""
  answer: str = ""
  reasoning: str = ""


@dataclasses.dataclass(frozen=True)
class TrajectoryConfig:
  """Which of an agent's runs are used, and what a prompt shows of them (`data.swe`)."""

  expert: str
  resolved: bool
  runs: int
  pairs: int
  validation_steps: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The source of examples, and how they are cut.

  `trajectories` is None where the rows are no agent's runs.
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
    """Returns the values of a config's group `data`; keys that data/ does not read are ignored."""
    names = [field.name for field in dataclasses.fields(cls)]
    values = {name: group[name] for name in names if name in group}
    values["fields"] = Columns(**values.get("fields", {}))
    if values.get("domain") in group:  # a domain that has settings has a group of its name
      values["trajectories"] = TrajectoryConfig(**group[values["domain"]])
    return cls(**values)
