// Keeps a page current: one stream of server-sent events brings the HTML of the regions that changed, and only what differs is
// touched, so that focus, selection and scroll position stay. Without scripts the pages work and show what was true when loaded.
"use strict";

const WORDS = { live: "Live", connecting: "Connecting", paused: "Paused", still: "Not live" };
const RETRY_MS = 4000;
let source = null;
let retry = 0;

function say(state) {
  const sign = document.getElementById("live");
  if (sign && sign.dataset.state !== state) {
    sign.dataset.state = state;
    sign.lastElementChild.textContent = WORDS[state];
  }
}

function connect() {
  const url = document.body.dataset.stream;
  if (!url || source || document.hidden) return;
  source = new EventSource(url);
  source.addEventListener("regions", (event) => { say("live"); update(JSON.parse(event.data)); });
  source.addEventListener("goodbye", () => { disconnect("still"); location.reload(); });
  source.addEventListener("error", () => {
    say("connecting");
    if (source && source.readyState === EventSource.CLOSED) {  // the browser gave up: a proxy answered something else
      disconnect("connecting");
      retry = setTimeout(connect, RETRY_MS);
    }
  });
}

function disconnect(state) {
  clearTimeout(retry);
  if (source) source.close();
  source = null;
  if (document.body.dataset.stream) say(state);
}

function update(regions) {
  for (const [name, html] of Object.entries(regions)) {
    const region = document.querySelector(`[data-region="${CSS.escape(name)}"]`);
    if (!region) continue;
    const template = document.createElement("template");
    template.innerHTML = html;
    morph(region, template.content);
  }
}

// Makes the children of `target` like those of `source`. A node is found again by its data-key, or by its place and name.
function morph(target, source) {
  const keyed = new Map();
  for (const node of target.children) if (node.dataset.key) keyed.set(node.dataset.key, node);
  let at = target.firstChild;
  for (const wanted of [...source.childNodes]) {
    const key = wanted.dataset ? wanted.dataset.key : undefined;
    const found = key ? keyed.get(key) : at && at.nodeName === wanted.nodeName && !(at.dataset && at.dataset.key) ? at : null;
    if (!found) {
      target.insertBefore(wanted, at);
      if (key && wanted.nodeName === "TR") wanted.classList.add("fresh");
      continue;
    }
    if (found === at) at = at.nextSibling;
    else target.insertBefore(found, at);
    if (!found.isEqualNode(wanted)) become(found, wanted);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function become(node, wanted) {
  if (node.nodeName !== wanted.nodeName) { node.replaceWith(wanted); return; }
  if (node.nodeType !== Node.ELEMENT_NODE) { node.nodeValue = wanted.nodeValue; return; }
  const isOpen = node.nodeName === "DETAILS" && node.open;  // what a person opened stays open
  for (const { name } of [...node.attributes]) if (!wanted.hasAttribute(name)) node.removeAttribute(name);
  for (const { name, value } of wanted.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  morph(node, wanted);
  if (isOpen) node.open = true;
}

document.addEventListener("visibilitychange", () => { if (document.hidden) disconnect("paused"); else connect(); });
addEventListener("pagehide", () => disconnect("paused"));
addEventListener("pageshow", connect);
for (const form of document.querySelectorAll("form[data-autosubmit]")) {
  form.addEventListener("change", (event) => { if (event.target.nodeName === "SELECT") form.requestSubmit(); });
  form.addEventListener("formdata", (event) => {  // an address without empty parts
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
}
connect();
