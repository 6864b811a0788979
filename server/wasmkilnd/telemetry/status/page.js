// Asks the daemon how it is every two seconds while somebody looks, keeps the last five minutes, and
// draws them. Whatever comes from the daemon is put into the page as text, never as markup.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 10000;
const [COLUMNS, STEP_S] = [60, 5]; // what charts show: five minutes
const LATEST = 3; // columns that stand for now: the very last may have begun just now
const SHOWN = 12; // recent compiles that are shown at once
const NONE = "\u2013";
// Where artifacts come from, the fastest first: name and colour. The first four are hits.
const ORIGINS = {
  memory: ["memory", "c1"],
  host_store: ["host store", "c2"],
  redis: ["Redis", "c3"],
  object_store: ["object store", "c6"],
  joined_flight: ["joined a compile", "c4"],
  compiled: ["compiled", "c5"],
};
const FROM = Object.keys(ORIGINS);

const byId = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
const part = (number, whole) => (whole ? number / whole : 0);
// Protobuf's JSON leaves zeros out, and writes large numbers and durations as text.
const num = (value) => parseFloat(value) || 0;

// Words: bytes, durations and counts as people read them.

const grouped = (value) => Math.round(value).toLocaleString("en");
const short = (value) =>
  value >= 100 ? grouped(value) : String(Number(value.toPrecision(value < 10 ? 2 : 3)));
const rate = (perSecond) => `${short(perSecond)}/s`;
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

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
function percent(share) {
  const within = Math.min(99.9, Math.max(0.1, share * 100)).toFixed(1);
  return share > 0 && share < 1 ? `${within} %` : `${share * 100} %`;
}

// Elements. What cannot be printed, or turns text around, becomes a mark.

const plain = (text) => String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd");

function fresh(name, attributes, ...children) {
  const space = name === "path" ? "2000/svg" : "1999/xhtml";
  const made = document.createElementNS(`http://www.w3.org/${space}`, name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, plain(value)));
  made.append(...children.flat(2).map((each) => (each instanceof Node ? each : plain(each))));
  return made;
}

const mark = (level, words) => fresh("span", { class: `mark ${level}` }, words);
const key = (colour) => fresh("i", { class: `key ${colour}`, "aria-hidden": "true" });
const remark = (...children) => fresh("p", { class: "remark" }, children);
const bar = (value, label) =>
  fresh("progress", { class: value > 0.95 ? "high" : "", value, "aria-label": label });
// A module's digest, cut; the whole of it where the pointer rests.
const digest = (module) =>
  fresh("code", { title: module }, module.slice(0, 16) + (module.length > 16 ? "\u2026" : ""));

// Replace what is in an element, if it changed and nobody reads a digest or selects text there.
function fill(element, ...children) {
  const next = element.cloneNode(false);
  next.append(...children.flat());
  const selection = document.getSelection();
  const selected = !selection.isCollapsed && selection.containsNode(element, true);
  if (element.isEqualNode(next) || selected || element.querySelector("code:hover")) return;
  element.replaceChildren(...next.childNodes);
}

// Fill a table with rows of cells, the first of which is a head; and say a word below it. On a
// narrow screen each cell names its column.
function fillTable(table, rows, ...remarks) {
  const heads = [...table.tHead.rows[0].cells].map((each) => each.textContent.trim());
  const cell = (inside, at) => at
    ? fresh("td", { "data-head": heads[at] }, fresh("span", {}, inside))
    : fresh("th", { scope: "row" }, inside);
  fill(table.tBodies[0], rows.map((cells) => fresh("tr", {}, cells.map(cell))));
  table.hidden = rows.length === 0;
  fill(table.parentElement.querySelector(":scope > .remarks"), ...remarks);
}

// The last minutes: the columns of time that the differences between answers add up to.

