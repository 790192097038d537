"use strict";
// Draws what the server tells. Text from the store goes into the page as text, never as markup; the one exception is
// the graph of a pipeline, which the server draws and escapes.

const SVG = "http://www.w3.org/2000/svg";
const CATEGORIES = ["productive", "data wait", "checkpoint", "evaluation", "lost work", "start", "recovery",
  "capacity wait", "down", "other"];
const KINDS = ["pipeline", "pretrain", "adapt", "distill", "curate", "evaluate", "export"];
const POLL_MS = 4000;
const main = document.getElementById("main");
const fresh = document.getElementById("fresh");
let shown = null;
let turn = 0;
let timer = null;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

function seconds(exact) {
  const value = Math.round(exact);
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.floor(value / 60)}:${String(value % 60).padStart(2, "0")} min`;
  return `${Math.floor(value / 3600)}:${String(Math.floor(value / 60) % 60).padStart(2, "0")} h`;
}

function section(title, ...children) {
  return element("section", {}, element("h2", {}, title), ...children);
}

function table(head, rows) {
  return element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", {}, name)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell)))))));
}

function numbers(pairs) {
  return element("dl", { class: "numbers" }, ...pairs.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

// A curve over steps, with its range written beside it; dots where there are only a few values.
function chart(title, points) {
  const known = points.filter(([, y]) => y !== null && y !== undefined);
  if (!known.length) return null;
  const width = 460, height = 190, left = 52, right = 10, top = 12, bottom = 24;
  const xs = known.map(([x]) => x), ys = known.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => left + (width - left - right) * (x1 > x0 ? (value - x0) / (x1 - x0) : 0.5);
  const y = (value) => height - bottom - (height - top - bottom) * (y1 > y0 ? (value - y0) / (y1 - y0) : 0.5);
  const drawn = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const share of [0, 0.5, 1]) {
    const value = y0 + share * (y1 - y0);
    drawn.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    drawn.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  drawn.append(shape("text", { x: left, y: height - 6 }, `step ${x0.toLocaleString("en")}`));
  drawn.append(shape("text", { x: width - right, y: height - 6, "text-anchor": "end" }, x1.toLocaleString("en")));
  drawn.append(shape("polyline", { class: "curve", points: known.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
  if (known.length < 20) for (const [a, b] of known) drawn.append(shape("circle", { class: "dot", cx: x(a), cy: y(b), r: 2.6 }));
  return element("div", { class: "chart" }, element("h2", {}, `${title}: ${number(ys[ys.length - 1], 4)}`), drawn);
}

// What each moment was spent on, how many workers there were, and what interrupted them.
function timeline(run) {
  if (!run.spans.length) return null;
  const width = 960, bar = 26, line = 78, height = 150, begin = run.spans[0].begin;
  const length = Math.max(1e-9, run.spans[run.spans.length - 1].end - begin);
  const x = (at) => width * (at - begin) / length;
  const most = Math.max(1, ...run.spans.map((span) => span.workers || 0));
  const drawn = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "timeline" });
  let steps = "";
  for (const span of run.spans) {
    const kind = CATEGORIES.indexOf(span.category);
    const box = shape("rect", { class: `c${kind}`, x: x(span.begin), y: 4, height: bar,
      width: Math.max(0.6, x(span.end) - x(span.begin)) });
    box.append(shape("title", {}, `mostly ${span.category}, ${seconds(span.end - span.begin)}`));
    drawn.append(box);
    const y = 44 + line * (1 - (span.workers || 0) / most);
    steps += `${steps ? "L" : "M"}${x(span.begin)} ${y} L${x(span.end)} ${y} `;
  }
  drawn.append(shape("path", { class: "workers", d: steps }));
  drawn.append(shape("text", { x: 2, y: 42 }, `workers, up to ${most}`));
  for (const each of run.interruptions) {
    const mark = shape("line", { class: "fault", x1: x(each.at), x2: x(each.at), y1: 0, y2: 44 + line });
    mark.append(shape("title", {}, each.cause));
    drawn.append(mark);
  }
  drawn.append(shape("text", { x: 0, y: height - 4 }, new Date(begin * 1000).toISOString().slice(0, 19) + " UTC"));
  drawn.append(shape("text", { x: width, y: height - 4, "text-anchor": "end" }, `after ${seconds(length)}`));
  const used = Object.entries(run.seconds).sort((a, b) => b[1] - a[1]);
  const legend = element("ul", { class: "legend" }, ...used.map(([name, spent]) => element("li", {},
    element("i", { class: `c${CATEGORIES.indexOf(name)}` }), `${name} ${seconds(spent)}`)));
  return section("Timeline", element("div", { class: "timeline" }, drawn), legend);
}

function state(job) {
  return element("span", { class: `state-${job.state}` }, job.state + (job.why ? `: ${job.why}` : ""));
}

function link(kind, name) {
  return element("a", { href: `#${kind}/${encodeURIComponent(name)}` }, name);
}

function home(told) {
  document.getElementById("root").textContent = told.root;
  if (!told.jobs.length) return [element("p", { class: "quiet" }, "Nothing was run or submitted below this root yet.")];
  return KINDS.map((kind) => [kind, told.jobs.filter((job) => job.kind === kind)])
    .filter(([, jobs]) => jobs.length)
    .map(([kind, jobs]) => section(kind, table(["name", "state", "submission"],
      jobs.map((job) => [link(job.kind, job.name), state(job), job.submission_id || ""]))));
}

