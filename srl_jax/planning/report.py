"""A plan as text: the page that the command prints."""

from srl_jax.planning.topologies import GIB


def text(report: dict) -> str:
  """The page of a plan."""
  memory, rates = report["memory"], report["rates"]
  shape = " x ".join(map(str, report["rows_shape"]))
  lines = [
    f"{report['model']} on {report['topology']}: {report['devices']} x {report['chip']}, "
    f"mesh {report['mesh']}, rollout.engine {report['engine']}",
    "",
    "memory of a device, GiB",
    f"  {_gib(memory['parameters'])}  weights",
    f"  {_gib(memory['moments'])}  moments",
    f"  {_gib(memory['gradients'])}  gradients, of all micro-batches together",
  ]
  if memory["sampler"]:
    lines.append(
      f"  {_gib(memory['sampler'])}  sampler's copy of the weights; what is trained of them twice "
      'while it loads (its KV caches are in the row "sample")'
    )
  lines += [
    f"  programs, micro-batches of {shape} tokens:",
    "                arguments  temporaries  resident besides     peak",
  ]
  for name, part in memory["programs"].items():
    lines.append(
      f"    {name:<12}{_gib(part['arguments'], 9)}{_gib(part['temporaries'], 13)}"
      f"{_gib(part['resident'], 18)}{_gib(part['total'], 9)}"
    )
  lines.append(f"  {_gib(memory['peak'])}  the most, of {memory['limit'] / GIB:.2f}")
  if report["step"]:
    lines += ["", *_forecast(report)]
  if report["push"]:
    lines += ["", *_push(report["push"])]
  lines += [
    "",
    f"forecasts assume, per device: {rates['compute'] / 1e12:.0f} of {rates['peak'] / 1e12:.0f} "
    f"TFLOP/s, {rates['memory'] / 1e9:.0f} GB/s of memory, {rates['link'] / 1e9:.0f} GB/s over "
    f"links, {rates['packed']:.0%} real tokens among the packed ones",
    "",
    "verdict: " + verdict(report),
  ]
  return "\n".join(lines)


def verdict(report: dict) -> str:
  """Whether it fits, or what to change."""
  memory = report["memory"]
  figures = f"{memory['peak'] / GIB:.1f} of {memory['limit'] / GIB:.1f} GiB a device"
  if memory["fits"]:
    return f"fits, {figures}"
  change = "\n".join(f"  {line}" for line in report["change"])
  return f"does not fit: {figures}. Change, one after the other:\n{change}"


def _forecast(report) -> list[str]:
  step, work = report["step"], report["work"]
  # Of all tokens computed, the padding of the last micro-batch included.
  share = step["tokens"] / (step["micro_batches"] * step["tokens_in_flight"])
  lines = [
    f"forecast of an update: {step['tokens']:,} tokens (prompts of {work['prompt_tokens']}, each "
    f"once; responses of {work['response_tokens']})",
    f"  {step['micro_batches']} micro-batches with {step['tokens_in_flight']:,} tokens in flight, "
    f"{share:.0%} of them real",
    f"  {step['flops']:.3g} FLOPs by formula",
    f"  {step['compute_s']:.1f} s of compute, beside {step['link_s']:.1f} s of collectives",
    f"  {step['apply_s']:.2f} s for the optimiser, {step['score_s']:.1f} s for further log-probs",
    f"  {step['step_s']:.1f} s in all: MFU {step['mfu']:.1%}",
    f"  {step['host_s']:.2f} CPU seconds of a host before it, besides rewards",
  ]
  return lines


def _push(push) -> list[str]:
  rates = {name: value / 1e9 for name, value in push["rates"].items()}
  line = lambda part: (
    f"{part['host_bytes'] / 1e9:.1f} GB in {part['write_s']:.1f} s, each server reads "
    f"{push['bytes'] / 1e9:.1f} GB in {part['read_s']:.1f} s: {part['push_s']:.1f} s in all"
  )
  return [
    f"forecast of a push to vLLM servers: {push['bytes'] / 1e9:.1f} GB, hosts: {push['hosts']}",
    f"  servers on the trainer's hosts, /dev/shm: each host writes {line(push['local'])}",
    f"  a shared folder: no host writes more than {line(push['shared'])}",
    f"  assumed, GB/s: {rates['copy']:g} from a device, {rates['memory']:g} to /dev/shm, "
    f"{rates['load']:g} from there by a server; shared: {rates['shared']:g} of all hosts, "
    f"{rates['host']:g} of one; {push['check_s']:g} s for the check",
  ]


def _gib(value: float, width: int = 8) -> str:
  return f"{value / GIB:>{width}.2f}"
