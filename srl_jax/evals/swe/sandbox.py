"""Runs code that a model wrote, in bubblewrap: no network, nothing of this machine to write to.

What a box has: a read-only /usr, the folders that are named, and a copy of the tree in memory at
/testbed. It has separate namespaces (users, processes, IPC, host name, network with loopback only),
no capabilities, no way to get new privileges or a further user namespace, an empty environment, and
bounds on time, memory, processes, disk and output. When it ends, every process in it ends, daemons
too.

What it does not have is a filter of system calls: a fault of the kernel is a way out. For code that
may be written to attack, and not only to be wrong, use a virtual machine that holds nothing.

As root, two boxes are nested. The outer one mounts (it may read folders that only root can read)
and drops to a user id that no other process has, since neither capabilities nor the bound on
processes hold for root; the inner one is the box that an ordinary user gets.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from srl_jax.errors import UserError

TESTBED, SOURCE, FILES = "/testbed", "/source", "/files"
_MEBIBYTE = 1 << 20
_POLL_SECONDS = 0.2
_CHUNK = 1 << 16
_boxes = itertools.count()

# How a run ended.
EXITED, TIME, MEMORY, OUTPUT = "exited", "time", "memory", "output"


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of a box.

  Fields:
    seconds: wall-clock time.
    memory: MiB, of each process (address space) and of all together (resident). The copy of the
      tree and /tmp are in memory as well, and are bounded by `disk`.
    processes: at a time, threads included.
    disk: MiB, of the tree's copy, and again of /tmp.
    output: MiB, of what is printed.
  """

  seconds: float = 1800.0
  memory: int = 4096
  processes: int = 256
  disk: int = 1024
  output: int = 64


@dataclasses.dataclass(frozen=True)
class Run:
  """What a box gave: its output, exit code (None unless it exited), seconds, and how it ended."""

  output: bytes
  code: int | None
  seconds: float
  ended: str


def run(
  script: str,
  tree: pathlib.Path,
  *,
  files: Mapping[str, bytes] | None = None,
  readable: Sequence[pathlib.Path] = (),
  environment: Mapping[str, str] | None = None,
  limits: Limits | None = None,
) -> Run:
  """Runs a script of bash in a new box, in a copy of `tree`.

  Args:
    script: the current directory is /testbed, the copy; its output is kept, both streams in one.
    tree: folder that is copied.
    files: {name: content} of further files, read-only in /files.
    readable: folders that are there read-only under their own paths, an interpreter's for example.
    environment: variables, besides PATH, HOME and LANG; nothing of ours is passed on.
    limits: bounds.

  Raises:
    UserError: no bubblewrap, or no user namespaces. Nothing is ever run without a box.
  """
  if complaint := missing():
    raise UserError(complaint)
  limits = limits or Limits()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    folder.chmod(0o755)  # as root the box reads it as another user
    for file, content in {**(files or {}), "script.sh": script.encode()}.items():
      (folder / file).write_bytes(content)
    mounts = [(SOURCE, str(tree)), (FILES, str(folder))]
    for path in readable:
      mounts.append((str(path), str(path)))
    with _box(mounts, dict(environment or {}), limits) as command:
      return _watch([*command, "bash", "-c", _inside(limits)], limits)


def _inside(limits: Limits) -> str:
  """The first command in a box: it copies the tree and starts the script within its limits."""
  memory, disk = limits.memory * _MEBIBYTE, limits.disk * _MEBIBYTE
  bounds = f"--nproc={limits.processes} --as={memory} --fsize={disk} --core=0 --nofile=4096"
  copy = f"cp -r {SOURCE}/. {TESTBED}"  # without -p: the box's user owns what it may change
  return f"{copy} && cd {TESTBED} && exec prlimit {bounds} bash {FILES}/script.sh"


# ---------------------------------------------------------------------------------- bubblewrap


