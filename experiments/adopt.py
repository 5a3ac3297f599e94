"""Makes a run of a Hugging Face folder: evaluate, generate, attention, export and train --start take it like any run.

Example:
  python -m experiments.adopt --folder=SmolLM2-135M --workdir=runs/smollm --path=novels/ --window=512
  python -m experiments.evaluate --workdir=runs/smollm
  python -m experiments.train --start=runs/smollm --config=experiments/configs/finetune.py --workdir=runs/tuned \\
    --config.data.path=novels/

The folder holds config.json, model.safetensors (or shards with their index) and a tokenizer; see
framework/models/huggingface/README.md for the families. What config.json says and our decoder cannot compute is refused
by its name. The run is there whole or not at all, and says where its weights come from; the same command again finds
it. Where another adopted run beside it has the very same weights, that is said: published steps have been found to be
copies.
"""

import pathlib

from absl import flags, logging

from experiments.shared import launch
from foundation import files
from framework import config as config_lib

FOLDER = flags.DEFINE_string('folder', None, 'folder of config.json, model.safetensors and tokenizer.json')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the new run')
PATH = flags.DEFINE_string('path', '', "text that the run is evaluated on, as data.path; '': the standard library's")
WINDOW = flags.DEFINE_integer('window', 0, 'tokens read; 0: the longest position, 2048 at most', lower_bound=0)
TOKENIZER = flags.DEFINE_string('tokenizer', '', "file of the tokenizer; '': that in the folder")
END = flags.DEFINE_string('end', '', "special token that ends a document; '': as the folder says")
BEGIN = flags.DEFINE_string('begin', '', "special token that opens a document; '': as the folder says, else the end")
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'of the arithmetic')


def main() -> int:
  folder = files.expand('--folder', launch.required(FOLDER)).resolve()
  workdir = launch.workdir_path(launch.required(WORKDIR))
  if not folder.is_dir():
    raise config_lib.ConfigError(f'--folder is {folder}, which is no folder; expected one with config.json')
  from framework.data import foreign
  from framework.models import huggingface
  from framework.training import adoption
  (model, vocabulary, longest, params), about = huggingface.load_with_source(folder)
  if _adopted(workdir, about['weights']):
    return 0
  tokenizer = foreign.read(pathlib.Path(TOKENIZER.value).resolve() if TOKENIZER.value else folder, vocabulary, END.value,
                           BEGIN.value)
  if tokenizer.size > vocabulary:
    raise config_lib.ConfigError(f'the tokenizer has {tokenizer.size} ids, its end among them, and the model '
                                 f'{vocabulary}; expected the tokenizer of the model, or --end=TOKEN that it has')
  config = _config(model, longest, workdir)
  launch.start_jax(config, devices=1)
  adoption.adopt(workdir, config, tokenizer, params, {'folder': str(folder), 'longest': longest} | about)
  for other in adoption.same_weights(workdir, about['weights']):
    theirs = adoption.read_source(other) or {}
    logging.warning('%s has the very same weights, adopted from %s', other, theirs.get('folder'))
  logging.info('%s: %s of %s, window %d, vocabulary %d, weights %s', workdir, about['family'], folder, config.data.window,
               vocabulary, about['weights'][:12])
  return 0


def _adopted(workdir: pathlib.Path, weights: str) -> bool:
  """Whether the run is there already. Raises ConfigError if something else is."""
  from framework.training import adoption
  if not workdir.exists() or workdir.is_dir() and not any(workdir.iterdir()):
    return False
  held = adoption.read_source(workdir) if workdir.is_dir() else None
  if held is None or held['weights'] != weights:
    raise config_lib.ConfigError(f'workdir {workdir} holds ' + ('something else' if held is None else
                                 f"other weights, from {held['folder']}") + '; give a new folder')
  logging.info('%s was adopted from these weights before; nothing was changed', workdir)
  return True


def _config(model: config_lib.Model, longest: int, workdir: pathlib.Path) -> config_lib.Config:
  """What the run is read with. Raises ConfigError for a window beyond the learned positions."""
  if model.position == 'learned' and WINDOW.value > longest:
    raise config_lib.ConfigError(f'--window is {WINDOW.value}; the model has {longest} positions: expected at most so '
                                 'many')
  m = {f'model.{name}': value for name, value in config_lib.flatten_section(model).items()}
  window = WINDOW.value or min(longest, 2048)
  if longest < window:
    logging.warning('--window is %d; the model was made for %d tokens', window, longest)
  return config_lib.resolve(config_lib.from_flat(m | {
      'model.dtype': DTYPE.value, 'data.path': PATH.value, 'data.window': window,
      'data.tokenizer': str(workdir / 'tokenizer.json'), 'training.batch': 8}))


if __name__ == '__main__':
  launch.run(main)
