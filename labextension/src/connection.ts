/** The way to one kernel: a connection of the panel's own, with a subshell of its own where the kernel has those. */
import { CommsOverSubshells, Kernel, KernelMessage } from '@jupyterlab/services';

import type { IKernel } from './kernel';
import type { Question } from './protocol';
import { expression, KEY } from './question';

/** Milliseconds that a kernel may take to say what it can do, and to make a subshell; both it does while a cell runs. */
const PATIENCE = 1_500;
/** Milliseconds that a closed connection stays at most, so that its subshells are deleted. */
const LATE = 10_000;
/** Milliseconds until a request is made again that was dropped; ipykernel drops all that come within 100 of an error. */
const AGAIN = 200;

export class Connection implements IKernel {
  /**
   * @param kernel - The notebook's connection. Ours is another one, since a subshell is a property of a connection.
   * @param manager - Makes ours.
   * @param left - A subshell that an earlier connection had to leave behind, to be deleted.
   */
  constructor(
    private readonly kernel: Kernel.IKernelConnection,
    manager: Kernel.IManager,
    private readonly left: string | null = null
  ) {
    this._own = manager.connectTo({
      model: kernel.model,
      handleComms: false,
      commsOverSubshells: CommsOverSubshells.Disabled
    });
    this._open = this._prepare();
    this._open.catch(() => undefined); // every question reports it
    window.addEventListener('pagehide', this._farewell);
  }

  get id(): string {
    return this.kernel.id;
  }

  get idle(): boolean {
    return this.kernel.status === 'idle';
  }

  /** Ask; the reply's text. */
  async ask(question: Question): Promise<string> {
    await this._open;
    let content = await this._ask(question);
    while (isDropped(content)) {
      await pause(AGAIN);
      content = await this._ask(question);
    }
    return textOf(content);
  }

  /** Ask once. */
  private async _ask(question: Question): Promise<KernelMessage.IExecuteReplyMsg['content']> {
    if (this._closed) {
      throw new Error('the kernel is gone');
    }
    const future = this._own.requestExecute({
      code: '',
      silent: true,
      store_history: false,
      user_expressions: { [KEY]: expression(question) },
      // Not for us: a kernel keeps it of the newest request, and the cell that runs may ask for input.
      allow_stdin: true,
      stop_on_error: false
    });
    try {
      return await new Promise((resolve, reject) => {
        future.onReply = message => resolve(message.content);
        future.done.then(
          () => reject(new Error('the kernel gave no answer')),
          () => reject(new Error('the kernel is gone'))
        );
      });
    } finally {
      future.dispose(); // there may be no status message to wait for
    }
  }

  /** Run `%load_ext`, by the notebook's own connection; what it prints. */
  async load(): Promise<string> {
    let said = await this._load();
    while (said === null) {
      await pause(AGAIN);
      said = await this._load();
    }
    return said;
  }

  /** Run it once; null when the kernel drops it, since the cell before it failed. */
  private async _load(): Promise<string | null> {
    if (this._closed) {
      throw new Error('the kernel is gone');
    }
    const future = this.kernel.requestExecute({
      code: '%load_ext kubetorch_jupyter',
      silent: false,
      store_history: false,
      stop_on_error: false
    });
    let said = '';
    let failed = '';
    future.onIOPub = message => {
      if (KernelMessage.isStreamMsg(message)) {
        said += message.content.text;
      } else if (KernelMessage.isErrorMsg(message)) {
        failed = `${message.content.ename}: ${message.content.evalue}`;
      }
    };
    const content = (await future.done)?.content;
    if (content !== undefined && isDropped(content)) {
      return null;
    }
    if (content?.status !== 'ok') {
      throw new Error(failed || 'the kernel did not run it');
    }
    return said;
  }

  /**
   * Close it.
   *
   * @param gone - The kernel that it was made for has ended or restarted, and the subshell with it.
   * @returns The subshell that had to be left behind, since there is no connection.
   */
  close(gone: boolean): string | null {
    window.removeEventListener('pagehide', this._farewell);
    this._closed = true;
    const left = gone || this._deleteSubshell() ? null : this._own.subshellId;
    // By itself it would ask, by a connection that doesn't know yet that the kernel has subshells, and wait for a reply.
    this._own.subshellId = null;
    if (gone || this._pending.size === 0) {
      this._own.dispose();
    } else {
      // A subshell that is still being made would stay as long as the kernel does; so would one whose deletion is asked
      // for at the last moment, since the server drops what it hasn't passed on when a connection ends.
      void soon(Promise.allSettled(this._pending), LATE).then(() => this._own.dispose());
    }
    return left;
  }

  private readonly _farewell = () => {
    this._deleteSubshell();
  };

  /** Delete the subshell; false when nobody can be told. */
  private _deleteSubshell(): boolean {
    const id = this._own.subshellId;
    if (id === null) {
      return true;
    }
    if (this._own.isDisposed || this._own.connectionStatus !== 'connected' || this._own.status === 'dead') {
      return false;
    }
    void this._dropSubshell(id);
    return true;
  }

