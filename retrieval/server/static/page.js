// The search page: instant search, the player, keys. Every page works without this file; it only saves clicks.
// Text from the server is put in as text or as nodes of a page that the server rendered, never as markup made here.
import { play, playerKeys } from "./player.js";

const HOVER_MS = 250, TYPE_MS = 250;
const find = (selector, within = document) => within.querySelector(selector);
const form = find("form.search"), results = find("#results");
const canHover = matchMedia("(hover: hover)").matches && !matchMedia("(prefers-reduced-motion: reduce)").matches;

export function say(text) {
  const place = find("#said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; }, 4000);
}

async function ask(method, path, content) {
  const answer = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: content && JSON.stringify(content) });
  const reply = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Error(reply.detail || `the server answered ${answer.status}`);
  return reply;
}

// ---- instant search: the address is the search ------------------------------------------------------------------

let running = null, typing = 0;

function address() {
  const wanted = new URLSearchParams(new FormData(form));
  for (const [name, value] of [...wanted]) {
    if (!value || typeof value !== "string" || (name === "sort" && value === "best") || (name === "size" && value === "24")) wanted.delete(name);
  }
  return wanted.size ? `/?${wanted}` : "/";
}

async function load(url, keep) {
  running?.abort();
  const mine = running = new AbortController();
  document.body.classList.add("busy");
  try {
    const answer = await fetch(`${url}${url.includes("?") ? "&" : "?"}part=results`, { signal: mine.signal });
    const shown = new DOMParser().parseFromString(await answer.text(), "text/html");
    results.replaceChildren(...shown.body.childNodes);
    if (keep) history.replaceState(null, "", url); else history.pushState(null, "", url);
    document.title = (form.elements.q.value ? `${form.elements.q.value} – ` : "") + "Video search";
  } catch (error) {
    if (error.name !== "AbortError") say(`No answer from the server: ${error.message}`);
  } finally {
    if (running === mine) document.body.classList.remove("busy");
  }
}

if (form) {
  form.addEventListener("submit", event => {
    event.preventDefault();
    clearTimeout(typing);
    load(address(), false);
  });
  form.addEventListener("input", event => {
    if (event.target.type === "file") return;
    clearTimeout(typing);
    typing = setTimeout(() => load(address(), true), TYPE_MS);
  });
  find("#clip").addEventListener("change", event => upload(event.target.files[0]));
  find("#save").addEventListener("click", saveSearch);
  addEventListener("popstate", () => location.reload());
  addEventListener("dragover", event => event.preventDefault());
  addEventListener("drop", event => { event.preventDefault(); upload(event.dataTransfer.files[0]); });
}

async function upload(file) {
  if (!file) return;
  say(`Looking at ${file.name} …`);
  const content = new FormData();
  content.append("clip", file);
  content.append("q", form.elements.q.value);
  content.append("filter", form.elements.filter.value);
  try {
    const answer = await fetch("/clip", { method: "POST", body: content });
    if (answer.ok) location.assign(answer.url);
    else say((await answer.json()).detail);
  } catch (error) {
    say(`The clip did not arrive: ${error.message}`);
  }
}

async function saveSearch() {
  try {
    await ask("POST", "/api/saved", { q: form.elements.q.value, filter: form.elements.filter.value });
    say("Saved. New footage that fits will appear under “Saved”.");
  } catch (error) {
    say(error.message);
  }
}

// ---- what the buttons of a card do ------------------------------------------------------------------------------

