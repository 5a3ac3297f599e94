"""python -m rasp, drawings, export and gradient steps."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from foundation.command import run
from framework.config import ConfigError
import rasp
from rasp import __main__ as program
from rasp import draw, export, figures
from rasp.library import PROGRAMS, sequences

ROOT = pathlib.Path(__file__).parents[2]


def command(*argv, cwd=ROOT):
  done = subprocess.run([sys.executable, '-m', 'rasp', *argv], cwd=cwd, capture_output=True, text=True, timeout=120,
                        env={'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'PATH': '/usr/bin:/bin'})
  return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_run_prints_the_output_sequence_last():
  code, out, _ = command('run', '--program=reverse', '--input=abcd')
  assert code == 0 and out[-1] == 'dcba' and 'bound' in out[0]


def test_run_a_file_and_compile_it_to_a_folder(tmp_path):
  (tmp_path / 'mine.py').write_text("""import rasp

@rasp.program(vocabulary='abc', example='abc')
def twice():
  return rasp.aggregate(rasp.select(rasp.indices, rasp.indices // 2, '=='), rasp.tokens)
""")
  code, out, err = command('compile', '--program=mine.py', '--longest=6', '--out=made', cwd=tmp_path)
  assert code == 0, err
  assert ': 0 wrong' in out[-2] and out[-1] == 'made'
  again = export.load(tmp_path / 'made')
  assert again('abc') == list('aab') and again.cached('bca') == list('bbc')
  (tmp_path / 'made' / 'program.json').unlink()  # as a kill may leave it
  assert command('compile', '--program=mine.py', '--longest=6', '--out=made', cwd=tmp_path)[0] == 0
  assert export.load(tmp_path / 'made')('abc') == list('aab')
  with pytest.raises(ConfigError, match='which holds something else'):
    export.save(again, tmp_path)
  (tmp_path / 'made' / 'params.npz').write_bytes(b'cut off')
  with pytest.raises(ConfigError, match='holds no compiled program .*expected a folder that'):
    export.load(tmp_path / 'made')


@pytest.mark.parametrize('argv,message', [
    (['rum'], "command is 'rum'; expected one of run, compile, draw, list (did you mean 'run'?)"),
    (['run', '--program=reverse', '--out=x'], "--out is not a flag of 'python -m rasp run', only of compile, draw"),
    (['draw', '--program=reverse', '--interpret'], "--interpret is not a flag of 'python -m rasp draw', only of run"),
    (['list', '--program=reverse'], "--program is not a flag of 'python -m rasp list'"),
    (['run', '--program=reverse', '--dtype=float64'], 'expected one of float32, bfloat16'),
    (['run', '--program=revers'], "did you mean 'reverse'?"),
    (['run', '--program=no.py'], "--program is 'no.py', which does not exist"),
    (['run', '--program=reverse', '--input=abx'], "token 'x' is not in the vocabulary; expected one of a b c d"),
    (['run', '--program=reverse', '--causal'], 'compile with causal=False')])
def test_one_line_for_what_the_user_can_mend(argv, message):
  code, _, err = command(*argv)
  assert code == 2 and len(err) == 1 and err[0].startswith('error: ') and message in err[0]


def test_a_file_that_python_cannot_run_is_named(tmp_path):
  (tmp_path / 'broken.py').write_text('import rasp\nrasp.tokenz\n')
  code, _, err = command('run', '--program=broken.py', cwd=tmp_path)
  assert code == 2 and len(err) == 1 and "which fails at line 2 (AttributeError: module 'rasp' has no attribute" in err[0]


HALF = "import rasp\n@rasp.program(vocabulary='ab', example='ab')\ndef f():\n  return rasp.tokens\n"


@pytest.mark.parametrize('old,new,words,said', [
    ("vocabulary='ab'", "vocabulary='aab'", [], "half.py:2 `@rasp.program(vocabulary='aab', example='ab')`: of 'f' and its "
     "example: the vocabulary has 'a' twice"),
    ("example='ab'", "example='abc'", [], "of 'f' and its example: token 'c' is not in the vocabulary; expected one of a b"),
    ('return rasp.tokens', 'rasp.tokens', [], "'f' returns None; expected an s-op (does it lack a `return`?)"),
    ('return rasp.tokens', 'return {}', [], "half.py:2 `@rasp.program(vocabulary='ab', example='ab')`: {} is dict"),
    ('return rasp.tokens', 'raise KeyError(1)', [], 'which fails in f at line 4 (KeyError: 1)'),
    ("(vocabulary='ab', example='ab')", '', [], "and the program 'f' has no example; expected at least one token, or @rasp"),
    ("@rasp.program(vocabulary='ab', example='ab')", '', [], 'whose file has no function under @rasp.program'),
    ('', '', ['--input=abx'], "'f': token 'x' is not in the vocabulary; expected one of a b"),
    ('', '', ['--vocabulary=aba'], "'f': the vocabulary has 'a' twice; expected each token once")])
def test_half_a_program_is_one_line_that_names_it(tmp_path, capsys, old, new, words, said):
  (tmp_path / 'half.py').write_text(HALF.replace(old, new, 1))
  words = ['run', f'--program={tmp_path}/half.py', '--interpret', *words]
  assert old in HALF and run(program.__name__, '', program.COMMANDS, words, (rasp.RaspError,)) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1 and said in err


def test_a_vocabulary_that_names_a_token_twice_compiles_to_nothing():
  with pytest.raises(rasp.RaspError, match="'reverse': the vocabulary has 'a' twice"):
    rasp.compile(PROGRAMS['reverse'], 'aa', 4)


def test_list_and_interpret():
  code, out, _ = command('list')
  assert code == 0 and len(out) == len(PROGRAMS)
  assert any(line.startswith('adder') and line.endswith('00001028') for line in out)
  code, out, _ = command('run', '--program=adder', '--interpret')
  assert code == 0 and out == ['00001028']


def test_the_terminal_drawing_shows_matrix_inputs_and_result():
  text = draw.text(sequences.shift(1), 'ab')
  assert text.splitlines() == ['shift_1', '  a b', 'a . .  _', 'b # .  a', '', 'shift_1: _ a']


def test_compiled_attention_is_the_ideal_one():
  for name in ('reverse', 'adder', 'associative_memory', 'sort', 'induction', 'two_hops'):
    program = PROGRAMS[name]
    compiled = rasp.compile(program, longest=10)
    for panel in draw.panels(program.result, list(program.example), compiled):
      ideal = np.array(panel.matrix, float)
      if panel.above[0] != '':  # an aggregate: a row sums to 1 over its keys, or BOS takes it
        ideal = ideal / np.maximum(ideal.sum(1, keepdims=True), 1)
        np.testing.assert_allclose(panel.attention[:, 1:], ideal, atol=1e-4)
        np.testing.assert_allclose(panel.attention[:, 0], ideal.sum(1) == 0, atol=1e-4)


def test_drawings_are_files_that_are_written_once(tmp_path):
  program = PROGRAMS['reverse']
  drawing = lambda: draw.figure(program.result, list('abc'), rasp.compile(program, longest=4))
  for suffix in ('.svg', '.png'):
    draw.save(drawing(), tmp_path / f'reverse{suffix}')
    written = (tmp_path / f'reverse{suffix}').read_bytes()
    assert len(written) > 1000
    draw.save(drawing(), tmp_path / f'reverse{suffix}')
    assert (tmp_path / f'reverse{suffix}').read_bytes() == written  # the same picture again
    with pytest.raises(ConfigError, match='which exists and is not this picture'):
      draw.save(draw.figure(program.result, list('abd')), tmp_path / f'reverse{suffix}')
    assert (tmp_path / f'reverse{suffix}').read_bytes() == written
  with pytest.raises(ConfigError, match="expected a name that ends in .svg or .png, nearest is '.*reverse.svg'"):
    draw.save(drawing(), tmp_path / 'reverse.gif')


def test_the_compiled_adder_stays_right_in_training_and_a_random_start_does_not_get_there():
  courses = figures.adder_courses()
  compiled = courses.pop('compiled')
  assert min(compiled.accuracy) == 1 and compiled.loss[-1] < compiled.loss[0]
  assert len(courses) == 4
  for name, course in courses.items():
    assert max(course.accuracy) < 0.8, name


def test_tokens_of_several_characters_stand_between_commas():
  read = program.read
  assert read('abca', ('a', 'b', 'c')) == list('abca') and read('120', (0, 1, 2)) == [1, 2, 0]
  assert read('10,-3,7', (-3, 7, 10)) == [10, -3, 7] and read('cat,dog', ('cat', 'dog', 'a')) == ['cat', 'dog']
  assert read('12,-3,4', ()) == [12, -3, 4] and read('a,b', ()) == ['a', ',', 'b'] and read('', (1,)) == []
  assert read('a,b', ('a', 'b', ',')) == ['a', ',', 'b'] and read('cat,7', ()) == ['cat', '7']


def test_an_exported_folder_runs(tmp_path, capsys):
  (tmp_path / 'mine.py').write_text("""import rasp

@rasp.program(vocabulary=(10, -3, 7), example=(7, 10))
def sorted_numbers():
  from rasp.library import sequences
  return sequences.sort()
""")
  do = lambda *words: run(program.__name__, '', program.COMMANDS, list(words), (rasp.RaspError,))
  folder = f'{tmp_path}/made'
  assert do('compile', f'--program={tmp_path}/mine.py', '--longest=6', f'--out={folder}') == 0
  assert do('run', f'--program={folder}', '--input=10,-3,7,-3') == 0
  assert capsys.readouterr().out.splitlines()[-1] == '-3 -3 7 10'
  assert do('run', f'--program={folder}', '--input=10,4') == 2
  assert 'token 4 is not in the vocabulary' in capsys.readouterr().err
  assert do('run', f'--program={folder}') == 2 and do('run', f'--program={folder}', '--input=7', '--interpret') == 2
  assert do('run', f'--program={tmp_path}', '--input=7') == 2
  assert 'holds no compiled program' in capsys.readouterr().err
