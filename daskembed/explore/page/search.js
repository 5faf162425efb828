// The page's own search: cosines of a vector with all others, around the mean of all, in steps that let the page go on.
"use strict";

(() => {
  const SLICE = 12;  // milliseconds of work without a pause
  const LEAST = 3, MOST = 50;
  const all = new Map();  // tile -> its vectors
  let turn = 0;

  function decode(text) {
    const bytes = atob(text), values = new Int8Array(bytes.length);
    for (let n = 0; n < bytes.length; n++) values[n] = bytes.charCodeAt(n) << 24 >> 24;
    return values;
  }

  // Lengths are those of the vectors, whose dimensions have steps of several sizes.
  daskembed.vectors = ({file, values}) => {
    const {dims, step} = daskembed.search, steps = decode(values), count = steps.length / dims;
    const lengths = new Float32Array(count), squares = step.map(one => one * one);
    for (let row = 0, n = 0; row < count; row++) {
      let sum = 0;
      for (let dim = 0; dim < dims; dim++, n++) sum += steps[n] * steps[n] * squares[dim];
      lengths[row] = steps[n - dims] === -128 ? NaN : Math.sqrt(sum);
    }
    all.set(daskembed.tiles.find(tile => tile.file === file).id, {steps, lengths});
  };

  const pause = () => new Promise(resolve => setTimeout(resolve));

  async function load(mine) {
    daskembed.keepsAll = true;  // hits may be anywhere
    for (const tile of daskembed.tiles.filter(one => one.dates.length)) {
      if (mine !== turn) return;
      await Promise.all([daskembed.load(tile), all.has(tile.id) || daskembed.ask(tile.vectors)]);
    }
  }

  daskembed.stopSearch = () => { turn++; };

  daskembed.searchFrom = async (chip, patch) => {
    const mine = ++turn, {dims, step} = daskembed.search, patches = daskembed.grid[0] * daskembed.grid[1];
    if (all.size < daskembed.tiles.filter(one => one.dates.length).length) daskembed.tell("Reading the vectors");
    try {
      await load(mine);
    } catch (error) {
      return daskembed.tell(error.message);
    }
    if (mine !== turn) return;
    const own = chip.number * patches + patch, asked = all.get(chip.tile.id);
    const query = new Float32Array(dims);
    for (let dim = 0; dim < dims; dim++) query[dim] = asked.steps[own * dims + dim] * step[dim] * step[dim];
    const length = asked.lengths[own];
    if (!(length > 0)) return daskembed.tell("This place has no vector to search with");
    const scores = [];
    let paused = performance.now(), count = 0;
    for (const [id, {steps, lengths}] of all) {
      const found = new Float32Array(lengths.length);
      for (let row = 0; row < lengths.length; row++) {
        let sum = 0;
        for (let dim = 0, n = row * dims; dim < dims; dim++, n++) sum += query[dim] * steps[n];
        found[row] = sum / (length * lengths[row]);
        if (row % 256 === 255 && performance.now() - paused > SLICE) {
          await pause();
          if (mine !== turn) return;
          paused = performance.now();
        }
      }
      count += found.length;
      scores.push([id, found]);
    }
    const most = Math.min(MOST, Math.max(LEAST, Math.round(count / 20)));
    const best = [];
    for (const [id, found] of scores) for (let row = 0; row < found.length; row++) {
      if (id === chip.tile.id && row === own || !(found[row] > (best.length < most ? -2 : best.at(-1).score))) continue;
      let place = best.length;
      while (place && best[place - 1].score < found[row]) place--;
      best.splice(place, 0, {id, row, score: found[row]});
      if (best.length > most) best.pop();
    }
    const hits = best.map(({id, row, score}, number) => ({
      chip: daskembed.loaded.get(id).chips[Math.floor(row / patches)], patch: row % patches, score, rank: number + 1}));
    const asking = {text: "the chosen one", colour: "#fff", chip, rings: [daskembed.patchRing(chip.ring, patch)]};
    const of = daskembed.search.part ? " of the tiles shown here" : "";
    daskembed.showHits([{examples: [asking], hits}], `Of ${count.toLocaleString("en")} vectors${of} the ${hits.length} of the `
      + "highest cosine with this one, after taking out the mean of all. A twentieth is shown, "
      + `${LEAST} at least and ${MOST} at most: daskembed search -k N gives more.`);
  };
})();
