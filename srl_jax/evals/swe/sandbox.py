"""Runs untrusted code in bubblewrap: without network, and without write access to this machine.

A box has a read-only /usr, the folders that are given, and a copy of the tree in memory at
/testbed. It has separate namespaces (users, processes, IPC, host name, network with loopback only),
no capabilities, no way to gain privileges or to create a further user namespace, an empty
environment, and limits on time, memory, processes, disk and output. When it ends, all of its
processes end, including daemons.

System calls are not filtered, so a vulnerability of the kernel is a way out. For code that may be
written to attack, and not only to be wrong, use a virtual machine without anything of value.

As root, two boxes are nested. The outer one mounts (it may read folders that only root can read)
and switches to an unused user id, because root is exempt from the limit on processes and keeps
capabilities; the inner one is the box that an ordinary user gets.
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
_POLL_SECONDS = 0.2  # between two checks of time and memory
_CHUNK = 1 << 16
_boxes = itertools.count()

# Values of Run.ended.
EXITED, TIME, MEMORY, OUTPUT = "exited", "time", "memory", "output"


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of a box.

  Attributes:
    seconds: wall-clock time.
    memory: MiB, per process (address space) and in total (resident). The copy of the tree and /tmp
      are in memory too, and limited by `disk`.
    processes: at the same time, including threads.
    disk: MiB, for the tree's copy, and again for /tmp.
    output: MiB of printed output.
  """

  seconds: float = 1800.0
  memory: int = 4096
  processes: int = 256
  disk: int = 1024
  output: int = 64


@dataclasses.dataclass(frozen=True)
class Run:
  """The result of a box.

  Attributes:
    output: standard output and error.
    code: exit code; None if a limit ended the box.
    seconds: wall-clock time.
    ended: EXITED, or the limit that was exceeded.
  """

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
  """Runs a bash script in a new box, in a copy of `tree`.

  Args:
    script: run in /testbed, the copy; both of its output streams are kept as one.
    tree: folder that is copied.
    files: {name: content} of further files, read-only in /files.
    readable: folders that the box can read under their own paths, such as an interpreter's.
    environment: variables besides PATH, HOME and LANG; none of this process are passed on.
    limits: of the box.

  Raises:
    UserError: bubblewrap or user namespaces are missing. Nothing ever runs without a box.
  """
  if complaint := missing():
    raise UserError(complaint)
  limits = limits or Limits()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    folder.chmod(0o755)  # as root, the box reads it as another user
    for file, content in {**(files or {}), "script.sh": script.encode()}.items():
      (folder / file).write_bytes(content)
    mounts = [(SOURCE, str(tree)), (FILES, str(folder))]
    for path in readable:
      mounts.append((str(path), str(path)))
    with _box(mounts, dict(environment or {}), limits) as command:
      return _watch([*command, "bash", "-c", _inside(limits)], limits)


def _inside(limits: Limits) -> str:
  """Returns the first command in a box: copies the tree and starts the script within its limits."""
  memory, disk = limits.memory * _MEBIBYTE, limits.disk * _MEBIBYTE
  bounds = f"--nproc={limits.processes} --as={memory} --fsize={disk} --core=0 --nofile=4096"
  copy = f"cp -r {SOURCE}/. {TESTBED}"  # without -p, so that the box's user owns the copy
  return f"{copy} && cd {TESTBED} && exec prlimit {bounds} bash {FILES}/script.sh"


# ---------------------------------------------------------------------------------- bubblewrap


