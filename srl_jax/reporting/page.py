"""Writes a page: one HTML file with its data, its scripts and the chart library inside.

Texts of runs are data. They are in one block of JSON, and the scripts put them into the page as
text nodes only. The Content-Security-Policy allows the two scripts of the page by their hashes and
no request at all. The chart library works without `unsafe-eval`, but it sets styles of its elements
(style-src 'unsafe-inline'), and plotly 6 tries formats of images with data: URLs. It takes a second
to start, so it is started when everything else is there (start.js).
"""

import base64
import hashlib
import html
import importlib.resources
import json
import pathlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from srl_jax import folders
from srl_jax.errors import UserError

SCRIPTS = ("page.js", "charts.js", "curves.js", "rollouts.js", "audit.js", "start.js")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="page"><p>Loading ...</p></div>
<noscript><p>This page needs JavaScript; it loads nothing from the network.</p></noscript>
<script type="application/json" id="data">{data}</script>
<script type="text/plain" id="library">{library}</script>
<script>{script}</script>
</body>
</html>
"""


def write(path: pathlib.Path, data: Mapping[str, Any]) -> int:
  """Writes the page of reporting.contents to a file, atomically; returns its size in bytes."""
  text = page(data)
  path.parent.mkdir(parents=True, exist_ok=True)
  folders.write_text(path, text)
  return len(text.encode())


def page(data: Mapping[str, Any]) -> str:
  """Returns the page's HTML."""
  library, script = chart_library(), "\n".join(map(_own, SCRIPTS))
  allowed = f"{_hash(library)} {_hash(script)}"
  policy = (
    f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'"
  )
  names = ", ".join(run["name"] for run in data["runs"])
  return _PAGE.format(
    policy=policy,
    title=html.escape(f"{names} - srl_jax"),
    style=_own("page.css"),
    data=as_json(data),
    library=library,
    script=script,
  )


def as_json(data: Any) -> str:
  """Returns JSON for a script block: no character can end the block, and all are ASCII."""
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  # These occur in strings only, where \\u escapes mean the same.
  return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def chart_library() -> str:
  """Returns the JavaScript of plotly, which is a file of its Python package."""
  try:  # pkgutil does not import plotly's modules, which take half a second
    code = pkgutil.get_data("plotly", "package_data/plotly.min.js")
  except (ImportError, OSError) as error:
    raise UserError(
      f"plotly is not installed ({error}): pip install -r requirements.txt"
    ) from error
  # A CRLF in the file would be normalised by the browser, and the hash would not match.
  return code.decode().replace("\r\n", "\n")


def _own(name: str) -> str:
  """Returns a file of this folder."""
  return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
  """Returns a script's source expression for the Content-Security-Policy."""
  digest = hashlib.sha256(script.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
