import type { Kernel, KernelMessage } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { Connection } from '../src/connection';
import { Question } from '../src/protocol';
import { KEY } from '../src/question';

// What JupyterLab brings at run time; of it only this is a value.
vi.mock('@jupyterlab/services', () => ({
  CommsOverSubshells: { Disabled: 'disabled' },
  KernelMessage: {
    createMessage: (options: { msgType: string; content: object }) => ({
      header: { msg_type: options.msgType },
      content: options.content
    }),
    isStreamMsg: () => false,
    isErrorMsg: () => false
  }
}));

const QUESTION: Question = { v: 1, client: 'me', do: 'code', id: 'me-1', service: 'train' };
const ANSWER = { status: 'ok', user_expressions: { [KEY]: { status: 'ok', data: { 'text/plain': 'True' } } } };

/** A request that is under way. */
class Future {
  onReply: (message: { content: object }) => void = () => undefined;
  end: (reply?: { content: object }) => void = () => undefined;
  fail: (error: Error) => void = () => undefined;
  readonly done = new Promise<{ content: object } | undefined>((resolve, reject) => {
    this.end = resolve;
    this.fail = reject;
  });
  readonly dispose = vi.fn();

  constructor(readonly content: Record<string, unknown>) {
    this.done.catch(() => undefined);
  }

  async reply(content: object): Promise<void> {
    this.onReply({ content });
    this.end({ content });
    await settle();
  }
}

/** A connection with a kernel, whose replies the test gives. */
class Fake {
  readonly connectionStatusChanged = new Signal<this, string>(this);
  readonly disposed = new Signal<this, void>(this);
  readonly requests: Future[] = [];
  readonly control: { type: string; content: object; future: Future }[] = [];
  connectionStatus = 'connected';
  status = 'idle';
  subshellId: string | null = null;
  isDisposed = false;
  features: string[] = ['kernel subshells'];
  info: Promise<object> = Promise.resolve({ supported_features: this.features });
  model = { id: 'kernel-1', name: 'python3' };
  id = 'kernel-1';

  requestExecute(content: Record<string, unknown>): Future {
    if (this.isDisposed) {
      throw new Error('disposed');
    }
    const future = new Future(content);
    this.requests.push(future);
    return future;
  }

  sendControlMessage(message: KernelMessage.IControlMessage): Future {
    if (this.isDisposed) {
      throw new Error('disposed');
    }
    const future = new Future({});
    this.control.push({ type: message.header.msg_type, content: message.content, future });
    return future;
  }

  dispose(): void {
    this.isDisposed = true;
    this.disposed.emit();
    this.control.forEach(({ future }) => future.fail(new Error('canceled')));
    this.requests.forEach(future => future.fail(new Error('canceled')));
  }

  get deleted(): unknown[] {
    return this.control.filter(({ type }) => type === 'delete_subshell_request').map(({ content }) => content);
  }
}

async function settle(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}

let kernel: Fake;
let own: Fake;
let leaving: (() => void)[];

beforeEach(() => {
  vi.useFakeTimers();
  kernel = new Fake();
  own = new Fake();
  leaving = [];
  vi.stubGlobal('window', {
    addEventListener: (_: string, listener: () => void) => leaving.push(listener),
    removeEventListener: (_: string, listener: () => void) => leaving.splice(leaving.indexOf(listener), 1),
    setTimeout: (act: () => void, milliseconds: number) => setTimeout(act, milliseconds),
    clearTimeout: (timer: number) => clearTimeout(timer)
  });
});

