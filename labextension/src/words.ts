/** Values as people read them. */

/** How long something has been so, in one unit: `7 s`, `3 min`, `2 h`, `5 d`. */
export function age(seconds: number): string {
  const units: [number, string][] = [
    [86_400, 'd'],
    [3_600, 'h'],
    [60, 'min']
  ];
  for (const [size, unit] of units) {
    if (seconds >= size) {
      return `${Math.floor(seconds / size)} ${unit}`;
    }
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

/** Bytes: `12 KiB`, `120 MiB`, `3.0 GiB`. */
export function size(bytes: number): string {
  if (bytes >= 2 ** 30) {
    return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  }
  if (bytes >= 2 ** 20) {
    return `${Math.round(bytes / 2 ** 20)} MiB`;
  }
  return `${Math.ceil(bytes / 1024)} KiB`;
}

/** A number of things: `no calls`, `1 call`, `3 calls`. */
export function count(number: number, noun: string): string {
  return `${number || 'no'} ${noun}${number === 1 ? '' : 's'}`;
}

/** How a state looks: good, bad, or under way. */
export function look(state: string): 'good' | 'bad' | 'plain' | 'busy' {
  switch (state) {
    case 'ready':
    case 'running':
    case 'done':
      return 'good';
    case 'failed':
    case 'no answer':
      return 'bad';
    case 'cancelled':
    case 'stopped':
      return 'plain';
    default:
      return 'busy';
  }
}
