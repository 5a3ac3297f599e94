"""Our model of lm-evaluation-harness against its own HF backend, on the same weights: an adopted and a stock run."""

import json
import os
import pathlib

import pytest

lm_eval = pytest.importorskip('lm_eval')
pytest.importorskip('torch')
pytest.importorskip('transformers')
pytest.importorskip('accelerate')
pytest.importorskip('safetensors.numpy')

from lm_eval.api.instance import Instance  # noqa: E402

from tests import commands, foreign

pytestmark = pytest.mark.peers
ROOT = pathlib.Path(__file__).parents[2]
WINDOW = 40


@pytest.fixture(scope='module', params=['adopted', 'stock'])
def pair(request, tmp_path_factory):
  """(our model of a run, their backend on the folder that it was adopted from or exported to)."""
  os.environ['HF_HUB_OFFLINE'] = '1'
  place = tmp_path_factory.mktemp(request.param)
  text = foreign.write_text(place / 'text')
  run, folder = place / 'run', place / 'hf'
  if request.param == 'adopted':
    foreign.write_folder(folder, text)
    done = commands.launch('adopt', f'--folder={folder}', f'--workdir={run}')
  else:
    done = commands.launch('train', f'--config={ROOT}/experiments/configs/bytes_small.py', f'--config.data.path={text}',
                           f'--workdir={run}', f'--config.data.cache={place}/cache', '--config.data.window=64',
                           '--config.model.width=32', '--config.model.layers=2', '--config.training.steps=60',
                           '--config.training.batch=8', '--config.evaluation.every_steps=0')
    assert done.returncode == 0, done.stderr
    done = commands.launch('export', f'--workdir={run}', f'--folder={folder}')
  assert done.returncode == 0, done.stderr
  from experiments.shared.harness_model import LemmaLM
  from lm_eval.models.huggingface import HFLM
  theirs = HFLM(pretrained=str(folder), device='cpu', dtype='float32', batch_size=3, max_length=WINDOW)
  return LemmaLM(str(run), batch_size=3, max_length=WINDOW), theirs, (text / '03.txt').read_text()[:400]


def requests(kind, *arguments):
  return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def test_loglikelihood(pair):
  ours, theirs, text = pair
  asked = [(text[:20], text[20:29]), ('', text[:9]), (text, ' abc'), (text[:50] + ' ', 'dead'), ('abc', ' <|endoftext'),
           (text[:9], text[9:40])]
  for (a, greedy), (b, theirs_greedy) in zip(ours.loglikelihood(requests('loglikelihood', *asked)),
                                             theirs.loglikelihood(requests('loglikelihood', *asked)), strict=True):
    assert a == pytest.approx(b, rel=1e-4, abs=1e-4) and greedy == theirs_greedy


def test_loglikelihood_rolling(pair):
  ours, theirs, text = pair
  asked = requests('loglikelihood_rolling', (text,), (text[:7],), (text[:111],))
  assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-5)


def test_generate_until(pair):
  ours, theirs, text = pair
  asked = [(text[:30], {'until': ['\n', 'b'], 'max_gen_toks': 12}), (text, {'until': [], 'max_gen_toks': 9}),
           (text[40:60], {'until': ['\n', 'b'], 'max_gen_toks': 12}), ('abc', {'until': 'zz', 'max_gen_toks': 20})]
  written = ours.generate_until(requests('generate_until', *asked))
  assert written == theirs.generate_until(requests('generate_until', *asked)) and any(written)


def test_contexts_are_opened_where_that_is_asked_for(pair):
  ours, _, text = pair
  from experiments.shared.harness_model import LemmaLM
  assert not ours.open
  opened = LemmaLM(str(ours.workdir), open='true')
  assert opened.tok_encode('abc') == [opened.prefix_token_id, *ours.tok_encode('abc')]
  assert opened.tok_encode('abc', add_special_tokens=False) == ours.tok_encode('abc')


def test_the_command_evaluates_a_task_of_ones_own(pair, tmp_path):
  pytest.importorskip('datasets')
  ours, theirs, text = pair
  (tmp_path / 'mine.jsonl').write_text(''.join(json.dumps({'text': text[n:n + 90]}) + '\n' for n in (0, 90, 180)))
  (tmp_path / 'mine.yaml').write_text(f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/mine.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""")
  done = commands.launch('harness', f'--workdir={ours.workdir}', '--tasks=mine', f'--include_path={tmp_path}',
                         f'--output={tmp_path}/out.json', f'--max_length={WINDOW}')
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads((tmp_path / 'out.json').read_text())['results']['mine']['bits_per_byte,none']
  from lm_eval.tasks import TaskManager
  theirs = lm_eval.simple_evaluate(model=theirs, tasks=['mine'], task_manager=TaskManager(include_path=str(tmp_path)),
                                   bootstrap_iters=0)['results']['mine']['bits_per_byte,none']
  assert found == pytest.approx(theirs, rel=1e-5)
  done = commands.launch('harness', f'--workdir={ours.workdir}', '--tasks=mien', f'--include_path={tmp_path}')
  assert done.returncode == 2 and "--tasks has 'mien', which the harness does not know" in done.stderr
