/** The side panel's plugin: what it needs of the application, and where the panel goes. */
import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { UUID } from '@lumino/coreutils';

import { Actions } from './actions';
import { Attacher } from './attaching';
import { addCommands, CommandIDs } from './commands';
import { PanelModel } from './model';
import { SidePanel } from './views/panel';

const ID = 'kubetorch-jupyter:plugin';

/** As in `schema/plugin.json`. */
interface ISettings {
  readonly pollInterval: number;
  readonly defaultCompute: string;
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'Services, calls and logs of kubetorch-jupyter beside the notebook.',
  autoStart: true,
  requires: [INotebookTracker],
  // Notebook 7 has no restorer.
  optional: [ILayoutRestorer, ICommandPalette, ISettingRegistry],
  activate: (
    app: JupyterFrontEnd,
    tracker: INotebookTracker,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    registry: ISettingRegistry | null
  ) => {
    const model = new PanelModel(UUID.uuid4());
    const actions = new Actions(model);
    const attacher = new Attacher(model, tracker, app.serviceManager.kernels);
    const panel = new SidePanel(model, actions);
    app.shell.add(panel, 'right', { rank: 600, type: 'Kubetorch' });
    restorer?.add(panel, panel.id);

    let settings: ISettings = { pollInterval: 1, defaultCompute: '' };
    addCommands(app.commands, {
      model,
      actions,
      notebook: () => attacher.notebook,
      front: () => app.shell.currentWidget,
      compute: () => settings.defaultCompute,
      open: () => app.shell.activateById(panel.id)
    });
    for (const command of Object.values(CommandIDs)) {
      palette?.addItem({ command, category: 'Kubetorch' });
    }

    void registry
      ?.load(ID)
      .then(loaded => {
        const update = () => {
          settings = { ...settings, ...(loaded.composite as Partial<ISettings>) };
          model.interval = 1_000 * settings.pollInterval;
        };
        loaded.changed.connect(update);
        update();
      })
      .catch((error: unknown) => console.error('The settings of the Kubetorch panel could not be read:', error));
  }
};

export default plugin;
