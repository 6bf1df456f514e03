/** Which notebook's kernel it is, and what is the matter where it can't be asked. */
import { Widget } from '@lumino/widgets';

import type { Situation } from '../kernel';
import type { PanelModel } from '../model';
import { age } from '../words';
import { button, element, setAttribute, setText, show } from './dom';

const NOTICES: Record<Situation, string> = {
  'no notebook': 'Open a notebook: its services, calls and logs are shown here.',
  'no kernel': 'The notebook has no kernel.',
  'other language': 'The panel is for Python kernels, and this one is not:',
  starting: 'The kernel is starting …',
  restarting: 'The kernel is restarting …',
  dead: 'The kernel is dead. Restart it to go on.',
  disconnected: 'There is no connection with the kernel; what is shown is the last that was seen. Trying again …',
  'cut off':
    'There is no connection with the kernel; what is shown is the last that was seen. Kernel → Reconnect to Kernel tries again.',
  connecting: 'Asking the kernel …',
  'not installed': 'kubetorch_jupyter is not installed in this kernel. Install it, and restart the kernel:',
  'not loaded': 'The extension is not loaded in this kernel.',
  loading: 'Loading; a cell that runs ends first …',
  ready: ''
};

const BAD: ReadonlySet<Situation> = new Set(['dead', 'disconnected', 'cut off']);

export class HeaderView extends Widget {
  constructor(private readonly model: PanelModel) {
    super();
    this.addClass('kt-Header');
    this._load.title = 'Run %load_ext kubetorch_jupyter in the kernel';
    this._notice.append(this._noticeText, this._command);
    this.node.append(this._title, this._notice, this._seen, this._load);
  }

  /** Show how things are. */
  refresh(): void {
    const { model } = this;
    setText(this._title, model.title || 'Kubetorch');
    const { text, command } = this._words();
    const seen = model.busy ? model.age : null;
    setText(this._seen, seen === null ? '' : `What is shown was seen ${age(seen)} ago.`);
    show(this._seen, seen !== null);
    setText(this._noticeText, text);
    setText(this._command, command);
    show(this._command, command !== '');
    show(this._notice, text !== '');
    show(this._load, model.situation === 'not loaded');
    const bad = BAD.has(model.situation) || model.problem !== '';
    setAttribute(this._notice, 'data-look', bad ? 'bad' : null);
  }

  private _words(): { text: string; command: string } {
    const { model } = this;
    if (model.situation === 'not installed') {
      return { text: NOTICES[model.situation], command: '%pip install kubetorch-jupyter' };
    }
    if (model.situation === 'other language') {
      return { text: `${NOTICES[model.situation]} ${model.detail}.`, command: '' };
    }
    if (model.busy) {
      const text = model.idle
        ? 'The kernel does not answer; waiting …'
        : 'The kernel is busy; it answers when the running cell has ended.';
      return { text, command: '' };
    }
    return { text: NOTICES[model.situation] || model.problem, command: '' };
  }

  private readonly _title = element('h2', { class: 'kt-Title' });
  private readonly _notice = element('div', { class: 'kt-Notice', role: 'status', 'aria-live': 'polite' });
  private readonly _noticeText = element('span');
  private readonly _command = element('code', { class: 'kt-Code' });
  /** Outside of the live region, or it would be read out each time that it changes. */
  private readonly _seen = element('p', { class: 'kt-Soft' });
  private readonly _load = button('Load', () => void this.model.load(), 'kt-mod-main');
}
