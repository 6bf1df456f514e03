import type { INotebookTracker } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { Attacher } from '../src/attaching';
import { PanelModel } from '../src/model';

vi.mock('@jupyterlab/services', () => ({
  KernelMessage: {
    isExecuteInputMsg: (message: { type: string }) => message.type === 'execute_input',
    isStatusMsg: (message: { type: string }) => message.type === 'status'
  }
}));

/** Connections that were made, with what they were given, and what their end said. */
const made: { kernel: FakeKernel; left: string | null; gone: boolean | null }[] = [];
let leftBehind: string | null;
vi.mock('../src/connection', () => ({
  Connection: class {
    constructor(
      readonly kernel: FakeKernel,
      _: unknown,
      left: string | null
    ) {
      made.push({ kernel, left, gone: null });
      this._about = made.at(-1)!;
    }
    get id() {
      return this.kernel.id;
    }
    idle = true;
    ask() {
      return new Promise(() => undefined);
    }
    close(gone: boolean) {
      this._about.gone = gone;
      return leftBehind;
    }
    private readonly _about: (typeof made)[number];
  }
}));

class FakeKernel {
  status = 'idle';
  connectionStatus = 'connected';
  isDisposed = false;
  spec = Promise.resolve({ language: 'python', display_name: 'Python 3' });
  constructor(readonly id: string) {}
}

class FakeNotebook {
  readonly disposed = new Signal<this, void>(this);
  readonly title = { label: 'first.ipynb', changed: new Signal<object, void>({}) };
  readonly sessionContext = {
    kernelChanged: new Signal<object, void>({}),
    statusChanged: new Signal<object, void>({}),
    connectionStatusChanged: new Signal<object, void>({}),
    iopubMessage: new Signal<object, object>({}),
    session: null as { kernel: FakeKernel | null } | null,
    isReady: false
  };
  isDisposed = false;

  /** Give it a kernel, and have a signal tell of it. */
  async have(kernel: FakeKernel | null): Promise<void> {
    this.sessionContext.session = { kernel };
    await this.tell('kernelChanged');
  }

  async tell(what: 'kernelChanged' | 'statusChanged' | 'connectionStatusChanged'): Promise<void> {
    this.sessionContext[what].emit();
    await new Promise(resolve => setTimeout(resolve));
  }
}

let tracker: { currentWidget: FakeNotebook | null; currentChanged: Signal<object, void> };
let model: PanelModel;
let attacher: Attacher;
let notebook: FakeNotebook;
let kernel: FakeKernel;

beforeEach(() => {
  made.length = 0;
  leftBehind = null;
  notebook = new FakeNotebook();
  kernel = new FakeKernel('kernel-1');
  tracker = { currentWidget: notebook, currentChanged: new Signal<object, void>({}) };
  model = new PanelModel('me');
  attacher = new Attacher(model, tracker as unknown as INotebookTracker, {} as Kernel.IManager);
});

afterEach(() => {
  attacher.dispose();
  model.dispose();
});

describe('Attacher', () => {
  it('attaches when the kernel is there, and says until then that it starts', async () => {
    expect(model.situation).toBe('starting');
    kernel.status = 'unknown';
    kernel.connectionStatus = 'connecting';
    const situations = new Set<string>();
    model.changed.connect(() => situations.add(model.situation));
    await notebook.have(kernel);
    expect(model.situation).toBe('starting');
    kernel.connectionStatus = 'connected';
    await notebook.tell('connectionStatusChanged');
    expect(model.situation).toBe('connecting');
    expect(situations).toEqual(new Set(['connecting']));
    expect(made).toHaveLength(1);
  });

  it('tells a connection that is lost from one that is given up, and makes it anew', async () => {
    await notebook.have(kernel);
    leftBehind = 'sub-1';
    kernel.connectionStatus = 'connecting';
    await notebook.tell('connectionStatusChanged');
    expect(model.situation).toBe('disconnected');
    expect(made[0]!.gone).toBe(false);
    kernel.connectionStatus = 'disconnected';
    await notebook.tell('connectionStatusChanged');
    expect(model.situation).toBe('cut off');
    kernel.connectionStatus = 'connected';
    await notebook.tell('connectionStatusChanged');
    expect(model.situation).toBe('connecting');
    expect(made[1]!.left).toBe('sub-1');
  });

  it('waits for the first word of a kernel that restarts', async () => {
    await notebook.have(kernel);
    for (const [status, situation] of [
      ['autorestarting', 'restarting'],
      ['unknown', 'restarting'],
      ['starting', 'starting'],
      ['idle', 'connecting'],
      ['dead', 'dead']
    ] as const) {
      kernel.status = status;
      await notebook.tell('statusChanged');
      expect(model.situation, status).toBe(situation);
    }
    expect(made.map(({ gone }) => gone)).toEqual([true, true]);
  });

  it('tells a notebook whose kernel has ended from one that has none yet', async () => {
    await notebook.have(kernel);
    await notebook.have(null);
    expect(model.situation).toBe('no kernel');
    tracker.currentWidget = new FakeNotebook();
    tracker.currentChanged.emit();
    expect(model.situation).toBe('starting');
    tracker.currentWidget = null;
    tracker.currentChanged.emit();
    expect(model.situation).toBe('no notebook');
    expect(attacher.notebook).toBeNull();
  });

  it('is not for other languages', async () => {
    kernel.spec = Promise.resolve({ language: 'R', display_name: 'R 4' });
    await notebook.have(kernel);
    expect([model.situation, model.detail]).toEqual(['other language', 'R 4']);
    expect(made).toHaveLength(0);
  });

  it('follows the notebook in front, and what it is called', async () => {
    await notebook.have(kernel);
    notebook.title.label = 'renamed.ipynb';
    notebook.title.changed.emit();
    expect(model.title).toBe('renamed.ipynb');
    expect(made).toHaveLength(1);
    const other = new FakeNotebook();
    other.title.label = 'second.ipynb';
    other.sessionContext.session = { kernel: new FakeKernel('kernel-2') };
    tracker.currentWidget = other;
    tracker.currentChanged.emit();
    await other.tell('statusChanged');
    expect(model.title).toBe('second.ipynb');
    expect(made.map(each => each.kernel.id)).toEqual(['kernel-1', 'kernel-2']);
    expect(made[0]!.gone).toBe(false);
    await notebook.have(new FakeKernel('kernel-3')); // that is behind now
    expect(made).toHaveLength(2);
  });

  it('looks again after what may have loaded the extension', () => {
    const reconsider = vi.spyOn(model, 'reconsider');
    const say = (type: string, id: string, content: object) =>
      notebook.sessionContext.iopubMessage.emit({ type, parent_header: { msg_id: id }, content });
    say('execute_input', '1', { code: '1 + 1' });
    say('status', '1', { execution_state: 'idle' });
    say('execute_input', '2', { code: '%load_ext kubetorch_jupyter' });
    say('status', '1', { execution_state: 'idle' });
    say('status', '2', { execution_state: 'busy' });
    expect(reconsider).not.toHaveBeenCalled();
    say('status', '2', { execution_state: 'idle' });
    expect(reconsider).toHaveBeenCalledTimes(1);
  });
});
