/** What came of what was pressed: a line that is read out. */
import { Widget } from '@lumino/widgets';

import type { PanelModel } from '../model';
import { button, element, setText, show } from './dom';

export class MessageView extends Widget {
  constructor(private readonly model: PanelModel) {
    super();
    this.addClass('kt-Message');
    this._close.title = 'Dismiss this message';
    this._error.append(this._errorText, this._close);
    this.node.append(this._said, this._error);
  }

  refresh(): void {
    const { message } = this.model;
    const error = message?.error === true;
    setText(this._said, error ? '' : (message?.text ?? ''));
    setText(this._errorText, error ? message.text : '');
    show(this._close, error);
  }

  // Both are always there: what is put into a live region that is new isn't read by all screen readers.
  private readonly _said = element('div', { class: 'kt-Said', role: 'status', 'aria-live': 'polite' });
  private readonly _error = element('div', { class: 'kt-Error', role: 'alert' });
  private readonly _errorText = element('span');
  private readonly _close = button('Dismiss', () => this.model.say(''));
}