const SUMS = ["span", "made", "failed", "took", ...FROM];
const MOST = ["slowest", "queued", "busy", "workers"];
const NOTHING = Object.fromEntries([...SUMS, ...MOST].map((field) => [field, 0]));
let before = null; // what the last answer said
let known = {}; // columns by the number of their time; where nothing is known there is none
let minutes = null; // what the charts show

function add(one, other) {
  const sums = SUMS.map((field) => [field, one[field] + other[field]]);
  const most = MOST.map((field) => [field, Math.max(one[field], other[field])]);
  return Object.fromEntries([...sums, ...most]);
}

function remember({ stats: { compiles = [], workers = [], started_at }, ...told }) {
  const all = (rows, field) => sum(rows.map((each) => num(each[field])));
  const good = compiles.filter((each) => each.outcome === "ok");
  const { served, time_s } = told;
  const now = { ...NOTHING, ...served, started_at, time_s, at: Date.now() / 1000 };
  for (const field of ["queued", "busy", "workers"]) now[field] = all(workers, field);
  now.made = all(good, "count");
  now.failed = all(compiles, "count") - now.made;
  now.took = sum(good.map((each) => num(each.duration.sum)));
  const last = Math.floor(now.at / STEP_S);
  if (before?.started_at === started_at) {
    const sample = { ...now, span: now.at - before.at };
    for (const field of SUMS.slice(1)) sample[field] -= before[field];
    const recent = told.recent.filter((each) => each.origin === "compiled");
    const latest = recent.filter((each) => each.ended_s > before.time_s);
    sample.slowest = Math.max(0, ...latest.map((each) => each.took_s));
    known[last] = add(known[last] ?? NOTHING, sample);
  } else known = {}; // another daemon, whose counters began anew
  before = now;
  const first = last - COLUMNS + 1;
  known = Object.fromEntries(Object.entries(known).filter(([number]) => number >= first));
  const [columns, total] = [Object.values(known), (some) => some.reduce(add, NOTHING)];
  minutes = { first, all: total(columns), latest: total(columns.slice(-LATEST)) };
  minutes.columns = Array.from({ length: COLUMNS }, (_, at) => known[first + at]);
}

// Charts

const calls = (column) => sum(FROM.map((each) => column[each]));
const compiles = (column) => column.made + column.failed;
// A series has a label, a colour and its value in a column of time, and is an area or a line.
const CHARTS = [
  { name: "origins", title: "Where artifacts come from", words: percent, stacked: true,
    series: FROM.map((each) => [...ORIGINS[each], (now) => part(now[each], calls(now))]) },
  { name: "calls", title: "Calls and compiles per second", words: rate,
    series: [["calls", "c1", (now) => part(calls(now), now.span)],
      ["compiles", "c5", (now) => part(compiles(now), now.span)]] },
  { name: "duration", title: "How long compiles take", words: duration,
    series: [["slowest, with its wait", "c2", (now) => now.slowest],
      ["mean", "c5", (now) => part(now.took, now.made), "line"]] },
  { name: "queue", title: "Queue and workers", words: count,
    least: (all) => Math.max(2, all.workers),
    series: [["busy workers", "c2", (now) => now.busy],
      ["queued jobs", "c5", (now) => now.queued, "line"]] },
];
const [STEP, HIGH] = [600 / COLUMNS, 150];
let pointed = null; // the column that somebody looks at, in every chart

function point(column) {
  pointed = column;
  if (minutes) CHARTS.forEach(draw);
}

// Build a chart once: later its paths and words change, so that it keeps the keyboard's focus.
function build(chart) {
  const figure = byId("chart").content.firstElementChild.cloneNode(true);
  figure.id = `chart-${chart.name}`;
  chart.part = (name) => figure.querySelector(name);
  chart.part("h3").prepend(chart.title);
  chart.paths = chart.series.map(([, colour, , kind = "area"]) =>
    fresh("path", { class: `${kind} ${colour}` }));
  chart.part(".cursor").before(...chart.paths);
  const slider = chart.part(".slider");
  slider.setAttribute("aria-label", `${chart.title}: a moment`);
  slider.addEventListener("input", () => point(slider.valueAsNumber));
  slider.addEventListener("pointermove", ({ offsetX }) =>
    point(Math.min(COLUMNS - 1, Math.floor((offsetX / slider.clientWidth) * COLUMNS))));
  ["pointerleave", "blur"].forEach((end) => slider.addEventListener(end, () => point(null)));
  byId("charts").append(figure);
}

