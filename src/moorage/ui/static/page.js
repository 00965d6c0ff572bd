// Keeps an open page current. Everything can be read without it. Text becomes text nodes: there is no way to markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "rect"]);
const MOST_LINES = 1000;
const byId = (id) => document.getElementById(id);

document.documentElement.classList.add("js");

// A node of what the server sends: a text, or [tag, attributes, child, ...].
function build(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, attributes, ...children] = tree;
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    const isLink = name === "href" || name === "src" || name === "action";
    if (!name.startsWith("on") && (!isLink || /^[/?#](?![/\\])/.test(value))) node.setAttribute(name, value);
  }
  node.append(...children.map(build));
  return node;
}

// A replaced element that had the focus inside gives it to the one that takes its position.
function replace(old, node) {
  const active = document.activeElement;
  const focusable = "a, button, input, select";
  const at = old.contains(active) ? [...old.querySelectorAll(focusable)].indexOf(active) : -1;
  old.replaceWith(node);
  if (at >= 0) node.querySelectorAll(focusable)[at]?.focus({ preventScroll: true });
}

function apply({ lists, rows, elements }) {
  for (const [id, order] of Object.entries(lists)) {
    const list = byId(id);
    if (!list) continue;
    const present = new Map([...list.children].map((each) => [each.id, each]));
    const nodes = order.map((row) => (rows[row] ? build(rows[row]) : present.get(row))).filter(Boolean);
    const remain = new Set(nodes);
    for (const each of [...list.children]) if (!remain.has(each)) each.remove();
    nodes.forEach((node, at) => {
      if (list.children[at] !== node) list.insertBefore(node, list.children[at] ?? null);
    });
  }
  for (const [id, tree] of Object.entries(elements)) {
    const old = byId(id);
    if (old) replace(old, build(tree));
  }
}

// ------------------------------------------------------------------------------------------------- the connection

let source = null;
let again = 0;
let isLost = false;
let key = document.body.dataset.key;

function say(text, kind) {
  const shown = byId("connection");
  if (!shown) return;
  shown.textContent = text;
  shown.className = kind;
  shown.hidden = !text;
}

function connect() {
  clearTimeout(again);
  source?.close();
  const query = new URLSearchParams(location.search);
  if (key) query.set("key", key);
  key = "";
  source = new EventSource(`${location.pathname}?${query}`);
  source.onopen = () => {
    if (!isLost) return;
    isLost = false;
    say("Connected again.", "good");
    setTimeout(() => isLost || say("", ""), 5000);
  };
  source.onmessage = (event) => apply(JSON.parse(event.data));
  source.addEventListener("gone", (event) => {
    source.close();
    say(JSON.parse(event.data), "bad");
  });
  source.onerror = () => {
    isLost = true;
    say("The connection to this page's server is lost; trying again.", "bad");
    source.close();
    again = setTimeout(reconnect, 1000);
  };
}

// A session that is not valid any more is seen by a redirect to the form for the token.
async function reconnect() {
  try {
    const answer = await fetch("/session", { redirect: "manual" });
    if (answer.type === "opaqueredirect" || answer.status === 401) return location.assign("/login");
    connect();
  } catch {
    again = setTimeout(reconnect, 1000);
  }
}

// A filter changes the address, and the server sends what differs.
function watchFilter(form) {
  let timer = 0;
  const update = () => {
    const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}`);
    connect();
  };
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(update, 150);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    update();
  });
}

// ------------------------------------------------------------------------------------------------------ the output

function watchLog(log) {
  const form = byId("log-filter");
  const pause = byId("log-pause");
  const state = byId("log-state");
  let lines = null;
  let timer = 0;

  const add = ({ lines: added, dropped }) => {
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    if (dropped) added.unshift(["", "note", `${dropped} lines were too fast for this page and are not shown`]);
    const nodes = added.slice(-MOST_LINES).map(([time, stream, text]) => {
      return build(["div", { class: stream }, ["time", {}, time], ["span", {}, text]]);
    });
    log.append(...nodes);
    const over = log.childElementCount - MOST_LINES;
    if (over > 0) {
      const range = document.createRange();
      range.setStartBefore(log.firstChild);
      range.setEndBefore(log.children[over]);
      range.deleteContents();
    }
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  };

  const open = () => {
    lines?.close();
    clearTimeout(timer);
    const query = new URLSearchParams(new FormData(form));
    lines = new EventSource(`${log.dataset.log}?${query}`);
    lines.addEventListener("start", () => {
      log.replaceChildren();
      state.textContent = "live";
    });
    lines.onmessage = (event) => add(JSON.parse(event.data));
    lines.addEventListener("problem", (event) => {
      state.textContent = JSON.parse(event.data);
    });
    lines.onerror = () => {
      state.textContent = "not connected; trying again";
      lines.close();
      timer = setTimeout(open, 1000);
    };
  };

  pause.hidden = false;
  pause.addEventListener("click", () => {
    const isPaused = pause.getAttribute("aria-pressed") === "true";
    pause.setAttribute("aria-pressed", String(!isPaused));
    if (isPaused) return open();
    lines.close();
    clearTimeout(timer);
    state.textContent = "paused";
  });
  let typing = 0;
  form.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(open, 200);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  log.scrollTop = log.scrollHeight;
  open();
}

// ------------------------------------------------------------------------------------------------------- the start

const login = byId("login");
const given = /^#token=([\w~.-]+)$/.exec(location.hash);
if (given) history.replaceState(null, "", location.pathname + location.search);
if (login && given) {
  byId("token").value = given[1];
  login.submit();
}
if (byId("connection")) {
  connect();
  document.querySelectorAll("form[data-filter]").forEach(watchFilter);
  if (byId("log")) watchLog(byId("log"));
}
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, select, textarea");
  const filter = document.querySelector("input[type=search]");
  if (event.key === "/" && !isTyping && filter) {
    event.preventDefault();
    filter.focus();
  }
});
