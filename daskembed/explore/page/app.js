// The page of a preview: what it is told by the scripts in data/, on a map. It reads nothing from the network by itself.
"use strict";

const daskembed = (() => {
  const MOST_LOADED = 64;  // tiles whose chips are held: those of 441 chips are 28,000 polygons
  const LEAST_PIXELS = 48;  // on the screen, of a tile whose chips are drawn
  const LATER = 1e9;
  const THEMES = {
    light: {sea: "#dbe6ea", land: "#f6f4ee", border: "#b9b4a6", grid: "#a9bac1", edge: "#37474f"},
    dark: {sea: "#10171b", land: "#232b2f", border: "#4b565b", grid: "#34434a", edge: "#b0bec5"},
  };
  const BASE_MAP = {
    type: "raster", tileSize: 256, maxzoom: 14,
    tiles: ["https://tiles.maps.eox.at/wmts/1.0.0/s2cloudless_3857/default/g/{z}/{y}/{x}.jpg"],
    attribution: '<a href="https://s2maps.eu">Sentinel-2 cloudless</a> by EOX IT Services GmbH (contains modified '
      + "Copernicus Sentinel data 2016 and 2017)",
  };
  const at = id => document.getElementById(id);
  const percent = share => `${(100 * share).toFixed(1)} %`;
  const collection = features => ({type: "FeatureCollection", features});
  const api = {}, waiting = new Map(), loaded = new Map();
  let byFile = new Map();
  let index, world, map, dates, theme, chosen = null, lit = null;

  function element(name, text = "", className = "") {
    const made = document.createElement(name);
    made.textContent = text;  // never as HTML: names and reasons are anybody's
    if (className) made.className = className;
    return made;
  }

  function button(text, act, className = "plain") {
    const made = element("button", text, className);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  function list(facts) {
    const made = element("dl");
    for (const [name, value] of facts) {
      const told = element("dd");
      told.append(value);
      made.append(element("dt", name), told);
    }
    return made;
  }

  function swatch(colour) {
    const made = element("span", "", "swatch");
    made.style.background = colour;
    return made;
  }

  // May be broken behind a slash or underscore.
  function breakable(url) {
    const made = element("span");
    for (const part of url.split(/(?<=[/_])/)) made.append(part, element("wbr"));
    return made;
  }

  const tell = text => { at("told").textContent = text; };

  // With a name that is read out and shown beneath the pointer.
  function named(made, name) {
    made.title = name;
    made.setAttribute("aria-label", name);
    return made;
  }

  function copier(name, text) {
    const made = button(name, async () => {
      try {
        await navigator.clipboard.writeText(text);
        made.textContent = "Copied";
        tell(`Copied: ${text}`);
      } catch { prompt("To be copied:", text); }  // browsers keep the clipboard from pages of plain http
    });
    return made;
  }

  // ---- what the scripts in data/ give

  function ask(name) {
    if (!waiting.has(name)) waiting.set(name, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${encodeURIComponent(name)}.js`;
      script.onload = () => { script.remove(); resolve(); };
      script.onerror = () => { script.remove(); waiting.delete(name); reject(new Error(`${name} cannot be read`)); };
      document.head.append(script);
    }));
    return waiting.get(name);
  }

  function ring(steps, [x, y]) {
    const corners = [];
    for (let n = 0; n < steps.length; n += 2) {
      x += steps[n]; y += steps[n + 1];
      corners.push([x / index.degree, y / index.degree]);
    }
    return [...corners, corners[0]];
  }

  const polygon = (coordinates, properties) =>
    ({type: "Feature", properties, geometry: {type: "Polygon", coordinates: [coordinates]}});

  // From when until when a date of a tile is the last one.
  const span = (tile, number) => {
    const next = tile.dates[number + 1];
    return {from: dates.indexOf(tile.dates[number][0]), until: next ? dates.indexOf(next[0]) : LATER};
  };

  api.tile = document_ => {
    const tile = byFile.get(document_.file);
    const chips = document_.chips.map(([date, colour, url, steps], number) => ({
      tile, number, date, colour, url: document_.prefix + url, ring: ring(steps, tile.origin)}));
    const pictured = new Set(document_.images.map(([date]) => date));
    const features = chips.filter(chip => chip.ring[0]).map(chip => polygon(chip.ring, {tile: tile.id, chip: chip.number,
      colour: `#${chip.colour}`, pictured: pictured.has(chip.date), ...span(tile, chip.date)}));
    const bad = document_.bad.map(([kind, url, why, steps]) => ({kind, url, why, ring: steps && ring(steps, tile.origin)}));
    const hatched = bad.map((one, number) => one.ring && polygon(one.ring, {tile: tile.id, bad: number, kind: one.kind}));
    loaded.set(tile.id, {tile, chips, bad, features, hatched: hatched.filter(Boolean), images: document_.images,
      facts: document_.facts, notes: document_.notes, drawn: false});
  };

  async function load(tile) {
    if (!loaded.has(tile.id)) await ask(tile.document);
    const found = loaded.get(tile.id);
    found.used = performance.now();
    return found;
  }

  // ---- the map

  const style = () => ({
    version: 8,
    sources: {
      world: {type: "geojson", data: world},
      grid: {type: "geojson", data: collection([])},
      tiles: {type: "geojson", data: tileFeatures()},
      chips: {type: "geojson", data: collection([])},
      bad: {type: "geojson", data: collection([])},
      hits: {type: "geojson", data: collection([])},
      "hit-frames": {type: "geojson", data: collection([])},
      chosen: {type: "geojson", data: collection([])},
    },
    layers: [
      {id: "sea", type: "background", paint: {"background-color": theme.sea}},
      {id: "land", type: "fill", source: "world", filter: ["==", ["get", "kind"], "land"], paint: {"fill-color": theme.land}},
      {id: "grid", type: "line", source: "grid", paint: {"line-color": theme.grid, "line-width": 0.7}},
      {id: "border", type: "line", source: "world", paint: {"line-color": theme.border, "line-width": 0.9}},
      {id: "tiles", type: "fill", source: "tiles", paint: {"fill-color": ["get", "colour"], "fill-antialias": false}},
      {id: "tile-edges", type: "line", source: "tiles", paint: {"line-color": theme.edge, "line-width": 1, "line-opacity": ["interpolate", ["linear"], ["zoom"], 3, 0.1, 7, 0.6]}},
      {id: "chips", type: "fill", source: "chips",
        paint: {"fill-color": ["get", "colour"], "fill-opacity": unlessPictured(1), "fill-antialias": false}},
      {id: "chip-edges", type: "line", source: "chips", minzoom: 8,
        paint: {"line-color": theme.edge, "line-width": 0.6, "line-opacity": ["interpolate", ["linear"], ["zoom"], 8, 0, 10, 0.4]}},
      {id: "bad", type: "fill", source: "bad", paint: {"fill-pattern": ["concat", "hatch-", ["get", "kind"]]}},
      {id: "bad-edges", type: "line", source: "bad",
        paint: {"line-color": ["match", ["get", "kind"], "quarantined", "#d32f2f", "#ef8a00"], "line-width": 1.2}},
      {id: "hit-fills", type: "fill", source: "hits", paint: {"fill-color": ["get", "colour"], "fill-antialias": false}},
      {id: "hit-edges", type: "line", source: "hits", paint: {"line-color": "#000", "line-width": 1, "line-opacity": 0.5}},
      // Frames lie around what they frame: it may be small.
      {id: "hit-shades", type: "line", source: "hit-frames", layout: {"line-cap": "square"},
        paint: {"line-color": "#000", "line-width": 5, "line-offset": -1.5}},
      {id: "hits", type: "line", source: "hit-frames", layout: {"line-cap": "square"},
        paint: {"line-color": "#ffeb3b", "line-width": 3, "line-offset": -1.5}},
      {id: "chosen-fill", type: "fill", source: "chosen", paint: {"fill-color": ["get", "colour"], "fill-antialias": false}},
      {id: "chosen-shade", type: "line", source: "chosen", paint: {"line-color": "#000", "line-width": 6, "line-offset": -2}},
      {id: "chosen", type: "line", source: "chosen", paint: {"line-color": "#fff", "line-width": 3, "line-offset": -2}},
    ],
  });
  const unlessPictured = opacity => ["case", ["get", "pictured"], 0, opacity];
  const hasGrid = () => index.grid[0] * index.grid[1] > 1;

  function tileFeatures() {
    return collection(index.tiles.filter(tile => tile.outline.length).flatMap(tile =>
      tile.dates.map(([, , colour], number) => polygon(ring(tile.outline, tile.origin),
        {tile: tile.id, colour: `#${colour}`, ...span(tile, number)}))));
  }

  function hatch(colour) {
    const canvas = document.createElement("canvas"), size = canvas.width = canvas.height = 12;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "rgba(255,255,255,.72)";
    pen.fillRect(0, 0, size, size);
    pen.strokeStyle = colour;
    pen.lineWidth = 2.5;
    for (const shift of [-size, 0, size]) { pen.moveTo(shift, size); pen.lineTo(shift + size, 0); }
    pen.stroke();
    return pen.getImageData(0, 0, size, size);
  }

  const now = () => Number(at("date").value);
  const isShown = (tile, number) => { const {from, until} = span(tile, number); return from <= now() && now() < until; };

  function showDate() {
    at("day").textContent = dates[now()];
    at("date").setAttribute("aria-valuetext", dates[now()]);
    const shown = ["all", ["<=", ["get", "from"], now()], [">", ["get", "until"], now()]];
    const bare = ["!", ["in", ["get", "tile"], ["literal", drawn().map(one => one.tile.id)]]];
    map.setFilter("tiles", ["all", shown, bare]);
    map.setFilter("tile-edges", shown);
    map.setFilter("chips", shown);
    map.setFilter("chip-edges", shown);
    for (const {tile, images} of drawn()) for (const [number] of images)
      map.setLayoutProperty(`image-${tile.id}-${number}`, "visibility", isShown(tile, number) ? "visible" : "none");
  }

  const drawn = () => [...loaded.values()].filter(one => one.drawn);

  function draw() {
    map.getSource("chips").setData(collection(drawn().flatMap(one => one.features)));
    map.getSource("bad").setData(collection(drawn().flatMap(one => one.hatched)));
    showDate();
  }

  function addImages({tile, images}) {
    for (const [number, png, corners] of images) {
      const id = `image-${tile.id}-${number}`;
      // MapLibre shows an image whose middle is between -180 and 180 degrees only, on all sides of the world then.
      const turns = Math.floor((corners[0][0] + corners[1][0] + 360) / 720) * 360;
      const coordinates = corners.map(([lng, lat]) => [lng - turns, lat]);
      map.addSource(id, {type: "image", url: `data:image/png;base64,${png}`, coordinates});
      map.addLayer({id, type: "raster", source: id,
        paint: {"raster-resampling": "nearest", "raster-fade-duration": 0, "raster-opacity": dimmed()}}, "chips");
    }
  }

  function drop(one) {
    one.drawn = false;
    for (const [number] of one.images) {
      map.removeLayer(`image-${one.tile.id}-${number}`);
      map.removeSource(`image-${one.tile.id}-${number}`);
    }
    if (chosen?.tile.id !== one.tile.id && !api.keepsAll) { loaded.delete(one.tile.id); waiting.delete(one.tile.document); }
  }

  function inView() {
    const view = map.getBounds(), middle = map.getCenter();
    const [west, south, east, north] = [view.getWest(), view.getSouth(), view.getEast(), view.getNorth()];
    const found = [];
    for (const tile of index.tiles) {
      const [w, s, e, n] = tile.box;
      // The map goes round the world as often as it is turned.
      const turns = Math.round((middle.lng - (w + e) / 2) / 360) * 360;
      if (w + turns > east || e + turns < west || s > north || n < south) continue;
      const left = map.project([w, (s + n) / 2]), right = map.project([e, (s + n) / 2]);
      if (!tile.dates.length || Math.abs(right.x - left.x) < LEAST_PIXELS) continue;
      found.push([Math.hypot((w + e) / 2 + turns - middle.lng, (s + n) / 2 - middle.lat), tile]);
    }
    return found.sort((one, other) => one[0] - other[0]).slice(0, MOST_LOADED).map(([, tile]) => tile);
  }

  let turn = 0;
  async function refresh() {
    const mine = ++turn;
    showGrid();
    const wanted = inView();
    let changed = false;
    const look = async tile => {
      try {
        const one = await load(tile);
        if (mine !== turn || one.drawn) return;
        one.drawn = changed = true;
        addImages(one);
      } catch (error) { tell(error.message); }
    };
    for (let n = 0; n < wanted.length && mine === turn; n += 8) {
      await Promise.all(wanted.slice(n, n + 8).map(look));
      if (changed && mine === turn) { draw(); changed = false; }
    }
    if (mine !== turn) { if (changed) draw(); return; }
    const keep = new Set(wanted.map(tile => tile.id));
    const extra = drawn().filter(one => !keep.has(one.tile.id)).sort((one, other) => one.used - other.used);
    const gone = extra.slice(0, Math.max(0, drawn().length - MOST_LOADED));
    if (gone.length) { gone.forEach(drop); draw(); }
    document.documentElement.dataset.drawn = drawn().length;
  }

  function showGrid() {
    const step = [30, 10, 5, 2, 1, 0.5, 0.2, 0.1].find(one => one * 512 * 2 ** map.getZoom() / 360 < 260) ?? 0.1;
    const view = map.getBounds(), lines = [];
    const low = value => Math.floor(value / step) * step;
    for (let lon = low(view.getWest()); lon <= view.getEast() + step; lon += step)
      lines.push([[lon, -85], [lon, 85]]);
    for (let lat = low(view.getSouth()); lat <= view.getNorth() + step; lat += step)
      lines.push([[view.getWest() - step, lat], [view.getEast() + step, lat]]);
    map.getSource("grid").setData(collection([
      {type: "Feature", properties: {}, geometry: {type: "MultiLineString", coordinates: lines}}]));
  }

  // Of the panel and the map's controls, of which narrow windows have the scale at the top.
  function padding() {
    const panel = at("panel").getBoundingClientRect(), wide = innerWidth > 640;
    return {top: wide ? 40 : 90, right: 60, bottom: wide ? 90 : panel.height + 20, left: wide ? panel.right + 30 : 30};
  }

  const fly = ([west, south, east, north], maxZoom = 12) => map.fitBounds([[west, south], [east, north]],
    {padding: padding(), maxZoom, duration: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 600});

  const boxOf = corners => {
    const x = corners.map(one => one[0]), y = corners.map(one => one[1]);
    return [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)];
  };

  // ---- what is chosen

  function explain(explained) {
    const rows = ["red", "green", "blue"].map((name, number) => {
      const row = element("div", "", "bar"), bar = element("i"), filled = element("b");
      filled.style.width = `${100 * explained[number]}%`;
      filled.style.background = ["#d84a3f", "#3f9b4b", "#3f74d8"][number];
      bar.append(filled);
      row.append(element("span", name), bar, element("span", percent(explained[number])));
      return row;
    });
    return [...rows, element("p", `${percent(explained[0] + explained[1] + explained[2])} of the variance together`, "quiet")];
  }

  function heading(text, mark, ...more) {
    const made = element("div", "", "title");
    if (mark) made.append(mark);
    made.append(element("h2", text), ...more, named(button("✕", letGo, ""), "Let go of what is chosen"));
    return made;
  }

  function folded(title, ...inside) {
    const made = element("details");
    made.append(element("summary", title), ...inside);
    return made;
  }

  function aboutTile(one) {
    const bad = one.bad.map(({kind, url, why, ring: known}) => {
      const line = element("li");
      line.append(element("b", kind), `: ${url}: ${why}${known ? "" : " (its place is not known)"}`);
      return line;
    });
    const several = element("ul", "", "bad"), notes = element("ul", "", "bad");
    several.append(...bad.slice(0, 200));
    if (bad.length > 200) several.append(element("li", `and ${bad.length - 200} more: daskembed status lists them`));
    notes.append(...one.notes.slice(0, 50).map(note => element("li", note)));
    return [
      element("h2", `Tile ${one.tile.tile}`),
      ...explain(one.tile.explained),
      list([["file", one.tile.file], ...Object.entries(one.facts)].map(([name, value]) => [name, breakable(value)])),
      ...(bad.length ? [folded(`${bad.length} set aside`, several)] : []),
      ...(one.notes.length ? [folded(`${one.notes.length} notes`, notes)] : []),
    ];
  }

  function show(nodes, about, focus) {
    const details = at("details");
    details.replaceChildren(...nodes);
    at("about").replaceChildren(...about);
    details.hidden = at("about").hidden = false;
    at("untrained").open = false;  // it has been read, and keeps its first line
    at("inside").scrollTop = 0;
    if (focus) {
      unfold(true);
      details.focus();
    }
  }

  function outline(coordinates, colour = "rgba(0,0,0,0)") {
    map.getSource("chosen").setData(collection(coordinates ? [polygon(coordinates, {colour})] : []));
  }

  // ---- colours of patches: the images have them

  const pictures = new Map();  // the last few that were asked for
  function picture({tile, images}, date) {
    const name = `${tile.id} ${date}`, known = pictures.get(name), found = images.find(([number]) => number === date);
    if (known || !found) return known;
    const made = new Image();
    made.src = `data:image/png;base64,${found[1]}`;
    const read = made.decode().then(() => ({made, corners: found[2]}));
    pictures.set(name, read);
    if (pictures.size > 8) pictures.delete(pictures.keys().next().value);
    return read;
  }

  // Of a patch; of a chip that is drawn in one colour, that.
  async function colourOf(chip, patch) {
    const read = await picture(loaded.get(chip.tile.id), chip.date);
    if (!read) return `#${chip.colour}`;
    const {made, corners: [[west, north], , [east, south]]} = read, corners = patchRing(chip.ring, patch);
    let [lng, lat] = [0, 1].map(axis => (corners[0][axis] + corners[2][axis]) / 2);
    lng += Math.round(((west + east) / 2 - lng) / 360) * 360;
    const down = at => maplibregl.MercatorCoordinate.fromLngLat([0, at]).y;
    const [u, v] = [(lng - west) / (east - west), (down(lat) - down(north)) / (down(south) - down(north))];
    const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
    pen.drawImage(made, Math.floor(u * made.width), Math.floor(v * made.height), 1, 1, 0, 0, 1, 1);
    const [red, green, blue, there] = pen.getImageData(0, 0, 1, 1).data;
    return `rgba(${red},${green},${blue},${there / 255})`;
  }

  // u across and v down of a place in a chip, 0 to 1.
  function inside(corners, [x, y]) {
    const [nw, ne, , sw] = corners;
    const [ax, ay, bx, by] = [ne[0] - nw[0], ne[1] - nw[1], sw[0] - nw[0], sw[1] - nw[1]];
    const size = ax * by - ay * bx, [px, py] = [x - nw[0], y - nw[1]];
    return [(px * by - py * bx) / size, (ax * py - ay * px) / size];
  }

  function patchRing(corners, patch) {
    const [down, across] = index.grid;
    if (down * across === 1) return corners;
    const row = Math.floor(patch / across), col = patch % across, [nw, ne, se, sw] = corners;
    const place = (u, v) => [0, 1].map(axis =>
      (nw[axis] * (1 - u) + ne[axis] * u) * (1 - v) + (sw[axis] * (1 - u) + se[axis] * u) * v);
    return [[col, row], [col + 1, row], [col + 1, row + 1], [col, row + 1], [col, row]].map(
      ([u, v]) => place(u / across, v / down));
  }

  // What is around rings, each clockwise: those of neighbours have none between them, and a hole has its own.
  function frames(rings) {
    const key = corner => corner.map(value => value.toFixed(8)).join();
    const edges = new Map(), starts = new Map(), found = [];
    for (const corners of rings) for (let n = 1; n < corners.length; n++)
      edges.set(`${key(corners[n - 1])} ${key(corners[n])}`, [corners[n - 1], corners[n]]);
    for (const [start, end] of edges.values()) {
      if (edges.has(`${key(end)} ${key(start)}`)) continue;
      starts.set(key(start), [...starts.get(key(start)) ?? [], [start, end]]);
    }
    while (starts.size) {
      const [[start]] = starts.values().next().value, line = [start];
      for (let here = key(start); starts.has(here); here = key(line.at(-1))) {
        const left = starts.get(here);
        line.push(left.pop()[1]);
        if (!left.length) starts.delete(here);
      }
      found.push(line);
    }
    return found;
  }

  // LON,LAT of its middle, to a metre.
  function middle(corners) {
    const [lng, lat] = [0, 1].map(axis => (corners[0][axis] + corners[2][axis]) / 2);
    return `${new maplibregl.LngLat(lng, lat).wrap().lng.toFixed(5)},${lat.toFixed(5)}`;
  }

  const patchName = patch => `${Math.floor(patch / index.grid[1])},${patch % index.grid[1]}`;

  function chooseChip(chip, place, focus = false) {
    const one = loaded.get(chip.tile.id), [down, across] = index.grid;
    let patch = 0;
    if (place && down * across > 1) {
      const [u, v] = inside(chip.ring, place).map(value => Math.min(Math.max(value, 0), 0.999999));
      patch = Math.floor(v * down) * across + Math.floor(u * across);
    }
    chosen = {kind: "chip", tile: chip.tile, chip, patch};
    const sames = one.chips.filter(other => other.date === chip.date), here = sames.indexOf(chip);
    const step = by => () => chooseChip(sames[(here + by + sames.length) % sames.length], null, true);
    const buttons = element("div", "", "buttons"), mark = swatch(""), mine = chosen;
    const where = middle(patchRing(chip.ring, patch)), what = hasGrid() ? "Patch" : "Chip";
    buttons.append(copier("Copy as --like", `--like ${where}`), copier("Copy source", chip.url));
    const facts = list([["date", chip.tile.dates[chip.date][0]], ["tile", chip.tile.tile],
      ...(hasGrid() ? [["patch", patchName(patch)]] : []), ["lon,lat", where]]);
    facts.className = "pairs";
    show([
      heading(what, mark, named(button("‹", step(-1), ""), "Previous chip"), named(button("›", step(1), ""), "Next chip")),
      facts,
      buttons,
    ], [list([["source", breakable(chip.url)]]), ...aboutTile(one)], focus);
    outline(patchRing(chip.ring, patch));
    colourOf(chip, patch).then(colour => {
      mark.style.background = colour;
      if (chosen === mine) outline(patchRing(chip.ring, patch), colour);
    });
    tell(`${what} of tile ${chip.tile.tile}, ${chip.tile.dates[chip.date][0]}`);
    if (index.search && at("similar").checked) {
      if (api.own) clearHits();  // what the command found is no answer to this
      api.searchFrom(chip, patch);
    }
  }

  function chooseBad(one, bad) {
    chosen = {kind: "bad", tile: one.tile};
    clearHits();
    show([heading(bad.kind === "quarantined" ? "Quarantined chip" : "Rejected chip"),
      list([["why", breakable(bad.why)], ["source", breakable(bad.url)], ["tile", one.tile.tile]])], aboutTile(one));
    outline(bad.ring);
  }

  async function chooseTile(tile, {focus = false, move = true} = {}) {
    try {
      const one = await load(tile);
      chosen = {kind: "tile", tile};
      clearHits();
      const [, ...facts] = aboutTile(one);
      show([heading(`Tile ${tile.tile}`)], facts, focus);
      outline(tile.outline.length ? ring(tile.outline, tile.origin) : null);
      if (move) fly(tile.box);
    } catch (error) { tell(error.message); }
  }

  function chooseAt(point, focus = false) {
    const found = map.queryRenderedFeatures(point, {layers: ["bad", "chips", "tiles"]})[0];
    if (!found) return letGo();
    const {tile, chip, bad} = found.properties, one = loaded.get(tile);
    const place = map.unproject(point);
    if (bad !== undefined) return chooseBad(one, one.bad[bad]);
    if (chip === undefined) return chooseTile(index.tiles[tile], {focus});
    const corners = one.chips[chip].ring;
    const turns = Math.round((corners[0][0] - place.lng) / 360) * 360;
    chooseChip(one.chips[chip], [place.lng + turns, place.lat], focus);
  }

  function letGo() {
    chosen = null;
    at("details").hidden = at("about").hidden = true;
    clearHits();
    outline(null);
  }

  // ---- similar places: `searchFrom` of search.js finds them

  // Satellite images beneath shine through.
  const veil = () => at("online").checked ? 0.5 : 1;
  const dimmed = () => at("hits").hidden ? veil() : 0.35;
  function dim() {
    for (const layer of ["hit-fills", "chosen-fill"]) map.setPaintProperty(layer, "fill-opacity", veil());
    map.setPaintProperty("chips", "fill-opacity", unlessPictured(dimmed()));
    map.setPaintProperty("tiles", "fill-opacity", dimmed());
    for (const {tile, images} of drawn()) for (const [number] of images)
      map.setPaintProperty(`image-${tile.id}-${number}`, "raster-opacity", dimmed());
  }

  function clearHits() {
    api.stopSearch?.();
    api.leave?.();
    if (at("hits").hidden) return;
    at("hits").hidden = true;
    for (const source of ["hits", "hit-frames"]) map.getSource(source).setData(collection([]));
    dim();
  }

  // What is around some rings, as the map shows it: the image of the tile's patches, or its chips.
  function sketch(chip, rings, colour) {
    const size = 144, canvas = Object.assign(document.createElement("canvas"), {width: size, height: size});
    canvas.setAttribute("aria-hidden", "true");
    const flat = ([lng, lat]) => {
      const {x, y} = maplibregl.MercatorCoordinate.fromLngLat([lng + Math.round((chip.ring[0][0] - lng) / 360) * 360, lat]);
      return [x, y];
    };
    const [w, n, e, s] = boxOf(rings.flat().map(flat)), [cw, cn, ce, cs] = boxOf(chip.ring.map(flat));
    const half = Math.max(0.6 * (e - w), 0.6 * (s - n), (hasGrid() ? 0.5 : 1.4) * Math.max(ce - cw, cs - cn));
    const place = ([x, y]) => [(x - (w + e) / 2) / half, (y - (n + s) / 2) / half].map(one => (1 + one) * size / 2);
    const pen = canvas.getContext("2d"), one = loaded.get(chip.tile.id);
    const trace = ring => {
      pen.beginPath();
      for (const corner of ring) pen.lineTo(...place(flat(corner)));
      pen.closePath();
    };
    const frame = () => [["#000", 7], [colour, 4]].forEach(([strokeStyle, lineWidth]) => {
      Object.assign(pen, {strokeStyle, lineWidth});
      for (const ring of rings) { trace(ring); pen.stroke(); }
    });
    const read = picture(one, chip.date);
    if (read) read.then(({made, corners}) => {
      const [left, top] = place(flat(corners[0])), [right, bottom] = place(flat(corners[2]));
      pen.imageSmoothingEnabled = false;
      pen.drawImage(made, left, top, right - left, bottom - top);
      frame();
    });
    else {
      for (const other of one.chips) {
        if (other.date !== chip.date || !other.ring[0]) continue;
        pen.fillStyle = pen.strokeStyle = `#${other.colour}`;
        trace(other.ring);
        pen.fill();
        pen.stroke();  // or what is beneath shines through between neighbours
      }
      frame();
    }
    return canvas;
  }

  // What was asked for and what was found, side by side: groups of {title, examples, hits}, a query each.
  function showHits(groups, said, title = "Most similar") {
    const hits = groups.flatMap(group => group.hits), marks = new Map(hits.map(hit => [hit, swatch("")])), mine = lit = {};
    const light = colours => map.getSource("hits").setData(collection(hits.map((_, number) =>
      polygon(rings[number], {colour: colours[number] ?? "rgba(0,0,0,0)"}))));
    const rings = hits.map(({chip, patch}) => patchRing(chip.ring, patch));
    map.getSource("hit-frames").setData(collection(frames(rings).map(coordinates =>
      ({type: "Feature", properties: {}, geometry: {type: "LineString", coordinates}}))));
    // From 12 pixels on each has its own edges.
    const [w, , e] = rings.length ? boxOf(rings[0]) : [0, 0, 1];
    map.setLayerZoomRange("hit-edges", Math.min(Math.log2(12 * 360 / 512 / (e - w)), 24), 24);
    const asked = ({text, colour, chip, rings}) => {
      const line = element("li");
      line.append(...(chip ? [sketch(chip, rings, colour)] : []), element("span", text, "name"));
      line.title = text;
      return line;
    };
    const found = hit => {
      const {chip, patch, score, rank} = hit, date = chip.tile.dates[chip.date][0];
      const act = button("", () => {
        at("date").value = dates.indexOf(date);
        showDate();
        fly(boxOf(patchRing(chip.ring, patch)), hasGrid() ? 13 : 11);
      }, "");
      const place = hasGrid() ? `patch ${patchName(patch)}` : "";
      const name = [index.tiles.length > 1 ? chip.tile.tile : "", dates.length > 1 ? date : "",
        `chip ${chip.url.replace(/\.\w+$/, "").match(/[^_/#]*$/)[0]}`, place];
      act.append(marks.get(hit), element("span", `${rank}. ${name.filter(Boolean).join(" ")}`, "name"),
        element("span", score.toFixed(3)), sketch(chip, [patchRing(chip.ring, patch)], "#ffeb3b"));
      act.title = chip.url;
      const line = element("li");
      line.append(act);
      return line;
    };
    const cards = ({title: query, examples, hits: own}) => {
      const made = element("div", "", "cards"), left = element("ul", "", "examples"), right = element("ol");
      left.append(...examples.map(asked));
      right.append(...own.map(found));
      made.append(left, right);
      return [...(query ? [element("h3", query)] : []), made];
    };
    at("hits").replaceChildren(element("h2", title), ...groups.flatMap(cards), element("p", said, "quiet"));
    at("hits").hidden = false;
    light([]);
    dim();
    Promise.all(hits.map(({chip, patch}) => colourOf(chip, patch))).then(colours => {
      colours.forEach((colour, number) => { marks.get(hits[number]).style.background = colour; });
      if (mine === lit && !at("hits").hidden) light(colours);
    });
    tell(`${hits.length} similar places`);
  }

  // ---- what is beside the map

  function unfold(open) {
    at("panel").classList.toggle("folded", !open);
    at("fold").setAttribute("aria-expanded", String(open));
  }

  function setTheme(name) {
    document.documentElement.dataset.theme = name;
    theme = THEMES[name];
    if (!map) return;
    map.setPaintProperty("sea", "background-color", theme.sea);
    map.setPaintProperty("land", "fill-color", theme.land);
    for (const [layer, colour] of [["border", "border"], ["grid", "grid"], ["tile-edges", "edge"], ["chip-edges", "edge"]])
      map.setPaintProperty(layer, "line-color", theme[colour]);
  }

  function fillPanel() {
    const {made, basis, tiles} = index, chips = tiles.reduce((sum, tile) => sum + tile.dates.reduce((all, one) => all + one[1], 0), 0);
    at("untrained").hidden = !index.untrained;
    at("colours").replaceChildren(...explain(basis.explained));
    const left = basis.left_out ? ` ${basis.left_out.toLocaleString("en")} vectors have NaN, and no colour.` : "";
    at("basis").textContent = `Red, green and blue are the first three principal components of `
      + `${basis.count.toLocaleString("en")} vectors${basis.foreign ? " (those of the basis that was given)" : ""}, from their `
      + `2nd to their 98th percentile. Like colours are like vectors.${left}`;
    at("made").replaceWith(Object.assign(list([...Object.entries(made), ["tiles", tiles.length.toLocaleString("en")],
      ["chips", chips.toLocaleString("en")]]), {id: "made"}));
    at("tiles").append(...tiles.map(tile => {
      const act = button("", () => chooseTile(tile, {focus: false}), ""), line = element("li");
      const bad = tile.bad[0] + tile.bad[1], count = tile.dates.reduce((sum, one) => sum + one[1], 0);
      act.append(swatch(`#${tile.dates.at(-1)?.[2] ?? "0000"}`), element("span", tile.tile, "name"),
        element("span", `${count} chips${bad ? `, ${bad} set aside` : ""}`));
      line.append(act);
      return line;
    }));
    at("date").max = dates.length - 1;
    at("date").value = dates.length - 1;
    at("when").hidden = dates.length < 2;
    at("similar-switch").hidden = !index.search;
    at("set-aside").closest("label").hidden = !tiles.some(tile => tile.bad[0] + tile.bad[1]);
  }

  function listen() {
    at("date").addEventListener("input", showDate);
    at("fold").addEventListener("click", () => unfold(at("panel").classList.contains("folded")));
    at("theme").addEventListener("click", () =>
      setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
    at("similar").addEventListener("change", () => { if (!at("similar").checked) clearHits(); });
    at("set-aside").addEventListener("change", event => {
      for (const layer of ["bad", "bad-edges"])
        map.setLayoutProperty(layer, "visibility", event.target.checked ? "visible" : "none");
    });
    at("online").addEventListener("change", event => {
      if (event.target.checked) {
        map.addSource("online", BASE_MAP);
        map.addLayer({id: "online", type: "raster", source: "online"}, "grid");
      } else {
        map.removeLayer("online");
        map.removeSource("online");
      }
      at("unreached").hidden = true;
      dim();
    });
    map.on("error", ({sourceId, error}) => {
      if (sourceId !== "online") return console.error(error);
      at("unreached").hidden = !at("online").checked;
    });
    map.on("sourcedata", ({sourceId, tile}) => { if (sourceId === "online" && tile) at("unreached").hidden = true; });
    map.on("click", event => chooseAt(event.point));
    map.on("moveend", refresh);
    map.on("mousemove", event => {
      const {lng, lat} = event.lngLat.wrap();
      at("where").textContent = `lon,lat ${lng.toFixed(3)},${lat.toFixed(3)}`;
      map.getCanvas().style.cursor = map.queryRenderedFeatures(event.point, {layers: ["bad", "chips", "tiles"]}).length ? "pointer" : "";
    });
    map.getCanvas().addEventListener("keydown", event => {
      if (event.key === "Enter") { event.preventDefault(); chooseAt(map.project(map.getCenter()), true); }
    });
    document.addEventListener("keydown", event => {
      if (event.key !== "Escape" || !chosen) return;
      letGo();
      map.getCanvas().focus();
    });
  }

  api.world = value => { world = value; };

  api.index = value => {
    index = value;
    index.tiles.forEach((tile, number) => { tile.id = number; });
    byFile = new Map(index.tiles.map(tile => [tile.file, tile]));
    dates = [...new Set(index.tiles.flatMap(tile => tile.dates.map(one => one[0])))].sort();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    setTheme(dark.matches ? "dark" : "light");
    fillPanel();
    const [west, south, east, north] = index.box, all = [west, Math.max(south, -85), east, Math.min(north, 85)];
    map = api.map = new maplibregl.Map({
      container: "map", style: style(), bounds: all, fitBoundsOptions: {padding: padding(), maxZoom: 12}, maxZoom: 16,
      dragRotate: false, pitchWithRotate: false, touchPitch: false, rollEnabled: false, fadeDuration: 0,
      attributionControl: {compact: true, customAttribution: "Natural Earth"},
      locale: {"Map.Title": "Map: arrows move it, plus and minus zoom, Enter chooses what is in the middle"},
    });
    map.touchZoomRotate.disableRotation();
    map.keyboard.disableRotation();
    map.addControl(new maplibregl.NavigationControl({showCompass: false}));
    map.addControl(new maplibregl.ScaleControl(), "bottom-right");
    for (const [kind, colour] of [["quarantined", "#d32f2f"], ["rejected", "#ef8a00"]])
      map.on("styleimagemissing", event => {
        if (event.id === `hatch-${kind}` && !map.hasImage(event.id)) map.addImage(event.id, hatch(colour));
      });
    map.once("load", async () => {
      listen();
      dark.addEventListener("change", event => setTheme(event.matches ? "dark" : "light"));
      showDate();
      await refresh();
      document.documentElement.dataset.ready = "yes";
    });
  };

  // For search.js and hits.js, and for tests.
  return Object.defineProperties(api, Object.getOwnPropertyDescriptors({
    element, ask, load, inside, patchRing, frames, padding, showHits, letGo, tell,
    get tiles() { return index.tiles; },
    get search() { return index.search; },
    get grid() { return index.grid; },
    get loaded() { return loaded; },
  }));
})();
