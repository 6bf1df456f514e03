/** The deploys, and maps, of the notebook's kernel that are under way or have just ended. */
import { Widget } from '@lumino/widgets';

import type { PanelModel } from '../model';
import type { IProgress } from '../protocol';
import { element, Rows, setAttribute, setText, show } from './dom';

interface IRow {
  readonly node: HTMLElement;
  readonly text: HTMLElement;
  readonly bar: HTMLProgressElement;
}

export class ProgressView extends Widget {
  constructor(private readonly model: PanelModel) {
    super();
    this.addClass('kt-Progress');
    const list = element('ul', { class: 'kt-List', tabindex: '0', 'aria-label': 'Deploy progress' });
    this.node.append(element('h3', { class: 'kt-Heading', text: 'Progress' }), list, this._ended);
    this._rows = new Rows<IProgress, IRow>(list, line => line.id, make, update);
  }

  refresh(): void {
    const lines = this.model.progress;
    const isRunning = (line: IProgress) => Number(line.state === 'running');
    this._rows.set([...lines].sort((one, other) => isRunning(other) - isRunning(one))); // where there are many
    show(this.node, lines.length > 0);
    // A running line changes all the time; read out is only what it ends with.
    const ended = lines.filter(line => line.state !== 'running').at(-1);
    if (ended !== undefined && ended.id !== this._said) {
      this._said = ended.id;
      setText(this._ended, ended.text);
    }
  }

  private readonly _rows: Rows<IProgress, IRow>;
  private readonly _ended = element('div', { class: 'kt-mod-unseen', role: 'status', 'aria-live': 'polite' });
  private _said = '';
}

function make(): IRow {
  const text = element('span', { class: 'kt-ProgressText' });
  const bar = element('progress', { class: 'kt-Bar', 'aria-label': 'Done' });
  bar.max = 1;
  return { node: element('li', { class: 'kt-ProgressRow' }, text, bar), text, bar };
}

function update(row: IRow, line: IProgress): void {
  setAttribute(row.node, 'data-state', line.state);
  setText(row.text, line.text.replace(/^kubetorch: /, ''));
  show(row.bar, line.share !== null && line.state === 'running');
  row.bar.value = line.share ?? 0;
}
