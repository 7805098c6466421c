// A clip starts at its moment, repeats it, and plays only while it can be seen.
const seen = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) =>
  isIntersecting ? target.play().catch(() => {}) : target.pause()), { threshold: 0.4 });
document.querySelectorAll("video[data-start]").forEach(video => {
  const start = +video.dataset.start, end = +video.dataset.end || Infinity;
  video.addEventListener("loadedmetadata", () => { video.currentTime = start; });
  video.addEventListener("timeupdate", () => { if (video.currentTime >= end) { video.currentTime = start; } });
  video.addEventListener("ended", () => { video.currentTime = start; video.play(); });
  seen.observe(video);
});
