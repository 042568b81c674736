// The curves of a run: the numbers that came so far, and a chart of each.
import { el, svg } from "./dom.js";
import { axis, smoothed, thinned, words } from "./scale.js";

const WIDTH = 560;
const HEIGHT = 260;
const LEFT = 76;
const RIGHT = WIDTH - 16;
const TOP = 14;
const BOTTOM = HEIGHT - 28;
const LEAST_LOGARITHMIC = 1e-300;

/** Numbers by name: ascending steps, and a value (or NaN) at each. */
export class Store {
  constructor() {
    this.curves = new Map();
    this.step = -1;
  }

  /** Take one row. A step that isn't after the last one replaces what was from there on. */
  add({ step, ...row }) {
    if (step <= this.step) {
      for (const curve of this.curves.values()) {
        while (curve.steps.length && curve.steps.at(-1) >= step) {
          curve.steps.pop();
          curve.values.pop();
        }
      }
    }
    this.step = step;
    for (const [name, value] of Object.entries(row)) {
      if (!this.curves.has(name)) this.curves.set(name, { steps: [], values: [] });
      const curve = this.curves.get(name);
      curve.steps.push(step);
      curve.values.push(value ?? NaN);
    }
  }
}

/** One chart: raw values, a smoothed line over them, and a marker that pointer and arrow keys move. */
export class Chart {
  constructor(name) {
    this.name = name;
    this.marked = null; // index of the value that is read out; null: the last one
    this.readout = el("output", { "aria-live": "off" });
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0" });
    this.node = el("figure", { "data-name": name }, el("figcaption", {}, name, this.readout), this.drawing);
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.mark(null));
    this.drawing.addEventListener("blur", () => this.mark(null));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
  }

  /** Draw a curve of the store. */
  draw({ steps, values }, smoothing, logarithmic) {
    this.steps = steps;
    this.values = logarithmic ? values.map((value) => (value >= LEAST_LOGARITHMIC ? value : NaN)) : values;
    this.drawing.replaceChildren();
    let low = Infinity;
    let high = -Infinity;
    for (const value of this.values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    this.across = null;
    if (low <= high) {
      this.across = axis(steps[0], steps.at(-1), LEFT, RIGHT);
      this.up = axis(low, high, BOTTOM, TOP, logarithmic, 0.05);
      this.grid();
      this.line(this.values, smoothing > 0 ? "raw" : "smooth");
      if (smoothing > 0) this.line(smoothed(this.values, smoothing), "smooth");
    } else {
      this.drawing.append(svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no values to draw"));
    }
    this.marker = svg("path", { class: "marker" });
    this.drawing.append(this.marker);
    this.mark(this.marked);
  }

  grid() {
    for (const [y, text] of this.up.ticks()) {
      this.drawing.append(svg("path", { d: `M${LEFT} ${y.toFixed(1)}H${RIGHT}`, class: "grid" }));
      this.drawing.append(svg("text", { x: LEFT - 8, y: (y + 4).toFixed(1), "text-anchor": "end" }, text));
    }
    for (const [x, text] of this.across.ticks()) {
      if (text.includes(".")) continue; // between two steps
      this.drawing.append(svg("text", { x: x.toFixed(1), y: BOTTOM + 18, "text-anchor": "middle" }, text));
    }
    this.drawing.append(svg("path", { d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}` }));
  }

  /** A path with gaps where there is no value; a value between two gaps is a dot. */
  line(values, style) {
    const parts = [[]];
    for (const index of thinned(values)) {
      if (Number.isNaN(values[index])) parts.push([]);
      else parts.at(-1).push([this.across.place(this.steps[index]).toFixed(1), this.up.place(values[index]).toFixed(1)]);
    }
    const lines = parts.filter((part) => part.length > 1).map((part) => `M${part.map((point) => point.join(" ")).join("L")}`);
    this.drawing.append(svg("path", { d: lines.join(""), class: style }));
    for (const [[cx, cy]] of parts.filter((part) => part.length === 1)) {
      this.drawing.append(svg("circle", { cx, cy, r: 2, class: "dot" }));
    }
  }

  /** Read out the value at an index, or the last one. */
  mark(index) {
    this.marked = index === null ? null : Math.max(0, Math.min(index, this.steps.length - 1));
    const shown = this.marked ?? this.steps.length - 1;
    const text = shown < 0 ? "" : `${words(this.values[shown])} at step ${this.steps[shown].toLocaleString("en")}`;
    this.readout.textContent = text;
    this.readout.setAttribute("aria-live", this.marked === null ? "off" : "polite");
    this.drawing.setAttribute("aria-label", `${this.name}: ${text}. Arrow keys read out other steps.`);
    const marked = this.across && this.marked !== null;
    this.marker.setAttribute("d", marked ? `M${this.across.place(this.steps[shown]).toFixed(1)} ${TOP}V${BOTTOM}` : "");
  }

  point(event) {
    const box = this.drawing.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (RIGHT - LEFT);
    const wanted = this.steps[0] + share * (this.steps.at(-1) - this.steps[0]);
    let low = 0;
    let high = this.steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle] < wanted) low = middle + 1;
      else high = middle;
    }
    if (low > 0 && wanted - this.steps[low - 1] < this.steps[low] - wanted) low -= 1;
    this.mark(low);
  }

  key(event) {
    const last = this.steps.length - 1;
    const at = this.marked ?? last;
    const page = Math.max(1, Math.round(last / 20));
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - page, PageDown: at + page, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.mark(moves[event.key]);
  }
}