const actions = {
  async favourite(card, button) {
    const kept = button.getAttribute("aria-pressed") !== "true";
    await ask("POST", `/api/videos/${card.dataset.row}/favourite`, { kept, at: Number(card.dataset.at) });
    button.setAttribute("aria-pressed", String(kept));
    say(kept ? "Kept as a favourite." : "No favourite any more.");
  },
  link: card => copy(new URL(find("a.poster", card)?.getAttribute("href") ?? location.href, location).href, "The link"),
  path: (card, button) => copy(button.dataset.path, "The path"),
  async forget(_, button) {
    const entry = button.closest("[data-saved]");
    await ask("DELETE", `/api/saved/${entry.dataset.saved}`);
    entry.remove();
  },
};

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} is copied.`);
  } catch {
    say(text); // without a clipboard (plain http from another machine) it can be copied by hand
  }
}

document.addEventListener("click", event => {
  const opener = event.target.closest("[data-open]");
  if (opener) return find(`#${opener.dataset.open}`).showModal();
  const button = event.target.closest("[data-do]");
  const card = event.target.closest("[data-row]");
  if (button && actions[button.dataset.do]) {
    Promise.resolve(actions[button.dataset.do](card, button)).catch(error => say(error.message));
    return;
  }
  if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab, as anywhere
  const place = event.target.closest("a.poster, a[data-at], rect[data-at]");
  if (place && card && !card.classList.contains("dead") && play(card, Number(place.dataset.at ?? card.dataset.at))) event.preventDefault();
});

find("#saving")?.addEventListener("submit", async event => {
  event.preventDefault();
  const wish = Object.fromEntries(new FormData(event.target));
  try {
    await ask("POST", "/api/saved", { ...wish, webhook: wish.webhook || null, min_fit: Number(wish.min_fit) });
    location.reload();
  } catch (error) {
    say(error.message);
  }
});

// ---- posters: a short preview under the mouse; a frame that cannot be shown leaves the card usable ----------------

document.addEventListener("error", event => {
  if (event.target.matches?.(".poster img")) event.target.classList.add("broken");
}, true);

let waiting = 0;
document.addEventListener("pointerover", event => {
  const poster = event.target.closest?.(".card:not(.dead) a.poster");
  if (!canHover || !poster || poster.contains(event.relatedTarget) || find("video", poster)) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => preview(poster), HOVER_MS);
});
document.addEventListener("pointerout", event => {
  const poster = event.target.closest?.("a.poster");
  if (!poster || poster.contains(event.relatedTarget)) return;
  clearTimeout(waiting);
  find("video", poster)?.remove();
});

function preview(poster) {
  const { row, at } = poster.closest(".card").dataset;
  const start = Math.max(0, Number(at) - 1);
  const video = Object.assign(document.createElement("video"), { muted: true, loop: true, autoplay: true, playsInline: true });
  video.src = `/api/videos/${row}/preview?start=${start.toFixed(2)}&end=${(start + 3).toFixed(2)}&width=480`;
  video.addEventListener("error", () => video.remove());
  find(".badge", poster).before(video);
}

// ---- keys -------------------------------------------------------------------------------------------------------

const posters = () => [...document.querySelectorAll("#results a.poster")];

function step(key) {
  const all = posters(), here = all.indexOf(document.activeElement?.closest("[data-row]")?.querySelector("a.poster"));
  if (!all.length) return;
  const across = all.findIndex(one => one.getBoundingClientRect().top > all[0].getBoundingClientRect().top);
  const row = across < 0 ? all.length : across;
  const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[key];
  const next = here < 0 ? 0 : here + move;
  if (next < 0) return find("input[name=q]").focus();
  all[Math.min(next, all.length - 1)].focus();
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (playerKeys(event)) return;
  if (event.target.closest("dialog[open]")) return;
  const writing = event.target.matches("input, select, textarea");
  if (event.key === "ArrowDown" && event.target.matches("input[name=q]") && posters().length) {
    event.preventDefault();
    return posters()[0].focus();
  }
  if (writing || event.target.matches("video")) return;
  const card = document.activeElement?.closest("[data-row]");
  if (event.key === "/") { event.preventDefault(); find("input[name=q]")?.select(); }
  else if (event.key === "?") find("#keys").showModal();
  else if (event.key.startsWith("Arrow") && results && !event.target.closest(".heat")) { event.preventDefault(); step(event.key); }
  else if (event.key === "n" || event.key === "p") find(`a[rel=${event.key === "n" ? "next" : "prev"}]`)?.click();
  else if (card) ({ f: () => find("[data-do=favourite]", card)?.click(), m: () => find("[data-do=like]", card)?.click(), d: () => find("[data-do=details]", card)?.click() })[event.key]?.();
});
