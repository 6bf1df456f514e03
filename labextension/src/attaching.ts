/** Keeps the model at the kernel of the notebook that is in front: other notebooks, other kernels, restarts, deaths. */
import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Kernel, KernelMessage } from '@jupyterlab/services';
import { IDisposable } from '@lumino/disposable';

import { mayLoad } from './cells';
import { Connection } from './connection';
import type { Absence } from './kernel';
import type { PanelModel } from './model';

/** States of a kernel in which it isn't asked; what it was asked before is lost. */
const AWAY: Partial<Record<Kernel.Status, Absence>> = {
  starting: 'starting',
  restarting: 'restarting',
  autorestarting: 'restarting',
  terminating: 'no kernel',
  dead: 'dead'
};

export class Attacher implements IDisposable {
  constructor(
    private readonly model: PanelModel,
    private readonly tracker: INotebookTracker,
    private readonly kernels: Kernel.IManager
  ) {
    tracker.currentChanged.connect(this._follow, this);
    model.lost.connect(this._renew, this);
    this._follow();
  }

  /** The notebook whose kernel is asked. */
  get notebook(): NotebookPanel | null {
    return this._notebook;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this.tracker.currentChanged.disconnect(this._follow, this);
      this.model.lost.disconnect(this._renew, this);
      this._leaveNotebook();
      this._close(false);
    }
  }

  private _follow(): void {
    const notebook = this.tracker.currentWidget;
    if (notebook === this._notebook) {
      return;
    }
    this._leaveNotebook();
    this._notebook = notebook;
    this._away = undefined;
    if (notebook !== null) {
      const session = notebook.sessionContext;
      session.kernelChanged.connect(this._update, this);
      session.statusChanged.connect(this._update, this);
      session.connectionStatusChanged.connect(this._update, this);
      session.iopubMessage.connect(this._notice, this);
      notebook.title.changed.connect(this._update, this);
      notebook.disposed.connect(this._follow, this);
    }
    this._update();
  }

  private _leaveNotebook(): void {
    const notebook = this._notebook;
    this._notebook = null;
    if (notebook !== null) {
      const session = notebook.sessionContext;
      session.kernelChanged.disconnect(this._update, this);
      session.statusChanged.disconnect(this._update, this);
      session.connectionStatusChanged.disconnect(this._update, this);
      session.iopubMessage.disconnect(this._notice, this);
      notebook.title.changed.disconnect(this._update, this);
      notebook.disposed.disconnect(this._follow, this);
    }
  }

  /** Attach, detach or stay, as things are now. */
  private _update(): void {
    const notebook = this._notebook;
    if (notebook === null || notebook.isDisposed) {
      this._detach('no notebook');
      return;
    }
    const title = notebook.title.label;
    const kernel = notebook.sessionContext.session?.kernel ?? null;
    if (kernel === null || kernel.isDisposed) {
      // After a shutdown the context is no more ready than before the first start.
      const ended = this._started.has(notebook) || notebook.sessionContext.isReady;
      this._detach(ended ? 'no kernel' : 'starting', title);
      return;
    }
    this._started.add(notebook);
    // A restarted kernel isn't there yet before it has said anything: asked for a subshell too early, ipykernel fails.
    const away = AWAY[kernel.status] ?? (kernel.status === 'unknown' ? this._away : undefined);
    this._away = away;
    if (away !== undefined) {
      this._detach(away, title, true);
      return;
    }
    if (kernel.connectionStatus !== 'connected') {
      const never = kernel.connectionStatus === 'connecting' && !this._met.has(kernel);
      // JupyterLab tries seven times, and then no more.
      this._detach(never ? 'starting' : kernel.connectionStatus === 'connecting' ? 'disconnected' : 'cut off', title);
      return;
    }
    this._met.add(kernel);
    if (this._kernel === kernel) {
      this.model.rename(title);
      return;
    }
    this._close(false);
    this._kernel = kernel;
    void this._attach(kernel, notebook);
  }

  private async _attach(kernel: Kernel.IKernelConnection, notebook: NotebookPanel): Promise<void> {
    const spec = await kernel.spec.catch(() => undefined); // without a server nobody knows; the kernel may be there
    if (this._kernel !== kernel) {
      return; // it took so long that another one is in its place
    }
    const title = notebook.title.label;
    const language = spec?.language ?? 'python';
    if (!/^i?python\d*$/i.test(language)) {
      this.model.detach('other language', title, spec?.display_name ?? language);
      return;
    }
    const left = this._left?.kernel === kernel.id ? this._left.subshell : null;
    this._left = null;
    this._connection = new Connection(kernel, this.kernels, left);
    this.model.attach(this._connection, title);
  }

  private _detach(why: Absence, title = '', gone = false): void {
    this._close(gone);
    this.model.detach(why, title);
  }

  private _close(gone: boolean): void {
    this._kernel = null;
    const connection = this._connection;
    this._connection = null;
    const subshell = connection?.close(gone) ?? null;
    if (connection !== null && subshell !== null) {
      this._left = { kernel: connection.id, subshell };
    }
  }

  /** The kernel doesn't answer, and says that it is idle: make the way to it anew. */
  private _renew(): void {
    this._close(false);
    this._update();
  }

  /** Something was run that may have loaded the extension: look when it has ended. */
  private _notice(_: unknown, message: KernelMessage.IMessage): void {
    const parent = 'msg_id' in message.parent_header ? message.parent_header.msg_id : '';
    if (KernelMessage.isExecuteInputMsg(message) && mayLoad(message.content.code)) {
      this._loading = parent;
    } else if (
      KernelMessage.isStatusMsg(message) &&
      message.content.execution_state === 'idle' &&
      parent === this._loading
    ) {
      this._loading = null;
      this.model.reconsider();
    }
  }

  private _notebook: NotebookPanel | null = null;
  private _kernel: Kernel.IKernelConnection | null = null;
  private _connection: Connection | null = null;
  /** A subshell that could not be deleted, since the connection had broken. */
  private _left: { kernel: string; subshell: string } | null = null;
  private _loading: string | null = null;
  /** Why the kernel can't be asked, for as long as it doesn't say anything else. */
  private _away: Absence | undefined;
  /** Notebooks that have had a kernel. */
  private readonly _started = new WeakSet<NotebookPanel>();
  /** Connections that were there once. */
  private readonly _met = new WeakSet<Kernel.IKernelConnection>();
  private _isDisposed = false;
}
