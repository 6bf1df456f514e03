/** The commands, for the palette, the menu and the notebook's toolbar. */
import { Dialog, showDialog, showErrorMessage } from '@jupyterlab/apputils';
import type { Cell } from '@jupyterlab/cells';
import { NotebookActions, NotebookPanel } from '@jupyterlab/notebook';
import { CommandRegistry } from '@lumino/commands';

import { Actions } from './actions';
import { deployed, onPod } from './cells';
import { panelIcon } from './icons';
import { words } from './kernel';
import type { PanelModel } from './model';

export const CommandIDs = {
  open: 'kubetorch:open-panel',
  deploy: 'kubetorch:deploy-cell',
  tearDown: 'kubetorch:tear-down',
  copyCode: 'kubetorch:copy-code',
  insert: 'kubetorch:insert-cell'
} as const;

export interface IPlace {
  readonly model: PanelModel;
  readonly actions: Actions;
  /** The notebook that the panel belongs to: of the notebooks the one in front. */
  readonly notebook: () => NotebookPanel | null;
  /** What is in front: that notebook, or a console, a file, … */
  readonly front: () => unknown;
  /** The options of `%%kt` in new cells. */
  readonly compute: () => string;
  /** Show the panel. */
  readonly open: () => void;
}

/** Register all of them. */
export function addCommands(commands: CommandRegistry, place: IPlace): void {
  const { model, actions } = place;
  const hasNotebook = () => place.notebook() !== null;
  const inNotebook = () => hasNotebook() && place.notebook() === place.front();
  /** Show what is under way, and what comes of it. */
  const show = () => {
    if (!model.visible) {
      place.open();
    }
  };

  commands.addCommand(CommandIDs.open, {
    label: 'Open Kubetorch Panel',
    caption: 'Show services, calls and logs beside the notebook',
    icon: panelIcon,
    execute: () => place.open()
  });

  commands.addCommand(CommandIDs.deploy, {
    label: 'Deploy Current Cell',
    caption: 'Put %%kt deploy on top of the cell, and run it',
    isEnabled: inNotebook,
    execute: () => attempt('The cell was not deployed', () => deployCell(place))
  });

  commands.addCommand(CommandIDs.tearDown, {
    label: 'Tear Down Service…',
    caption: 'End a service and remove everything of it',
    isEnabled: hasNotebook,
    execute: () =>
      attempt('Nothing was torn down', async () => {
        await needAnswer(model);
        const service = await actions.chooseService();
        if (service !== null) {
          show();
          actions.tearDown(service);
        } else if (model.services.length === 0) {
          throw new Error('No service runs.');
        }
      })
  });

  commands.addCommand(CommandIDs.copyCode, {
    label: "Copy Call's Code",
    caption: 'Copy the Python that gets the service that is selected in the panel, and its call',
    isEnabled: () => model.service !== null && model.situation === 'ready',
    execute: () => {
      show();
      actions.copyCode();
    }
  });

  commands.addCommand(CommandIDs.insert, {
    label: 'Insert %%kt Cell',
    caption: 'Insert a cell below that runs on a pod',
    isEnabled: inNotebook,
    execute: () => {
      const notebook = place.notebook();
      if (notebook !== null) {
        NotebookActions.insertBelow(notebook.content);
        NotebookActions.changeCellType(notebook.content, 'code');
        const cell = notebook.content.activeCell;
        if (cell !== null) {
          cell.model.sharedModel.setSource(onPod(place.compute()));
          notebook.content.mode = 'edit';
          cell.editor?.setCursorPosition({ line: 1, column: 0 });
        }
      }
    }
  });

  const update = () => commands.notifyCommandChanged();
  let before = '';
  model.changed.connect(() => {
    const now = `${model.situation} ${model.selected} ${model.title}`;
    if (now !== before) {
      before = now;
      update();
    }
  });
}

async function deployCell(place: IPlace): Promise<void> {
  const notebook = place.notebook();
  const cell = notebook?.content.activeCell;
  if (!notebook || !cell) {
    return;
  }
  sourceToDeploy(cell, place.compute());
  if (!(await loaded(place.model))) {
    return;
  }
  // That may have taken a while: what counts is the cell's code now, and that cell, whichever is the current one.
  const source = sourceToDeploy(cell, place.compute());
  if (source !== cell.model.sharedModel.getSource()) {
    cell.model.sharedModel.setSource(source);
  }
  await NotebookActions.runCells(notebook.content, [cell], notebook.sessionContext);
}

/** What a cell has to say to be deployed; throws where it can't be. */
function sourceToDeploy(cell: Cell, compute: string): string {
  if (cell.isDisposed) {
    throw new Error('It is not there any more.');
  }
  if (cell.model.type !== 'code') {
    throw new Error('It is no code cell.');
  }
  const source = deployed(cell.model.sharedModel.getSource(), compute);
  if (source === null) {
    throw new Error('It is empty.');
  }
  return source;
}

/** Whether the extension is loaded, or has been now because somebody wanted that. */
async function loaded(model: PanelModel): Promise<boolean> {
  const situation = await model.check();
  switch (situation) {
    case 'ready':
    case null: // it runs a cell, after which this one comes
    case 'loading': // as above
    case 'connecting': // it can't be asked, so the cell itself will tell
      return true;
    case 'not loaded': {
      const result = await showDialog({
        title: 'Load kubetorch_jupyter?',
        body: '%%kt is known only after %load_ext kubetorch_jupyter. Put that into the first cell to have it after each restart.',
        buttons: [Dialog.cancelButton(), Dialog.okButton({ label: 'Load it' })]
      });
      if (!result.button.accept) {
        return false;
      }
      await model.load();
      if (model.message?.error) {
        throw new Error(model.message.text);
      }
      return true;
    }
    case 'not installed':
      throw new Error('kubetorch_jupyter is not installed in this kernel: %pip install kubetorch-jupyter');
    default:
      throw new Error(`There is no Python kernel to run it (${situation}).`);
  }
}

async function needAnswer(model: PanelModel): Promise<void> {
  const situation = await model.check();
  if (situation === null) {
    throw new Error('The kernel is busy; try again when the running cell has ended.');
  }
  if (situation !== 'ready') {
    throw new Error(`There is no kernel with kubetorch_jupyter to ask (${situation}).`);
  }
}

async function attempt(title: string, act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (error) {
    await showErrorMessage(title, words(error));
  }
}
