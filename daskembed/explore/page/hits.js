// The hits of `daskembed search`: a preview with these two scripts more, this one and data/hits.js, shows them.
"use strict";

(() => {
  const ready = () => new Promise(resolve => {
    const whole = document.documentElement, is = () => whole.dataset.ready && resolve();
    new MutationObserver(is).observe(whole, {attributes: true, attributeFilter: ["data-ready"]});
    is();
  });

  const {element} = daskembed;
  // Examples have blue outlines where they are alike, red ones where not.
  const colourOf = alike => alike ? "#2979ff" : "#d50000";

  function mark(map, examples) {
    const features = examples.map(({alike, geometry}) =>
      ({type: "Feature", properties: {colour: colourOf(alike)}, geometry}));
    map.addSource("examples", {type: "geojson", data: {type: "FeatureCollection", features}});
    map.addLayer({id: "examples", type: "line", source: "examples", paint: {"line-color": ["get", "colour"], "line-width": 4}});
  }

  const ringsOf = ({type, coordinates}) =>
    type === "Polygon" ? [coordinates[0]] : type === "MultiPolygon" ? coordinates.map(([ring]) => ring) : [];

  // The last chip that a place is in.
  async function chipAt([lng, lat]) {
    let found = null;
    for (const tile of daskembed.tiles) {
      const [west, south, east, north] = tile.box, here = lng + Math.round(((west + east) / 2 - lng) / 360) * 360;
      if (!tile.dates.length || here < west || here > east || lat < south || lat > north) continue;
      await daskembed.load(tile);
      for (const chip of daskembed.loaded.get(tile.id).chips) {
        if (!chip.ring[0] || found?.date > chip.date) continue;
        if (daskembed.inside(chip.ring, [here, lat]).every(share => share >= 0 && share <= 1)) found = chip;
      }
      if (found) break;
    }
    return found;
  }

  async function asked({given, alike, geometry, middle}) {
    return {text: `${alike ? "like" : "unlike"} ${given}`, colour: colourOf(alike), rings: ringsOf(geometry), chip: await chipAt(middle)};
  }

  daskembed.hits = async ({said, box, examples, queries}) => {
    await ready();
    daskembed.keepsAll = true;  // hits may be anywhere
    const tiles = new Map(daskembed.tiles.map(tile => [tile.file, tile]));
    const chips = new Map();
    for (const file of new Set(queries.flatMap(({hits}) => hits.map(hit => hit.file)))) {
      const tile = tiles.get(file);
      await daskembed.load(tile);
      for (const chip of daskembed.loaded.get(tile.id).chips) chips.set(`${file} ${chip.url}`, chip);
    }
    const cards = [];
    for (const example of examples) cards.push(await asked(example));
    const own = queries.map(({title, examples: numbers, hits}) => ({title, examples: numbers.map(number => cards[number]),
      hits: hits.map(({file, url, ...more}) => ({chip: chips.get(`${file} ${url}`), ...more}))}));
    const back = element("button", "The hits of the command", "plain");
    back.id = "back";
    back.type = "button";
    document.getElementById("details").before(back);
    mark(daskembed.map, examples);

    function turn(shown) {
      daskembed.own = shown;
      back.hidden = shown;
      daskembed.map.setLayoutProperty("examples", "visibility", shown ? "visible" : "none");
    }

    function show() {
      daskembed.letGo();
      daskembed.showHits(own, said, "Hits of the command");
      turn(true);
      daskembed.map.fitBounds(box, {animate: false, padding: daskembed.padding()});
    }

    daskembed.leave = () => turn(false);
    back.addEventListener("click", () => { show(); document.getElementById("hits").focus(); });
    show();
    document.documentElement.dataset.hits = "yes";
  };
})();
