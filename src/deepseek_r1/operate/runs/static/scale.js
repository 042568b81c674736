// Numbers for charts: smoothing, thinning, axes and their ticks. As in charts.py, which draws the report.

const MOST_POINTS = 600;

/** The exponential moving average, unbiased from the start; NaN stays NaN and doesn't count. */
export function smoothed(values, weight) {
  let total = 0;
  let norm = 0;
  return values.map((value) => {
    if (Number.isNaN(value)) return value;
    total = total * weight + value;
    norm = norm * weight + 1;
    return total / norm;
  });
}

/** Indexes of at most about MOST_POINTS values that keep every peak. */
export function thinned(values) {
  if (values.length <= MOST_POINTS) return values.map((_, index) => index);
  const groups = MOST_POINTS / 2;
  const kept = [];
  for (let group = 0; group < groups; group++) {
    const begin = Math.floor((group * values.length) / groups);
    const end = Math.floor(((group + 1) * values.length) / groups);
    let least = begin;
    let greatest = begin;
    for (let index = begin + 1; index < end; index++) {
      if (values[index] < values[least] || Number.isNaN(values[least])) least = index;
      if (values[index] > values[greatest] || Number.isNaN(values[greatest])) greatest = index;
    }
    kept.push(Math.min(least, greatest));
    if (least !== greatest) kept.push(Math.max(least, greatest));
  }
  return kept;
}

function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5].map((factor) => factor * power).find((step) => step >= least * (1 - 1e-9)) ?? 10 * power;
}

/** At most `most` + 1 round numbers from low to high. */
export function ticks(low, high, most = 5) {
  const step = roundStep((high - low) / most);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.min(Math.floor(high / step + 1e-9), first + most);
  const found = [];
  for (let index = first; index <= last; index++) found.push(index * step);
  return found;
}

/** A tick's words, with as many digits as tell it from one that is `step` away. */
export function label(value, step) {
  if (value === 0) return "0";
  const size = Math.max(Math.abs(value), Math.abs(step));
  const digits = (number) => Math.min(8, Math.max(0, number));
  const place = Math.floor(Math.log10(step) + 1e-9);
  if (size >= 1e-4 && size < 1e7) {
    const decimals = digits(-place);
    return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  }
  return value.toExponential(digits(Math.floor(Math.log10(size) + 1e-9) - place));
}

/** A value as people read it. */
export function words(value) {
  return Number.isNaN(value) ? "no value" : String(Number(value.toPrecision(6)));
}

/** An axis from low to high: place(value), and ticks() as [place, words]. */
export function axis(low, high, begin, end, logarithmic = false, pad = 0) {
  const of = logarithmic ? Math.log10 : (value) => value;
  low = of(low);
  high = of(high);
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high), 1e-290)) {
    const room = Math.abs(low) / 10 || 1; // a level line is drawn in the middle
    low -= room;
    high += room;
  }
  const room = (high - low) * pad;
  low -= room;
  high += room;
  const at = (number) => begin + ((number - low) / (high - low)) * (end - begin);
  const place = (value) => at(of(value));
  return {
    place,
    ticks() {
      if (logarithmic && Math.floor(high) > Math.ceil(low)) {
        const count = Math.floor(high) - Math.ceil(low) + 1;
        const found = [];
        for (let power = Math.ceil(low); power <= Math.floor(high); power += Math.ceil(count / 6)) {
          found.push([at(power), power > -5 && power < 6 ? words(10 ** power) : `1e${power}`]);
        }
        return found;
      }
      const found = logarithmic ? ticks(10 ** low, 10 ** high).filter((value) => value > 0) : ticks(low, high);
      const step = found.length > 1 ? found[1] - found[0] : Math.abs(found[0]) || 1;
      return found.map((value) => [place(value), label(value, step)]);
    },
  };
}
