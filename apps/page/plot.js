// A value over the last half minute, with uPlot.
import { html, useEffect, useRef } from "./html.js";

const HEIGHT = 60, SECONDS = 30;

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** value(sample): what is drawn, divided by `scale`. limit: a dashed line, in the same unit. */
export function Plot({ instrument, value, limit, label, scale }) {
  const place = useRef(null), drawn = useRef({ value, limit });
  drawn.current = { value, limit };
  useEffect(() => {
    let plot = null;
    const data = () => {
      const { samples } = instrument, last = samples.at(-1)?.at ?? 0;
      const times = samples.map((sample) => sample.at - last);
      const line = drawn.current.limit ? drawn.current.limit / scale : null;
      return [times, samples.map((sample) => drawn.current.value(sample) / scale), times.map(() => line)];
    };
    const make = () => {
      plot?.destroy();
      plot = new uPlot(options(place.current.clientWidth || 300), data(), place.current);
    };
    const resized = new ResizeObserver(() => {
      const width = place.current?.clientWidth;
      if (plot && width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    });
    make();
    resized.observe(place.current);
    addEventListener("themechange", make);
    const leave = instrument.follow(() => plot.setData(data()));
    return () => {
      leave();
      removeEventListener("themechange", make);
      resized.disconnect();
      plot.destroy();
    };
  }, [instrument]);
  return html`<div class="plot" ref=${place} role="img" aria-label=${label}></div>`;
}

function options(width) {
  const font = `10px ${ink("--sans")}`;
  const grid = { stroke: ink("--rule"), width: 1 };
  const digits = (value) => value.toFixed(value && value < 10 ? 1 : 0);
  return {
    width, height: HEIGHT, pxAlign: 1, padding: [7, 0, 6, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: false, range: () => [-SECONDS, 0] },
      y: { range: (_plot, _low, high) => [0, high > 0 ? 1.12 * high : 1] },
    },
    axes: [
      { show: false },
      { stroke: ink("--faint"), font, grid, ticks: { show: false }, gap: 4, size: 30, space: 20,
        values: (_plot, values) => values.map(digits) },
    ],
    series: [
      {},
      { stroke: ink("--accent"), width: 1.5, fill: ink("--accent-wash"), points: { show: false } },
      { stroke: ink("--soft"), width: 1, dash: [3, 3], points: { show: false } },
    ],
  };
}