// Return a round number that is not below the value; half of it is round, too.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * [1, 2, 4, 6, 8, 10].find((each) => each * power >= value * 0.999);
}

// Return the steps of a line, or of the area between the series up to this one.
function drawn({ series, stacked }, number, values, top) {
  const high = (each) => HIGH * Math.min(1, each / top);
  const steps = values.map((each, at) => {
    if (!each) return "";
    const below = stacked ? high(sum(each.slice(0, number))) : 0;
    const [x, y, up] = [at * STEP, HIGH - below, high(each[number])];
    if (series[number][3]) return `${values[at - 1] ? "L" : "M"}${x} ${y - up}h${STEP}`;
    return up ? `M${x} ${y}h${STEP}v${-up}h${-STEP}z` : "";
  });
  return steps.join("") || "M0 0";
}

function draw(chart) {
  const { first, columns, all, latest } = minutes;
  const { series, stacked, least = () => 0 } = chart;
  const values = columns.map((now) => now && series.map(([, , value]) => value(now)));
  const top = stacked ? 1 : roundUp(Math.max(least(all), ...values.flatMap((each) => each ?? [])));
  const shown = pointed === null ? (stacked ? all : latest) : columns[pointed];
  const when = pointed === null ? "" : clock((first + pointed) * STEP_S);
  const words = series.map(([, , value]) => (shown ? chart.words(value(shown)) : NONE));
  const summary = series.map(([label], at) => `${label} ${words[at]}`).join(", ");
  chart.paths.forEach((path, at) => path.setAttribute("d", drawn(chart, at, values, top)));
  chart.part(".when").textContent = when;
  chart.part(".cursor").setAttribute("x", (pointed ?? -1) * STEP);
  chart.part("svg").setAttribute("aria-label", `${chart.title}: ${summary}`);
  chart.part(".slider").value = pointed ?? COLUMNS - 1;
  chart.part(".slider").setAttribute("aria-valuetext", `${when || "now"}: ${summary}`);
  fill(chart.part(".legend"), series.map(([label, colour], at) =>
    fresh("li", {}, key(colour), label, fresh("b", {}, words[at]))));
  fill(chart.part(".y"), [1, 0.5, 0].map((each) =>
    fresh("span", {}, chart.words(each * top).replace(".0", ""))));
}

// Sections

function attention({ stats, engines, isolation, shared, ...told }) {
  const open = engines.some((each) => !each.confined);
  const quarantined = num(stats.quarantined_modules);
  const wrong = [
    ["bad", !told.ready, `The daemon serves no call: ${told.state}.`],
    ...Object.entries(told.unserved).map(([id, cause]) =>
      ["bad", true, `${id} is not served: ${cause || "the daemon's log says why"}.`]),
    ...engines.map(({ id, advisories }) =>
      ["warn", advisories.length, `${id} has a known vulnerability: see Engines.`]),
    ["warn", told.open_fleet, `No identities in a fleet: ${told.open_fleet}.`],
    ["bad", open && isolation.required, `Jobs are ${isolation.summary}.`],
    ...Object.entries(shared).map(([tier, { off, up, detail }]) =>
      ["warn", !off && !up, [tier === "redis" ? "" : "The ", ORIGINS[tier][0], " does not answer",
        detail && `: ${detail}`, ". Calls go on without it."]]),
    ["warn", shared.object_store.strangers, ["The object store has values of keys that are not",
      ` trusted here: ${shared.object_store.strangers}.`]],
    ["warn", told.tls_failures, "Changed TLS files could not be used; the old ones count."],
    ...told.failed_reloads.map((what) =>
      ["warn", true, `The last reload of the ${what} failed: see the log.`]),
    ["warn", quarantined,
      `${count(quarantined)} ${quarantined === 1 ? "module is" : "modules are"} in quarantine.`],
  ].filter(([, when]) => when);
  return [
    ...wrong,
    ["good", !wrong.length, "All is well: every engine is served, and every tier answers."],
    ["note", open && !isolation.required,
      `Jobs are ${isolation.summary}. isolation=best-effort allows that.`],
  ].flatMap(([level, when, words]) => (when ? fresh("li", { class: level }, words) : []));
}

