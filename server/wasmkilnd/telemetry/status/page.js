// Asks the daemon how it is every two seconds while somebody looks, keeps the last minutes, and
// draws them. Whatever comes from the daemon is put into the page as text, never as markup.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 10000;
const WINDOWS_S = [300, 900];
const COLUMNS = 60;
const LATEST = 3; // columns that stand for now: the very last may have begun just now
const SHOWN = 12; // recent compiles that are shown at once
const NONE = "\u2013";
// Where artifacts come from, the fastest first: name and colour. The first three are hits.
const ORIGINS = {
  memory: ["memory", "c1"],
  host_store: ["host store", "c2"],
  redis: ["Redis", "c3"],
  joined_flight: ["joined a compile", "c4"],
  compiled: ["compiled", "c5"],
};
const FROM = Object.keys(ORIGINS);
const TIERS = { memory: "Memory", host_store: "Host store", redis: "Redis" };

const byId = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
// Protobuf's JSON leaves zeros out, and writes large numbers and durations as text.
const num = (value) => parseFloat(value) || 0;

// Words: bytes, durations and counts as people read them.

const grouped = (value) => Math.round(value).toLocaleString("en");
const short = (value) =>
  value >= 100 ? grouped(value) : String(Number(value.toPrecision(value < 10 ? 2 : 3)));
const rate = (perSecond) => `${short(perSecond)}/s`;
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
const ago = (seconds) => (seconds < 1 ? "now" : `${duration(Math.floor(seconds))} ago`);

function size(bytes) {
  const power = bytes < 1 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10));
  return `${short(bytes / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

function count(number) {
  const power = number < 1e5 ? 0 : Math.min(3, Math.floor(Math.log10(number) / 3));
  return power ? `${short(number / 1000 ** power)} ${" kMG"[power]}` : grouped(number);
}

function duration(seconds) {
  const [minutes, hours] = [Math.floor(seconds / 60), Math.floor(seconds / 3600)];
  if (seconds < 0.001) return seconds > 0 ? `${Math.round(seconds * 1e6)} µs` : "0 s";
  if (seconds < 60) return seconds < 1 ? `${short(seconds * 1e3)} ms` : `${short(seconds)} s`;
  if (minutes < 10) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  if (!hours) return `${minutes} min`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

// Never rounded to all or to nothing.
function percent(part) {
  const within = Math.min(99.9, Math.max(0.1, part * 100)).toFixed(1);
  return part > 0 && part < 1 ? `${within} %` : `${part * 100} %`;
}

// Elements. What cannot be printed, or turns text around, becomes a mark.

const plain = (text) => String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");

function fresh(name, attributes, ...children) {
  const space = ["svg", "path", "rect"].includes(name) ? "2000/svg" : "1999/xhtml";
  const made = document.createElementNS(`http://www.w3.org/${space}`, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, plain(value)));
  made.append(...children.flat().map((each) => (each instanceof Node ? each : plain(each))));
  return made;
}

const mark = (level, words) => fresh("span", { class: `mark ${level}` }, words);
const key = (colour) => fresh("i", { class: `key ${colour}`, "aria-hidden": "true" });
const remark = (...children) => fresh("p", { class: "remark" }, ...children);
// A module's digest, cut; the whole of it where the pointer rests.
const digest = (module) =>
  fresh("code", { title: module }, module.slice(0, 16) + (module.length > 16 ? "\u2026" : ""));

function bar(part, label) {
  const width = (100 * Math.min(1, Math.max(0, part))).toFixed(1);
  const box = { viewBox: "0 0 100 8", preserveAspectRatio: "none" };
  return fresh("svg", { ...box, class: "bar", role: "img", "aria-label": label },
    fresh("rect", { class: "track", width: 100, height: 8 }),
    fresh("rect", { class: part > 0.95 ? "fill high" : "fill", width, height: 8 }));
}

