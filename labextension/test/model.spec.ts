import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { IKernel } from '../src/kernel';
import { PanelModel } from '../src/model';
import { IAnswer, ICall, ILookQuestion, IService, Question, SERVICE_LOG } from '../src/protocol';

const SERVICE: IService = {
  name: 'train',
  where: 'local',
  state: 'ready',
  created: 12.5,
  age: 3,
  detached: false,
  asksFor: 'cpus=1',
  owner: 'ada first.ipynb',
  calls: 1,
  memory: 1 << 20,
  cpu: 0.5,
  gpus: [],
  reason: ''
};
const CALL: ICall = {
  id: 'train/01J',
  function: 'train',
  state: 'running',
  took: 1,
  log: 4,
  owner: '',
  active: true
};

/** A kernel whose answers the test gives. */
class FakeKernel implements IKernel {
  id = 'kernel-1';
  idle = true;
  readonly questions: Question[] = [];
  readonly open: { question: Question; resolve: (text: string) => void; reject: (error: Error) => void }[] = [];
  loadResult: Promise<string> = Promise.resolve('');

  ask(question: Question): Promise<string> {
    this.questions.push(question);
    return new Promise((resolve, reject) => this.open.push({ question, resolve, reject }));
  }

  load(): Promise<string> {
    return this.loadResult;
  }

  get looks(): ILookQuestion[] {
    return this.questions.filter(question => question.do === 'look');
  }

  get last(): Question {
    return this.questions.at(-1)!;
  }

  /** Answer the oldest question that is open. */
  async answer(about: Partial<IAnswer> | string = {}): Promise<void> {
    const { question, resolve } = this.open.shift()!;
    const seen =
      question.do === 'look'
        ? { life: 'one', busy: {}, outcomes: [], progress: [], age: 0, problem: '', services: [], selected: null }
        : { begun: true };
    const head = { v: 1, version: '0.1.0', loaded: true };
    resolve(typeof about === 'string' ? about : JSON.stringify({ ...head, ...seen, ...about }));
    await settle();
  }

  async fail(text: string): Promise<void> {
    this.open.shift()!.reject(new Error(text));
    await settle();
  }
}

async function settle(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}

async function pass(milliseconds: number): Promise<void> {
  await vi.advanceTimersByTimeAsync(milliseconds);
}

let model: PanelModel;
let kernel: FakeKernel;

beforeEach(() => {
  vi.useFakeTimers();
  model = new PanelModel('me');
  kernel = new FakeKernel();
});

