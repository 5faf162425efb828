// The hits of `daskembed search`: a preview with these two scripts more, this one and data/hits.js, shows them.
"use strict";

(() => {
  const ready = () => new Promise(resolve => {
    const whole = document.documentElement, is = () => whole.dataset.ready && resolve();
    new MutationObserver(is).observe(whole, {attributes: true, attributeFilter: ["data-ready"]});
    is();
  });

  function element(name, text, className = "") {
    const made = document.createElement(name);
    made.textContent = text;  // never as HTML: names are anybody's
    made.className = className;
    return made;
  }

  // Examples have blue outlines where they are alike, red ones where not.
  function mark(map, examples) {
    const features = examples.map(({alike, geometry}) =>
      ({type: "Feature", properties: {colour: alike ? "#2979ff" : "#d50000"}, geometry}));
    map.addSource("examples", {type: "geojson", data: {type: "FeatureCollection", features}});
    map.addLayer({id: "examples", type: "line", source: "examples", paint: {"line-color": ["get", "colour"], "line-width": 4}});
  }

  daskembed.hits = async ({said, box, examples, hits}) => {
    await ready();
    daskembed.keepsAll = true;  // hits may be anywhere
    const tiles = new Map(daskembed.tiles.map(tile => [tile.file, tile]));
    const chips = new Map();
    for (const file of new Set(hits.map(hit => hit.file))) {
      const tile = tiles.get(file);
      await daskembed.load(tile);
      for (const chip of daskembed.loaded.get(tile.id).chips) chips.set(`${file} ${chip.url}`, chip);
    }
    const own = hits.map(({file, url, patch, score}) => ({chip: chips.get(`${file} ${url}`), patch, score}));
    const list = element("ul", "", "quiet"), back = element("button", "The hits of the command", "plain");
    list.id = "examples";
    list.append(...examples.map(({given, alike}) => element("li", `${alike ? "like" : "unlike"} ${given}`)));
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
      document.getElementById("hits").querySelector("p").after(list);
      turn(true);
      // The panel is on the left, of narrow windows at the bottom.
      const {left, right, top} = document.getElementById("panel").getBoundingClientRect();
      const wide = right - left < innerWidth / 2;
      daskembed.map.fitBounds(box, {animate: false, padding: {
        top: 40, right: 40, left: wide ? right + 40 : 40, bottom: wide ? 40 : innerHeight - top + 20}});
    }

    daskembed.leave = () => turn(false);
    back.addEventListener("click", () => { show(); document.getElementById("hits").focus(); });
    show();
    document.documentElement.dataset.hits = "yes";
  };
})();