// Replace what is in an element, if it changed and nobody reads a digest or selects text there.
function fill(element, children) {
  const next = element.cloneNode(false);
  next.append(...children);
  const selection = document.getSelection();
  const selected = !selection.isCollapsed && selection.containsNode(element, true);
  if (!element.isEqualNode(next) && !selected && !element.querySelector("code:hover")) {
    element.replaceChildren(...next.childNodes);
  }
}

// Fill a table with rows of cells, the first of which is a head; and say a word below it. On a
// narrow screen each cell names its column.
function fillTable(table, rows, remarks) {
  const heads = [...table.tHead.rows[0].cells].map((each) => each.textContent.trim());
  const cell = (inside, at) => at
    ? fresh("td", { "data-head": heads[at] }, fresh("span", {}, inside))
    : fresh("th", { scope: "row" }, inside);
  fill(table.tBodies[0], rows.map((cells) => fresh("tr", {}, ...cells.map(cell))));
  table.hidden = rows.length === 0;
  if (remarks) fill(table.closest("section").querySelector(".remarks"), remarks);
}

// The last minutes: what happened between two answers, and the columns that it adds up to.

const SUMS = ["span", "made", "failed", "took", ...FROM];
const MOST = ["slowest", "queued", "busy", "workers"];
const NOTHING = Object.fromEntries([...SUMS, ...MOST].map((field) => [field, 0]));
let before = null; // what the last answer said
let samples = [];

function add(one, other) {
  const made = { ...one };
  SUMS.forEach((field) => (made[field] += other[field]));
  MOST.forEach((field) => (made[field] = Math.max(one[field], other[field])));
  return made;
}

function remember(told) {
  const { compiles = [], workers = [], started_at } = told.stats;
  const all = (rows, field) => sum(rows.map((each) => num(each[field])));
  const good = compiles.filter((each) => each.outcome === "ok");
  const [at, time_s] = [Date.now() / 1000, told.time_s];
  const now = { ...NOTHING, ...told.served, started_at, at, time_s };
  ["queued", "busy", "workers"].forEach((field) => (now[field] = all(workers, field)));
  now.made = all(good, "count");
  now.failed = all(compiles, "count") - now.made;
  now.took = sum(good.map((each) => num(each.duration.sum)));
  if (before?.started_at === started_at) {
    const recent = told.recent.filter((each) => each.origin === "compiled");
    const latest = recent.filter((each) => each.ended_s > before.time_s);
    const sample = { ...now, span: Math.max(0.001, now.at - before.at) };
    ["made", "failed", "took", ...FROM].forEach((field) => (sample[field] -= before[field]));
    sample.slowest = Math.max(0, ...latest.map((each) => each.took_s));
    samples = [...samples.filter((each) => each.at > now.at - WINDOWS_S.at(-1)), sample];
  } else {
    samples = []; // another daemon, whose counters began anew
  }
  before = now;
}

// Return the shortest window that shows all samples. Columns begin at round times, so that what
// one shows does not change as time goes on; where nothing is known there is none.
function lastMinutes() {
  const age = samples.length ? before.at - samples[0].at + samples[0].span : 0;
  const seconds = WINDOWS_S.find((each) => age <= each) ?? WINDOWS_S.at(-1);
  const step = seconds / COLUMNS;
  const first = Math.floor(before.at / step) - COLUMNS + 1;
  const begins = Array.from({ length: COLUMNS }, (_, at) => (first + at) * step);
  const columns = Array(COLUMNS).fill(null);
  for (const sample of samples) {
    const at = Math.floor((sample.at - sample.span / 2) / step) - first; // where most of it was
    if (at >= 0 && at < COLUMNS) columns[at] = add(columns[at] ?? NOTHING, sample);
  }
  const known = columns.filter(Boolean);
  const latest = known.slice(-LATEST).reduce(add, NOTHING);
  return { seconds, begins, columns, all: known.reduce(add, NOTHING), latest };
}

// Charts

