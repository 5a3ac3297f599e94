"""A compiled program as a folder: model.json (the decoder's settings), program.json, circuit.json and params.npz."""

import dataclasses
import io
import json
import pathlib
import zipfile

from flax import traverse_util
import numpy as np

from foundation import files, outputs
from foundation.errors import ConfigError
from rasp import decoder
from rasp.compiling import Compiled, Report
from rasp.compiling.readout import Readout
from rasp.compiling.wiring import Part, Variable, Wiring
from rasp.language import constant

PARAMS = 'params.npz'
CIRCUIT = 'circuit.json'
FILES = ('model.json', 'program.json', CIRCUIT, PARAMS)


def save(compiled: Compiled, folder: pathlib.Path) -> None:
  """Writes the folder, or one of an earlier program anew; params.npz last, so that a folder that has it is complete.

  Raises:
    ConfigError: there is something else in it.
  """
  outputs.check_folder('--out', folder, FILES)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / PARAMS).unlink(missing_ok=True)
  files.write_json(folder / 'model.json', dataclasses.asdict(compiled.model))
  said = compiled.readout
  files.write_json(folder / 'program.json', {
      'name': compiled.name, 'vocabulary': list(compiled.vocabulary),
      'outputs': [[t, v, said.codes[v]] for t, v in compiled.outputs.items()], 'number': compiled.number,
      'readout': [said.weights.tolist(), said.const.tolist(), said.number, said.unlisted],
      'report': dataclasses.asdict(compiled.report)})
  files.write_json(folder / CIRCUIT, dataclasses.asdict(compiled.wiring))
  buffer = io.BytesIO()
  np.savez(buffer, **traverse_util.flatten_dict(compiled.params, sep='.'))
  files.write_atomically(folder / PARAMS, buffer.getvalue())


def load(folder: pathlib.Path) -> Compiled:
  """What `save` wrote, able to run; the program's text is not kept. Raises ConfigError on a damaged folder."""
  try:
    model = decoder.settings(**json.loads((folder / 'model.json').read_text()))
    program = json.loads((folder / 'program.json').read_text())
    params = traverse_util.unflatten_dict(dict(np.load(folder / PARAMS)), sep='.')
    report = Report(**program['report'] | {'assumed': tuple(program['report']['assumed'])})
    outputs = {t: v for t, v, _ in program['outputs']}
    circuit = json.loads((folder / CIRCUIT).read_text())
    wiring = Wiring(
        tuple(Variable(**v | {'vector': v['vector'] and tuple(v['vector'])}) for v in circuit['variables']),
        tuple(Part(**p | {'numbers': tuple(p['numbers']), 'reads': tuple(p['reads'])}) for p in circuit['parts']),
        tuple(circuit['output']))
    weights, const, number, unlisted = program['readout']
    readout = Readout(np.array(weights), np.array(const), number, {v: tuple(c) for _, v, c in program['outputs']},
                      unlisted and tuple(unlisted))
  except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
    raise ConfigError(f"'{folder}' holds no compiled program ({type(error).__name__}: {error}); expected a folder that "
                      'python -m rasp compile --out wrote') from None
  return Compiled(program['name'], model, params, tuple(program['vocabulary']), outputs, report,
                  constant(0).named(program['name']), readout, program['number'], saved=wiring)
