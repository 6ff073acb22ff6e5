"""A plan as text: the page that the command prints. Its names are those of --json."""

from srl_jax.evals.columns import aligned
from srl_jax.planning.topologies import GIB


def text(plan: dict) -> str:
  """The page of a plan, from the dict of srl_jax.plan.plan."""
  shape = " x ".join(map(str, plan["rows_shape"]))
  lines = [
    f"{plan['model']} on {plan['topology']}: {plan['devices']} x {plan['chip']}, mesh "
    f"{plan['mesh']}, rollout.engine {plan['engine']}, micro-batches of {shape} tokens",
    *("", *_memory(plan["memory"]), ""),
    "forecasts in seconds (_s) from rates in FLOP/s and bytes/s; packed: the share of real tokens",
  ]
  for name in ("work", "step", "push", "rates"):
    lines += _numbers(name, plan[name]) if plan[name] else []
  return "\n".join([*lines, "", "verdict: " + verdict(plan)])


def verdict(plan: dict) -> str:
  """Whether it fits, or what to change."""
  memory = plan["memory"]
  figures = f"{memory['peak'] / GIB:.1f} of {memory['limit'] / GIB:.1f} GiB a device"
  if memory["fits"]:
    return f"fits, {figures}"
  change = "\n".join(f"  {line}" for line in plan["change"])
  return f"does not fit: {figures}. Change, one after the other:\n{change}"


def _memory(memory: dict) -> list[str]:
  """What a device keeps, and the memory of each program, in GiB."""
  kept = ["parameters", "moments", "gradients", "sampler"]  # sampler: its copy of the weights
  parts = ["arguments", "temporaries", "resident", "total"]  # resident: besides the program's own
  gib = lambda sizes, names: [f"{sizes[name] / GIB:.2f}" for name in names]
  rows = [["GiB of a device", *kept], ["kept", *gib(memory, kept)], ["", *parts]]
  rows += [[name, *gib(program, parts)] for name, program in memory["programs"].items()]
  return aligned(rows)


def _numbers(name: str, part: dict) -> list[str]:
  """A line with the numbers of a part of the plan, and one for each part of that."""
  numbers, lines = [], []
  for key, value in part.items():
    if isinstance(value, dict):
      lines += _numbers(f"{name}.{key}", value)
    else:
      numbers.append(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.4g}")
  return [f"  {name}: {', '.join(numbers)}", *lines]
