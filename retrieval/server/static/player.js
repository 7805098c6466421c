// The player: the video's own file from a moment on; where the browser cannot play it, that moment as MP4 from the server.

const PREVIEW_BEFORE = 2, PREVIEW_SECONDS = 20;
const dialog = document.querySelector("#player");
let playing = null; // the card in the dialog

/** Show `row` from second `at` in `video`; the moment as MP4 where the file itself does not play. */
export function start(video, row, at, note) {
  let converted = false;
  const convert = () => {
    if (converted || video.dataset.row !== String(row)) return;
    converted = true;
    const from = Math.max(0, at - PREVIEW_BEFORE);
    note.textContent = `This browser cannot play the file itself; here are its seconds ${from.toFixed(0)} to ${(from + PREVIEW_SECONDS).toFixed(0)}, converted.`;
    video.src = `/api/videos/${row}/preview?start=${from.toFixed(2)}&end=${(from + PREVIEW_SECONDS).toFixed(2)}&width=960`;
    video.onerror = () => { note.textContent = "This video cannot be played; its file can be downloaded."; };
    video.play().catch(() => {});
  };
  note.textContent = "";
  video.dataset.row = String(row);
  video.onerror = convert;
  // sound without a picture: a codec that the browser does not know
  video.onloadedmetadata = () => { if (!video.videoWidth) convert(); };
  video.src = `/api/videos/${row}/file#t=${at.toFixed(2)}`;
  video.play().catch(() => {});
}

/** Play a card, or the page's own video, from `at`; false where there is nothing to play it in. */
export function play(card, at) {
  if (card.matches("article.one")) {
    const video = card.querySelector("video");
    if (video) { start(video, card.dataset.row, at, card.querySelector(".player-note")); video.scrollIntoView({ block: "nearest" }); }
    return Boolean(video);
  }
  if (!dialog || !card.matches("#results .card")) return false;
  playing = card;
  dialog.querySelector("h2").textContent = card.dataset.name;
  dialog.dataset.row = card.dataset.row;
  const line = dialog.querySelector(".player-line");
  line.replaceChildren(...[...card.querySelectorAll(".timeline, .moments")].map(one => one.cloneNode(true)));
  dialog.querySelector("[data-do=details]").href = card.querySelector("[data-do=details]").href;
  if (!dialog.open) dialog.showModal();
  start(dialog.querySelector("video"), card.dataset.row, at, dialog.querySelector(".player-note"));
  return true;
}

function beside(step) {
  const cards = [...document.querySelectorAll("#results .card:not(.dead)")];
  const next = cards[cards.indexOf(playing) + step];
  if (next) play(next, Number(next.dataset.at));
}

function moment(step) {
  const times = [...playing.querySelectorAll(".moments a")].map(one => Number(one.dataset.at)).sort((a, b) => a - b);
  const now = dialog.querySelector("video").currentTime;
  const next = step > 0 ? times.find(time => time > now + 0.1) : times.findLast(time => time < now - 1);
  if (next !== undefined) play(playing, next);
}

/** Keys of the open player; true where the key was meant for it. */
export function playerKeys(event) {
  if (!dialog?.open) return false;
  const video = dialog.querySelector("video"), onButton = event.target.matches("button, a");
  const keys = { j: () => beside(1), k: () => beside(-1), ".": () => moment(1), ",": () => moment(-1) };
  if (!onButton && event.target !== video) keys[" "] = () => (video.paused ? video.play() : video.pause());
  if (!keys[event.key]) return false;
  event.preventDefault();
  keys[event.key]();
  return true;
}

if (dialog) {
  dialog.addEventListener("close", () => {
    const video = dialog.querySelector("video");
    video.onerror = null;
    video.removeAttribute("src");
    video.load();
    playing?.querySelector("a.poster").focus();
  });
  dialog.addEventListener("click", event => {
    const wish = event.target.closest("[data-do]")?.dataset.do;
    if (wish === "close" || event.target === dialog) dialog.close();
    if (wish === "next") beside(1);
    if (wish === "previous") beside(-1);
    const place = event.target.closest("[data-at]");
    if (place && playing) { event.preventDefault(); event.stopPropagation(); play(playing, Number(place.dataset.at)); }
  });
}

// a page with one video: convert there too, and keep its moment
const own = document.querySelector("article.one video");
if (own) {
  const { row, at } = own.closest("[data-row]").dataset;
  const note = own.closest("article").querySelector(".player-note");
  own.addEventListener("error", () => start(own, row, Number(at), note), { once: true });
  own.addEventListener("loadedmetadata", () => { if (!own.videoWidth) start(own, row, Number(at), note); }, { once: true });
  if (own.error) start(own, row, Number(at), note);
}