@functools.cache
def missing() -> str | None:
  """Why no box can be made here, with the remedy; None if all is well."""
  tools = ["bwrap", "prlimit", "bash"] + (["setpriv"] if os.geteuid() == 0 else [])
  for tool in tools:
    if shutil.which(tool) is None:
      package = "bubblewrap" if tool == "bwrap" else "util-linux"
      return (
        f"the sandbox needs {tool}: install it (Debian, Ubuntu: apt install {package}), or judge"
        " with --by=docker; nothing is run without a sandbox"
      )
  with tempfile.TemporaryDirectory() as folder, _box([(SOURCE, folder)], {}, Limits()) as command:
    done = subprocess.run(
      [*command, "true"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
  if done.returncode == 0:
    return None
  said = " ".join(done.stderr.split())[:300]
  return (
    f"bubblewrap cannot make a sandbox here ({said}): it needs version 0.8 or newer and user"
    " namespaces, which Ubuntu 24.04 (sysctl kernel.apparmor_restrict_unprivileged_userns=0) and"
    " docker's default profile forbid; allow them, or judge with --by=docker"
  )


@contextlib.contextmanager
def _box(
  mounts: Sequence[tuple[str, str]], environment: dict[str, str], limits: Limits
) -> Iterator[list[str]]:
  """Yields bubblewrap's command line, without the command that it is to run.

  mounts: (path in the box, path of this machine), read-only.
  """
  is_root = os.geteuid() == 0
  user = _spare_user() if is_root else os.geteuid()
  with tempfile.TemporaryDirectory() as etc:
    os.chmod(etc, 0o755)
    options = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    variables = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **environment}
    for name, value in variables.items():
      options += ["--setenv", name, value]
    options += _system(_write_etc(pathlib.Path(etc), user))
    options += _tree(mounts, limits.disk * _MEBIBYTE)
    namespaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    namespaces += ["--unshare-cgroup-try"]
    if is_root:
      yield ["bwrap", *namespaces, *_KEPT, *options, "--", *_as_user(user)]
    else:
      yield ["bwrap", *namespaces, *_LOCKED, *options, "--"]


# What an ordinary user's box takes away.
_LOCKED = ("--unshare-user", "--disable-userns", "--cap-drop", "ALL")
# Root's outer box: setpriv needs these three to become another user.
_KEPT = ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
_KEPT += ("--cap-add", "CAP_SETPCAP")


def _spare_user() -> int:
  """A user id for one box: the kernel counts the processes of a user, not of a box."""
  return 1_000_000_000 + (os.getpid() * 256 + next(_boxes) % 256) % 1_000_000_000


def _as_user(user: int) -> list[str]:
  """The command that becomes another user for good and makes the inner box."""
  become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
  become += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--"]
  inner = ["bwrap", *_LOCKED, "--die-with-parent", "--bind", "/", "/", "--dev-bind", "/dev", "/dev"]
  return [*become, *inner, "--"]


def _tree(mounts: Sequence[tuple[str, str]], size: int) -> list[str]:
  """What can be written, `size` bytes each and in memory, and the mounts; all else is read-only."""
  options = []
  for folder, mode in ((TESTBED, "0777"), ("/tmp", "1777"), ("/dev/shm", "1777")):
    options += ["--perms", mode, "--size", str(size), "--tmpfs", folder]
  for inside, outside in mounts:
    for parent in reversed(pathlib.Path(inside).parents[:-1]):  # bubblewrap's own are 0700
      options += ["--perms", "0755", "--dir", str(parent)]
    options += ["--ro-bind", outside, inside]
  return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def _system(etc: Sequence[pathlib.Path]) -> list[str]:
  """The read-only part of this machine that programs need, and kernel file systems."""
  options = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
  for name in ("bin", "sbin", "lib", "lib32", "lib64"):
    path = pathlib.Path("/") / name
    if path.is_symlink():  # into /usr
      options += ["--symlink", os.readlink(path), str(path)]
    elif path.is_dir():
      options += ["--ro-bind", str(path), str(path)]
  options += ["--perms", "0755", "--dir", "/etc"]
  options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
  for file in etc:
    options += ["--ro-bind", str(file), f"/etc/{file.name}"]
  return options


def _write_etc(folder: pathlib.Path, user: int) -> list[pathlib.Path]:
  """The files of /etc that a box has: no names of this machine are in them."""
  contents = {
    "passwd": f"sandbox:x:{user}:{user}:sandbox:/tmp:/bin/sh\n",
    "group": f"sandbox:x:{user}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
  }
  for name, text in contents.items():
    (folder / name).write_text(text)
  return [folder / name for name in contents]


# ---------------------------------------------------------------------------------- watching


def _watch(command: Sequence[str], limits: Limits) -> Run:
  """Runs a box's command and ends it at the first limit that it passes."""
  start = time.monotonic()
  process = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )
  output, ended = bytearray(), None
  try:
    with selectors.DefaultSelector() as selector:
      selector.register(process.stdout, selectors.EVENT_READ)
      next_look = start
      while ended is None:
        ready = selector.select(_POLL_SECONDS)
        chunk = os.read(process.stdout.fileno(), _CHUNK) if ready else None
        if chunk == b"":
          break
        output += chunk or b""
        now = time.monotonic()
        if len(output) > limits.output * _MEBIBYTE:
          ended = OUTPUT
        elif now - start > limits.seconds:
          ended = TIME
        elif now >= next_look:
          next_look = now + _POLL_SECONDS
          if resident_bytes(process.pid) > limits.memory * _MEBIBYTE:
            ended = MEMORY
    if ended is None and not _ends_by(process, start + limits.seconds):
      ended = TIME  # it has closed its output and still runs
  finally:
    # With bubblewrap's own process all others of the box end: its child is the init process of
    # their namespace, and that one ends with its parent.
    process.kill()
    process.wait()
    process.stdout.close()
  seconds = time.monotonic() - start
  code = process.returncode if ended is None else None
  return Run(bytes(output[: limits.output * _MEBIBYTE]), code, seconds, ended or EXITED)


def _ends_by(process: subprocess.Popen, deadline: float) -> bool:
  """Waits for a process until the deadline (time.monotonic); returns whether it has ended."""
  try:
    process.wait(max(0.0, deadline - time.monotonic()))
  except subprocess.TimeoutExpired:
    return False
  return True


def resident_bytes(root: int) -> int:
  """The resident memory of a process and all its descendants, as /proc counts it."""
  page = os.sysconf("SC_PAGE_SIZE")
  parents, sizes = {}, {}
  for entry in os.listdir("/proc"):
    if not entry.isdigit():
      continue
    try:
      stat = pathlib.Path("/proc", entry, "stat").read_bytes()
    except OSError:  # it has just ended
      continue
    # The name in parentheses may hold anything; the fields after it are state, parent, ...
    fields = stat.rpartition(b")")[2].split()
    parents[int(entry)], sizes[int(entry)] = int(fields[1]), int(fields[21]) * page
  return sum(size for pid, size in sizes.items() if _descends(pid, root, parents))


def _descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
  for _ in range(1000):  # a table that was read while processes ended may have a loop
    if pid == root:
      return True
    if pid not in parents:
      return False
    pid = parents[pid]
  return False
