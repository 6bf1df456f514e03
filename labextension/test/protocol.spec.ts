import { describe, expect, it } from 'vitest';

import { readReply } from '../src/protocol';

describe('readReply', () => {
  it('knows what Python says where there is no extension', () => {
    expect(readReply('True')).toEqual({ kind: 'not loaded' });
    expect(readReply('False')).toEqual({ kind: 'not installed' });
    expect(readReply('{"v": 1, "version": "0.1.0", "loaded": false}')).toEqual({ kind: 'not loaded' });
  });

  it('reads an answer', () => {
    const reply = readReply('{"v": 1, "version": "0.1.0", "loaded": true, "services": []}');
    expect(reply.kind === 'answer' && reply.answer.services).toEqual([]);
  });

  it.each(['', 'None', '[]', 'null', '"text"', '{"loaded": true}', '<html>'])('refuses %j', text => {
    expect(() => readReply(text)).toThrow("can't be read");
  });
});