afterEach(() => {
  model.dispose();
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

function attach(): void {
  model.visible = true;
  model.attach(kernel, 'first.ipynb');
}

/** Attached, with a service that is selected and a call that runs. */
async function attachToCall(): Promise<void> {
  attach();
  await kernel.answer({ services: [SERVICE] });
  await settle();
  await kernel.answer({ services: [SERVICE], selected: 'train', calls: [CALL] });
}

describe('asking', () => {
  it('asks when it is attached and seen, and again after the interval', async () => {
    model.attach(kernel, 'first.ipynb');
    await pass(5_000);
    expect(kernel.questions).toHaveLength(0);
    expect(model.situation).toBe('connecting');
    model.visible = true;
    expect(kernel.questions).toHaveLength(1);
    await kernel.answer({ services: [SERVICE, { ...SERVICE, name: 'other' }] });
    expect(model.situation).toBe('ready');
    expect(model.services.map(service => service.name)).toEqual(['train', 'other']);
    await pass(999);
    expect(kernel.questions).toHaveLength(1);
    await pass(1);
    expect(kernel.questions).toHaveLength(2);
  });

  it('asks no more when it is hidden', async () => {
    attach();
    await kernel.answer();
    model.visible = false;
    await pass(60_000);
    expect(kernel.questions).toHaveLength(1);
    model.visible = true;
    expect(kernel.questions).toHaveLength(2);
  });

  it('asks twice as often while a call runs', async () => {
    await attachToCall();
    const before = kernel.questions.length;
    await pass(500);
    expect(kernel.questions).toHaveLength(before + 1);
  });

  it('keeps to the interval of the settings', async () => {
    model.interval = 5_000;
    attach();
    await kernel.answer();
    await pass(4_999);
    expect(kernel.questions).toHaveLength(1);
    await pass(1);
    expect(kernel.questions).toHaveLength(2);
  });

  it('waits for a busy kernel, says so, and never piles up questions', async () => {
    attach();
    await kernel.answer({ services: [SERVICE, { ...SERVICE, name: 'other' }] });
    kernel.idle = false;
    await pass(1_000);
    expect(kernel.open).toHaveLength(1);
    await pass(999);
    expect(model.busy).toBe(false);
    await pass(1);
    expect(model.busy).toBe(true);
    expect(model.age).toBe(2);
    model.visible = false;
    model.visible = true;
    model.select('train');
    model.reconsider();
    await pass(600_000);
    expect(kernel.open).toHaveLength(1);
    await kernel.answer({ services: [SERVICE, { ...SERVICE, name: 'other' }] });
    expect(model.busy).toBe(false);
    // What was chosen meanwhile is asked for now.
    await settle();
    expect((kernel.last as ILookQuestion).service).toBe('train');
  });

  it('tells how old is what it shows while it waits', async () => {
    attach();
    await kernel.answer({ services: [SERVICE, { ...SERVICE, name: 'other' }] });
    kernel.idle = false;
    const ages: (number | null)[] = [];
    model.changed.connect(() => ages.push(model.age));
    await pass(17_000);
    expect(ages).toEqual([2, 7, 12, 17]);
  });

  it('gives a slow kernel time', async () => {
    attach();
    await pass(4_000);
    await kernel.answer();
    await pass(7_999);
    expect(kernel.questions).toHaveLength(1);
    await pass(1);
    expect(kernel.questions).toHaveLength(2);
  });

  it('is soon there again after a long cell', async () => {
    attach();
    kernel.idle = false;
    await pass(600_000);
    kernel.idle = true;
    await kernel.answer();
    await pass(1_999);
    expect(kernel.questions).toHaveLength(1);
    await pass(1);
    expect(kernel.questions).toHaveLength(2);
  });

  it('says when a kernel that has nothing to do does not answer', async () => {
    const lost = vi.fn();
    model.lost.connect(lost);
    attach();
    kernel.idle = false;
    await pass(60_000);
    expect(lost).not.toHaveBeenCalled();
    kernel.idle = true;
    await pass(5_000);
    expect(lost).toHaveBeenCalledTimes(1);
  });

  it('asks ever more rarely when it fails, and as often as before when it works', async () => {
    attach();
    const pauses: number[] = [];
    for (let i = 0; i < 7; i++) {
      await kernel.fail('the kernel dropped the question');
      const before = kernel.questions.length;
      let pause = 0;
      while (kernel.questions.length === before) {
        await pass(500);
        pause += 500;
      }
      pauses.push(pause);
    }
    expect(pauses).toEqual([2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    expect(model.problem).toBe('the kernel dropped the question');
    await kernel.answer();
    expect(model.problem).toBe('');
    await pass(1_000);
    expect(kernel.questions).toHaveLength(9);
  });

  it('shows what the kernel could not see, or says of the question', async () => {
    attach();
    await kernel.answer({ services: [SERVICE], problem: 'the API server can not be reached' });
    expect(model.problem).toBe('the API server can not be reached');
    expect(model.services).toHaveLength(1);
    await settle();
    await kernel.answer({ error: 'asks in version 1' });
    expect(model.problem).toBe('asks in version 1');
    expect(model.services).toHaveLength(1);
  });
});

describe('where the extension is not loaded', () => {
  it('says so, and asks again only when something may have changed', async () => {
    attach();
    await kernel.answer('True');
    expect(model.situation).toBe('not loaded');
    await pass(600_000);
    expect(kernel.questions).toHaveLength(1);
    model.reconsider();
    await kernel.answer('False');
    expect(model.situation).toBe('not installed');
    model.reconsider();
    await kernel.answer();
    expect(model.situation).toBe('ready');
    model.reconsider(); // it is known
    expect(kernel.questions).toHaveLength(3);
    await pass(1_000);
    await kernel.answer('{"v": 1, "version": "0.1.0", "loaded": false}');
    expect(model.situation).toBe('not loaded');
  });

  it('loads it', async () => {
    attach();
    await kernel.answer('True');
    let resolve: (text: string) => void = () => undefined;
    kernel.loadResult = new Promise(done => (resolve = done));
    const loading = model.load();
    expect(model.situation).toBe('loading');
    resolve('kubetorch: of this notebook still live train\n');
    await loading;
    expect(model.message?.text).toBe('kubetorch: of this notebook still live train');
    await kernel.answer({ services: [SERVICE] });
    expect(model.situation).toBe('ready');
  });

  it('shows why it could not be loaded', async () => {
    attach();
    await kernel.answer('True');
    kernel.loadResult = Promise.reject(new Error('ImportError: no yaml'));
    await model.load();
    expect(model.situation).toBe('not loaded');
    expect(model.message).toEqual({ text: '%load_ext kubetorch_jupyter failed: ImportError: no yaml', error: true });
    await pass(600_000);
    expect(model.message?.error).toBe(true);
    model.say('');
    expect(model.message).toBeNull();
  });
});

describe('while the extension is being loaded', () => {
  let loaded: (text: string) => void;

  beforeEach(() => {
    kernel.loadResult = new Promise(resolve => (loaded = resolve));
  });

  it('asks nothing, and takes no look for more than it is', async () => {
    attach();
    await kernel.answer('True');
    const loading = model.load();
    await pass(60_000);
    expect(kernel.questions).toHaveLength(1);
    model.visible = false;
    model.visible = true; // it was closed and opened
    await kernel.answer('True');
    expect(model.situation).toBe('loading');
    loaded('');
    await loading;
    await kernel.answer();
    expect(model.situation).toBe('ready');
  });

  it('looks again after a look that began before', async () => {
    attach();
    await kernel.answer('True');
    const loading = model.load();
    void model.check();
    loaded('');
    await loading;
    await kernel.answer('True');
    await settle();
    await kernel.answer();
    expect(model.situation).toBe('ready');
  });
});

describe('kernels that come and go', () => {
  it('forgets one notebook for another, whose answers come late', async () => {
    await attachToCall();
    await pass(500);
    const other = new FakeKernel();
    other.id = 'kernel-2';
    model.attach(other, 'second.ipynb');
    expect(model.services).toEqual([]);
    expect(model.selected).toBeNull();
    expect(model.log.text).toBe('');
    await kernel.answer({ services: [SERVICE] });
    expect(model.services).toEqual([]);
    expect(model.title).toBe('second.ipynb');
    await other.answer({ services: [{ ...SERVICE, name: 'b' }] });
    expect(model.services.map(service => service.name)).toEqual(['b']);
  });

  it.each(['no notebook', 'no kernel', 'starting', 'restarting', 'dead'] as const)('forgets all: %s', async why => {
    await attachToCall();
    model.detach(why, 'first.ipynb');
    expect(model.situation).toBe(why);
    expect(model.services).toEqual([]);
    const before = kernel.questions.length;
    await pass(600_000);
    expect(kernel.questions).toHaveLength(before);
  });

  it('keeps what was seen while there is no connection', async () => {
    await attachToCall();
    model.detach('disconnected', 'first.ipynb');
    expect(model.services).toHaveLength(1);
    model.detach('cut off', 'first.ipynb');
    expect(model.services).toHaveLength(1);
    expect(model.selected).toBe('train');
    await pass(7_000);
    expect(model.age).toBe(7);
    model.attach(kernel, 'first.ipynb');
    expect((kernel.last as ILookQuestion).do).toBe('look');
  });

  it('tells of a new name', () => {
    model.attach(kernel, 'first.ipynb');
    const changed = vi.fn();
    model.changed.connect(changed);
    model.rename('first.ipynb');
    expect(changed).not.toHaveBeenCalled();
    model.rename('second.ipynb');
    expect(changed).toHaveBeenCalledTimes(1);
    expect(model.title).toBe('second.ipynb');
  });

  it('tells of a change once', () => {
    const changed = vi.fn();
    model.detach('no kernel', 'first.ipynb');
    model.changed.connect(changed);
    model.detach('no kernel', 'first.ipynb');
    expect(changed).not.toHaveBeenCalled();
  });
});

describe('selecting', () => {
  it('selects the only service by itself, until somebody has chosen', async () => {
    attach();
    await kernel.answer({ services: [SERVICE] });
    expect(model.selected).toBe('train');
    await settle();
    expect((kernel.last as ILookQuestion).service).toBe('train');
    model.select(null);
    await kernel.answer({ services: [SERVICE], selected: 'train', calls: [CALL] });
    expect(model.selected).toBeNull();
    expect(model.calls).toEqual([]);
  });

  it('follows the newest call, or the one that was chosen', async () => {
    await attachToCall();
    await pass(500);
    expect((kernel.last as ILookQuestion).log).toBeNull();
    const look = { services: [SERVICE], selected: 'train', calls: [CALL] };
    await kernel.answer({ ...look, log: { of: CALL.id, generation: 3, begin: 0, text: 'one\n' } });
    expect(model.log.text).toBe('one\n');
    expect(model.call).toEqual(CALL);
    await pass(500);
    expect((kernel.last as ILookQuestion).since).toEqual({ log: 3, at: 4 });
    await kernel.answer({ ...look, log: { of: CALL.id, generation: 3, begin: 4, text: 'two\n' } });
    expect(model.log.text).toBe('one\ntwo\n');

    model.choose(SERVICE_LOG);
    await settle();
    expect((kernel.last as ILookQuestion).log).toBe(SERVICE_LOG);
    // An answer that was seen before that is of another log.
    await kernel.answer({ ...look, log: { of: CALL.id, generation: 3, begin: 8, text: 'three\n' } });
    expect(model.log.text).toBe('one\ntwo\n');
    await pass(500);
    await kernel.answer({ ...look, log: { of: SERVICE_LOG, generation: 4, begin: 0, text: 'loaded\n' } });
    expect(model.log.text).toBe('loaded\n');
  });

  it('lets go of a service that has ended', async () => {
    await attachToCall();
    await pass(500);
    await kernel.answer({ services: [] });
    expect(model.selected).toBeNull();
    expect(model.calls).toEqual([]);
  });
});

describe('doing', () => {
  it('shows at once that a service is torn down, and what came of it', async () => {
    await attachToCall();
    const done = model.tearDown(SERVICE);
    expect(model.doing('train')).toBe('is being torn down');
    expect(kernel.last).toMatchObject({ do: 'down', service: 'train', created: 12.5, client: 'me' });
    const { id } = kernel.last as { id: string };
    const before = kernel.questions.length;
    await model.tearDown(SERVICE); // it was pressed twice
    await model.restart(SERVICE);
    expect(kernel.questions).toHaveLength(before);
    await kernel.answer();
    await done;
    await pass(100);
    await kernel.answer({ services: [SERVICE], busy: { train: 'is being torn down' } });
    expect(model.doing('train')).toBe('is being torn down');
    await pass(1_000);
    await kernel.answer({ services: [], outcomes: [{ n: 1, id, do: 'down', text: '"train" was torn down' }] });
    expect(model.doing('train')).toBe('');
    expect(model.message).toEqual({ text: '"train" was torn down', error: false });
    await pass(1_000);
    expect((kernel.last as ILookQuestion).heard).toEqual({ life: 'one', n: 1 });
    await pass(7_000);
    expect(model.message).toBeNull();
  });

  it.each([
    ['refused by the kernel', (at: FakeKernel) => at.answer({ error: 'it is gone' })],
    ['not answered', (at: FakeKernel) => at.fail('it is gone')]
  ])('shows an order that was %s', async (_, respond) => {
    await attachToCall();
    const done = model.restart(SERVICE);
    await respond(kernel);
    await done;
    expect(model.doing('train')).toBe('');
    expect(model.message).toEqual({ text: 'it is gone', error: true });
  });

  it('shows an error that comes later', async () => {
    await attachToCall();
    const done = model.stop(CALL);
    expect(kernel.last).toMatchObject({ do: 'stop', service: 'train', call: 'train/01J' });
    expect(model.doing('train/01J')).toBe('is being cancelled');
    const { id } = kernel.last as { id: string };
    await kernel.answer();
    await done;
    await pass(100);
    await kernel.answer({ outcomes: [{ n: 1, id, do: 'stop', error: 'the pod does not answer' }] });
    expect(model.message).toEqual({ text: 'the pod does not answer', error: true });
    await pass(600_000);
    expect(model.message?.error).toBe(true);
  });

  it('hears each outcome once, also of a kernel that has restarted', async () => {
    await attachToCall();
    await pass(500);
    await kernel.answer({ outcomes: [{ n: 5, id: 'x', do: 'stop', text: 'first' }] });
    expect(model.message?.text).toBe('first');
    model.say('');
    await pass(1_000);
    await kernel.answer({ outcomes: [{ n: 5, id: 'x', do: 'stop', text: 'first' }] });
    expect(model.message).toBeNull();
    model.attach(kernel, 'first.ipynb');
    expect((kernel.last as ILookQuestion).heard).toEqual({ life: 'one', n: 5 });
    await kernel.answer({ life: 'two', outcomes: [{ n: 1, id: 'y', do: 'stop', text: 'second' }] });
    expect(model.message?.text).toBe('second');
  });

  it('lets go of an order of which nobody knows any more, since the extension was loaded anew', async () => {
    await attachToCall();
    const done = model.restart(SERVICE);
    const code = expect(model.code('train', null)).rejects.toThrow('loaded anew');
    await kernel.answer();
    await kernel.answer();
    await done;
    await pass(100);
    await kernel.answer({ services: [SERVICE] });
    expect(model.doing('train')).toBe('is being restarted');
    await pass(1_000);
    await kernel.answer({ life: 'two', services: [SERVICE] });
    expect(model.doing('train')).toBe('');
    await code;
  });

  it('gets code', async () => {
    await attachToCall();
    const code = model.code('train', CALL);
    expect(kernel.last).toMatchObject({ do: 'code', service: 'train', call: 'train/01J', function: 'train' });
    const { id } = kernel.last as { id: string };
    await kernel.answer();
    await pass(100);
    await kernel.answer({ outcomes: [{ n: 1, id, do: 'code', text: 'kt.fn(name="train")' }] });
    expect(await code).toBe('kt.fn(name="train")');
    expect(model.message).toBeNull();
  });

  it('says that there is no code while the kernel is busy, or when it goes', async () => {
    await attachToCall();
    const late = expect(model.code('train', null)).rejects.toThrow('busy');
    await kernel.answer();
    const { id } = kernel.questions.find(question => question.do === 'code') as { id: string };
    await pass(6_000);
    await late;
    // It comes after all: that isn't to be shown as if it were what was done.
    await kernel.answer({ services: [SERVICE], outcomes: [{ n: 1, id, do: 'code', text: 'late' }] });
    expect(model.message).toBeNull();
    const gone = expect(model.code('train', null)).rejects.toThrow('gone');
    while (kernel.open.length > 0) {
      await kernel.answer();
    }
    model.detach('dead', 'first.ipynb');
    await settle();
    await gone;
  });

  it('can not do anything without a kernel', async () => {
    await model.tearDown(SERVICE);
    expect(model.message).toEqual({ text: 'there is no kernel to ask', error: true });
  });
});

describe('check', () => {
  it('looks although nobody sees it', async () => {
    model.attach(kernel, 'first.ipynb');
    const checked = model.check();
    await kernel.answer('True');
    expect(await checked).toBe('not loaded');
    await pass(60_000);
    expect(kernel.questions).toHaveLength(1);
  });

  it('waits for a busy kernel no longer than it is told', async () => {
    model.attach(kernel, 'first.ipynb');
    const checked = model.check(500);
    await pass(500);
    expect(await checked).toBeNull();
  });

  it('needs no kernel', async () => {
    expect(await model.check()).toBe('no notebook');
  });
});
