/**
 * What the panel knows, and when it asks: no DOM, no Jupyter.
 *
 * One look is under way at most; it is asked for only while somebody sees the panel. An answer that doesn't come (the
 * kernel runs a cell and has one shell only, or hangs) is waited for, never asked for again.
 */
import { ISignal, Signal } from '@lumino/signaling';

import { Absence, IKernel, Situation, within, words } from './kernel';
import { LogText } from './logtext';
import { IAbout, Orders } from './orders';
import { IAnswer, ICall, IProgress, IService, PROTOCOL, readReply, Reply, Verb } from './protocol';

/** Milliseconds: after which an answer is overdue; without one by an idle kernel, after which it is given up. */
const OVERDUE = 1_000;
const LOST = 10_000;
/** Milliseconds between two tries of what doesn't work, at most; and how long a line about what was done stays. */
const LONGEST = 30_000;
const STAYS = 8_000;
/** Milliseconds until a look that follows something that was done. */
const SOON = 100;
export class PanelModel {
  constructor(client: string) {
    this._client = client;
    this._orders = new Orders(client, {
      kernel: () => this._kernel,
      say: (text, error) => this.say(text, error),
      changed: () => this._emit(),
      soon: () => this._soon(SOON)
    });
  }

  /** Emitted after every change. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Emitted when an idle kernel doesn't answer: the way to it must be made anew. */
  get lost(): ISignal<this, void> {
    return this._lost;
  }

  // -- what is known ------------------------------------------------------------------------------------------------

  /** The notebook's name, or ''. */
  title = '';
  situation: Situation = 'no notebook';
  /** More words about the situation: a language, an error. */
  detail = '';
  /** Whether an answer is overdue. */
  busy = false;
  services: readonly IService[] = [];
  selected: string | null = null;
  calls: readonly ICall[] = [];
  moreCalls = 0;
  /** Whose log was chosen: null for the newest call's. */
  chosenLog: string | null = null;
  readonly log = new LogText();
  progress: readonly IProgress[] = [];
  problem = '';
  message: { readonly text: string; readonly error: boolean } | null = null;

  /** Seconds since what is shown was seen; null: nothing was. */
  get age(): number | null {
    return this._seenAt === null ? null : (Date.now() - this._seenAt) / 1_000;
  }

  /** Whether the kernel says that it has nothing to do. */
  get idle(): boolean {
    return this._kernel?.idle ?? false;
  }

  /** The service that is selected, if it is still there. */
  get service(): IService | null {
    return this.services.find(service => service.name === this.selected) ?? null;
  }

  /** The call whose log is shown. */
  get call(): ICall | null {
    return this.calls.find(call => call.id === this.log.of) ?? null;
  }

  /** What is being done to a service, by its name, or to a call, by its id; '' for nothing. */
  doing(what: string): string {
    return this._orders.doing(what) || (this._busyWith[what] ?? '');
  }

  // -- where it asks ------------------------------------------------------------------------------------------------

  /** Ask this kernel from now on. */
  attach(kernel: IKernel, title: string): void {
    this._leave();
    this._kernel = kernel;
    this.title = title;
    this.situation = 'connecting';
    this._ask();
    this._emit();
  }

  /** There is nobody to ask. What was known stays where the kernel may come back. */
  detach(why: Absence, title = '', detail = ''): void {
    if (this._kernel === null && this.situation === why && this.title === title && this.detail === detail) {
      return;
    }
    this._leave((why === 'disconnected' || why === 'cut off') && title === this.title);
    this.title = title;
    this.situation = why;
    this.detail = detail;
    this._emit();
  }

  /** The notebook has another name. */
  rename(title: string): void {
    if (title !== this.title) {
      this.title = title;
      this._emit();
    }
  }

  /** Whether somebody sees the panel. */
  set visible(visible: boolean) {
    if (visible !== this._visible) {
      this._visible = visible;
      this._failures = 0;
      if (visible) {
        this._ask();
      } else {
        this._cancelTimer();
      }
    }
  }

  get visible(): boolean {
    return this._visible;
  }

  /** Milliseconds between an answer and the next question. */
  set interval(interval: number) {
    this._interval = interval;
    this._plan();
  }

  get interval(): number {
    return this._interval;
  }

  /** Whether what was run may have changed whether the extension is loaded: look. */
  reconsider(): void {
    if (this.situation === 'not loaded' || this.situation === 'not installed' || this._failures > 0) {
      this._failures = 0;
      this._ask();
    }
  }

  /** Look now, seen or not; gives the situation. Null when no answer comes soon. */
  async check(patience = 2_000): Promise<Situation | null> {
    const kernel = this._kernel;
    if (kernel === null) {
      return this.situation;
    }
    this._ask(true);
    const looking = this._looking;
    if (looking === null) {
      return this.situation;
    }
    const done = await within(
      looking.then(() => true),
      patience
    );
    return done === null ? null : this.situation;
  }

