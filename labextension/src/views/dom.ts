/** Elements, made and kept up to date: only what differs is written, so that focus, selection and scrolling stay. */

type Child = Node | string;

export interface IProperties {
  readonly class?: string;
  readonly id?: string;
  readonly text?: string;
  readonly title?: string;
  readonly onClick?: () => void;
  /** `role`, `aria-…`, `tabindex`. */
  readonly [attribute: `aria-${string}`]: string | undefined;
  readonly role?: string;
  readonly tabindex?: string;
}

/** An element. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: IProperties = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties) as [string, unknown][]) {
    if (typeof value === 'function') {
      made.addEventListener('click', value as () => void);
    } else if (name === 'text') {
      made.textContent = value as string;
    } else if (value !== undefined) {
      made.setAttribute(name, value as string);
    }
  }
  made.append(...children);
  return made;
}

/** A button that says what it does. */
export function button(text: string, onClick: () => void, look = ''): HTMLButtonElement {
  const made = element('button', { class: `kt-Button ${look}`.trim(), text, onClick });
  made.type = 'button';
  return made;
}

/** Show a text, if it isn't shown already. */
export function setText(node: HTMLElement, text: string): void {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

/** Set an attribute, or take it away (null). */
export function setAttribute(node: Element, name: string, value: string | null): void {
  if (value === null) {
    node.removeAttribute(name);
  } else if (node.getAttribute(name) !== value) {
    node.setAttribute(name, value);
  }
}

/** Show or hide. */
export function show(node: HTMLElement, shown: boolean): void {
  if (node.hidden === shown) {
    node.hidden = !shown;
  }
}

/** Rows with keys, in an order; those that stay are kept. */
export class Rows<T, V extends { readonly node: HTMLElement }> {
  constructor(
    private readonly parent: HTMLElement,
    private readonly key: (item: T) => string,
    private readonly make: (item: T) => V,
    private readonly update: (view: V, item: T) => void
  ) {}

  set(items: readonly T[]): void {
    const keys = new Set(items.map(this.key));
    for (const [key, view] of this._views) {
      if (!keys.has(key)) {
        view.node.remove();
        this._views.delete(key);
      }
    }
    let next = this.parent.firstElementChild;
    for (const item of items) {
      const key = this.key(item);
      let view = this._views.get(key);
      if (view === undefined) {
        view = this.make(item);
        this._views.set(key, view);
      }
      this.update(view, item);
      if (view.node === next) {
        next = next.nextElementSibling;
      } else {
        this.parent.insertBefore(view.node, next);
      }
    }
  }

  get(key: string): V | undefined {
    return this._views.get(key);
  }

  private readonly _views = new Map<string, V>();
}
