"""experiments.plan, on simulated devices: what it says of memory and of what moves; hardware that is not here is in
tests/kernels/test_compile_plan.py."""

import json
import re
import subprocess
import sys

import pytest

from experiments.planning import chips
from foundation import figures
from foundation.errors import ConfigError
from framework import topology
from tests.commands import ROOT, environment

SMALL = ['--config=experiments/configs/bytes_small.py', '--config.training.partition=mesh']


def test_a_plan_says_what_a_device_holds_and_what_moves(launch, tmp_path):
  done = launch('plan', *SMALL, '--config.training.mesh=fsdp=4', '--target=cpu:4', f'--output={tmp_path}/plan.json')
  assert done.returncode == 0, done.stderr
  held = json.loads((tmp_path / 'plan.json').read_text())
  layers, weights = 4, 6
  assert held['moves']['all-gather x4'][0] == layers * weights + 1
  assert '820,480 parameters; 4 devices of cpu:4, mesh fsdp=4' in done.stdout and 'moves: ' in done.stdout
  # Weights and Muon's moment, for the embedding AdamW's two: all but norms is split over four. The batch comes on top.
  assert held['state_bytes'] == pytest.approx((2 * 820480 + 257 * 128) * 4 / 4, rel=0.01)
  assert held['memory']['arguments'] == pytest.approx(held['state_bytes'] + 16 / 4 * 128 * 5 * 4, rel=0.02)


@pytest.mark.parametrize('words, message', [
    (['--target=h1000:8'], r"--target is 'h1000:8'; expected one of cpu, .* \(did you mean 'h100'\?\)"),
    (['--target=cpu:x'], r"--target is 'cpu:x'; expected a number of devices up to 512, as cpu:8"), (['--target=cpu:0'], 'cpu:8'),
    ([], '--target is missing'),
    (['--target=cpu:4', '--config.data.tokenizer=chars'], 'expected --vocabulary=N'),
    (['--target=cpu:4', '--config.training.mesh=tensor=3,data=-1'], 'for a multiple of 3 devices; expected the 4'),
    (['--target=cpu:4', '--config.training.mesh=tensor=4', '--config.model.heads=2'],
     'model.heads is 2; expected a multiple of tensor = 4, nearest is 4'),
    (['--target=cpu:4', '--config.training.mesh=sequence=4', '--config.data.window=132'],
     'data.window is 132; expected a multiple of sequence, in two chunks each, and tensor = 8, nearest is 128 or 136'),
    (['--target=cpu:4', '--config.training.mesh=tensor=4', '--config.model.name=lstm'], 'cannot be split over tensor'),
    (['--target=cpu:4', '--config.training.mesh=fsdp=4', '--config.training.batch=6'],
     'training.batch is 6; expected a multiple of 4 devices x 1 microbatches = 4, nearest is 4 or 8'),
    (['--target=cpu:4', '--config.training.mesh=tensor=4'], "optimizer.name 'muon', whose matrices have to be whole"),
    (['--target=cpu:4', '--search'], '--search ranks by rates'),
    (['--target=cpu:4', '--chips=1..4'], 'with --chips; expected a kind alone, nearest is h100'),
])
def test_what_cannot_be_planned_is_refused_in_one_line(launch, words, message):
  done = launch('plan', *SMALL, *words)
  lines = [line for line in done.stderr.splitlines() if line.startswith('error')]
  assert done.returncode == 2 and len(lines) == 1 and re.search(message, lines[0]), done.stderr


@pytest.mark.parametrize('text, found', [('1..8', [1, 2, 4, 8]), ('8..100', [8, 16, 32, 64]), ('3..3', [3])])
def test_numbers_of_devices_are_doubled(text, found):
  assert chips.counts(text) == found


@pytest.mark.parametrize('text', ['8', '0..4', '8..4', 'a..b', '1..100000', '-1..4', ''])
def test_other_numbers_of_devices_are_refused(text):
  with pytest.raises(ConfigError, match='expected the fewest and the most devices, as 1..4096'):
    chips.counts(text)


@pytest.mark.parametrize('kind, count, gpu, target', [
    ('h100', 4, True, ('h100:4', 1)), ('h100', 64, True, ('h100:8x8', 1)), ('v5e', 4, False, ('v5e:2x2', 1)),
    ('v5e', 8, False, ('v5e:2x4', 1)), ('v6e', 256, False, ('v6e:16x16', 1)), ('v6e', 1024, False, ('v6e:16x16', 4))])
def test_devices_are_whole_hosts_or_the_squarest_slice(kind, count, gpu, target):
  assert chips.named(kind, count, gpu) == target