function run(job) {
  const heard = job.spans.length ? Date.now() / 1000 - job.spans[job.spans.length - 1].end : 0;
  const of = (name) => job.curve.map((point) => [point.step, point[name]]);
  return [
    section("Now", numbers([
      ["step", `${job.step.toLocaleString("en")} / ${job.steps.toLocaleString("en")}`],
      ["loss", number(job.loss, 4)], ["images/s", number(job.images_per_s)],
      ["goodput", job.goodput === null ? "–" : `${Math.round(100 * job.goodput)} %`],
      ["interruptions", String(job.interruptions.length)], ["worker hours", number(job.worker_hours)],
      ...(job.cost === null ? [] : [["cost so far", number(job.cost, 4)]]),
    ]), job.state === "finished" ? null : element("p", { class: "quiet" }, `last sign of life ${seconds(heard)} ago`)),
    section("Curves", element("div", { class: "charts" }, chart("loss", of("loss")),
      chart("images per second", of("images_per_s")), chart("k-NN accuracy", of("knn_top1")))),
    timeline(job),
    job.interruptions.length ? section("Interruptions", table(["when (UTC)", "cause", "steps lost", "to the next step"],
      job.interruptions.map((each) => [new Date(each.at * 1000).toISOString().slice(0, 19).replace("T", " "), each.cause,
        each.steps_lost === null ? "not known" : String(each.steps_lost),
        each.to_next_step_s === null ? "–" : seconds(each.to_next_step_s)]))) : null,
    section("Latest events", element("pre", {}, job.events.slice().reverse().map((event) => {
      const { time_utc, type, attempt, rank, ...rest } = event;
      return `${time_utc.slice(0, 19)}  ${type}  ${JSON.stringify(rest)}`;
    }).join("\n"))),
  ];
}

function pipeline(job) {
  const graph = element("div", { class: "scroll" });
  graph.innerHTML = job.graph;
  return [section("Stages", graph), section("In words", table(["stage", "state", "tries", "time", "waits for", "why"],
    job.stages.map((stage) => [link(stage.kind, stage.job), element("span", { class: `state-${stage.phase}` }, stage.phase),
      String(stage.tries), stage.took_s === null ? "–" : seconds(stage.took_s), stage.after.join(", "), stage.why])))];
}

function details(job) {
  const parts = [element("h1", {}, job.name), element("p", { class: "quiet" }, `${job.kind} · `, state(job))];
  if (job.reports.length) {
    parts.push(section("Reports", ...job.reports.map((key) => element("p", {},
      element("a", { href: `/reports/${job.kind}/${encodeURIComponent(job.name)}/${key.split("/").map(encodeURIComponent).join("/")}` }, key)))));
  }
  if (job.curve) parts.push(...run(job));
  else if (job.stages) parts.push(...pipeline(job));
  else if (job.result) parts.push(section("Result", element("pre", {}, JSON.stringify(job.result, null, 1).slice(0, 20000))));
  parts.push(...job.datasets.map((name) => element("section", { "data-samples": name }, element("h2", {}, `Images of ${name}`))));
  return parts;
}

async function ask(path) {
  const answer = await fetch(path);
  if (!(answer.headers.get("Content-Type") || "").startsWith("application/json")) throw new Error("no answer of ours");
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

async function samples() {
  for (const place of main.querySelectorAll("[data-samples]:not([data-filled])")) {
    place.dataset.filled = "asked";
    try {
      const told = await ask(`/api/datasets/${encodeURIComponent(place.dataset.samples)}/samples`);
      place.append(element("div", { class: "tiles" }, ...told.tiles.map((tile) => element("figure", {},
        element("img", { src: tile.src, alt: tile.source, loading: "lazy" }), tile.label))));
    } catch (error) {
      place.append(element("p", { class: "quiet" }, error.message));
    }
  }
}

function wantedPage() {
  let wanted = "";
  try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { return { wanted, path: "/api/jobs", name: "" }; }
  const [kind, ...rest] = wanted.split("/");
  const name = rest.join("/");
  if (!wanted || !KINDS.includes(kind)) return { wanted: "", path: "/api/jobs", name: "" };
  return { wanted, path: `/api/jobs/${kind}/${encodeURIComponent(name)}`, name };
}

// One look at a time; an answer that comes after another page was asked for is not shown.
async function draw() {
  const mine = ++turn;
  clearTimeout(timer);
  const { wanted, path, name } = wantedPage();
  try {
    const told = await ask(path);
    if (mine !== turn) return;
    const kept = shown === wanted ? [...main.querySelectorAll("[data-samples]")] : [];
    const parts = (wanted ? details(told) : home(told)).filter((part) => part !== null);
    main.replaceChildren(...parts.map((part) =>
      kept.find((old) => part.dataset.samples && old.dataset.samples === part.dataset.samples) || part));
    fresh.textContent = `as of ${new Date().toLocaleTimeString()}`;
    fresh.className = "";
    document.title = wanted ? `${name} – Heliostat` : "Heliostat";
    shown = wanted;
    await samples();
    document.body.dataset.drawn = wanted || "home";
  } catch (error) {
    if (mine !== turn) return;
    fresh.textContent = `not up to date: ${error.message}`;
    fresh.className = "stale";
    if (shown !== wanted) main.replaceChildren(element("p", { class: "quiet" }, error.message));
  }
  if (mine === turn) timer = setTimeout(later, POLL_MS);
}

function later() {
  if (document.hidden) timer = setTimeout(later, POLL_MS);
  else draw();
}

history.replaceState(null, "", `/${location.hash}`); // the token is in a cookie by now
window.addEventListener("hashchange", draw);
draw();
