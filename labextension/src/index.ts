/** The side panel's plugin: what it needs of the application, and where the panel goes. */
import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Widget } from '@lumino/widgets';

const ID = 'kubetorch-jupyter:plugin';

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'Services, calls and logs of kubetorch-jupyter beside the notebook.',
  autoStart: true,
  // Notebook 7 has none.
  optional: [ILayoutRestorer],
  activate: (app: JupyterFrontEnd, restorer: ILayoutRestorer | null) => {
    const panel = new Widget();
    panel.id = 'kubetorch-panel';
    panel.addClass('kt-SidePanel');
    panel.title.caption = 'Kubetorch';
    panel.title.label = 'Kubetorch';
    app.shell.add(panel, 'right', { rank: 600 });
    restorer?.add(panel, panel.id);
  }
};

export default plugin;
