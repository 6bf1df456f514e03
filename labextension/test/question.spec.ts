import { describe, expect, it } from 'vitest';

import { expression, KEY, PREFIX, pythonLiteral, SUFFIX } from '../src/question';
import { PROTOCOL, Question } from '../src/protocol';
// Python's tests read the same file, and evaluate what is in it.
import text from './literals.json?raw';

const literals = JSON.parse(text) as { value: string; literal: string }[];

describe('pythonLiteral', () => {
  it.each(literals)('puts $value into a literal that can be nothing else', ({ value, literal }) => {
    expect(pythonLiteral({ text: value })).toBe(literal);
    // Read as JSON it is the same: the outer text, then the inner one.
    expect(JSON.parse(JSON.parse(literal) as string)).toEqual({ text: value });
  });

  it('is printable ASCII between two quotes, whatever is in it', () => {
    for (const { value } of literals) {
      expect(pythonLiteral({ text: value })).toMatch(/^"(?:[^"\\]|\\[\\"])*"$/);
      expect(pythonLiteral({ text: value })).toMatch(/^[\x20-\x7e]*$/);
    }
  });
});

describe('expression', () => {
  it('is the same but for one literal', () => {
    const ask = (service: string): Question => ({ v: PROTOCOL, client: 'c', do: 'code', id: '1', service });
    const made = expression(ask('"); exit() #'));
    expect(made.startsWith(PREFIX)).toBe(true);
    expect(made.endsWith(SUFFIX)).toBe(true);
    const literal = made.slice(PREFIX.length, made.length - SUFFIX.length);
    expect(JSON.parse(JSON.parse(literal) as string)).toEqual(ask('"); exit() #'));
    expect(KEY).toMatch(/^\w+$/);
  });
});
