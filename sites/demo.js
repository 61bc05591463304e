/**
 * What the demo pages share: a WebSocket with a visible state, and lists of bounded length.
 * Text from the network reaches the page through textContent only.
 */

const CLOSE_CODES = {
  1000: "normal end",
  1001: "going away",
  1002: "protocol error",
  1003: "unsupported data",
  1005: "no code given",
  1006: "refused, or the connection was lost",
  1007: "invalid text",
  1008: "policy violation",
  1009: "message too big",
  1011: "error on the server",
  1012: "server restarts",
  1013: "try again later",
};

/** Returns the ws:// or wss:// URL of a path relative to this page. */
export function socketUrl(path) {
  const url = new URL(path, window.location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  return url.href;
}

/** Returns the words for a close event, such as "code 1008 (policy violation): the name is taken". */
export function describeClose(event) {
  const meaning = CLOSE_CODES[event.code];
  return `code ${event.code}${meaning ? ` (${meaning})` : ""}${event.reason ? `: ${event.reason}` : ""}`;
}

/** Creates an element with a class and a text. */
export function element(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** Returns the time of day with milliseconds, as the logs show it. */
export function timeOfDay(date = new Date()) {
  const pad = (number, width = 2) => String(number).padStart(width, "0");
  const clock = [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => pad(part)).join(":");
  return `${clock}.${pad(date.getMilliseconds(), 3)}`;
}

/** Returns a duration as "0.8 ms", "12.3 ms" or "2,004 ms"; browsers measure no finer than 0.1 ms. */
export function milliseconds(duration) {
  const digits = duration < 100 ? 1 : 0;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return `${duration.toLocaleString("en", options)} ms`;
}

/**
 * A list that keeps its newest `limit` items, and follows them while the reader is at its end.
 *
 * @param {HTMLElement} list the `<ol>` or `<ul>` to fill
 */
export class BoundedList {
  constructor(list, limit = 200) {
    this.list = list;
    this.limit = limit;
  }

  append(item) {
    const { list } = this;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.append(item);
    while (list.childElementCount > this.limit) list.firstElementChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  clear() {
    this.list.replaceChildren();
  }
}

/** A bounded list of lines: time, who spoke ("page", "server" or "note"), text. */
export class Log extends BoundedList {
  add(who, text) {
    const item = element("li", who);
    const shown = text.length > 500 ? `${text.slice(0, 500)}… (${text.length} characters)` : text;
    item.append(element("time", "", timeOfDay()), element("b", "", who), element("span", "", shown));
    this.append(item);
  }
}

/**
 * A WebSocket that shows its state and can be opened again.
 *
 * `state` shows "connecting", "open", "closing" or "closed", `detail` the code and the reason of the end. The two
 * buttons are optional; each is shown only while it can do something.
 *
 * @param {object} options
 * @param {string | (() => string)} options.path  of the socket, relative to this page
 * @param {string[]} [options.protocols]          subprotocols to offer
 * @param {HTMLElement} options.state
 * @param {HTMLElement} [options.detail]
 * @param {HTMLElement} [options.reconnect]
 * @param {HTMLElement} [options.disconnect]
 * @param {() => void} [options.onOpen]
 * @param {(data: string | ArrayBuffer) => void} [options.onMessage]
 * @param {(event: CloseEvent, wasOpen: boolean) => void} [options.onClose]
 */
export class Connection {
  constructor(options) {
    this.options = options;
    this.socket = null;
    this.keepsFocus = false;
    options.reconnect?.addEventListener("click", () => this.open());
    options.disconnect?.addEventListener("click", () => this.close());
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Opens the connection; does nothing while there is one. */
  open() {
    if (this.socket) return;
    const { path, protocols = [], onOpen, onMessage, onClose } = this.options;
    const socket = new WebSocket(socketUrl(typeof path === "function" ? path() : path), protocols);
    let wasOpen = false;
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.show("connecting");

    socket.addEventListener("open", () => {
      wasOpen = true;
      this.show("open", socket.protocol ? `subprotocol ${socket.protocol}` : "");
      onOpen?.();
    });
    socket.addEventListener("message", (event) => onMessage?.(event.data));
    socket.addEventListener("close", (event) => {
      this.socket = null;
      this.show("closed", describeClose(event));
      onClose?.(event, wasOpen);
    });
  }

  /** Sends a string or bytes. Returns false if the connection is not open. */
  send(data) {
    if (!this.isOpen) return false;
    this.socket.send(data);
    return true;
  }

  /** Starts the closing handshake; the state becomes "closed" when the server has answered. */
  close(code = 1000, reason = "closed by the page") {
    if (!this.socket) return;
    if (this.socket.readyState === WebSocket.CLOSING) return;
    this.show("closing");
    this.socket.close(code, reason);
  }

  show(name, detail = "") {
    const { state, detail: detailElement, reconnect, disconnect } = this.options;
    state.textContent = name;
    state.dataset.state = name;
    if (detailElement) detailElement.textContent = detail;
    // A button that hides loses the focus of the keyboard: it goes to the other one, once that is shown.
    const { activeElement } = document;
    if (activeElement && (activeElement === reconnect || activeElement === disconnect)) this.keepsFocus = true;
    if (reconnect) reconnect.hidden = name !== "closed";
    if (disconnect) disconnect.hidden = name !== "open";
    const shown = [reconnect, disconnect].find((button) => button && !button.hidden);
    if (this.keepsFocus && shown) {
      this.keepsFocus = false;
      shown.focus();
    }
  }
}