afterEach(() => {
  expect(vi.getTimerCount()).toBe(0);
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

async function connect(left: string | null = null): Promise<Connection> {
  const manager = { connectTo: () => own } as unknown as Kernel.IManager;
  const connection = new Connection(kernel as unknown as Kernel.IKernelConnection, manager, left);
  await settle();
  return connection;
}

const MADE = { status: 'ok', subshell_id: 'sub-1' };

describe('its subshell', () => {
  it('is made before anything is asked, and deleted at the end', async () => {
    const connection = await connect();
    const asked = connection.ask(QUESTION);
    expect(own.control.map(({ type }) => type)).toEqual(['create_subshell_request']);
    expect(own.requests).toHaveLength(0);
    await own.control[0]!.future.reply(MADE);
    expect(own.subshellId).toBe('sub-1');
    await own.requests[0]!.reply(ANSWER);
    expect(await asked).toBe('True');
    expect(connection.close(false)).toBeNull();
    expect(own.deleted).toEqual([{ subshell_id: 'sub-1' }]);
    expect(own.isDisposed).toBe(false); // the server might not pass it on
    await own.control[1]!.future.reply({ status: 'ok' });
    expect(own.isDisposed).toBe(true);
    expect(leaving).toHaveLength(0);
  });

  it('is not asked for where the kernel has none', async () => {
    kernel.features.pop();
    const connection = await connect();
    const asked = connection.ask(QUESTION);
    await settle();
    expect(own.control).toHaveLength(0);
    await own.requests[0]!.reply(ANSWER);
    expect(await asked).toBe('True');
    connection.close(false);
  });

  it('is asked for although a kernel that runs a cell does not say what it can do', async () => {
    kernel.info = new Promise(() => undefined);
    const connection = await connect();
    await vi.advanceTimersByTimeAsync(1_500);
    await own.control[0]!.future.reply(MADE);
    expect(own.subshellId).toBe('sub-1');
    connection.close(true);
  });

  it('is asked for once more when there is no reply, and used once, however late they come', async () => {
    const connection = await connect();
    await vi.advanceTimersByTimeAsync(1_500);
    expect(own.control).toHaveLength(2);
    await vi.advanceTimersByTimeAsync(1_500);
    const asked = connection.ask(QUESTION);
    await settle();
    expect(own.requests).toHaveLength(1); // by the main shell, for now
    await own.control[1]!.future.reply({ status: 'ok', subshell_id: 'sub-2' });
    expect(own.subshellId).toBe('sub-2');
    await own.control[0]!.future.reply(MADE);
    expect(own.subshellId).toBe('sub-2');
    expect(own.deleted).toEqual([{ subshell_id: 'sub-1' }]);
    await own.requests[0]!.reply(ANSWER);
    await asked;
    connection.close(true);
  });

  it('is deleted when it comes after the end, for which the connection stays', async () => {
    const connection = await connect();
    expect(connection.close(false)).toBeNull();
    expect(own.isDisposed).toBe(false);
    await own.control[0]!.future.reply(MADE);
    expect(own.deleted).toEqual([{ subshell_id: 'sub-1' }]);
    expect(own.isDisposed).toBe(false);
    await own.control[1]!.future.reply({ status: 'ok' });
    expect(own.isDisposed).toBe(true);
  });

  it('is waited for no longer than some seconds, and not at all when the kernel is gone', async () => {
    const connection = await connect();
    connection.close(false);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(own.isDisposed).toBe(true);
    own = new Fake();
    (await connect()).close(true);
    expect(own.isDisposed).toBe(true);
    await settle();
  });

  it('is left behind without a connection, and deleted by the next one', async () => {
    const connection = await connect();
    await own.control[0]!.future.reply(MADE);
    own.connectionStatus = 'connecting';
    expect(connection.close(false)).toBe('sub-1');
    own = new Fake();
    const next = await connect('sub-1');
    expect(own.deleted).toEqual([{ subshell_id: 'sub-1' }]);
    next.close(true);
    await settle();
  });

  it('is deleted when the page goes', async () => {
    const connection = await connect();
    await own.control[0]!.future.reply(MADE);
    leaving.forEach(listener => listener());
    expect(own.deleted).toEqual([{ subshell_id: 'sub-1' }]);
    connection.close(true);
  });
});

describe('asking', () => {
  let connection: Connection;

  beforeEach(async () => {
    kernel.features.pop();
    connection = await connect();
  });

  it('asks again what the kernel drops because the cell before failed', async () => {
    const asked = connection.ask(QUESTION);
    await settle();
    await own.requests[0]!.reply({ status: 'aborted' });
    await vi.advanceTimersByTimeAsync(200);
    expect(own.requests).toHaveLength(2);
    expect(own.requests[1]!.content).toEqual(own.requests[0]!.content);
    await own.requests[1]!.reply(ANSWER);
    expect(await asked).toBe('True');
    expect(own.requests.every(future => future.dispose.mock.calls.length === 1)).toBe(true);
  });

  it('asks no more when it is closed', async () => {
    const asked = expect(connection.ask(QUESTION)).rejects.toThrow('the kernel is gone');
    await settle();
    await own.requests[0]!.reply({ status: 'aborted' });
    connection.close(false);
    await vi.advanceTimersByTimeAsync(200);
    await asked;
    await expect(connection.ask(QUESTION)).rejects.toThrow('the kernel is gone');
  });

  it.each([
    [{ status: 'error', evalue: 'no memory' }, 'no memory'],
    [{ status: 'ok' }, 'the kernel answers no expressions'],
    [
      { status: 'ok', user_expressions: { [KEY]: { status: 'error', ename: 'NameError', evalue: 'answer' } } },
      'NameError: answer'
    ]
  ])('tells why there is no answer: %j', async (content, why) => {
    const asked = expect(connection.ask(QUESTION)).rejects.toThrow(why);
    await settle();
    await own.requests[0]!.reply(content);
    await asked;
  });

  it('loads the extension by the connection of the notebook, again where that is dropped', async () => {
    const loading = connection.load();
    expect(kernel.requests[0]!.content).toMatchObject({ code: '%load_ext kubetorch_jupyter', store_history: false });
    await kernel.requests[0]!.reply({ status: 'aborted' });
    await vi.advanceTimersByTimeAsync(200);
    await kernel.requests[1]!.reply({ status: 'ok' });
    expect(await loading).toBe('');
    const failing = expect(connection.load()).rejects.toThrow('the kernel did not run it');
    await kernel.requests[2]!.reply({ status: 'error' });
    await failing;
  });
});
