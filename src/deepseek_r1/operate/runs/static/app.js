// Puts the page together: its tabs, and the questions it asks the run's folder every second.
import { Chart, Store } from "./curves.js";
import { el, pairs, table } from "./dom.js";
import { Rollouts } from "./rollouts.js";

const EVERY_MS = 1000;
const TABS = ["curves", "rollouts", "evaluation", "settings"];
const find = (id) => document.getElementById(id);

const rollouts = new Rollouts();
const charts = new Map();
let store = new Store();
let next = 0;
let stale = true;
let shown = "curves";

// --- tabs ------------------------------------------------------------------------------------------------------------

function show(name, focus = false) {
  shown = name;
  for (const each of TABS) {
    const tab = find(`tab-${each}`);
    find(each).hidden = each !== name;
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    if (focus && each === name) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  if (name === "curves") draw();
  if (name === "rollouts") rollouts.load();
}

for (const [place, name] of TABS.entries()) {
  find(`tab-${name}`).addEventListener("click", () => show(name));
  find(`tab-${name}`).addEventListener("keydown", (event) => {
    const places = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: TABS.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    show(TABS.at(places[event.key] % TABS.length), true);
  });
}

const fromAddress = () => (TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "curves");
window.addEventListener("hashchange", () => show(fromAddress()));

// --- curves ----------------------------------------------------------------------------------------------------------

/** Read the steps that were written since; true if more are waiting. */
async function readSteps() {
  const answer = await fetch(`/metrics.jsonl?from=${next}`);
  if (!answer.ok) throw new Error((await answer.json()).error);
  const start = Number(answer.headers.get("Run-From"));
  const text = await answer.text();
  if (start !== next) store = new Store(); // the run was taken back to an earlier step
  const lines = text.split("\n").filter(Boolean);
  for (const line of lines) store.add(JSON.parse(line));
  stale ||= lines.length > 0 || start !== next;
  next = Number(answer.headers.get("Run-Next"));
  return next > start;
}

function draw() {
  if (!stale || shown !== "curves") return;
  stale = false;
  find("no-curves").hidden = store.curves.size > 0;
  for (const [name, chart] of charts) {
    if (store.curves.has(name)) continue;
    chart.node.remove();
    charts.delete(name);
  }
  for (const [name, curve] of store.curves) {
    if (!charts.has(name)) {
      charts.set(name, new Chart(name));
      find("charts").append(charts.get(name).node);
    }
    charts.get(name).draw(curve, Number(find("smoothing").value), find("logarithmic").checked);
  }
}

for (const id of ["smoothing", "logarithmic"]) {
  find(id).addEventListener("input", () => {
    stale = true;
    draw();
  });
}

// --- the rest --------------------------------------------------------------------------------------------------------

/** Replace the content of a node where it has changed: what is selected or scrolled there stays. */
function fill(id, content, make) {
  const key = JSON.stringify(content);
  if (find(id).dataset.content === key) return;
  find(id).dataset.content = key;
  find(id).replaceChildren(...make(content));
}

async function readRun() {
  const answer = await fetch("/run.json");
  const run = await answer.json();
  if (!answer.ok) throw new Error(run.error);
  document.title = `${run.name} · deepseek-r1`;
  find("name").textContent = run.name;
  const ago = run.age === null ? "" : `, last step written ${age(run.age)} ago`;
  setState("ready", run.status ?? "no run.json");
  const steps = run.steps === null ? "" : ` of ${run.steps.toLocaleString("en")}`;
  const written = run.status === "running" ? ago : "";
  find("progress").textContent = store.step < 0 ? "no step yet" : `step ${store.step.toLocaleString("en")}${steps}${written}`;
  fill("problems", run.problems, (problems) => problems.map((words) => el("p", { class: "problem" }, words)));
  fill("evaluation", run.evaluation, ({ header, rows }) =>
    rows.length ? [table(header, rows)] : [el("p", {}, "There is no evaluation yet.")]);
  fill("settings", [run.run, run.data], ([settings, data]) => [
    el("h2", {}, "Run"),
    pairs(settings),
    ...(data.length ? [el("h2", {}, "Data"), pairs(data)] : []),
  ]);
}

function age(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function setState(state, label) {
  find("state").dataset.state = state;
  if (find("state-label").textContent !== label) find("state-label").textContent = label;
}

async function update() {
  try {
    while (await readSteps());
    draw();
    await readRun();
    if (shown === "rollouts") await rollouts.poll();
  } catch (error) {
    const gone = error instanceof TypeError; // what fetch throws where nobody answers
    setState("gone", gone ? "The page's server has ended" : error.message);
  }
  setTimeout(update, EVERY_MS);
}

show(fromAddress());
update();
