/**
 * A panel: draws the grids, consoles and controls that scripts ask for, and tells the scripts what is done to them.
 * Text from the network reaches the page through textContent, and colours through the style's own parser, only.
 */

import { element } from "../demo.js";

const MAX_WIDGETS = 20;
const MAX_SIDE = 64; // cells
const MAX_TEXT = 20000; // characters that a console keeps

/** Returns a `system/announce` as the relay wants it. */
export function announcement(peerId, role, status) {
  const payload = { peerId, role, status, version: "1", timestamp: Date.now() };
  return JSON.stringify({ id: 0, module: "system", type: "announce", payload });
}

/** Returns a form of one text field and a button, that hands what was entered to `onText`. */
function textForm({ placeholder = "", initialValue = "", buttonText = "Send" }, label, onText) {
  const form = element("form", "fields");
  const field = element("div", "grow");
  const input = element("input");
  const button = element("button", "quiet", buttonText || "Send");
  input.type = "text";
  input.autocomplete = "off";
  input.placeholder = placeholder;
  input.value = initialValue;
  input.setAttribute("aria-label", label);
  field.append(input);
  form.append(field, button);
  form.addEventListener("submit", (submit) => {
    submit.preventDefault();
    onText(input.value);
    input.value = "";
  });
  return form;
}

/** Cells with a colour and a text. Arrow keys go from cell to cell. */
class Grid {
  constructor({ numColumns, numRows }, report) {
    if (![numColumns, numRows].every((side) => Number.isInteger(side) && side >= 1 && side <= MAX_SIDE)) {
      throw new Error(`a grid has 1 to ${MAX_SIDE} columns and rows`);
    }
    this.columns = numColumns;
    this.body = element("div", "cells");
    this.body.style.setProperty("--columns", numColumns);
    for (let index = 0; index < numColumns * numRows; index += 1) this.addCell(index, report);
    this.body.addEventListener("keydown", (event) => this.move(event));
  }

  addCell(index, report) {
    const [x, y] = [index % this.columns, Math.floor(index / this.columns)];
    const cell = element("button", "cell");
    cell.type = "button";
    cell.tabIndex = index ? -1 : 0;
    cell.setAttribute("aria-label", `column ${x}, row ${y}`);
    cell.addEventListener("click", () => report({ event: "click", x, y }));
    this.body.append(cell);
  }

  move(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    const cells = [...this.body.children];
    const next = cells[cells.indexOf(event.target) + steps[event.key]];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  update({ action, options = {} }) {
    if (action === "clear") {
      for (const cell of this.body.children) this.clear(cell);
      return;
    }
    const { x, y } = options;
    const cell = x >= 0 && x < this.columns ? this.body.children[y * this.columns + x] : undefined;
    if (!cell) throw new Error(`the grid has no cell ${x}, ${y}`);
    if (action === "setColor") cell.style.backgroundColor = options.color ?? "";
    else if (action === "setText") this.write(cell, options.text ?? "");
    else if (action === "clearCell") this.clear(cell);
    else throw new Error(`a grid does not know ${action}`);
  }

  write(cell, text) {
    cell.textContent = text;
  }

  clear(cell) {
    cell.style.backgroundColor = "";
    cell.textContent = "";
  }
}

/** Text that is added to, and a line to answer. */
class Console {
  constructor({ text = "", showInput = false }, report) {
    this.body = element("div");
    this.text = element("pre", "console");
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "log");
    this.text.setAttribute("aria-label", "Console");
    this.text.textContent = text;
    this.body.append(this.text);
    if (showInput) {
      const onText = (value) => report({ event: "inputText", value });
      this.body.append(textForm({}, "Answer the script", onText));
    }
  }

  update({ action, options = {} }) {
    if (action === "append") this.text.textContent = (this.text.textContent + options.text).slice(-MAX_TEXT);
    else if (action === "clear") this.text.textContent = "";
    else throw new Error(`a console does not know ${action}`);
    this.text.scrollTop = this.text.scrollHeight;
  }
}

/** Buttons and text fields, each with an id of its own. */
class Control {
  constructor(_payload, report) {
    this.body = element("div", "controls");
    this.report = report;
    this.controls = new Map();
  }

