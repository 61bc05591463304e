// The dashboard: draws what the server sends once a second over its WebSocket. Everything that comes from there is put
// into the page as text, never as markup.

const KEPT = 300; // views, five minutes
const LEAST = 60; // views that a chart has room for, however few there are
const history = []; // what the charts show, oldest first
const place = (id) => document.getElementById(id);
let socket = null;
let shown = null; // the id of the connection that the dialog is about
let isPressed = false; // a button of the mouse, or a finger: what is drawn anew under it would get no click

// ---- numbers and words

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });
const count = (value) => (value < 1e7 ? whole : short).format(value);
const rate = (value) => (value > 0 && value < 10 ? value.toFixed(1) : count(value));

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit && bytes < 10 ? bytes.toFixed(1) : whole.format(bytes)} ${units[unit]}`;
}

function delay(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
}

function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

const sum = (rows) => (rows ?? []).reduce((total, row) => total + row.at(-1), 0);
const value = (rows, ...labels) => sum((rows ?? []).filter((row) => labels.every((label, at) => row[at] === label)));

// ---- pieces of the page

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** A traceback, without the indentation that all its lines share; its last lines, where the handler is, in view. */
function stackOf(text) {
  const made = element("pre", text.replace(/^ {2}/gm, ""));
  requestAnimationFrame(() => { made.scrollTop = made.scrollHeight; });
  return made;
}

function connectionLink(id) {
  const link = element("button", id, "link");
  link.type = "button";
  link.addEventListener("click", () => show(id));
  return link;
}

/** Columns are [title, cell of a row, class]; a cell is text or an element. */
function table(id, columns, rows, empty) {
  const focused = place(id).contains(document.activeElement) ? document.activeElement.textContent : null;
  if (!rows.length) {
    const row = element("tr");
    row.append(element("td", empty, "empty"));
    place(id).replaceChildren(row);
    return;
  }
  const head = element("tr");
  for (const [title, , className] of columns) head.append(element("th", title, className));
  const lines = rows.map((row) => {
    const line = element("tr");
    for (const [, cell, className] of columns) {
      const made = element("td", undefined, className);
      made.append(cell(row));
      line.append(made);
    }
    return line;
  });
  place(id).replaceChildren(head, ...lines);
  // Who walks through the table with the keyboard stays where he is when it is drawn anew.
  if (focused) [...place(id).querySelectorAll("button")].find((link) => link.textContent === focused)?.focus();
}

function pairs(id, entries) {
  place(id).replaceChildren(
    ...entries.map(([name, text, alarm]) => {
      const entry = element("div", undefined, alarm ? "alarm" : "");
      entry.append(element("dt", name), element("dd", text));
      return entry;
    }),
  );
}

// ---- charts

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The least of 1, 2, 5, 10, 20 … that is not below a value. */
function roundUp(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((step) => step * power >= least * 0.999) * power;
}

/** Series are [name, points, class]; points go with the history. */
function chart(id, series, show, least) {
  const box = place(id);
  const width = box.clientWidth;
  const height = box.clientHeight;
  const [left, right, top, bottom] = [62, 6, 26, 20];
  const highest = roundUp(Math.max(least, ...series.flatMap(([, points]) => points)));
  const room = Math.max(LEAST, history.length);
  const x = (at) => width - right - ((history.length - 1 - at) / (room - 1)) * (width - left - right);
  const y = (of) => height - bottom - (of / highest) * (height - top - bottom);
  const parts = [];
  for (const step of [0, 0.5, 1]) {
    const at = y(highest * step);
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    parts.push(svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, show(highest * step)));
  }
  parts.push(svg("text", { x: left, y: height - 4 }, `${age(room)} ago`));
  parts.push(svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "now"));
  let at = left;
  for (const [name, points, className] of series) {
    const label = `${name} ${show(points.at(-1))}`;
    parts.push(svg("text", { class: className, x: at, y: 13 }, label));
    at += label.length * 7.2 + 14;
    const line = points.map((point, index) => `${x(index).toFixed(1)},${y(point).toFixed(1)}`);
    if (line.length === 1) line.push(`${(x(0) + 0.1).toFixed(1)},${y(points[0]).toFixed(1)}`);
    parts.push(svg("polyline", { class: className, points: line.join(" ") }));
  }
  box.replaceChildren(...parts);
  box.setAttribute("aria-label", series.map(([name, points]) => `${name} ${show(points.at(-1))}`).join(", "));
}

function drawCharts() {
  if (!history.length) return;
  const of = (name) => history.map((view) => view[name]);
  chart("messages", [["in", of("in"), "first"], ["out", of("out"), "second"]], rate, 10);
  chart("delay", [["p50", of("p50"), "first"], ["p99", of("p99"), "second"]], delay, 0.01);
  chart("connections", [["open", of("open"), "first"]], count, 10);
}

// ---- views

function draw(view) {
  const numbers = view.numbers;
  const rates = Object.values(view.rates).reduce((total, row) => total.map((part, at) => part + row[at]), [0, 0, 0, 0]);
  const open = sum(numbers.krait_connections);
  const stuck = sum(numbers.krait_handlers_stuck);
  const isRated = Object.keys(view.rates).length > 0; // not at the first look for long: nothing to compare with
  if (isRated) history.push({ in: rates[0], out: rates[1], p50: view.delay.p50, p99: view.delay.p99, open });
  if (history.length > KEPT) history.shift();
  const workers = sum(numbers.krait_workers);
  setStatus("live", `live, ${workers} worker${workers === 1 ? "" : "s"}, ${count(sum(numbers.krait_threads))} threads`);
  pairs("tiles", [
    ["Connections", count(open)],
    ["Messages in /s", isRated ? rate(rates[0]) : "–"],
    ["Messages out /s", isRated ? rate(rates[1]) : "–"],
    ["Loop delay p99", delay(view.delay.p99), view.delay.p99 > 0.1],
    ["Waiting to be sent", size(sum(numbers.krait_mailbox_out_bytes))],
    ["Stuck handlers", count(stuck), stuck > 0],
  ]);
  drawCharts();
  if (!isPressed) {
    drawTables(view, numbers);
    drawStuck(view.stuck, stuck);
  }
  if (shown) drawConnection(view.shown);
}

function drawTables(view, numbers) {
  const routes = (numbers.krait_connections_opened ?? []).map((row) => row[0]);
  routes.sort((a, b) => value(numbers.krait_connections, b) - value(numbers.krait_connections, a) || (a < b ? -1 : 1));
  const of = (name, ...labels) => (route) => count(value(numbers[name], route, ...labels));
  table("routes", [
    ["Route", (route) => route],
    ["Open", of("krait_connections")],
    ["Opened", of("krait_connections_opened"), "wide"],
    ["In /s", (route) => rate(view.rates[route]?.[0] ?? 0)],
    ["Out /s", (route) => rate(view.rates[route]?.[1] ?? 0)],
    ["Messages in", of("krait_messages", "in"), "wide"],
    ["Messages out", of("krait_messages", "out"), "wide"],
    ["Waiting", (route) => size(value(numbers.krait_mailbox_out_bytes, route))],
    ["Blocked", of("krait_pushes_blocked"), "wide"],
    ["Dropped", of("krait_pushes_dropped"), "wide"],
  ], routes, "No connection yet.");
  table("slowest", [
    ["Connection", (row) => connectionLink(row.id)],
    ["Route", (row) => row.route, "words"],
    ["Waiting", (row) => size(row.out_bytes_waiting)],
    ["Messages", (row) => count(row.out_waiting), "wide"],
    ["Dropped", (row) => count(row.dropped), "wide"],
  ], view.slowest, "Nobody: nothing waits to be sent.");
  table("busiest", [
    ["Connection", (row) => connectionLink(row.id)],
    ["Route", (row) => row.route, "words"],
    ["In", (row) => count(row.messages_in)],
    ["Out", (row) => count(row.messages_out)],
    ["Open for", (row) => age(row.seconds), "wide"],
  ], view.busiest, "No connection is open.");
  table("closed", [
    ["Code", (row) => row[1]],
    ["Route", (row) => row[0], "words"],
    ["Connections", (row) => count(row[2])],
  ], [...(numbers.krait_connections_closed ?? [])].sort((a, b) => b[2] - a[2]), "None yet.");
  table("refused", [
    ["Reason", (row) => row[0].replaceAll("_", " ")],
    ["Handshakes", (row) => count(row[1])],
  ], [...(numbers.krait_handshakes_refused ?? [])].sort((a, b) => b[1] - a[1]), "None yet.");
}

function drawStuck(rows, total) {
  // Drawn anew only when it is about others, so that a stack that is being read or scrolled stays as it is.
  const key = rows.map((row) => row.id + row.stacks.join()).join() + total;
  if (place("stuck").dataset.key === key) return;
  place("stuck").dataset.key = key;
  if (!rows.length) {
    place("stuck").replaceChildren(element("p", "None: every handler ended in time.", "empty"));
    return;
  }
  const parts = rows.flatMap((row) => {
    const head = element("div");
    head.append(connectionLink(row.id), ` ${row.controller}, ${row.route}, worker ${row.worker}`);
    return [head, ...row.stacks.map((stack) => stackOf(stack))];
  });
  if (total > rows.length) parts.push(element("p", `and ${count(total - rows.length)} more`, "empty"));
  place("stuck").replaceChildren(...parts);
}

// ---- one connection

function show(id) {
  shown = id;
  place("connection-title").textContent = `Connection ${id}`;
  place("connection-gone").hidden = true;
  place("facts").replaceChildren();
  place("stacks").replaceChildren();
  calmCloseButton();
  if (!place("connection").open) place("connection").showModal();
  send({ show: id });
}

function drawConnection(row) {
  if (row && row.id !== shown) return;
  const closing = row?.close_code != null;
  place("close").disabled = !row || closing;
  if (!row) {
    place("connection-gone").hidden = place("facts").childElementCount === 0 && !place("connection").dataset.asked;
    place("connection").dataset.asked = "yes";
    return;
  }
  place("connection-gone").hidden = true;
  pairs("facts", [
    ["State", closing ? `closed with ${row.close_code}${row.is_abandoned ? ", handler stuck" : ""}` : "open"],
    ["Open for", age(row.seconds)],
    ["Path", row.path],
    ["Route", row.route],
    ["Client", row.address],
    ["Subprotocol", row.protocol || "none"],
    ["Controller", `${row.controller} (${row.runs_on})`],
    ["Worker", String(row.worker)],
    ["Messages in", `${count(row.messages_in)} (${size(row.bytes_in)})`],
    ["Messages out", `${count(row.messages_out)} (${size(row.bytes_out)})`],
    ["Waiting for the handler", `${count(row.in_waiting)} messages`],
    ["Waiting to be sent", `${count(row.out_waiting)} messages (${size(row.out_bytes_waiting)})`],
    ["Pushes blocked, dropped", `${count(row.blocked)}, ${count(row.dropped)}`],
    ["Round trip", row.latency == null ? "not measured" : delay(row.latency)],
  ]);
  const stacks = row.stacks.join("\n");
  if (place("stacks").dataset.key !== stacks || !place("stacks").childElementCount) {
    place("stacks").dataset.key = stacks;
    place("stacks").replaceChildren(...row.stacks.map(stackOf));
  }
}

function calmCloseButton() {
  place("close").textContent = "Close this connection";
  delete place("close").dataset.sure;
}

place("close").addEventListener("click", () => {
  if (!place("close").dataset.sure) {
    place("close").dataset.sure = "nearly";
    place("close").textContent = "Really close it?";
    return;
  }
  calmCloseButton();
  send({ close: shown });
});
place("back").addEventListener("click", () => place("connection").close());
place("connection").addEventListener("close", () => {
  shown = null;
  delete place("connection").dataset.asked;
  send({ show: null });
});
place("find").addEventListener("submit", (event) => {
  event.preventDefault();
  if (place("wanted").value) show(place("wanted").value);
});

// ---- the WebSocket

function setStatus(state, text) {
  if (place("status").textContent !== text) place("status").textContent = text;
  place("status").dataset.state = state;
}

function send(wish) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wish));
}

function connect() {
  const url = new URL("live", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(url);
  socket.addEventListener("open", () => shown && send({ show: shown }));
  socket.addEventListener("message", (event) => draw(JSON.parse(event.data)));
  socket.addEventListener("close", () => {
    setStatus("lost", "not connected, trying again");
    setTimeout(connect, 2000);
  });
}

addEventListener("pointerdown", () => { isPressed = true; });
for (const end of ["pointerup", "pointercancel", "blur"]) addEventListener(end, () => { isPressed = false; });
new ResizeObserver(drawCharts).observe(place("charts"));
connect();
