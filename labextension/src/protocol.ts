/** What the panel and the kernel say to each other; `kubetorch_jupyter/notebook/side_panel/answering.py` has the other side. */

/** What the two sides must agree on. */
export const PROTOCOL = 1;

/** Stands in place of a call's id for what a service writes outside of any call. */
export const SERVICE_LOG = 'service';

export interface IService {
  readonly name: string;
  readonly where: string;
  readonly state: string;
  /** Unix time by the kernel's clock, which with the name tells one life of a service from the next. */
  readonly created: number;
  /** In seconds. */
  readonly age: number;
  readonly detached: boolean;
  readonly asksFor: string;
  readonly owner: string;
  /** In flight; null: not known. */
  readonly calls: number | null;
  /** In bytes. */
  readonly memory: number | null;
  /** Cores in use. */
  readonly cpu: number | null;
  readonly gpus: readonly string[];
  /** Why it is in its state, or what it waits for. */
  readonly reason: string;
}

export interface ICall {
  readonly id: string;
  readonly function: string;
  readonly state: string;
  /** In seconds. */
  readonly took: number | null;
  /** Bytes of output. */
  readonly log: number;
  readonly owner: string;
  /** Whether it can be stopped. */
  readonly active: boolean;
}

/** A piece of a log. */
export interface ILogPiece {
  /** A call's id, or `SERVICE_LOG`. */
  readonly of: string;
  /** Which text the offsets are of: another number, another text. */
  readonly generation: number;
  /** The offset of the piece's first character. */
  readonly begin: number;
  readonly text: string;
}

export interface IProgress {
  readonly id: string;
  readonly text: string;
  readonly state: 'running' | 'done' | 'failed' | 'stopped';
  /** How much of it is done, 0 … 1, where that is known. */
  readonly share: number | null;
  /** Seconds since it changed. */
  readonly age: number;
}

/** What came of something that was asked for. */
export interface IOutcome {
  readonly n: number;
  readonly id: string;
  readonly do: Verb;
  readonly text?: string;
  readonly error?: string;
}

export type Verb = 'stop' | 'restart' | 'down' | 'code';

export interface ILookQuestion {
  readonly v: typeof PROTOCOL;
  readonly client: string;
  readonly do: 'look';
  readonly service: string | null;
  /** Whose log: a call's id, `SERVICE_LOG`, or null for the newest call's. */
  readonly log: string | null;
  /** How far the log is known. */
  readonly since: { readonly log: number; readonly at: number };
  /** The number of the last outcome that is known, and of which life of the kernel. */
  readonly heard: { readonly life: string; readonly n: number };
}

export interface IActQuestion {
  readonly v: typeof PROTOCOL;
  readonly client: string;
  readonly do: Verb;
  readonly id: string;
  readonly service: string;
  readonly created?: number;
  readonly call?: string;
  readonly function?: string;
}

export type Question = ILookQuestion | IActQuestion;

/** An answer; what isn't known yet is missing. */
export interface IAnswer {
  readonly v: number;
  readonly version: string;
  readonly loaded: boolean;
  readonly error?: string;
  /** Another after each restart of the kernel. */
  readonly life?: string;
  readonly busy?: Readonly<Record<string, string>>;
  readonly outcomes?: readonly IOutcome[];
  readonly progress?: readonly IProgress[];
  /** Seconds since what follows was seen. */
  readonly age?: number;
  readonly problem?: string;
  readonly services?: readonly IService[];
  readonly selected?: string | null;
  readonly calls?: readonly ICall[];
  readonly moreCalls?: number;
  readonly log?: ILogPiece | null;
}

/** What a kernel's reply comes to. */
export type Reply = { kind: 'answer'; answer: IAnswer } | { kind: 'not loaded' } | { kind: 'not installed' };

/**
 * Read a reply: an answer in JSON, or, from a kernel that has not loaded the extension, Python's word on whether it could.
 *
 * @throws Error - When it is neither.
 */
export function readReply(text: string): Reply {
  if (text === 'True') {
    return { kind: 'not loaded' };
  }
  if (text === 'False') {
    return { kind: 'not installed' };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(`the kernel's answer can't be read: ${text.slice(0, 200)}`);
  }
  if (typeof value !== 'object' || value === null || typeof (value as IAnswer).v !== 'number') {
    throw new Error(`the kernel's answer can't be read: ${text.slice(0, 200)}`);
  }
  const answer = value as IAnswer;
  return answer.loaded ? { kind: 'answer', answer } : { kind: 'not loaded' };
}
