/** The one expression that the panel has kernels evaluate; `kubetorch_jupyter/notebook/side_panel/listening.py` has the same. */
import type { Question } from './protocol';

/** The name of the expression in an execute request. */
export const KEY = 'kubetorch_side_panel';

// It imports nothing of ours: a kernel that doesn't use kubetorch pays nothing for the panel.
export const PREFIX =
  '(lambda s, t: s.modules["kubetorch_jupyter.notebook.side_panel"].answer(t) ' +
  'if "kubetorch_jupyter.notebook.side_panel" in s.modules ' +
  'else __import__("importlib.util").util.find_spec("kubetorch_jupyter") is not None)' +
  '(__import__("sys"), ';
export const SUFFIX = ')';

/** JSON in ASCII only, so that nothing in it can mean something else in Python: no line separators, no lone surrogates. */
function asciiJson(value: unknown): string {
  return JSON.stringify(value).replace(
    // eslint-disable-next-line no-control-regex
    /[^\x00-\x7e]/g,
    unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`
  );
}

/** A text as Python's literal: of ASCII text, JSON's string is one. */
export function pythonLiteral(value: unknown): string {
  return JSON.stringify(asciiJson(value));
}

/** The expression that asks the question: always the same, but for one literal. */
export function expression(question: Question): string {
  return `${PREFIX}${pythonLiteral(question)}${SUFFIX}`;
}