  dispose(): void {
    this._leave();
    clearTimeout(this._messageTimer);
    Signal.clearData(this);
  }

  // -- what people do -----------------------------------------------------------------------------------------------

  /** Show a service's calls and log; null for none. */
  select(name: string | null): void {
    this._touched = true;
    this._select(name);
    this._soon(0);
    this._emit();
  }

  /** Show the log of a call, the service's own (`SERVICE_LOG`), or the newest call's (null). */
  choose(log: string | null): void {
    this.chosenLog = log;
    this._soon(0);
    this._emit();
  }

  /** Say something; an error stays until something else is said. */
  say(text: string, error = false): void {
    clearTimeout(this._messageTimer);
    this.message = text === '' ? null : { text, error };
    if (text !== '' && !error) {
      this._messageTimer = setTimeout(() => this.say(''), STAYS);
    }
    this._emit();
  }

  /** Load the extension into the kernel. */
  async load(): Promise<void> {
    const kernel = this._kernel;
    if (kernel === null || this.situation === 'loading') {
      return;
    }
    this.situation = 'loading';
    this.say('');
    try {
      const said = await kernel.load();
      if (kernel === this._kernel) {
        this.situation = 'connecting';
        this.say(said.trim());
        // A look that is under way may have begun before.
        this._hurry = this._looking !== null;
        this._ask(true);
      }
    } catch (error) {
      if (kernel === this._kernel) {
        this.situation = 'not loaded';
        this.say(`%load_ext kubetorch_jupyter failed: ${words(error)}`, true);
      }
    }
  }

  /** Cancel a call. */
  stop(call: ICall): Promise<void> {
    const service = call.id.split('/')[0] ?? '';
    return this._act(call.id, 'is being cancelled', 'stop', { service, call: call.id });
  }

  /** Give a service a fresh process. */
  restart(service: IService): Promise<void> {
    return this._act(service.name, 'is being restarted', 'restart', {
      service: service.name,
      created: service.created
    });
  }

  /** End a service and remove everything of it. */
  tearDown(service: IService): Promise<void> {
    return this._act(service.name, 'is being torn down', 'down', { service: service.name, created: service.created });
  }

  /** The Python that makes the handle of a service, and, where one is given, gets a call of it. */
  code(service: string, call: ICall | null): Promise<string> {
    return this._orders.code(service, call);
  }

  // -- asking -------------------------------------------------------------------------------------------------------

  private _ask(unseen = false): void {
    const kernel = this._kernel;
    if (kernel === null || this._looking !== null || !(this._visible || unseen)) {
      return;
    }
    this._cancelTimer();
    const began = Date.now();
    let most = Infinity;
    this._overdueTimer = setTimeout(() => {
      most = kernel.idle ? most : OVERDUE; // not slow: it runs a cell
      this._notice(kernel, began);
    }, OVERDUE);
    const looking = this._look(kernel).then(
      reply => {
        if (kernel === this._kernel) {
          this._failures = 0;
          this._took = Math.min(most, Date.now() - began);
          this._take(reply);
        }
      },
      (error: unknown) => {
        if (kernel === this._kernel) {
          this._failures += 1;
          this.problem = words(error);
        }
      }
    );
    const done = looking.finally(() => {
      if (this._looking === done) {
        this._cancelWaiting();
        this._looking = null;
        this.busy = false;
        this._emit();
        this._plan();
      }
    });
    this._looking = done;
  }

  private async _look(kernel: IKernel): Promise<Reply> {
    const text = await kernel.ask({
      v: PROTOCOL,
      client: this._client,
      do: 'look',
      service: this.selected,
      log: this.chosenLog,
      since: { log: this.log.generation, at: this.log.at },
      heard: this._heard.get(kernel.id) ?? { life: '', n: 0 }
    });
    return readReply(text);
  }

  /** An answer is overdue: say so, and see whether it is lost. */
  private _notice(kernel: IKernel, began: number): void {
    if (kernel !== this._kernel) {
      return;
    }
    this.busy = true;
    this._emit();
    const check = () => {
      if (kernel === this._kernel && this._looking !== null) {
        this._emit(); // what is shown is older now
        if (kernel.idle && Date.now() - began >= LOST) {
          this._lost.emit();
        } else {
          this._lostTimer = setTimeout(check, LOST / 2);
        }
      }
    };
    this._lostTimer = setTimeout(check, LOST / 2);
  }

