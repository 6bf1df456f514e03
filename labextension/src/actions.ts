/** What buttons and commands do: ask where something is lost, then have the model do it. */
import { Clipboard, Dialog, InputDialog, showDialog } from '@jupyterlab/apputils';

import { words } from './kernel';
import type { PanelModel } from './model';
import type { ICall, IService } from './protocol';
import type { IActions } from './views/details';

export class Actions implements IActions {
  constructor(private readonly model: PanelModel) {}

  restart(service: IService): void {
    void this._confirmed(
      `Restart "${service.name}"?`,
      `The state of its worker is lost${failing(service)}.`,
      'Restart',
      () => this.model.restart(service)
    );
  }

  tearDown(service: IService): void {
    void this._confirmed(
      `Tear down "${service.name}"?`,
      `Everything that belongs to it is removed${failing(service)}.`,
      'Tear down',
      () => this.model.tearDown(service)
    );
  }

  copyCode(): void {
    const { service, call } = this.model;
    if (service !== null) {
      void this._copy(service, call);
    }
  }

  /** Choose a service, if there are several; null for none. */
  async chooseService(): Promise<IService | null> {
    const { services, selected } = this.model;
    if (services.length <= 1) {
      return services[0] ?? null;
    }
    const names = services.map(service => service.name);
    const chosen = await InputDialog.getItem({
      title: 'Which service?',
      items: names,
      current: Math.max(0, names.indexOf(selected ?? ''))
    });
    return services.find(service => service.name === chosen.value) ?? null;
  }

  private async _confirmed(title: string, body: string, label: string, act: () => Promise<void>): Promise<void> {
    const result = await showDialog({
      title,
      body,
      buttons: [Dialog.cancelButton({ label: 'No, keep it' }), Dialog.warnButton({ label })],
      defaultButton: 0
    });
    if (result.button.accept) {
      await act();
    }
  }

  private async _copy(service: IService, call: ICall | null): Promise<void> {
    try {
      const text = await this.model.code(service.name, call);
      Clipboard.copyToSystem(text);
      this.model.say(`The code that gets "${service.name}" was copied.`);
    } catch (error) {
      this.model.say(`The code was not copied: ${words(error)}`, true);
    }
  }
}

/** What of a service's calls is lost with it. */
function failing(service: IService): string {
  const calls = service.calls ?? 0;
  return calls === 0 ? '' : calls === 1 ? '; the call that runs will fail' : `; ${calls} calls that run will fail`;
}
