"""Where a command may write: what it has made itself it makes anew, whole or half, and anything else it leaves alone.

The same command again must work, also after one that was killed; a file of the user's must never be lost to it.
"""

import pathlib
from collections.abc import Collection

from foundation import page
from foundation.errors import ConfigError
from foundation.printable import printable


def check_folder(key: str, folder: pathlib.Path, names: Collection[str], mark: str = '') -> None:
  """Raises ConfigError if files of these names are not to be written into a folder.

  They are if it is not there yet, is empty, holds nothing but such files, as a kill may leave it, or holds the `mark`.

  Args:
    key: the flag that named the folder.
    mark: the file that only this command writes, if there is one; whatever lies beside it stays.
  """
  if not folder.exists():
    return
  if not folder.is_dir():
    raise ConfigError(f'{key} is {printable(folder)}, a file; expected a folder')
  held = {path.name for path in folder.iterdir() if not path.name.startswith('.')}
  if mark not in held and (strange := sorted(held - set(names))):
    raise ConfigError(f'{key} is {printable(folder)}, which holds something else ({printable(strange[0], 60)}); give a '
                      'new folder')


def check_page(key: str, path: pathlib.Path) -> None:
  """Raises ConfigError if there is something at `path` and it is no page of foundation.page."""
  if path.exists() or path.is_symlink():
    ours = False
    if path.is_file():
      with open(path, encoding='utf-8', errors='replace') as file:
        ours = page.MARK in file.read(500)
    if not ours:
      raise ConfigError(f'{key} {printable(path)} exists and is not a report; expected a new file')
