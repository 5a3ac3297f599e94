"""Files that are either there in full or not there."""

import json
import os
import pathlib
from typing import Any


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes `text` under a temporary name in the same folder, then renames it into place."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """A JSON file of one value, atomically."""
  write_atomically(path, json.dumps(value, indent=2) + '\n')


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a JSON-lines file; a last line that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = path.read_text(encoding='utf-8').split('\n')
  rows = [json.loads(line) for line in lines[:-1] if line]
  return rows
