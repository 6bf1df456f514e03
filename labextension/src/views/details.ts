/** The selected service: what it is, and what can be done to it. */
import { Widget } from '@lumino/widgets';

import type { PanelModel } from '../model';
import type { IService } from '../protocol';
import { button, element, setText, show } from './dom';

/** What the buttons do; all of it that destroys asks first. */
export interface IActions {
  restart(service: IService): void;
  tearDown(service: IService): void;
  copyCode(): void;
}

export class DetailsView extends Widget {
  constructor(
    private readonly model: PanelModel,
    actions: IActions
  ) {
    super();
    this.addClass('kt-Details');
    const withService = (act: (service: IService) => void) => () => {
      const service = this.model.service;
      if (service !== null) {
        act(service);
      }
    };
    this._restart = button(
      'Restart…',
      withService(service => actions.restart(service))
    );
    this._restart.title = 'Replace the worker process; its state is lost';
    this._down = button(
      'Tear down…',
      withService(service => actions.tearDown(service)),
      'kt-mod-danger'
    );
    this._down.title = 'End the service and remove everything of it';
    this._code = button('Copy code', () => actions.copyCode());
    this._code.title = 'Copy the Python that gets this service, and the call that is shown';
    this._bar.append(this._restart, this._down, this._code);
    this.node.append(this._title, this._facts, this._bar);
  }

  refresh(): void {
    const { model } = this;
    const service = model.service;
    show(this.node, service !== null);
    if (service === null) {
      return;
    }
    setText(this._title, service.name);
    const facts = [
      service.where + (service.detached ? ', detached' : ''),
      service.asksFor,
      service.owner === '' ? '' : `deployed by ${service.owner}`,
      service.reason,
      model.doing(service.name)
    ];
    setText(this._facts, facts.filter(Boolean).join(' · '));
    const reachable = model.situation === 'ready';
    this._restart.disabled = this._down.disabled = model.doing(service.name) !== '' || !reachable;
    this._code.disabled = !reachable;
  }

  private readonly _title = element('h3', { class: 'kt-Heading' });
  private readonly _facts = element('p', { class: 'kt-Soft' });
  private readonly _bar = element('div', { class: 'kt-Buttons', role: 'group', 'aria-label': 'Service' });
  private readonly _restart: HTMLButtonElement;
  private readonly _down: HTMLButtonElement;
  private readonly _code: HTMLButtonElement;
}
