import { describe, expect, it } from 'vitest';

import { age, count, look, size } from '../src/words';

describe('age', () => {
  it.each([
    [-1, '0 s'],
    [59.9, '59 s'],
    [60, '1 min'],
    [7_199, '1 h'],
    [172_800, '2 d']
  ])('says %d s as %s', (seconds, said) => {
    expect(age(seconds)).toBe(said);
  });
});

it.each([
  [0, '0 KiB'],
  [700, '1 KiB'],
  [120 * 2 ** 20, '120 MiB'],
  [3 * 2 ** 30, '3.0 GiB']
])('size(%d) is %s', (bytes, said) => {
  expect(size(bytes)).toBe(said);
});

it('count', () => {
  expect([0, 1, 2].map(number => count(number, 'call'))).toEqual(['no calls', '1 call', '2 calls']);
});

it('look', () => {
  expect(['ready', 'loading', 'no answer', 'cancelled'].map(look)).toEqual(['good', 'busy', 'bad', 'plain']);
});