  private _take(reply: Reply): void {
    if (reply.kind !== 'answer') {
      if (this.situation === 'loading') {
        return; // that is why it is being loaded
      }
      this._forget();
      this.situation = reply.kind;
      return;
    }
    const answer = reply.answer;
    if (this.situation !== 'loading') {
      this.situation = 'ready';
    }
    this.problem = answer.error ?? answer.problem ?? '';
    if (answer.error !== undefined) {
      return;
    }
    this._busyWith = answer.busy ?? {};
    this.progress = answer.progress ?? [];
    this._takeServices(answer);
    const { life = '', outcomes = [] } = answer;
    const id = this._kernel?.id ?? '';
    const before = this._heard.get(id);
    if (before !== undefined && before.life !== life) {
      this._orders.clear('the extension was loaded anew meanwhile'); // nobody knows of them any more
    }
    let n = before?.life === life ? before.n : 0;
    for (const outcome of outcomes) {
      if (outcome.n > n) {
        n = outcome.n;
        this._orders.take(outcome);
      }
    }
    this._heard.set(id, { life, n });
  }

  private _takeServices(answer: IAnswer): void {
    if (answer.services === undefined) {
      return; // nothing was seen yet
    }
    this._seenAt = Date.now() - 1_000 * (answer.age ?? 0);
    this.services = answer.services;
    if (this.selected !== null && this.service === null) {
      this._select(null);
    }
    const only = this.services[0];
    if (this.selected === null && !this._touched && only !== undefined && this.services.length === 1) {
      this._select(only.name);
      this._hurry = true;
      return;
    }
    if (answer.selected === this.selected && this.selected !== null) {
      this.calls = answer.calls ?? [];
      this.moreCalls = answer.moreCalls ?? 0;
      if (answer.log && (this.chosenLog === null || this.chosenLog === answer.log.of)) {
        this.log.take(answer.log);
      }
    }
  }

  private _plan(): void {
    this._cancelTimer();
    if (this._kernel === null || !this._visible || this._looking !== null) {
      return;
    }
    if (this._hurry) {
      this._hurry = false;
      this._soon(0);
      return;
    }
    if (this.situation === 'not loaded' || this.situation === 'not installed' || this.situation === 'loading') {
      return; // what is run tells when to ask again: there, a question is an execution like any other
    }
    const active = this.calls.some(call => call.active) || this.progress.some(line => line.state === 'running');
    const wanted = active ? this._interval / 2 : this._interval;
    const backoff = this._failures > 0 ? this._interval * 2 ** this._failures : 2 * this._took;
    this._timer = setTimeout(() => this._ask(), Math.min(LONGEST, Math.max(wanted, backoff)));
  }

  /** Look before its time; after the look that is under way, if there is one. */
  private _soon(delay: number): void {
    if (this._looking !== null) {
      this._hurry = true;
    } else if (this._kernel !== null && this._visible) {
      this._cancelTimer();
      this._timer = setTimeout(() => this._ask(), delay);
    }
  }

  private _cancelTimer(): void {
    clearTimeout(this._timer);
    this._timer = undefined;
  }

  private _cancelWaiting(): void {
    clearTimeout(this._overdueTimer);
    clearTimeout(this._lostTimer);
  }

  // -- doing --------------------------------------------------------------------------------------------------------

  private async _act(what: string, words: string, verb: Verb, about: IAbout): Promise<void> {
    if (this.doing(what) === '') {
      await this._orders.act(what, words, verb, about); // else it was pressed already
    }
  }

  // -- inside -------------------------------------------------------------------------------------------------------

  private _select(name: string | null): void {
    if (name !== this.selected) {
      this.selected = name;
      this.chosenLog = null;
      this.calls = [];
      this.moreCalls = 0;
      this.log.clear();
    }
  }

  /** Leave the kernel. */
  private _leave(remember = false): void {
    this._kernel = null;
    this._looking = null;
    this._cancelTimer();
    this._cancelWaiting();
    this.busy = false;
    this.detail = this.problem = '';
    this._failures = this._took = 0;
    this._orders.clear('the kernel is gone');
    if (!remember) {
      this._forget();
    }
  }

  private _forget(): void {
    this._select(null);
    this._touched = false;
    this.services = [];
    this.progress = [];
    this._busyWith = {};
    this._seenAt = null;
    this.problem = '';
  }

  private _emit(): void {
    this._changed.emit();
  }

  private readonly _client: string;
  private readonly _orders: Orders;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _lost = new Signal<this, void>(this);
  private _kernel: IKernel | null = null;
  private _visible = false;
  private _interval = 1_000;
  private _looking: Promise<void> | null = null;
  private _hurry = false;
  private _failures = 0;
  private _took = 0;
  private readonly _heard = new Map<string, { life: string; n: number }>();
  private _touched = false;
  private _seenAt: number | null = null;
  private _busyWith: Readonly<Record<string, string>> = {};
  private _timer: ReturnType<typeof setTimeout> | undefined;
  private _overdueTimer: ReturnType<typeof setTimeout> | undefined;
  private _lostTimer: ReturnType<typeof setTimeout> | undefined;
  private _messageTimer: ReturnType<typeof setTimeout> | undefined;
}