const calls = (column) => sum(FROM.map((each) => column[each]));
const part = (number, whole) => (whole ? number / whole : 0);
// What a chart shows, as an area or as a line: its value in a column of time.
const series = (label, colour, value, line) => ({ label, colour, value, line });
const chart = (name, title, words, all, looks) => ({ name, title, words, series: all, ...looks });
const CHARTS = [
  chart("origins", "Where artifacts come from", percent,
    FROM.map((each) => series(...ORIGINS[each], (now) => part(now[each], calls(now)))),
    { stacked: true }),
  chart("calls", "Calls and compiles per second", rate, [
    series("calls", "c1", (now) => part(calls(now), now.span)),
    series("compiles", "c5", (now) => part(now.made + now.failed, now.span)),
  ]),
  chart("duration", "How long compiles take", duration, [
    series("slowest, with its wait", "c2", (now) => now.slowest),
    series("mean", "c5", (now) => part(now.took, now.made), true),
  ]),
  chart("queue", "Queue and workers", count, [
    series("busy workers", "c2", (now) => now.busy),
    series("queued jobs", "c5", (now) => now.queued, true),
  ], { whole: true }),
];
const [STEP, HIGH] = [600 / COLUMNS, 150];
let minutes = null; // what the charts show
let pointed = null; // the column that somebody looks at, in every chart

function point(column) {
  pointed = column === null ? null : Math.min(COLUMNS - 1, Math.max(0, column));
  if (minutes) CHARTS.forEach(draw);
}

// Build a chart once: later its paths and words change, so that it keeps the keyboard's focus.
function build(chart) {
  chart.figure = byId("chart").content.firstElementChild.cloneNode(true);
  chart.figure.id = `chart-${chart.name}`;
  chart.part = (name) => chart.figure.querySelector(name);
  chart.part("h3").prepend(chart.title);
  chart.paths = chart.series.map((each) =>
    fresh("path", { class: `${each.line ? "line" : "area"} ${each.colour}` }));
  chart.part(".cursor").before(...chart.paths);
  const slider = chart.part(".slider");
  slider.setAttribute("aria-label", `${chart.title}: a moment`);
  slider.addEventListener("pointermove", (moved) => {
    const box = slider.getBoundingClientRect();
    point(Math.floor(((moved.clientX - box.left) / box.width) * COLUMNS));
  });
  slider.addEventListener("keydown", (pressed) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -COLUMNS, End: COLUMNS }[pressed.key];
    if (by) pressed.preventDefault();
    if (by) point((pointed ?? COLUMNS - 1) + by);
  });
  ["pointerleave", "blur"].forEach((end) => slider.addEventListener(end, () => point(null)));
  byId("charts").append(chart.figure);
}

// Return a round number that is not below the value; half of it is round, too.
function roundUp(value, whole) {
  const least = Math.max(value, whole ? 2 : 0) || 1;
  const power = 10 ** Math.floor(Math.log10(least));
  const factors = whole && power === 1 ? [2, 4, 6, 8, 10] : [1, 2, 4, 6, 8, 10];
  return power * factors.find((each) => each * power >= least * 0.999);
}

// Return the steps of a line, or of the area between the series up to this one.
function drawn(chart, number, values, top) {
  const high = (each) => HIGH * Math.min(1, each / top);
  const steps = values.map((each, at) => {
    if (!each) return "";
    const below = chart.stacked ? high(sum(each.slice(0, number))) : 0;
    const [x, y, up] = [at * STEP, HIGH - below, high(each[number])];
    if (chart.series[number].line) return `${values[at - 1] ? "L" : "M"}${x} ${y - up}h${STEP}`;
    return up ? `M${x} ${y}h${STEP}v${-up}h${-STEP}z` : "";
  });
  return steps.join("") || "M0 0";
}

