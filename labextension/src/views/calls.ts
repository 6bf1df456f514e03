/** The calls of the selected service, the running ones first. */
import { Widget } from '@lumino/widgets';

import type { PanelModel } from '../model';
import { ICall, SERVICE_LOG } from '../protocol';
import { age, look, size } from '../words';
import { button, element, Rows, setAttribute, setText, show } from './dom';

interface IRow {
  readonly node: HTMLElement;
  readonly choose: HTMLButtonElement;
  readonly state: HTMLElement;
  readonly facts: HTMLElement;
  readonly stop: HTMLButtonElement;
}

export class CallsView extends Widget {
  constructor(private readonly model: PanelModel) {
    super();
    this.addClass('kt-Calls');
    const list = element('ul', { class: 'kt-List', 'aria-labelledby': 'kt-calls-label' });
    this.node.append(element('h3', { class: 'kt-Heading', id: 'kt-calls-label', text: 'Calls' }), list, this._more);
    this._rows = new Rows<ICall, IRow>(
      list,
      call => call.id,
      call => this._make(call),
      (row, call) => this._update(row, call)
    );
  }

  refresh(): void {
    const { model } = this;
    show(this.node, model.service !== null);
    this._rows.set(model.calls);
    const more = model.moreCalls > 0 ? `and ${model.moreCalls} more that have ended` : '';
    setText(this._more, model.calls.length > 0 ? more : 'It has not been called yet.');
    show(this._more, this._more.textContent !== '');
  }

  private _make(call: ICall): IRow {
    const state = element('span', { class: 'kt-State' });
    const facts = element('span', { class: 'kt-Facts' });
    const choose = button('', () => this._choose(call.id), 'kt-Row');
    choose.title = `Show the log of ${call.id}`;
    choose.append(element('span', { class: 'kt-Name', text: call.function }), state, facts);
    const stop = button('Stop', () => this._stop(call.id), 'kt-mod-danger');
    stop.setAttribute('aria-label', `Stop this call of ${call.function}`);
    return { node: element('li', { class: 'kt-CallRow' }, choose, stop), choose, state, facts, stop };
  }

  private _update(row: IRow, call: ICall): void {
    const doing = this.model.doing(call.id);
    setAttribute(row.choose, 'aria-pressed', String(call.id === this.model.log.of));
    setAttribute(row.state, 'data-look', doing !== '' ? 'busy' : look(call.state));
    setText(row.state, doing || call.state);
    const facts = [
      call.took === null ? '' : age(call.took),
      call.log > 0 ? `${size(call.log)} of log` : '',
      call.owner
    ];
    setText(row.facts, facts.filter(Boolean).join(' · '));
    show(row.stop, call.active);
    row.stop.disabled = doing !== '' || this.model.situation !== 'ready';
  }

  /** Show the log of a call; of the one that is shown because it is the newest, follow the newest no more. */
  private _choose(id: string): void {
    this.model.choose(id === SERVICE_LOG ? null : id);
  }

  private _stop(id: string): void {
    const call = this.model.calls.find(each => each.id === id);
    if (call !== undefined) {
      void this.model.stop(call);
    }
  }

  private readonly _more = element('p', { class: 'kt-Soft' });
  private readonly _rows: Rows<ICall, IRow>;
}