function figures({ stats, served, ...told }, { all }) {
  const [now, ever] = [calls(all), sum(Object.values(served))];
  const hits = now ? sum(FROM.slice(0, 4).map((each) => all[each])) / now : stats.hit_ratio ?? 0;
  const wait = told.expected_wait_s;
  const good = (stats.compiles ?? []).filter((each) => each.outcome === "ok" && num(each.count));
  const took = good.sort((one, other) => num(other.count) - num(one.count))[0]?.duration;
  return [
    ["Hit ratio", ever ? percent(hits) : NONE,
      `of ${count(now || ever)} calls${now ? "" : " since the start"}`],
    ["Calls", rate(part(now, all.span)), `${count(told.calls)} under way`],
    ["Compiles", rate(part(compiles(all), all.span)),
      `${count(all.made)} made, ${count(all.failed)} failed`],
    ["A compile takes", took ? duration(num(took.p50)) : NONE,
      took ? `9 of 10 within ${duration(num(took.p90))}` : "none yet"],
    ["Queue", count(before.queued),
      wait ? `one more would wait ${duration(wait)}` : "nobody waits"],
    ["Workers busy", `${before.busy} of ${before.workers}`,
      `${count(stats.flights ?? 0)} compiles to do`],
  ].map(([name, value, more]) => fresh("div", {}, fresh("dt", {}, name),
    fresh("dd", {}, fresh("b", {}, value), fresh("small", {}, more))));
}

const takes = (took) =>
  num(took?.count) ? `${duration(num(took.p50))}, 99 % ${duration(num(took.p99))}` : NONE;

function tierRow(each, { off, up, mode } = { up: true }) {
  const [used, limit, pinned] = [each.bytes, each.limit_bytes, each.pinned_entries].map(num);
  const state = mode ? `${mode}, up` : "up";
  const filled = used / limit;
  return [
    ORIGINS[each.tier][0].replace(/^./, (first) => first.toUpperCase()),
    off ? mark("quiet", "off") : up ? mark("good", state) : mark("bad", "down"),
    [limit ? bar(filled, `${percent(filled)} filled`) : "", size(used),
      limit ? ` of ${size(limit)}` : ""],
    count(num(each.entries)) + (pinned ? `, ${count(pinned)} pinned` : ""),
    ...[each.hits, each.misses, each.errors, each.evictions].map((number) => count(num(number))),
    takes(each.get_latency),
  ];
}

