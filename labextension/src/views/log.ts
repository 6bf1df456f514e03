/** The log of a call, or of the service itself, as it comes. */
import { Widget } from '@lumino/widgets';

import type { PanelModel } from '../model';
import { SERVICE_LOG } from '../protocol';
import { button, element, setAttribute, setText, show } from './dom';

/** Pixels from the end within which the log is followed. */
const NEAR = 24;

export class LogView extends Widget {
  constructor(private readonly model: PanelModel) {
    super();
    this.addClass('kt-LogView');
    this._newest = button('Newest call', () => this.model.choose(null));
    this._newest.title = 'Show the log of each new call as it begins';
    this._own = button('Service log', () => this.model.choose(SERVICE_LOG));
    this._own.title = 'What was written outside of any call';
    this._end = button('Follow', () => this._toEnd());
    this._end.title = 'Go to the end, and stay there';
    const bar = element('div', { class: 'kt-Buttons', role: 'group', 'aria-label': 'Log' });
    bar.append(this._newest, this._own, this._end);
    this.node.append(this._title, bar, this._log);
    this._log.addEventListener('scroll', () => show(this._end, !this._atEnd()));
    show(this._end, false);
  }

  refresh(): void {
    const { model } = this;
    const service = model.service;
    show(this.node, service !== null);
    if (service === null) {
      this._write('');
      return;
    }
    const title = this._words();
    setText(this._title, title);
    setAttribute(this._log, 'aria-label', title);
    setAttribute(this._newest, 'aria-pressed', String(model.chosenLog === null));
    setAttribute(this._own, 'aria-pressed', String(model.chosenLog === SERVICE_LOG));
    const wanted = model.chosenLog === null || model.chosenLog === model.log.of;
    setAttribute(this._log, 'data-empty', String(!wanted || model.log.empty));
    this._write(wanted ? model.log.text : '');
  }

  private _words(): string {
    const { model } = this;
    const of = model.chosenLog ?? model.log.of;
    if (of === SERVICE_LOG) {
      return 'Log of the service itself';
    }
    const name = model.calls.find(call => call.id === of)?.function;
    return `Log of the ${model.chosenLog === null ? 'newest' : 'chosen'} call${name === undefined ? '' : `, ${name}`}`;
  }

  /** Show the text: more of the same is put at the end, so that what is selected and read stays. */
  private _write(text: string): void {
    if (text === this._shown) {
      return;
    }
    const follow = this._atEnd();
    if (this._shown !== '' && text.startsWith(this._shown)) {
      this._log.append(text.slice(this._shown.length));
    } else {
      this._log.textContent = text;
    }
    this._shown = text;
    if (follow) {
      this._toEnd();
    }
  }

  private _atEnd(): boolean {
    const { scrollHeight, scrollTop, clientHeight } = this._log;
    return scrollHeight - scrollTop - clientHeight <= NEAR;
  }

  private _toEnd(): void {
    this._log.scrollTop = this._log.scrollHeight;
  }

  private readonly _title = element('h3', { class: 'kt-Heading' });
  private readonly _log = element('div', { class: 'kt-Log', role: 'log', tabindex: '0', 'aria-live': 'polite' });
  private readonly _newest: HTMLButtonElement;
  private readonly _own: HTMLButtonElement;
  private readonly _end: HTMLButtonElement;
  private _shown = '';
}
