/** What people have asked a kernel to do: under way from the moment that it was asked for, until its outcome is told. */
import { IKernel, within, words } from './kernel';
import { ICall, IOutcome, PROTOCOL, readReply, Verb } from './protocol';

/** Milliseconds that the outcome of *Copy code* is waited for: browsers let a press of a button count about so long. */
const PATIENCE = 5_000;

/** What an order needs of the model. */
export interface IDesk {
  /** The kernel that is asked now. */
  readonly kernel: () => IKernel | null;
  readonly say: (text: string, error: boolean) => void;
  /** Something is under way, or no more. */
  readonly changed: () => void;
  /** Something was asked for: look soon. */
  readonly soon: () => void;
}

export interface IAbout {
  readonly service: string;
  readonly created?: number;
  readonly call?: string;
  readonly function?: string;
}

export class Orders {
  constructor(
    private readonly _client: string,
    private readonly _desk: IDesk
  ) {}

  /** What is being done to a service, by its name, or to a call, by its id; '' for nothing. */
  doing(what: string): string {
    return this._begun.get(what)?.words ?? '';
  }

  /** Nobody will tell what came of anything, and why. */
  clear(why: string): void {
    this._begun.clear();
    for (const { reject } of this._waiting.values()) {
      reject(new Error(why));
    }
    this._waiting.clear();
  }

  /** Take in an outcome that the kernel tells. */
  take(outcome: IOutcome): void {
    const waiting = this._waiting.get(outcome.id);
    if (waiting !== undefined) {
      if (outcome.error !== undefined) {
        waiting.reject(new Error(outcome.error));
      } else {
        waiting.resolve(outcome.text ?? '');
      }
      return;
    }
    if (outcome.do === 'code') {
      return; // nobody waits for it any more
    }
    for (const [what, { id }] of this._begun) {
      if (id === outcome.id) {
        this._begun.delete(what);
      }
    }
    this._desk.say(outcome.error ?? outcome.text ?? '', outcome.error !== undefined);
  }

  /** Have something done to a service or a call, to which nothing else is being done. */
  async act(what: string, doing: string, verb: Verb, about: IAbout): Promise<void> {
    const id = this._nextId();
    this._begun.set(what, { id, words: doing });
    this._desk.changed();
    try {
      await this._order(id, verb, about);
      this._desk.soon();
    } catch (error) {
      if (this._begun.get(what)?.id === id) {
        this._begun.delete(what);
        this._desk.say(words(error), true);
      }
    }
  }

  /** The Python that makes the handle of a service, and, where one is given, gets a call of it. */
  async code(service: string, call: ICall | null): Promise<string> {
    const id = this._nextId();
    const outcome = new Promise<string>((resolve, reject) => {
      this._waiting.set(id, { resolve, reject });
    });
    outcome.catch(() => undefined); // it may fail before somebody waits
    try {
      await this._order(id, 'code', {
        service,
        ...(call !== null ? { call: call.id, function: call.function } : {})
      });
      this._desk.soon();
      const text = await within(outcome, PATIENCE);
      if (text === null) {
        throw new Error('the kernel is busy, so the code could not be made; try again when it is idle');
      }
      return text;
    } finally {
      this._waiting.delete(id);
    }
  }

  private async _order(id: string, verb: Verb, about: IAbout): Promise<void> {
    const kernel = this._desk.kernel();
    if (kernel === null) {
      throw new Error('there is no kernel to ask');
    }
    const reply = readReply(await kernel.ask({ v: PROTOCOL, client: this._client, do: verb, id, ...about }));
    if (reply.kind !== 'answer') {
      throw new Error('kubetorch_jupyter is not loaded in the kernel any more');
    }
    if (reply.answer.error !== undefined) {
      throw new Error(reply.answer.error);
    }
  }

  private _nextId(): string {
    this._ids += 1;
    return `${this._client}-${this._ids}`;
  }

  private _ids = 0;
  private readonly _begun = new Map<string, { id: string; words: string }>();
  private readonly _waiting = new Map<string, { resolve: (text: string) => void; reject: (error: Error) => void }>();
}