function draw(chart) {
  const { seconds, begins, columns, all, latest } = minutes;
  const values = columns.map((now) => now && chart.series.map((each) => each.value(now)));
  const highest = Math.max(...values.flat(), chart.whole ? all.workers : 0);
  const top = chart.stacked ? 1 : roundUp(highest, chart.whole);
  chart.paths.forEach((path, at) => path.setAttribute("d", drawn(chart, at, values, top)));
  const shown = pointed === null ? (chart.stacked ? all : latest) : columns[pointed];
  const words = chart.series.map((each) => (shown ? chart.words(each.value(shown)) : NONE));
  const when = pointed === null ? "" : clock(begins[pointed]);
  const summary = chart.series.map((each, at) => `${each.label} ${words[at]}`).join(", ");
  chart.part(".when").textContent = when;
  chart.part(".cursor").setAttribute("x", (pointed ?? -1) * STEP);
  chart.part("svg").setAttribute("aria-label", `${chart.title}: ${summary}`);
  chart.part(".slider").setAttribute("aria-valuenow", pointed ?? COLUMNS - 1);
  chart.part(".slider").setAttribute("aria-valuetext", `${when || "now"}: ${summary}`);
  fill(chart.part(".legend"), chart.series.map(({ label, colour }, at) =>
    fresh("li", {}, key(colour), label, fresh("b", {}, words[at]))));
  const axis = (texts) => texts.map((each) => fresh("span", {}, each));
  const height = (each) => chart.words(each * top).replace(".0", "");
  fill(chart.part(".y"), axis([1, 0.5, 0].map(height)));
  fill(chart.part(".x"), axis([`${seconds / 60} min ago`, `${seconds / 120} min`, "now"]));
}

// Sections

function attention(told) {
  const { stats, engines, isolation } = told;
  const quarantined = num(stats.quarantined_modules);
  const open = engines.some((each) => !each.confined);
  const { is_on, up } = told.host_store;
  const line = (level, when, ...words) => (when ? [fresh("li", { class: level }, words)] : []);
  const wrong = [
    line("bad", !told.ready, `The daemon serves no call: ${told.state}.`),
    Object.entries(told.unserved).map(([id, cause]) =>
      line("bad", true, `${id} is not served: ${cause || "the daemon's log says why"}.`)),
    engines.map(({ id, advisories }) =>
      line("warn", advisories.length, id, " has a known vulnerability: see Engines.")),
    line("bad", open && isolation.required, `Jobs are ${isolation.summary}.`),
    line("warn", !stats.redis_up && !told.redis_off, "Redis does not answer",
      stats.redis_detail ? `: ${stats.redis_detail}` : "", ". Calls go on without it."),
    line("warn", is_on && !up, "The host store cannot be used. Calls go on without it."),
    line("warn", told.tls_failures, "Changed TLS files could not be used; the old ones count."),
    told.failed_reloads.map((what) =>
      line("warn", true, `The last reload of the ${what} failed: see the log.`)),
    line("warn", quarantined, count(quarantined),
      quarantined === 1 ? " module is in quarantine." : " modules are in quarantine."),
  ].flat(2);
  return [
    ...wrong,
    ...line("good", !wrong.length, "All is well: every engine is served, and every tier answers."),
    ...line("note", open && !isolation.required,
      `Jobs are ${isolation.summary}. isolation=best-effort allows that.`),
  ];
}

