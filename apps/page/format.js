// Numbers as they are shown. Sizes are in MiB, powers of 1024, as everywhere in edgert.

const MIB = 1 << 20;

export const mib = (bytes) => {
  const size = bytes / MIB;
  return size >= 100 || size === 0 ? size.toFixed(0) : size.toFixed(1);
};

export const wholeMib = (bytes) => Math.round(bytes / MIB);

export const fromMib = (count) => count * MIB;

/** Tokens per second, or whatever has about three digits that count. */
export const rate = (value) => {
  if (!Number.isFinite(value) || value <= 0) return "0";
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
};

export const gigabytes = (bytes) => (bytes / 1e9).toFixed(2);

/** The size of a file, in powers of 1000 as downloads have it. */
export const megabytes = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB`
  : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`);

export const percent = (share) => `${Math.round(100 * share)}\u2009%`;

export const tenths = (share) => `${(100 * share).toFixed(1)}\u2009%`;

export const seconds = (value) => (value < 10 ? `${value.toFixed(1)}\u2009s` : `${value.toFixed(0)}\u2009s`);

export const when = (time) => {
  const date = new Date(time);
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false })
    : date.toLocaleDateString([], { day: "numeric", month: "short" });
};
