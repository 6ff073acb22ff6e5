"""What a page must not show: folders, hosts, users, keys."""

import getpass
import pathlib
import socket

import pytest

from srl_jax.reporting import privacy


@pytest.mark.parametrize(
  "value, shown",
  [
    ("/home/somebody/models/qwen", "qwen"),
    ("~/models/qwen", "qwen"),
    ("../somebody/rows.jsonl", "rows.jsonl"),
    ("C:\\Users\\somebody\\rows.jsonl", "rows.jsonl"),
    ("/dev/shm", "shm"),
    ("configs/one.py:model=/home/somebody/qwen,lr=1", "configs/one.py:model=qwen,lr=1"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ("runs/a", "runs/a"),
    ("data=1,fsdp=8", "data=1,fsdp=8"),
    ("hard:400", "hard:400"),
    ("http://node7.cluster:8000,http://10.0.0.7:80", "(address),(address)"),
    ("10.1.2.3:8000", "(address)"),
    ("hf_abcdefghijklmnopqrstuvwxyz", "(key)"),
    ("mean / std", "mean / std"),
  ],
)
def test_settings_without_folders_and_addresses(value, shown):
  assert privacy.public_value(value) == shown


def test_settings_that_name_a_secret_are_left_out():
  settings = {"api_key": "a", "log.token": "b", "x.PASSWORD": "c", "rollout.max_tokens": 3}
  assert privacy.public_settings(settings) == {"rollout.max_tokens": 3}


def test_values_in_lists_and_groups():
  assert privacy.public_value([{"a": "/home/x/y"}, 3, None]) == [{"a": "y"}, 3, None]


def test_names_of_host_and_user(monkeypatch):
  monkeypatch.setattr(socket, "gethostname", lambda: "node7")
  monkeypatch.setattr(getpass, "getuser", lambda: "claude")
  assert privacy.public_text("node7 by claude") == "(private) by (private)"
  assert privacy.public_text("claude-3-7-sonnet, node77") == "claude-3-7-sonnet, node77"


def test_this_machines_home_is_not_shown():
  assert str(pathlib.Path.home()) not in privacy.public_text(f"{pathlib.Path.home()}/a/b")