def row(count, network):
  return {'devices': count, 'target': f'h100:{count}', 'compute': 8 / count, 'memory': 1 / count, 'network': network,
          'by': 'network' if network > 8 / count else 'compute', 'tokens_per_second': 100 / max(8 / count, network),
          'fits': count > 1, 'peak_bytes': 2**33}


def test_where_the_network_begins_to_bind_is_said_and_drawn():
  table = [row(1, 0.0), row(2, .5), row(4, 3.0), {'devices': 8, 'target': 'h100:8', 'why_not': 'training.batch is 4'}]
  said = chips.described(table)
  assert 'does not fit' in said[1] and 'does not fit' not in said[2] and said[4].endswith('training.batch is 4')
  assert said[-1] == 'the network binds from 4 devices on'
  assert chips.described(table[:2])[-1] == 'the network never binds'
  assert 'the network binds' in figures.svg(chips.draw(table, '4 x 8 tokens a step on h100'))


HLO = '''
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = bf16[4096,512]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={1}, metadata={op_name="a"}
  %rs = ((f32[64,8]{1,0}, f32[64]{0}), (f32[16,8]{1,0}, f32[16]{0})) reduce-scatter-start(%a, %b), replica_groups={{0,2,4,6},{1,3,5,7}}
}

%cond (p: s32[]) -> pred[] {
  %c = pred[] compare(%p, %n)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %ar = f32[1024]{0} all-reduce(%y), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add, metadata={op_name="b"}
  %cp = (f32[512]{0}, f32[512]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %mesh = f32[256]{0} all-gather(%q), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %a2a = (f32[64]{0}, f32[64]{0}) all-to-all(%u, %v), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}
  %alone = f32[256]{0} all-reduce(%q), replica_groups={{0},{1}}, to_apply=%add
}
'''


def test_collectives_are_counted_as_often_as_loops_run():
  found = {(c.kind, c.bytes, c.group, c.count) for c in topology.collectives(HLO)}
  assert found == {
      ('all-gather', 4096 * 512 * 2, (0, 1, 2, 3), 3), ('reduce-scatter', (16 * 8 + 16) * 4 * 4, (0, 2, 4, 6), 3),
      ('all-to-all', 512, (0, 1, 2, 3), 1), ('all-reduce', 4096, (0, 4), 1), ('collective-permute', 2048, (0, 1), 1), ('all-gather', 1024, (0, 1, 2, 3), 1)}


def test_a_bound_takes_the_way_that_the_devices_have():
  rates = topology.Rates(flops=1e12, bandwidth=1e9, link=100.0, network=10.0, together=4)
  one = lambda group: topology.moving([topology.Collective('all-gather', 400.0, group, 1)], rates)
  assert one((0, 1, 2, 3)) == pytest.approx(300 / 100)  # inside a host
  assert one((0, 1, 4, 5)) == pytest.approx(300 / 20)  # two of each host, whose two adapters share what comes
  assert topology.Collective('all-reduce', 400.0, (0, 1), 2).sent == 2 * 400
  bound = topology.Bound(1.0, 2.0, 3.0)
  assert (bound.seconds, bound.by) == (3.0, 'network')


def test_a_tpu_that_is_full_says_how_much_it_has():
  message = 'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 74.42G of 15.75G hbm.'
  assert topology.exhausted(message) == 'a device needs 74.42G of 15.75G (the compiler of the TPU)'


LARGE = {'model.width': 512, 'model.layers': 6, 'model.heads': 8, 'data.window': 256, 'data.tokenizer': 'bpe',
         'data.vocabulary': 8192, 'training.batch': 8, 'training.partition': 'mesh'}
LEAN = {'model.scan': True, 'model.remat': 'full'}
CASES = {'one': (1, {}), 'data': (8, {}), 'fsdp': (8, {'training.mesh': 'fsdp=8'}),
         'fsdp, lean': (8, {'training.mesh': 'fsdp=8'} | LEAN), 'tensor, lean': (4, {'training.mesh': 'fsdp=2,tensor=2'} | LEAN)}


def measured(devices, settings):
  env = {k: v for k, v in environment().items() if k != 'JAX_COMPILATION_CACHE_DIR'} | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run([sys.executable, 'tests/training/memory_process.py', str(devices), json.dumps(LARGE | settings)],
                        cwd=ROOT, capture_output=True, text=True, env=env, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_a_plan_holds_what_the_process_takes(name):
  found = measured(*CASES[name])
  print({key: f'{value / 1e6:.0f}' for key, value in found.items()})
  assert abs(found['planned'] - found['measured']) < 0.1 * found['measured'] + 200e6


@pytest.mark.slow
def test_flops_by_formula_are_those_of_the_unrolled_program():
  found = measured(1, {'training.partition': 'pmap'})
  assert found['formula'] == pytest.approx(found['flops'], rel=0.01)
