/** The services, as a list to choose from. */
import { Widget } from '@lumino/widgets';

import type { PanelModel } from '../model';
import type { IService } from '../protocol';
import { age, count, look, size } from '../words';
import { element, Rows, setAttribute, setText, show } from './dom';

interface IRow {
  readonly node: HTMLElement;
  readonly state: HTMLElement;
  readonly facts: HTMLElement;
}

export class ServicesView extends Widget {
  /**
   * @param tearDown - Asks, and tears down.
   */
  constructor(
    private readonly model: PanelModel,
    private readonly tearDown: (service: IService) => void
  ) {
    super();
    this.addClass('kt-Services');
    this.node.append(
      element('h3', { class: 'kt-Heading', id: 'kt-services-label', text: 'Services' }),
      this._list,
      this._none
    );
    this._list.addEventListener('keydown', event => this._onKey(event));
    this._rows = new Rows<IService, IRow>(
      this._list,
      service => `${service.name} ${service.created}`,
      service => this._make(service),
      (row, service) => this._update(row, service)
    );
  }

  refresh(): void {
    const { services, situation } = this.model;
    this._rows.set(services);
    show(this._list, services.length > 0);
    show(this._none, services.length === 0);
    show(this.node, services.length > 0 || (situation === 'ready' && this.model.age !== null));
    const selected = this.model.service;
    const row = selected === null ? undefined : this._rows.get(`${selected.name} ${selected.created}`);
    setAttribute(this._list, 'aria-activedescendant', row?.node.id ?? null);
  }

  private _make(service: IService): IRow {
    this._made += 1;
    const state = element('span', { class: 'kt-State' });
    const facts = element('span', { class: 'kt-Facts' });
    const node = element(
      'li',
      { class: 'kt-Row', role: 'option', id: `kt-service-${this._made}`, onClick: () => this._choose(service.name) },
      element('span', { class: 'kt-Name', text: service.name }),
      state,
      facts
    );
    return { node, state, facts };
  }

  private _update(row: IRow, service: IService): void {
    const doing = this.model.doing(service.name);
    setAttribute(row.node, 'aria-selected', String(service.name === this.model.selected));
    setAttribute(row.node, 'title', service.reason || null);
    setAttribute(row.state, 'data-look', doing !== '' ? 'busy' : look(service.state));
    setText(row.state, doing || service.state);
    const facts = [
      service.calls === null ? '' : count(service.calls, 'call'),
      age(service.age),
      service.cpu === null ? '' : `${Math.round(100 * service.cpu)} % CPU`,
      service.memory === null ? '' : size(service.memory),
      ...service.gpus
    ];
    setText(row.facts, facts.filter(Boolean).join(' · '));
  }

  private _choose(name: string): void {
    this._list.focus();
    this.model.select(name);
  }

  private _onKey(event: KeyboardEvent): void {
    const { services } = this.model;
    const at = services.findIndex(service => service.name === this.model.selected);
    const steps: Record<string, number> = {
      ArrowDown: Math.min(at + 1, services.length - 1),
      ArrowUp: Math.max(at - 1, 0),
      Home: 0,
      End: services.length - 1
    };
    const to = steps[event.key];
    const service = this.model.service;
    if (to !== undefined) {
      const next = services[to];
      if (next !== undefined) {
        this.model.select(next.name);
        this._rows.get(`${next.name} ${next.created}`)?.node.scrollIntoView({ block: 'nearest' });
      }
    } else if (event.key === 'Delete' && service !== null) {
      this.tearDown(service);
    } else if (event.key === 'Escape') {
      this.model.select(null);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  private readonly _list = element('ul', {
    class: 'kt-List',
    role: 'listbox',
    tabindex: '0',
    'aria-labelledby': 'kt-services-label'
  });
  private readonly _none = element('p', {
    class: 'kt-Soft',
    text: 'Nothing runs yet. Deploy a function with kt.fn(f).to(kt.Compute()), or a cell with %%kt deploy.'
  });
  private readonly _rows: Rows<IService, IRow>;
  private _made = 0;
}
