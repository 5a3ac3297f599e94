"""Writes a run as a folder for transformers: weights, tokenizer and a model card.

Example:
  python -m experiments.export --workdir=runs/tuned --folder=tuned-hf
  python -c "from transformers import AutoModelForCausalLM as M; print(M.from_pretrained('tuned-hf'))"

The family is the one that expresses the model's settings, see framework/models/huggingface/README.md, or --family; what
it cannot express is refused by its name. The folder is there whole or not at all, and the same command again finds it.
Biases that the format has besides ours are 0. A document there begins with the
token bos and ends with eos, as here.
"""

import os
import pathlib
import shutil
from typing import Any

from absl import flags, logging

from experiments.shared import launch
from foundation import files, reading
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
FOLDER = flags.DEFINE_string('folder', None, 'new folder')
FAMILY = flags.DEFINE_string('family', '', "model_type of transformers; '': the one that fits best")
STEP = flags.DEFINE_integer('step', None, 'of the checkpoint; default: the newest', lower_bound=0)

MARK = 'lemma_run.json'  # says of which weights the folder is


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  folder = files.expand('--folder', launch.required(FOLDER)).resolve()
  from framework.training import run
  config = run.read_config(workdir)
  launch.start_jax(config, devices=1)

  import jax
  from framework.data import exported
  from framework.models import huggingface
  from framework.training import adoption, setup
  trained = setup.load(workdir, STEP.value)
  tokenizer = trained.tokenizer
  about = {'run': str(workdir), 'step': trained.step, 'weights': adoption.weights_digest(trained.params),
           'tokenizer': tokenizer.digest, 'family': FAMILY.value}
  if _exported(folder, about):
    return 0
  temporary = folder.with_name(f'.{folder.name}.{os.getpid()}.export')
  try:
    family = huggingface.save(temporary, trained.setup.config.model, tokenizer.size, adoption.longest(workdir, config),
                              jax.device_get(trained.params), FAMILY.value,
                              {'bos_token_id': tokenizer.begin, 'eos_token_id': tokenizer.end})
    for name, content in (exported.files(tokenizer, adoption.longest(workdir, config)) | {
        'README.md': card(workdir, trained, family)}).items():
      files.write_atomically(temporary / name, content)
    files.write_sealed(temporary / MARK, about)
    os.rename(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  logging.info('%s: %s of %s at step %d', folder, family, workdir, trained.step)
  return 0


def _exported(folder: pathlib.Path, about: dict[str, Any]) -> bool:
  """Whether the folder has been written from the same weights. Raises ConfigError if it holds something else."""
  if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
    return False
  if not (folder / MARK).exists() or reading.value(folder / MARK) != about:
    raise config_lib.ConfigError(f'--folder is {folder}, which exists and holds no export of this run at this step; '
                                 'expected a new or an empty folder')
  logging.info('%s holds these weights already; nothing was changed', folder)
  return True


def card(workdir: pathlib.Path, trained, family: str) -> str:
  """The model card: where the weights come from, what they were trained on, and how to load them."""
  from framework.training import adoption, result, run
  c, held = trained.setup.config, run.read_config_file(workdir / run.CONFIG)
  rows = {'run': workdir.name, 'step': trained.step, 'family': family, 'tokenizer': f'{trained.tokenizer.name}, '
          f'{trained.tokenizer.size:,} ids, {trained.tokenizer.digest[:12]}', 'window': c.data.window,
          'corpus': held['corpus'][:12] or 'none of its own', 'data': c.data.task or c.data.path or 'standard library'}
  if source := adoption.read_source(workdir):
    rows |= {'adopted from': source['folder'], 'weights': source['weights'][:12]}
  if (workdir / adoption.START).exists():
    about = reading.value(workdir / adoption.START)
    rows['begun with'] = f"{about['run']} at step {about['step']}, weights {about['weights'][:12]}"
  outcome = result.read(workdir)
  if outcome and outcome['steps'] == trained.step:
    rows['held-out text'] = f"{outcome['bits_per_byte']:.4f} bits/byte, {outcome['loss_nats_per_token']:.4f} nats/token"
  lines = [f'| {key} | {value} |' for key, value in rows.items()]
  return '\n'.join([
      '---', 'library_name: transformers', 'pipeline_tag: text-generation', '---', '', f'# {workdir.name}', '',
      'Weights exported from a run of Lemma, float32 arithmetic. A document begins with the token bos.', '',
      '| | |', '|---|---|', *lines, '',
      'The licence of the weights and of the text that they were trained on holds for these too.', '', '```python',
      'from transformers import AutoModelForCausalLM, AutoTokenizer',
      "model = AutoModelForCausalLM.from_pretrained('FOLDER')", "tokenizer = AutoTokenizer.from_pretrained('FOLDER')",
      '```', ''])


if __name__ == '__main__':
  launch.run(main)