@functools.cache
def missing() -> str | None:
  """Returns why no box can be made here, with the remedy; None if one can."""
  tools = ["bwrap", "prlimit", "bash"] + (["setpriv"] if os.geteuid() == 0 else [])
  for tool in tools:
    if shutil.which(tool) is None:
      package = "bubblewrap" if tool == "bwrap" else "util-linux"
      return (
        f"the sandbox needs {tool}: install it (Debian, Ubuntu: apt install {package}), or judge"
        " with --by=docker; nothing is run without a sandbox"
      )
  # The only reliable test is to make a box.
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
  """Yields bubblewrap's command line, to which the command to run is appended.

  Args:
    mounts: (path in the box, path on this machine), read-only.
    environment: variables in the box.
    limits: of the box; only `disk` is used here.
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


# An ordinary user's box.
_LOCKED = ("--unshare-user", "--disable-userns", "--cap-drop", "ALL")
# Root's outer box: setpriv needs these three capabilities to become another user.
_KEPT = ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
_KEPT += ("--cap-add", "CAP_SETPCAP")


def _spare_user() -> int:
  """Returns a user id for one box: the kernel limits processes per user, not per box."""
  return 1_000_000_000 + (os.getpid() * 256 + next(_boxes) % 256) % 1_000_000_000


def _as_user(user: int) -> list[str]:
  """Returns the command that permanently becomes another user and makes the inner box."""
  become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
  become += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--"]
  inner = ["bwrap", *_LOCKED, "--die-with-parent", "--bind", "/", "/", "--dev-bind", "/dev", "/dev"]
  return [*become, *inner, "--"]


def _tree(mounts: Sequence[tuple[str, str]], size: int) -> list[str]:
  """Returns options for the writable folders (in memory, `size` bytes each) and the mounts.

  Everything else is read-only.
  """
  options = []
  for folder, mode in ((TESTBED, "0777"), ("/tmp", "1777"), ("/dev/shm", "1777")):
    options += ["--perms", mode, "--size", str(size), "--tmpfs", folder]
  for inside, outside in mounts:
    # bubblewrap would create parent folders with mode 0700, which another user cannot enter.
    for parent in reversed(pathlib.Path(inside).parents[:-1]):
      options += ["--perms", "0755", "--dir", str(parent)]
    options += ["--ro-bind", outside, inside]
  return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def _system(etc: Sequence[pathlib.Path]) -> list[str]:
  """Returns options for the read-only parts of this machine that programs need, /proc and /dev."""
  options = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
  for name in ("bin", "sbin", "lib", "lib32", "lib64"):
    path = pathlib.Path("/") / name
    if path.is_symlink():  # on most systems into /usr
      options += ["--symlink", os.readlink(path), str(path)]
    elif path.is_dir():
      options += ["--ro-bind", str(path), str(path)]
  options += ["--perms", "0755", "--dir", "/etc"]
  options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
  for file in etc:
    options += ["--ro-bind", str(file), f"/etc/{file.name}"]
  return options


def _write_etc(folder: pathlib.Path, user: int) -> list[pathlib.Path]:
  """Writes a box's files of /etc, which contain no names of this machine; returns their paths."""
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
  """Runs a box's command and kills it at the first limit that it exceeds."""
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
        if chunk == b"":  # all processes closed the output
          break
        output += chunk or b""
        now = time.monotonic()
        if len(output) > limits.output * _MEBIBYTE:
          ended = OUTPUT
        elif now - start > limits.seconds:
          ended = TIME
        elif now >= next_look:  # reading /proc at every chunk of output would be slow
          next_look = now + _POLL_SECONDS
          if resident_bytes(process.pid) > limits.memory * _MEBIBYTE:
            ended = MEMORY
    if ended is None and not _ends_by(process, start + limits.seconds):
      ended = TIME  # it closed its output but did not exit
  finally:
    # Killing bubblewrap ends all processes of the box: its child is the init process of their
    # namespace, and dies with its parent.
    process.kill()
    process.wait()
    process.stdout.close()
  seconds = time.monotonic() - start
  code = process.returncode if ended is None else None
  return Run(bytes(output[: limits.output * _MEBIBYTE]), code, seconds, ended or EXITED)


def _ends_by(process: subprocess.Popen, deadline: float) -> bool:
  """Waits for a process until the deadline (time.monotonic); returns whether it ended."""
  try:
    process.wait(max(0.0, deadline - time.monotonic()))
  except subprocess.TimeoutExpired:
    return False
  return True


def resident_bytes(root: int) -> int:
  """Returns the resident memory of a process and all its descendants, from /proc."""
  page = os.sysconf("SC_PAGE_SIZE")
  parents, sizes = {}, {}
  for entry in os.listdir("/proc"):
    if not entry.isdigit():
      continue
    try:
      stat = pathlib.Path("/proc", entry, "stat").read_bytes()
    except OSError:  # it ended in the meantime
      continue
    # The name in parentheses may contain anything; the fields after it are state, parent, ...
    fields = stat.rpartition(b")")[2].split()
    parents[int(entry)], sizes[int(entry)] = int(fields[1]), int(fields[21]) * page
  return sum(size for pid, size in sizes.items() if _descends(pid, root, parents))


def _descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
  """Returns whether `root` is a process or one of its ancestors."""
  # Bounded: processes that ended while /proc was read may make the table cyclic.
  for _ in range(1000):
    if pid == root:
      return True
    if pid not in parents:
      return False
    pid = parents[pid]
  return False