function tierRemark({ stats, shared, namespaces }) {
  const writes = Object.entries(shared).map(([tier, { pending_writes, dropped_writes }]) =>
    `${count(pending_writes)} to ${ORIGINS[tier][0]} (${count(dropped_writes)} given up)`);
  return remark(
    `Writes that wait: ${writes.join(", ")}.`,
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

function warmUp({ engine, from_engine, total = 0, done = 0, failed = 0, ended = false }) {
  const far = total ? (done + failed) / total : Number(ended);
  return remark(
    `Warm-up of ${engine} from ${from_engine}, ${ended ? "ended" : "under way"}: `,
    `${count(done)} of ${count(total)} artifacts${failed ? `, ${count(failed)} failed` : ""}.`,
    bar(far, percent(far)));
}

// Protobuf's JSON leaves out what is empty.
function jobRow({ module_sha256 = "", engine, work, waited, ran, memory_bytes, ...each }) {
  return [
    digest(module_sha256),
    engine,
    ran ? mark("good", `${work}s`) : mark("quiet", "waits"),
    duration(num(ran ?? waited)),
    memory_bytes ? size(num(memory_bytes)) : NONE,
    count(each.callers),
    each.namespace || "default",
    each.id,
  ];
}

function compileRow(each, ago_s) {
  const [origin, colour] = ORIGINS[each.origin] ?? [each.origin];
  return [
    digest(each.module),
    each.engine || "default",
    [each.reason ? mark("bad", "failed") : mark("good", "ok"),
      each.times > 1 ? `${count(each.times)} times` : ""],
    each.reason || [colour ? key(colour) : "", origin],
    duration(each.took_s),
    ago_s < 1 ? "now" : `${duration(Math.floor(ago_s))} ago`,
  ];
}

function show(told) {
  remember(told);
  const { stats, engines, isolation, quarantine, shared } = told;
  const tables = document.querySelectorAll("main table");
  byId("host").textContent = `on ${plain(told.host)}`;
  document.title = `wasmkiln ${byId("host").textContent}`;
  fill(byId("about"), told.ready ? mark("good", "serving") : mark("bad", "not serving"),
    ` version ${stats.version}, up for ${duration(Math.floor(num(stats.uptime)))}`);
  fill(byId("attention"), attention(told));
  fill(byId("numbers"), figures(told, minutes));
  CHARTS.forEach(draw);
  const tiers = (stats.tiers ?? []).map((each) => tierRow(each, shared[each.tier]));
  fillTable(tables[0], tiers, tierRemark(told));
  const unserved = Object.entries(told.unserved).map(([id, cause]) =>
    [id, mark("bad", "not served"), cause || NONE, NONE, NONE, NONE, NONE]);
  const known = engines.flatMap(({ id, advisories }) =>
    advisories.map((text) => remark(`${id} has a known vulnerability. ${text}`)));
  fillTable(tables[1], [...engines.map((each) => engineRow(each, told)), ...unserved],
    known, remark(`Jobs are ${isolation.summary}.`), (stats.engine_warm_ups ?? []).map(warmUp));
  const [waiting, some] = [told.more_jobs, told.jobs.length];
  fillTable(tables[2], told.jobs.map(jobRow), waiting || !some
    ? remark(some ? `And ${count(waiting)} more.` : "No job runs or waits.") : []);
  const more = num(stats.quarantined_modules) - quarantine.length;
  const others = more > 0 ? `And ${count(more)} more.` : "No module is in quarantine.";
  fillTable(tables[3], quarantine.map((each) =>
    [digest(each.module), each.engine, each.reason, count(each.strikes), duration(each.left_s)]),
    more > 0 || !quarantine.length ? remark(others) : []);
  const rows = told.recent.map((each) => compileRow(each, told.time_s - each.ended_s));
  fillTable(tables[4], rows.slice(0, SHOWN), remark(rows.length
    ? "Hits in memory and in the host store are left out. What ended alike in a row is one row."
    : "No module was compiled since the daemon started."));
  fillTable(tables[5], rows.slice(SHOWN));
  byId("older").hidden = rows.length <= SHOWN;
  byId("older").firstElementChild.textContent = `${rows.length - SHOWN} more`;
  document.querySelector("main").hidden = false;
}

let asking = false;
const opened = Date.now() / 1000;

// Ask, and say whether the daemon answers; what is shown while it does not is from before.
async function look() {
  if (document.hidden || asking) return;
  asking = true;
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
  asking = false;
}

CHARTS.forEach(build);
document.addEventListener("visibilitychange", look);
setInterval(look, EVERY_MS);
look();
