import { describe, expect, it } from 'vitest';

import { deployed, mayLoad, onPod } from '../src/cells';

describe('deployed', () => {
  it('puts the magic on top', () => {
    expect(deployed('def f(): ...', '--cpus 2')).toBe('%%kt deploy --cpus 2\ndef f(): ...');
    expect(deployed('\n# a comment\nx = 1', ' ')).toBe('%%kt deploy\n\n# a comment\nx = 1');
  });

  it('leaves a cell that has it as it is', () => {
    expect(deployed('%%kt deploy --gpus 1\ndef f(): ...', '--cpus 2')).toBe('%%kt deploy --gpus 1\ndef f(): ...');
    expect(deployed('\n %%kt  deploy\ndef f(): ...', '')).toBe('\n %%kt  deploy\ndef f(): ...');
  });

  it('has nothing to do with an empty cell', () => {
    expect(deployed(' \n\t', '')).toBeNull();
  });

  it.each([
    ['%%kt -i x\ny = x', 'runs on a pod already'],
    ['%%kt\ny', 'runs on a pod already'],
    ['%%bash\nls', '%%bash']
  ])('refuses %j', (source, why) => {
    expect(() => deployed(source, '')).toThrow(why);
  });

  it('takes a line magic for what it is', () => {
    expect(deployed('%time f()\n%%kt', '')).toBe('%%kt deploy\n%time f()\n%%kt');
  });
});

it('onPod begins a cell', () => {
  expect(onPod('')).toBe('%%kt\n');
  expect(onPod('--memory 4Gi ')).toBe('%%kt --memory 4Gi\n');
});

it.each([
  ['%load_ext kubetorch_jupyter', true],
  ['%reload_ext kubetorch_jupyter', true],
  ['%run setup.py', true],
  ['%pip install kubetorch-jupyter', true],
  ['x = 1', false]
])('mayLoad(%j)', (code, may) => {
  expect(mayLoad(code)).toBe(may);
});