  update({ action, controlId, options = {} }) {
    this.controls.get(controlId)?.remove();
    this.controls.delete(controlId);
    if (action === "remove") return;
    if (action !== "add") throw new Error(`a control does not know ${action}`);
    const { controlType, config = {} } = options;
    const control = this.newControl(controlType, config, controlId);
    this.controls.set(controlId, control);
    this.body.append(control);
  }

  newControl(controlType, config, controlId) {
    if (controlType === "textInput") {
      const onText = (value) => this.report({ event: "inputText", controlId, value });
      return textForm(config, config.placeholder || controlId, onText);
    }
    if (controlType !== "button") throw new Error(`there is no control ${controlType}`);
    const button = element("button", "quiet", config.buttonText || controlId);
    button.type = "button";
    button.addEventListener("click", () => this.report({ event: "click", controlId }));
    return button;
  }
}

const WIDGETS = { grid: Grid, console: Console, control: Control };

/** Everything that scripts have drawn; `send` takes what is for them. */
export class Panel {
  constructor(root, send) {
    this.root = root;
    this.send = send;
    this.widgets = new Map(); // by the name that the script gave it
  }

  /** Does what a message of a script says. What cannot be done is told to the script as an `error`. */
  take({ module, component, type, target, payload }) {
    const kind = module ?? component;
    try {
      if (kind === "global" && type === "clearAll") this.clear();
      else if (type === "spawn") this.spawn(kind, target, payload ?? {});
      else if (type === "update") this.find(target).update(payload ?? {});
      else if (type === "remove") this.remove(target);
    } catch (error) {
      this.send(JSON.stringify({ id: 0, module: kind, type: "error", src: target, payload: { message: error.message } }));
    }
  }

  clear() {
    this.widgets.clear();
    this.root.replaceChildren();
  }

  spawn(kind, target, payload) {
    if (!Object.hasOwn(WIDGETS, kind)) throw new Error(`this panel draws ${Object.keys(WIDGETS).join(", ")}, not ${kind}`);
    this.remove(target);
    if (this.widgets.size >= MAX_WIDGETS) throw new Error(`this panel has room for ${MAX_WIDGETS}, and no more`);
    const report = (event) =>
      this.send(JSON.stringify({ id: 0, module: kind, type: "event", src: target, payload: event }));
    const widget = new WIDGETS[kind](payload, report);
    const frame = element("section", "widget");
    frame.setAttribute("aria-label", target);
    frame.append(element("h3", "", target), widget.body);
    this.root.append(frame);
    this.widgets.set(target, { frame, widget });
  }

  find(target) {
    const found = this.widgets.get(target);
    if (!found) throw new Error(`there is no ${target}`);
    return found.widget;
  }

  remove(target) {
    this.widgets.get(target)?.frame.remove();
    this.widgets.delete(target);
  }
}

/** A script in JavaScript, for who has no Python at hand: a grid that is painted by clicks, a console that tells. */
export class DemoScript {
  constructor(send) {
    this.send = send;
    this.painted = new Set();
  }

  start() {
    this.command("global", "clearAll");
    this.command("grid", "spawn", "painting", { numColumns: 8, numRows: 6 });
    this.command("console", "spawn", "notes", { text: "Click the cells.\n", showInput: true });
    [[2, 1], [5, 1], [1, 3], [2, 4], [3, 4], [4, 4], [5, 4], [6, 3]].forEach(([x, y]) => this.paint(x, y));
  }

  /** Does what the panel reports. */
  take({ type, src, payload }) {
    if (type !== "event") return;
    if (src === "painting") {
      this.paint(payload.x, payload.y);
      this.say(`column ${payload.x}, row ${payload.y}`);
    } else if (src === "notes") {
      this.say(`you said: ${payload.value}`);
    }
  }

  paint(x, y) {
    const cell = `${x},${y}`;
    const color = this.painted.delete(cell) ? null : "#e9a820";
    if (color) this.painted.add(cell);
    this.command("grid", "update", "painting", { action: "setColor", options: { x, y, color } });
  }

  say(line) {
    this.command("console", "update", "notes", { action: "append", options: { text: `${line}\n` } });
  }

  command(module, type, target, payload) {
    this.send(JSON.stringify({ id: 0, module, type, target, payload }));
  }
}
