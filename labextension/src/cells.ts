/** What cells say, as text. */

/** A first line that runs a cell by a magic of ours, or of another package. */
const MAGIC = /^\s*%%(\S+)(?:[ \t]+(\S+))?/;

/** A cell's source as one that is deployed: it, with a line on top where that isn't there; null for an empty cell. */
export function deployed(source: string, compute: string): string | null {
  if (source.trim() === '') {
    return null;
  }
  const [, magic, command] = MAGIC.exec(source) ?? [];
  if (magic === undefined) {
    return `${['%%kt deploy', compute.trim()].filter(Boolean).join(' ')}\n${source}`;
  }
  if (magic === 'kt' && command === 'deploy') {
    return source;
  }
  throw new Error(
    magic === 'kt'
      ? 'The cell runs on a pod already: %%kt runs it there, %%kt deploy deploys what it defines.'
      : `The cell begins with %%${magic}, so it can't be deployed as it is.`
  );
}

/** The source of a new cell that runs on a pod. */
export function onPod(compute: string): string {
  return `${['%%kt', compute.trim()].filter(Boolean).join(' ')}\n`;
}

/** Whether code that a kernel has run may have loaded the extension. */
export function mayLoad(code: string): boolean {
  return /kubetorch|load_ext|%run\b/.test(code);
}
