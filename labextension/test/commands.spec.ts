import type { CommandRegistry } from '@lumino/commands';
import { beforeEach, describe, expect, it, vi } from 'vitest';

import type { Actions } from '../src/actions';
import { addCommands, CommandIDs, IPlace } from '../src/commands';
import type { Situation } from '../src/kernel';
import { PanelModel } from '../src/model';

const shown = vi.hoisted(() => ({ errors: [] as string[], answer: true, questions: 0 }));
const ran = vi.hoisted(() => [] as unknown[]);

vi.mock('@jupyterlab/apputils', () => ({
  Dialog: { cancelButton: () => ({}), okButton: () => ({}) },
  showDialog: () => {
    shown.questions += 1;
    return Promise.resolve({ button: { accept: shown.answer } });
  },
  showErrorMessage: (title: string, text: string) => {
    shown.errors.push(`${title}: ${text}`);
    return Promise.resolve();
  }
}));
vi.mock('@jupyterlab/notebook', () => ({
  NotebookActions: {
    runCells: (_: unknown, cells: unknown[]) => {
      ran.push(...cells);
      return Promise.resolve(true);
    }
  }
}));
vi.mock('../src/actions', () => ({}));
vi.mock('../src/icons', () => ({ panelIcon: {} }));

class FakeCell {
  isDisposed = false;
  readonly model;
  constructor(
    public source: string,
    type = 'code'
  ) {
    this.model = {
      type,
      sharedModel: { getSource: () => this.source, setSource: (source: string) => (this.source = source) }
    };
  }
}

/** Lumino's registry wants a browser. */
class Commands {
  private readonly _all = new Map<string, CommandRegistry.ICommandOptions>();

  addCommand(id: string, options: CommandRegistry.ICommandOptions): void {
    this._all.set(id, options);
  }

  notifyCommandChanged(): void {
    // Nobody listens.
  }

  isEnabled(id: string): boolean {
    return this._all.get(id)!.isEnabled?.({}) ?? true;
  }

  async execute(id: string): Promise<void> {
    await this._all.get(id)!.execute({});
  }
}

let cell: FakeCell;
let notebook: { content: { activeCell: FakeCell | null }; sessionContext: object };
let front: unknown;
let situation: Situation | null;
/** What happens while the kernel is asked. */
let meanwhile: () => void;
let model: PanelModel;
let opened: number;
let commands: Commands;
let actions: { copyCode: () => void; tearDown: () => void; chooseService: () => Promise<unknown> };

beforeEach(() => {
  shown.errors.length = ran.length = shown.questions = opened = 0;
  shown.answer = true;
  cell = new FakeCell('def f(): pass');
  front = notebook = { content: { activeCell: cell }, sessionContext: {} };
  situation = 'ready';
  meanwhile = () => undefined;
  model = new PanelModel('me');
  vi.spyOn(model, 'check').mockImplementation(() => {
    meanwhile();
    return Promise.resolve(situation);
  });
  actions = { copyCode: vi.fn(), tearDown: vi.fn(), chooseService: () => Promise.resolve({ name: 'train' }) };
  commands = new Commands();
  addCommands(commands as unknown as CommandRegistry, {
    model,
    actions: actions as unknown as Actions,
    notebook: () => notebook as unknown as ReturnType<IPlace['notebook']>,
    front: () => front,
    compute: () => '--cpus 2',
    open: () => (opened += 1)
  });
});

const run = (id: string) => commands.execute(id);

