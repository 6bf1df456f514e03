import { describe, expect, it } from 'vitest';

import { age } from '../src/words';

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
