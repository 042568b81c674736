// Watches whether the server can answer: polls /ready, every 2 s while all is well or the engine restarts, and with
// growing pauses while nobody answers.

const PERIOD_MS = 2000;
const LONGEST_MS = 15000;
const TIMEOUT_MS = 5000;

export class Health extends EventTarget {
  constructor() {
    super();
    this.state = "unknown"; // "ready" | "starting" (it answers, but tokens can't move yet) | "gone"
    this.reason = "";
    this.nextAt = 0; // when the next try is due, in performance.now() milliseconds
    this.failures = 0;
    this.timer = 0;
    this.running = null;
    this.recheck = () => document.visibilityState === "visible" && this.check();
    document.addEventListener("visibilitychange", this.recheck);
    window.addEventListener("online", this.recheck);
  }

  /** Ask now; the state after it. Calls that overlap share one request. */
  check() {
    this.running ??= this.poll().finally(() => (this.running = null));
    return this.running;
  }

  async poll() {
    clearTimeout(this.timer);
    let [state, reason] = ["gone", ""];
    let patient = false;
    try {
      const response = await fetch("/ready", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
      state = response.ok ? "ready" : "starting";
      if (!response.ok) reason = await reasonOf(response);
    } catch (error) {
      // one late answer may just be a busy machine; two are a fact
      patient = error.name === "TimeoutError" && this.failures === 0 && this.state !== "unknown";
    }
    this.failures = state === "gone" ? this.failures + 1 : 0;
    const pause = state === "gone" ? Math.min(PERIOD_MS * 1.5 ** (this.failures - 1), LONGEST_MS) : PERIOD_MS;
    this.nextAt = performance.now() + pause;
    this.timer = setTimeout(() => this.check(), pause);
    if (!patient) this.become(state, reason);
    return this.state;
  }

  become(state, reason) {
    if (state === this.state && reason === this.reason) return;
    const before = this.state;
    [this.state, this.reason] = [state, reason];
    this.dispatchEvent(new CustomEvent("change", { detail: { state, before, reason } }));
  }
}

async function reasonOf(response) {
  try {
    const body = await response.json();
    const reason = body?.error?.message ?? body?.message ?? body?.detail ?? body?.reason ?? "";
    return typeof reason === "string" ? reason : "";
  } catch {
    return ""; // a 503 without JSON, for example of a proxy, says enough by itself
  }
}