describe('deploying a cell', () => {
  it('puts a line on top, and runs that cell', async () => {
    await run(CommandIDs.deploy);
    expect(cell.source).toBe('%%kt deploy --cpus 2\ndef f(): pass');
    expect(ran).toEqual([cell]);
  });

  it('takes what was written meanwhile, and the cell that it was asked for', async () => {
    meanwhile = () => {
      cell.source = 'def g(): pass';
      notebook.content.activeCell = new FakeCell('x = 1');
    };
    await run(CommandIDs.deploy);
    expect(cell.source).toBe('%%kt deploy --cpus 2\ndef g(): pass');
    expect(ran).toEqual([cell]);
  });

  it.each<[string, () => void, string]>([
    ['empty', () => (cell.source = ' '), 'It is empty.'],
    ['emptied meanwhile', () => (meanwhile = () => (cell.source = '')), 'It is empty.'],
    ['deleted meanwhile', () => (meanwhile = () => (cell.isDisposed = true)), 'It is not there any more.'],
    ['no code', () => (notebook.content.activeCell = new FakeCell('# title', 'markdown')), 'It is no code cell.'],
    ['of a magic', () => (cell.source = '%%time\n1'), "The cell begins with %%time, so it can't be deployed as it is."],
    ['of a dead kernel', () => (situation = 'dead'), 'There is no Python kernel to run it (dead).'],
    [
      'of a kernel without the package',
      () => (situation = 'not installed'),
      'kubetorch_jupyter is not installed in this kernel: %pip install kubetorch-jupyter'
    ]
  ])('says why it is not possible: %s', async (_, arrange, why) => {
    arrange();
    await run(CommandIDs.deploy);
    expect(shown.errors).toEqual([`The cell was not deployed: ${why}`]);
    expect(ran).toEqual([]);
  });

  it.each([null, 'loading', 'connecting'] as const)('runs after what runs: %s', async now => {
    situation = now;
    await run(CommandIDs.deploy);
    expect(shown.errors).toEqual([]);
    expect(ran).toEqual([cell]);
  });

  it('asks whether to load the extension', async () => {
    situation = 'not loaded';
    const load = vi.spyOn(model, 'load').mockResolvedValue();
    shown.answer = false;
    await run(CommandIDs.deploy);
    expect(ran).toEqual([]);
    expect(load).not.toHaveBeenCalled();
    shown.answer = true;
    await run(CommandIDs.deploy);
    expect(ran).toEqual([cell]);
    expect([load.mock.calls.length, shown.questions]).toEqual([1, 2]);
    load.mockImplementation(() => Promise.resolve(model.say('no yaml', true)));
    await run(CommandIDs.deploy);
    expect(shown.errors).toEqual(['The cell was not deployed: no yaml']);
    model.say('');
  });
});

describe('what can be chosen', () => {
  it('needs a notebook, and for its cells one that is in front', () => {
    const enabled = () => [CommandIDs.deploy, CommandIDs.insert, CommandIDs.tearDown].map(id => commands.isEnabled(id));
    expect(enabled()).toEqual([true, true, true]);
    front = {}; // a console
    expect(enabled()).toEqual([false, false, true]);
    front = null;
    notebook = null as unknown as typeof notebook;
    expect(enabled()).toEqual([false, false, false]);
    expect(commands.isEnabled(CommandIDs.open)).toBe(true);
  });

  it('needs a service that is selected to copy its code', () => {
    expect(commands.isEnabled(CommandIDs.copyCode)).toBe(false);
  });
});

describe('what is done shows', () => {
  it('in the panel, which is opened for it', async () => {
    await run(CommandIDs.tearDown);
    expect(actions.tearDown).toHaveBeenCalledWith({ name: 'train' });
    expect(opened).toBe(1);
    await run(CommandIDs.copyCode);
    expect(actions.copyCode).toHaveBeenCalledTimes(1);
    expect(opened).toBe(2);
    model.visible = true;
    await run(CommandIDs.tearDown);
    expect(opened).toBe(2);
  });

  it.each<[Situation | null, string]>([
    [null, 'The kernel is busy; try again when the running cell has ended.'],
    ['not loaded', 'There is no kernel with kubetorch_jupyter to ask (not loaded).'],
    ['ready', 'No service runs.']
  ])('or why nothing was: %s', async (now, why) => {
    situation = now;
    actions.chooseService = () => Promise.resolve(null);
    await run(CommandIDs.tearDown);
    expect(shown.errors).toEqual([`Nothing was torn down: ${why}`]);
    expect(opened).toBe(0);
  });
});
