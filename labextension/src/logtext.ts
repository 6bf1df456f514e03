/** The text of a log as a terminal would leave it: no colours, and lines that were written over are gone. */

// Colours, cursor movements; titles of windows and other strings; character sets; the rest of ECMA-48's sequences:
// https://en.wikipedia.org/wiki/ANSI_escape_code
// eslint-disable-next-line no-control-regex
const ANSI = /\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-OQ-WYZ\\`-~])/g;
// The beginning of one, at the end of a piece.
// eslint-disable-next-line no-control-regex
const BEGUN = /\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]{0,200}\x1b?|[ -/]+)?$/;
// But for backspace, tab and the ends of lines.
// eslint-disable-next-line no-control-regex
const OTHER = /[\x00-\x07\x0b\x0c\x0e-\x1f\x7f]/g;

/** Characters that are kept, and to how many it is cut when there are more. */
const MOST = 200_000;
const LEFT = 120_000;

/** The text without what backspaces take away: as in a cell, they do nothing at the beginning of a line. */
function erased(text: string): string {
  if (!text.includes('\b')) {
    return text;
  }
  const left: string[] = [];
  for (const character of text) {
    if (character !== '\b') {
      left.push(character);
    } else if (left.length > 0 && left.at(-1) !== '\n' && left.at(-1) !== '\r') {
      left.pop();
    }
  }
  return left.join('');
}

export class LogText {
  /** Which text of the kernel's it follows, and how far. */
  generation = 0;
  at = 0;
  of = '';

  /** All of it. */
  get text(): string {
    return this._done + this._line;
  }

  /** Whether nothing was written. */
  get empty(): boolean {
    return this._done === '' && this._line === '';
  }

  /** Take in a piece as the kernel gives it: more of the same text, or the beginning of another. */
  take(piece: { of: string; generation: number; begin: number; text: string }): void {
    if (piece.generation !== this.generation || piece.begin !== this.at) {
      this.clear();
    }
    this.of = piece.of;
    this.generation = piece.generation;
    this.at = piece.begin + [...piece.text].length; // the kernel counts code points
    this.add(piece.text);
  }

  clear(): void {
    this._done = this._line = this._held = this.of = '';
    this.generation = this.at = 0;
  }

  /** Put more at its end, cut wherever it may be. */
  add(piece: string): void {
    let text = this._held + piece;
    // What is cut in the middle, an escape sequence or `\r\n`, waits for its rest.
    const held = BEGUN.exec(text)?.[0] ?? (text.endsWith('\r') ? '\r' : '');
    this._held = held;
    text = text
      .slice(0, text.length - held.length)
      .replace(ANSI, '')
      .replace(OTHER, '');
    const lines = erased(this._line + text)
      .replace(/\r\n/g, '\n')
      .split('\n');
    const whole = lines.map(line => line.slice(line.lastIndexOf('\r') + 1));
    this._line = whole.pop() ?? '';
    if (whole.length > 0) {
      this._done += whole.join('\n') + '\n';
    }
    if (this._done.length + this._line.length > MOST) {
      const cut = this.text.slice(-LEFT);
      const start = cut.indexOf('\n') + 1;
      const end = cut.lastIndexOf('\n') + 1;
      this._done = cut.slice(start, Math.max(start, end));
      this._line = cut.slice(Math.max(start, end));
    }
  }

  private _done = '';
  private _line = '';
  private _held = '';
}
