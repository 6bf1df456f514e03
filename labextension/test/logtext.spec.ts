import { describe, expect, it } from 'vitest';

import { LogText } from '../src/logtext';

function read(...pieces: string[]): string {
  const log = new LogText();
  pieces.forEach(piece => log.add(piece));
  return log.text;
}

describe('LogText', () => {
  it('leaves what a terminal would leave', () => {
    expect(read('10 %\r20 %\nred \x1b[31mword\x1b[0m\n')).toBe('20 %\nred word\n');
    expect(read('title\x1b]0;name\x07 \x1b(B\x07bell')).toContain('title');
    expect(read('a\r\nb\r\n')).toBe('a\nb\n');
    expect(read('a\x00b')).toBe('ab');
    expect(read('red \x1b(B\x1b[mplain \x1bP1$r0m\x1b\\end\x1b=\x1bM\n')).toBe('red plain end\n');
  });

  it('takes back what backspaces take away, of one line', () => {
    expect(read('one\b\b\btwo\n\b\b!')).toBe('two\n!');
    expect(read('9 %', '\b\b\b', '10 %\n')).toBe('10 %\n');
    expect(read('🎉\bx')).toBe('x');
  });

  it('is the same however it is cut', () => {
    const text = 'one\r\n10 %\r20 %\r30 %\n\x1b[1;31mred\x1b(B\x1b[0m\x1b]0;title\x1b\\ end\r\n';
    const whole = read(text);
    for (let at = 0; at <= text.length; at++) {
      expect(read(text.slice(0, at), text.slice(at)), `cut at ${at}`).toBe(whole);
    }
    expect(read(...text)).toBe(whole);
  });

  it('shows a line that is written over while it goes on', () => {
    const log = new LogText();
    log.add('10 %\r');
    expect(log.text).toBe('10 %');
    log.add('20 %\r');
    expect(log.text).toBe('20 %');
    log.add('\ndone');
    expect(log.text).toBe('20 %\ndone');
  });

  it('takes pieces of one text, and begins anew with another', () => {
    const log = new LogText();
    log.take({ of: 'a/1', generation: 4, begin: 0, text: 'one\n' });
    log.take({ of: 'a/1', generation: 4, begin: 4, text: 'two 😀\n' });
    expect(log.text).toBe('one\ntwo 😀\n');
    expect(log.at).toBe(10); // Python counts the emoji as one
    log.take({ of: 'a/1', generation: 4, begin: 10, text: '' });
    expect(log.text).toBe('one\ntwo 😀\n');
    // What came between was dropped by the kernel.
    log.take({ of: 'a/1', generation: 4, begin: 50, text: 'later\n' });
    expect(log.text).toBe('later\n');
    log.take({ of: 'a/2', generation: 5, begin: 0, text: 'other' });
    expect(log.text).toBe('other');
    expect(log.of).toBe('a/2');
  });

  it('keeps the end of what is long, in whole lines', () => {
    const log = new LogText();
    for (let i = 0; i < 30_000; i++) {
      log.add(`line ${i}\n`);
    }
    expect(log.text.length).toBeLessThanOrEqual(200_000);
    expect(log.text).toMatch(/^line \d+\n/);
    expect(log.text.endsWith('line 29998\nline 29999\n')).toBe(true);
    const one = new LogText();
    one.add('x'.repeat(300_000));
    expect(one.text.length).toBeLessThanOrEqual(200_000);
    expect(one.empty).toBe(false);
  });
});
