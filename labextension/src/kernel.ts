/** A kernel as the model sees it, and what is common to all that wait for one. */
import type { Question } from './protocol';

/** Why there is nothing to ask. */
export type Absence =
  'no notebook' | 'no kernel' | 'other language' | 'starting' | 'restarting' | 'dead' | 'disconnected' | 'cut off';

export type Situation = Absence | 'connecting' | 'not installed' | 'not loaded' | 'loading' | 'ready';

/** A kernel, as far as the model needs one. */
export interface IKernel {
  /** Ask; gives the reply's text. Rejects when there is none. */
  ask(question: Question): Promise<string>;
  /** Load the extension; gives what it printed. Rejects with its error. */
  load(): Promise<string>;
  /** Which kernel it is, also after a restart. */
  readonly id: string;
  /** Whether it says that it has nothing to do. */
  readonly idle: boolean;
}

/** An error's words. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What a promise gives, or null when it takes longer. */
export async function within<T>(promise: Promise<T>, patience: number): Promise<T | null> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<null>(resolve => {
    timer = setTimeout(() => resolve(null), patience);
  });
  try {
    return await Promise.race([promise, timeout]);
  } finally {
    clearTimeout(timer);
  }
}
