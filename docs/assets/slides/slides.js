// One slide at a time, scaled to the window. Arrow keys, space, a tap on the right or left half; the address keeps the number.
(() => {
  const slides = [...document.querySelectorAll(".slide")];
  const body = document.body;
  let now = 0;
  body.classList.add("js");

  function fit() {
    const scale = Math.min(innerWidth / 1280, innerHeight / 720);
    for (const slide of slides) {
      slide.style.transform = `scale(${scale})`;
      slide.style.left = `${(innerWidth - 1280 * scale) / 2}px`;
      slide.style.top = `${(innerHeight - 720 * scale) / 2}px`;
    }
  }

  // What does not fit is set smaller, down to half.
  function shrink(slide) {
    const inner = slide.querySelector(".inner");
    const over = () => inner.scrollHeight > inner.clientHeight + 1 || inner.scrollWidth > inner.clientWidth + 1;
    for (let size = 30; size >= 9 && over(); size -= 1) {
      inner.style.fontSize = `${size}px`;
      for (const image of inner.querySelectorAll("img")) image.style.maxHeight = `${Math.round((size - 6) * 21)}px`;
    }
  }

  function go(to) {
    now = Math.max(0, Math.min(slides.length - 1, to));
    slides.forEach((slide, i) => slide.classList.toggle("now", i === now));
    history.replaceState(null, "", `#${now + 1}`);
    shrink(slides[now]);
  }

  const keys = {
    ArrowRight: () => go(now + 1), ArrowDown: () => go(now + 1), PageDown: () => go(now + 1), " ": () => go(now + 1),
    ArrowLeft: () => go(now - 1), ArrowUp: () => go(now - 1), PageUp: () => go(now - 1), Backspace: () => go(now - 1),
    Home: () => go(0), End: () => go(slides.length - 1),
    n: () => body.classList.toggle("speak"), d: () => body.classList.toggle("dark"), "?": () => body.classList.toggle("help"),
    f: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
    p: () => print(),
  };
  addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[key]) return;
    event.preventDefault();
    keys[key]();
  });
  addEventListener("click", (event) => {
    if (event.target.closest("a, .notes")) return;
    go(now + (event.clientX < innerWidth / 3 ? -1 : 1));
  });
  addEventListener("resize", fit);
  addEventListener("hashchange", () => go(Number(location.hash.slice(1)) - 1 || 0));

  const set = () => {
    renderMathInElement(body, {
      delimiters: [{ left: "$$", right: "$$", display: true }, { left: "$", right: "$", display: false }],
      ignoredTags: ["script", "style", "pre", "code"],
      throwOnError: false,
    });
    fit();
    go(Number(location.hash.slice(1)) - 1 || 0);
    body.classList.add("help");
    setTimeout(() => body.classList.remove("help"), 4000);
  };
  set();
  addEventListener("load", () => go(now));
})();
