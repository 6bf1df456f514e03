/** The panel: its parts below each other, and whether somebody sees it. */
import { Message } from '@lumino/messaging';
import { PanelLayout, Widget } from '@lumino/widgets';

import { panelIcon } from '../icons';
import type { PanelModel } from '../model';
import { CallsView } from './calls';
import { DetailsView, IActions } from './details';
import { HeaderView } from './header';
import { LogView } from './log';
import { MessageView } from './message';
import { ProgressView } from './progress';
import { ServicesView } from './services';

export class SidePanel extends Widget {
  constructor(
    private readonly model: PanelModel,
    actions: IActions
  ) {
    super();
    this.id = 'kubetorch-panel';
    this.addClass('kt-SidePanel');
    this.title.icon = panelIcon;
    this.title.caption = 'Kubetorch';
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Kubetorch');
    this.node.tabIndex = -1; // the focus is here when there is nothing else for it
    this._parts = [
      new HeaderView(model),
      new MessageView(model),
      new ProgressView(model),
      new ServicesView(model, service => actions.tearDown(service)),
      new DetailsView(model, actions),
      new CallsView(model),
      new LogView(model)
    ];
    const layout = (this.layout = new PanelLayout());
    for (const part of this._parts) {
      layout.addWidget(part);
    }
    model.changed.connect(this._refresh, this);
    document.addEventListener('visibilitychange', this._look);
    this._refresh();
  }

  override dispose(): void {
    if (!this.isDisposed) {
      document.removeEventListener('visibilitychange', this._look);
      this.model.changed.disconnect(this._refresh, this);
      this.model.visible = false;
      super.dispose();
    }
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this._look();
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this._look();
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._look();
  }

  protected override onAfterDetach(message: Message): void {
    super.onAfterDetach(message);
    this._look();
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this._focus('[role=listbox], button');
  }

  /** Put the focus on the first of these that can have it, or on the panel itself. */
  private _focus(selector: string): void {
    const all = [...this.node.querySelectorAll<HTMLElement>(selector)];
    (all.find(canHaveFocus) ?? this.node).focus();
  }

  private readonly _look = () => {
    this.model.visible = this.isVisible && document.visibilityState === 'visible';
    this._refresh();
  };

  private _refresh(): void {
    if (!this.isVisible) {
      return;
    }
    const focused = document.activeElement;
    const hadFocus = this.node.contains(focused);
    for (const part of this._parts) {
      part.refresh();
    }
    // What had it may be gone, such as the button that stopped a call: by keyboard one would begin at the page's top.
    if (hadFocus && focused instanceof HTMLElement && !canHaveFocus(focused)) {
      this._focus('[role=listbox]');
    }
  }

  private readonly _parts: readonly (Widget & { refresh(): void })[];
}

function canHaveFocus(node: HTMLElement): boolean {
  return node.isConnected && node.closest('[hidden]') === null && !node.matches(':disabled');
}