function figures({ stats, served, ...told }, { all }) {
  const [now, ever] = [calls(all), sum(Object.values(served))];
  const hits = now ? sum(FROM.slice(0, 3).map((each) => all[each])) / now : stats.hit_ratio ?? 0;
  const good = (stats.compiles ?? []).filter((each) => each.outcome === "ok" && num(each.count));
  const took = good.sort((one, other) => num(other.count) - num(one.count))[0]?.duration;
  const { queued, busy, workers } = before;
  const wait = told.expected_wait_s;
  const figure = (name, value, more) =>
    fresh("div", {}, fresh("dt", {}, name),
      fresh("dd", {}, fresh("b", {}, value), fresh("small", {}, more)));
  return [
    figure("Hit ratio", ever ? percent(hits) : NONE,
      `of ${count(now || ever)} calls${now ? "" : " since the start"}`),
    figure("Calls", rate(part(now, all.span)), `${count(told.calls)} under way`),
    figure("Compiles", rate(part(all.made + all.failed, all.span)),
      `${count(all.made)} made, ${count(all.failed)} failed`),
    figure("A compile takes", took ? duration(num(took.p50)) : NONE,
      took ? `9 of 10 within ${duration(num(took.p90))}` : "none yet"),
    figure("Queue", count(queued), wait ? `one more would wait ${duration(wait)}` : "nobody waits"),
    figure("Workers busy", `${busy} of ${workers}`, `${count(stats.flights ?? 0)} compiles to do`),
  ];
}

const takes = (took) =>
  num(took?.count) ? `${duration(num(took.p50))}, 99 % ${duration(num(took.p99))}` : NONE;

function tierRow(each, { stats, ...told }) {
  const [used, limit, pinned] = [each.bytes, each.limit_bytes, each.pinned_entries].map(num);
  const off = { redis: told.redis_off, host_store: !told.host_store.is_on }[each.tier];
  const up = { redis: stats.redis_up, host_store: told.host_store.up, memory: true }[each.tier];
  const state = each.tier === "redis" ? `${stats.redis_mode}, up` : "up";
  return [
    TIERS[each.tier],
    off ? mark("quiet", "off") : up ? mark("good", state) : mark("bad", "down"),
    limit ? [bar(used / limit, `${percent(used / limit)} filled`), size(used), ` of ${size(limit)}`]
      : size(used),
    count(num(each.entries)) + (pinned ? `, ${count(pinned)} pinned` : ""),
    ...[each.hits, each.misses, each.errors, each.evictions].map((number) => count(num(number))),
    takes(each.get_latency),
  ];
}

function tierRemark({ stats, host_store: host, namespaces }) {
  const [redis, store] = [stats, host].map((each) => count(num(each.pending_writes)));
  const lost = [stats, host].map((each) => count(num(each.dropped_writes))).join(" and ");
  return remark(
    `Writes that wait: ${redis} to Redis, ${store} to the host store; given up: ${lost}.`,
    ` Pins: ${count(stats.pins ?? 0)}.`,
    namespaces > 1 ? ` Figures are sums over ${count(namespaces)} namespaces.` : "");
}

function engineRow(each, { stats, isolation }) {
  const pool = stats.workers?.find((one) => one.engine === each.id) ?? {};
  const took = stats.compiles?.find((one) => one.engine === each.id && one.outcome === "ok");
  const gaps = Object.entries(each.gaps).map((gap) => gap.join(" ")).join(", ");
  const open = isolation.required ? mark("bad", "broken") : mark("quiet", "not confined");
  const replaced = num(pool.replaced) ? `, ${count(num(pool.replaced))} replaced` : "";
  return [
    each.id,
    [mark("good", "served"), each.default ? mark("quiet", "default") : "",
      each.advisories.length ? mark("bad", "vulnerable") : ""],
    [each.confined ? mark("good", "holds") : open, gaps && ` (${gaps})`],
    pool.workers ? `${pool.busy ?? 0} of ${pool.workers} busy${replaced}`
      : mark("bad", "no worker"),
    count(pool.queued ?? 0),
    count(num(took?.count)),
    takes(took?.duration),
  ];
}

function engineRemarks({ engines, isolation, stats }) {
  const known = engines.flatMap(({ id, advisories }) =>
    advisories.map((text) => remark(`${id} has a known vulnerability. ${text}`)));
  const warmUps = (stats.engine_warm_ups ?? []).map((each) => {
    const { total = 0, done = 0, failed = 0, ended = false } = each;
    const far = total ? (done + failed) / total : Number(ended);
    return remark(
      `Warm-up of ${each.engine} from ${each.from_engine}, ${ended ? "ended" : "under way"}: `,
      `${count(done)} of ${count(total)} artifacts${failed ? `, ${count(failed)} failed` : ""}.`,
      bar(far, percent(far)));
  });
  return [...known, remark(`Jobs are ${isolation.summary}.`), ...warmUps];
}