  private async _dropSubshell(id: string): Promise<void> {
    const dropping = this._control('delete_subshell_request', { subshell_id: id });
    await this._wait(dropping).catch(() => undefined); // the kernel may end first
  }

  /** Keep the connection until something is done. */
  private async _wait(doing: Promise<unknown>): Promise<void> {
    this._pending.add(doing);
    try {
      await doing;
    } finally {
      this._pending.delete(doing);
    }
  }

  /** Wait for the connection, and have a subshell made. */
  private async _prepare(): Promise<void> {
    const own = this._own;
    await connected(own);
    // A kernel that runs a cell tells what it can do only afterwards, but makes subshells meanwhile: ask for one all the
    // same when it doesn't say.
    const info = await soon(this.kernel.info, PATIENCE);
    if (this._closed || (info !== null && !info.supported_features?.includes('kernel subshells'))) {
      return;
    }
    if (this.left !== null) {
      void this._dropSubshell(this.left);
    }
    // Once more where the kernel has them: one that has only just begun may fail, without a reply.
    if ((await soon(this._makeSubshell(), PATIENCE)) === null && info !== null && !this._closed) {
      await soon(this._makeSubshell(), PATIENCE);
    }
  }

  /** Have a subshell made, and use it, however late it comes; delete it where it isn't needed any more. */
  private _makeSubshell(): Promise<void> {
    const making = this._control('create_subshell_request', {}).then(async reply => {
      const content = reply.content as { status?: string; subshell_id?: string };
      if (content.status !== 'ok' || content.subshell_id === undefined) {
        return;
      }
      if (this._closed || this._own.subshellId !== null) {
        await this._dropSubshell(content.subshell_id);
      } else {
        this._own.subshellId = content.subshell_id;
      }
    });
    return this._wait(making);
  }

  /** Ask on the control channel, where `requestCreateSubshell` would first want the kernel's info. */
  private _control(
    msgType: 'create_subshell_request' | 'delete_subshell_request',
    content: { subshell_id?: string }
  ): Promise<KernelMessage.IControlMessage> {
    const message: KernelMessage.IControlMessage = KernelMessage.createMessage<KernelMessage.IDeleteSubshellRequestMsg>(
      {
        // The content of the one is that of the other without the id.
        msgType: msgType as 'delete_subshell_request',
        channel: 'control',
        username: this._own.username,
        session: this._own.clientId,
        content: content as { subshell_id: string }
      }
    );
    const future = this._own.sendControlMessage(message, true, true);
    return new Promise((resolve, reject) => {
      future.onReply = resolve;
      future.done.then(
        () => reject(new Error('there was no reply')),
        () => reject(new Error('the kernel is gone'))
      );
    });
  }

  private readonly _own: Kernel.IKernelConnection;
  private readonly _open: Promise<void>;
  /** Subshells that are being made or deleted. */
  private readonly _pending = new Set<Promise<unknown>>();
  private _closed = false;
}

/** Whether a kernel has left a request undone, as ipykernel does with those behind a cell that fails. */
function isDropped(content: { readonly status: string }): boolean {
  return content.status === 'aborted' || content.status === 'abort';
}

/** The expression's text in a reply. */
function textOf(content: KernelMessage.IExecuteReplyMsg['content']): string {
  if (content.status !== 'ok') {
    throw new Error(content.status === 'error' ? content.evalue : `the kernel's answer is ${content.status}`);
  }
  const shown = content.user_expressions?.[KEY] as
    { status: 'ok'; data: Record<string, unknown> } | { status: 'error'; ename?: string; evalue?: string } | undefined;
  if (shown === undefined) {
    throw new Error('the kernel answers no expressions');
  }
  if (shown.status !== 'ok') {
    throw new Error(`${shown.ename ?? 'Error'}: ${shown.evalue ?? ''}`);
  }
  return String(shown.data['text/plain']);
}

/** Wait until a connection is there: what is sent before waits for the kernel's info, and so for a cell that runs. */
function connected(connection: Kernel.IKernelConnection): Promise<void> {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (connection.connectionStatus === 'connected') {
        connection.connectionStatusChanged.disconnect(look);
        resolve();
      }
    };
    connection.connectionStatusChanged.connect(look);
    connection.disposed.connect(() => reject(new Error('the kernel is gone')));
    look();
  });
}

function pause(milliseconds: number): Promise<void> {
  return new Promise(resolve => window.setTimeout(resolve, milliseconds));
}

/** What a promise gives; null when it fails or takes longer. */
async function soon<T>(promise: Promise<T>, patience: number): Promise<T | null> {
  let timer = 0;
  const timeout = new Promise<null>(resolve => {
    timer = window.setTimeout(() => resolve(null), patience);
  });
  try {
    return await Promise.race([promise.catch(() => null), timeout]);
  } finally {
    window.clearTimeout(timer);
  }
}
