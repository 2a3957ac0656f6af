// Window and level, zoom, and the activation map over a film; by slider, key, wheel or drag.
const STEP = { window: 10, level: 5, zoom: 20, opacity: 5 };

function begin(film) {
  const stage = film.querySelector(".stage");
  const layers = film.querySelector(".layers");
  const plain = film.querySelector(".plain");
  const activation = film.querySelector(".activation");
  const filter = film.querySelector("filter");
  const control = (name) => film.querySelector(`[name=${name}]`);
  const at = { x: 0, y: 0 };

  // PS3.3 C.11.2.1.2.1, with values from 0 to 255.
  function show() {
    const [width, centre] = [Number(control("window").value), Number(control("level").value)];
    const sign = control("invert").checked ? -1 : 1;
    const slope = 255 / width;
    const intercept = 0.5 - (centre / 255) * slope;
    for (const channel of filter.querySelectorAll("feFuncR, feFuncG, feFuncB")) {
      channel.setAttribute("slope", sign * slope);
      channel.setAttribute("intercept", sign > 0 ? intercept : 1 - intercept);
    }
    plain.style.filter = `url(#${filter.id})`;
    const zoom = Number(control("zoom").value) / 100;
    const most = { x: (stage.clientWidth * (zoom - 1)) / 2, y: (stage.clientHeight * (zoom - 1)) / 2 };
    at.x = Math.min(most.x, Math.max(-most.x, at.x));
    at.y = Math.min(most.y, Math.max(-most.y, at.y));
    layers.style.transform = `translate(${at.x}px, ${at.y}px) scale(${zoom})`;
    if (activation) activation.style.opacity = Number(control("opacity").value) / 100;
  }

  function change(name, direction) {
    if (!control(name)) return;
    control(name).value = Number(control(name).value) + direction * STEP[name];
    show();
  }

  function putBack() {
    for (const input of film.querySelectorAll("input")) {
      input.value = input.defaultValue;
      input.checked = input.defaultChecked;
    }
    at.x = at.y = 0;
    show();
  }

  const keys = {
    "+": () => change("zoom", 1), "=": () => change("zoom", 1), "-": () => change("zoom", -1),
    "0": putBack,
    ArrowLeft: () => { at.x += 30; show(); }, ArrowRight: () => { at.x -= 30; show(); },
    ArrowUp: () => { at.y += 30; show(); }, ArrowDown: () => { at.y -= 30; show(); },
  };

  stage.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  // The page scrolls by the wheel, unless the film has the focus.
  stage.addEventListener("wheel", (event) => {
    if (document.activeElement !== stage && !event.ctrlKey) return;
    event.preventDefault();
    change("zoom", event.deltaY < 0 ? 1 : -1);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    stage.focus({ preventScroll: true });
    if (Number(control("zoom").value) === 100) return;
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    at.x += event.movementX;
    at.y += event.movementY;
    show();
  });
  film.addEventListener("input", show);
  control("reset").addEventListener("click", putBack);
  plain.addEventListener("load", show);
  show();
}

function beginAll() {
  for (const film of document.querySelectorAll("[data-film]:not([data-begun])")) {
    film.dataset.begun = "";
    begin(film);
  }
}

document.addEventListener("hilum:changed", beginAll);
beginAll();