function compileRow(each, now_s) {
  const [origin, colour] = ORIGINS[each.origin] ?? [each.origin, ""];
  return [
    digest(each.module),
    each.engine || "default",
    [each.reason ? mark("bad", "failed") : mark("good", "ok"),
      each.count > 1 ? `${count(each.count)} times` : ""],
    each.reason || [colour ? key(colour) : "", origin],
    duration(each.took_s),
    ago(now_s - each.ended_s),
  ];
}

function show(told) {
  remember(told);
  minutes = lastMinutes();
  const { stats, quarantine } = told;
  const [tiers, engines, quarantined, recent, older] = document.querySelectorAll("main table");
  byId("host").textContent = `on ${plain(told.host)}`;
  document.title = `wasmkiln ${byId("host").textContent}`;
  const about = ` version ${stats.version}, up for ${duration(Math.floor(num(stats.uptime)))}`;
  fill(byId("about"), [told.ready ? mark("good", "serving") : mark("bad", "not serving"), about]);
  fill(byId("attention"), attention(told));
  fill(byId("numbers"), figures(told, minutes));
  CHARTS.forEach(draw);
  fillTable(tiers, (stats.tiers ?? []).map((each) => tierRow(each, told)), [tierRemark(told)]);
  const unserved = Object.entries(told.unserved).map(([id, cause]) =>
    [id, mark("bad", "not served"), cause || NONE, NONE, NONE, NONE, NONE]);
  const served = told.engines.map((each) => engineRow(each, told));
  fillTable(engines, [...served, ...unserved], engineRemarks(told));
  const more = num(stats.quarantined_modules) - quarantine.length;
  const strikes = quarantine.map((each) =>
    [digest(each.module), each.engine, each.reason, count(each.strikes), duration(each.left_s)]);
  const others = strikes.length ? `And ${count(more)} more.` : "No module is in quarantine.";
  fillTable(quarantined, strikes, strikes.length && more <= 0 ? [] : [remark(others)]);
  const rows = told.recent.map((each) => compileRow(each, told.time_s));
  fillTable(recent, rows.slice(0, SHOWN), [remark(rows.length
    ? "Hits in memory and in the host store are left out. What ended alike in a row is one row."
    : "No module was compiled since the daemon started.")]);
  fillTable(older, rows.slice(SHOWN));
  byId("older").hidden = rows.length <= SHOWN;
  byId("older").firstElementChild.textContent = `${rows.length - SHOWN} more`;
  document.querySelector("main").hidden = false;
}

// Ask, and say whether the daemon answers; what is shown while it does not is from before.
async function update() {
  let [why, detail] = ["", ""];
  try {
    const answer = await fetch("status.json", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.ok) show(await answer.json());
    else why = `the answer is ${answer.status}`;
    if (answer.status === 401) detail = ": load this page again, and give a token as the password";
  } catch (failure) {
    why = `no answer for ${Math.round(Date.now() / 1000 - (before?.at ?? opened))} s`;
    detail = `: ${failure.message}`;
  }
  const seen = before ? ` What you see is from ${clock(before.at)}.` : "";
  byId("pulse").className = why ? "lost" : "live";
  byId("pulse").textContent = why || "live";
  byId("lost").textContent = why && `The daemon cannot be asked: ${why}${detail}.${seen}`;
  byId("lost").hidden = !why;
  document.body.classList.toggle("stale", why !== "");
}

async function look() {
  if (document.hidden || asking) return;
  asking = true;
  await update();
  asking = false;
}

let asking = false;
const opened = Date.now() / 1000;
CHARTS.forEach(build);
document.addEventListener("visibilitychange", look);
setInterval(look, EVERY_MS);
look();
