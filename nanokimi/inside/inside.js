// The inside view: builds what is seen from the JSON in each element of the class "nanokimi-inside", also in those that
// come later. All text is set as text. `node` makes an element, `View` is one group of models, `Model` one of them.
(() => {
  "use strict";
  if (window.nanokimiInside) return;
  window.nanokimiInside = true;

  const BITS_SHOWN = 10;  // full shade
  let views = 0;

  const node = (tag, className, text) => {
    const one = document.createElement(tag);
    if (className) one.className = className;
    if (text !== undefined) one.textContent = text;
    return one;
  };
  const add = (parent, ...children) => { parent.append(...children.filter(child => child != null)); return parent; };
  const number = (value, digits) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const percent = share => share >= 0.0995 ? number(100 * share, 0) + " %" : share >= 0.00095 ? number(100 * share, 1) + " %" : share > 0 ? "< 0.1 %" : "0 %";
  const quoted = label => "\u201c" + label + "\u201d";
  const bytes = value => value >= 1e6 ? number(value / 1e6, 2) + " MB" : value >= 1e4 ? number(value / 1e3, 1) + " kB" : number(value, 0) + " bytes";
  const unpacked = text => Uint8Array.from(atob(text), one => one.charCodeAt(0));
  const beginsWithSpace = token => token !== undefined && /^ [^ ]/.test(token.text);
  const sum = values => values.reduce((a, b) => a + b, 0);

  function bar(hue, share) {
    const track = node("span", "track");
    track.style.setProperty("--share", share);
    track.style.setProperty("--hue", `var(--${hue})`);
    return track;
  }

  function choice(words, options, changed) {
    const label = node("label", "", words), select = node("select");
    options.forEach(([value, text]) => { const one = node("option", "", text); one.value = value; select.append(one); });
    select.addEventListener("change", () => changed(select.value));
    label.append(select);
    return label;
  }

  class Model {
    constructor(data, view) {
      this.data = data;
      this.view = view;
      this.chosen = 0;
      this.map = data.maps.length ? data.maps[0] : null;
      this.layers = data.experts.filter(one => one.gates).map(one => {
        const raw = unpacked(one.gates);
        return { ...one, table: new Uint16Array(raw.buffer, raw.byteOffset, raw.length / 2) };
      });
      this.root = node("article", "model");
      this.root.setAttribute("aria-label", data.name);
      add(this.root, this.head(), this.reader(), this.cardOfExperts(), this.cardOfLoad(), this.cardOfFavourites(),
        this.cardOfAttention(), this.cardOfLogits(), this.cardOfCache());
      const mostOf = tokens => tokens.reduce((best, place) => (data.tokens[place].bits || 0) > (data.tokens[best].bits || 0) ? place : best, tokens[0] || 0);
      const places = data.tokens.map((_, place) => place), written = places.filter(place => data.tokens[place].written);
      this.pick(mostOf(written.length ? written : places), false);
    }

    head() {
      const data = this.data, words = node("span", "note");
      const figures = [`${number(data.tokens.length, 0)} tokens, ${number(data.written, 0)} written`];
      if (data.meanBits !== null) figures.push(`${number(data.meanBits, 2)} bits per token on average`);
      words.textContent = figures.join("; ");
      const head = add(node("header", "head"), node("h2", "", data.name), words);
      if (data.tokens.length > data.context) head.append(node("span", "note", `The model reads ${number(data.context, 0)} tokens at once, so this text was read in parts.`));
      data.unknown.forEach(line => head.append(node("span", "note", line)));
      return head;
    }

    reader() {
      const text = node("div", "text");
      text.tabIndex = 0;
      text.setAttribute("role", "listbox");
      text.setAttribute("aria-label", `Tokens of ${this.data.name}. Arrow keys choose one.`);
      this.text = text;
      this.spans = this.data.tokens.map((token, place) => {
        const span = node("span", token.written ? "" : "read", beginsWithSpace(token) ? token.text.slice(1) : token.text);
        if (token.part && token.part[0] > 1) span.classList.add("later");
        return this.option(span, place);
      });
      const next = node("span", "next", "next?");
      this.spans.push(this.option(next, this.data.tokens.length));
      // A space before a word stays outside of its span: a line may end there.
      this.spans.forEach((span, i) => text.append(...(beginsWithSpace(this.data.tokens[i]) ? [" ", span] : [span])));
      text.addEventListener("keydown", event => this.key(event));
      const place = event => { const span = event.target.closest("[data-place]"); return span ? Number(span.dataset.place) : null; };
      text.addEventListener("click", event => { if (place(event) !== null) this.pick(place(event), false); });
      text.addEventListener("pointerover", event => {
        if (event.pointerType === "mouse" && place(event) !== null) this.show(place(event));
      });
      text.addEventListener("pointerleave", () => this.show(this.chosen));
      this.detail = node("div", "card detail");
      this.detail.setAttribute("aria-live", "polite");
      return add(node("div", "reader"), text, this.detail);
    }

    option(span, place) {
      span.setAttribute("role", "option");
      span.id = `${this.view.id}-${this.view.models.length}-${place}`;
      span.dataset.place = place;
      return span;
    }

    key(event) {
      const last = this.spans.length - 1;
      const places = { ArrowRight: this.chosen + 1, ArrowLeft: this.chosen - 1, Home: 0, End: last };
      if (event.key === "ArrowDown" || event.key === "ArrowUp") places[event.key] = this.beside(event.key === "ArrowDown" ? 1 : -1);
      if (!(event.key in places)) return;
      event.preventDefault();
      this.pick(Math.max(0, Math.min(last, places[event.key])), true);
    }

    beside(direction) {  // the nearest token of the next or previous line
      const here = this.spans[this.chosen].getClientRects()[0], middle = (here.left + here.right) / 2;
      let best = this.chosen, line = null, distance = Infinity;
      for (let place = this.chosen + direction; this.spans[place]; place += direction) {
        const box = this.spans[place].getClientRects()[0];
        if (!box || direction * (box.top - here.top) < here.height / 2) continue;
        if (line === null) line = box.top;
        if (Math.abs(box.top - line) > here.height / 2) break;
        const off = Math.abs((box.left + box.right) / 2 - middle);
        if (off < distance) [best, distance] = [place, off];
      }
      return best;
    }

    pick(place, scroll) {
      this.spans[this.chosen].classList.remove("chosen");
      this.spans[this.chosen].setAttribute("aria-selected", "false");
      this.chosen = place;
      this.spans[place].classList.add("chosen");
      this.spans[place].setAttribute("aria-selected", "true");
      this.text.setAttribute("aria-activedescendant", this.spans[place].id);
      if (scroll) this.spans[place].scrollIntoView({ block: "nearest" });
      this.show(place);
      if (this.view.mode === "attention") this.shade();
    }

    show(place) {
      if (this.shown === place) return;
      this.shown = place;
      this.fillDetail(place);
      this.strips.forEach(line => { line.style.left = `${100 * (Math.min(place, this.data.tokens.length - 1) + 0.5) / this.data.tokens.length}%`; });
      if (this.map) this.showRow(Math.min(place, this.data.tokens.length - 1));
    }

    fillDetail(place) {
      const data = this.data, token = data.tokens[place], box = this.detail;
      box.replaceChildren();
      const expected = token ? token.expected : data.next;
      const mark = node("div", "mark");
      if (!token) add(mark, node("code", "", "next?"), node("span", "note", "what would come after the last token"));
      else {
        const part = token.part ? `, part ${token.part[0]} of ${token.part[1]} of a character` : "";
        add(mark, node("code", "", token.label), node("span", "note", `token ${place + 1}, id ${token.id}, ${token.written ? "written" : "read"}${part}`));
      }
      box.append(mark);
      const figures = node("div", "figures");
      const figure = (value, words) => add(figures, add(node("div"), node("b", "", value), node("i", "", words)));
      if (token && token.bits !== undefined) {
        figure(`${number(token.bits, 2)} bits`, "surprise");
        figure(percent(2 ** -token.bits), "probability");
        figure(number(token.rank, 0), "rank");
      }
      if (expected) { figure(`${number(expected.entropy, 2)} bits`, "entropy"); box.append(figures); }
      const halves = node("div", "halves"), first = node("div"), second = node("div");
      if (expected) {
        first.append(node("h4", "", token ? "The ten likeliest in its place" : "The ten likeliest"));
        const rows = node("div", "rows");
        expected.ids.forEach((id, i) => {
          const name = node("span", token && id === token.id ? "name own" : "name", data.labels[id]);
          name.title = data.labels[id];
          add(rows, name, bar("surprise", expected.shares[i] / expected.shares[0]), node("span", "", percent(expected.shares[i])));
        });
        if (expected.ids.length < 10) first.firstChild.textContent = token ? "What could stand in its place" : "What could come";
        first.append(rows);
      } else first.append(node("p", "note", "Nothing predicts the first token: the model has read nothing before it."));
      if (token) this.fillExperts(second, place);
      add(halves, first, second.childNodes.length ? second : null);
      box.append(halves);
    }

    fillExperts(box, place) {
      if (!this.data.experts.length) return;
      box.append(node("h4", "", "The experts that took it"));
      const took = node("div", "took");
      this.data.experts.forEach(one => {
        const layer = this.layers.find(known => known.layer === one.layer);
        took.append(node("span", "layer", `layer ${one.layer}`));
        const shares = node("div", "shares");
        if (!layer) shares.append(node("em", "note", "the router does not tell"));
        else {
          const gates = this.gatesOf(layer, place), total = sum(gates.map(gate => gate[1])) || 1;
          gates.slice(0, 6).forEach(([expert, gate]) => {
            const span = node("span", "", `${expert}: ${number(gate, 2)}`);
            span.title = `expert ${expert}, gate ${number(gate, 4)}`;
            span.style.setProperty("--share", Math.max(gate / total, 0.05));
            shares.append(span);
          });
          if (!gates.length) shares.append(node("em", "note", "none"));
        }
        took.append(shares);
      });
      box.append(took);
      const shared = Math.max(...this.data.experts.map(one => one.shared));
      const also = shared ? ` ${shared === 1 ? "A shared expert sees" : `${shared} shared experts see`} every token in addition.` : "";
      box.append(node("p", "note", `Number of the expert, and what its output is multiplied by.${also}`));
    }

    gatesOf(layer, place) {
      const found = [];
      for (let expert = 0; expert < layer.experts; expert++) {
        const step = layer.table[place * layer.experts + expert];
        if (step) found.push([expert, step / 65535 * layer.most]);
      }
      return found.sort((a, b) => b[1] - a[1]);
    }

    cardOfExperts() {
      this.strips = [];
      if (!this.data.experts.length) {
        if (this.data.layers === null) return null;
        return add(node("section", "card whole experts"), node("h3", "", "Experts"), node("p", "note", "This model has none: every token goes through the same feed-forward layers."));
      }
      const card = add(node("section", "card whole experts"), node("h3", "", "Experts, layer by layer"),
        node("p", "note", "Tokens from left to right, experts from top (0) to bottom; the stronger the colour, the larger the gate. Click a strip to choose a token."));
      this.canvases = this.layers.map(layer => {
        const strip = node("div", "strip"), canvas = node("canvas"), line = node("div", "line");
        canvas.style.height = `${Math.min(Math.max(layer.experts * 9, 48), 192)}px`;
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `Experts of layer ${layer.layer} for each token`);
        canvas.addEventListener("click", event => this.pick(this.placeAt(event, canvas), true));
        canvas.addEventListener("pointermove", event => { if (event.pointerType === "mouse") this.show(this.placeAt(event, canvas)); });
        canvas.addEventListener("pointerleave", () => this.show(this.chosen));
        this.strips.push(line);
        add(card, node("h4", "", `Layer ${layer.layer}`), add(strip, canvas, line));
        return [canvas, layer];
      });
      return card;
    }

    placeAt(event, canvas) {
      const box = canvas.getBoundingClientRect(), tokens = this.data.tokens.length;
      return Math.max(0, Math.min(tokens - 1, Math.floor((event.clientX - box.left) / box.width * tokens)));
    }

    draw() {  // again when the colours change
      (this.canvases || []).forEach(([canvas, layer]) => {
        const tokens = this.data.tokens.length;
        paint(canvas, tokens, layer.experts, this.view.colour("--routed"), (x, y) => layer.table[x * layer.experts + y] / 65535);
      });
      if (this.map) this.drawMap();
      this.shade();
    }

    cardOfLoad() {
      if (!this.layers.length) return null;
      const all = this.data.favourites;
      const card = add(node("section", "card load"), node("h3", "", "Load of each expert"));
      const key = node("p", "note");
      const said = (className, words) => add(key, node("span", `key ${className}`), document.createTextNode(words + "   "));
      said("", "this text");
      if (all) said("all", `${number(all.tokens, 0)} tokens of the validation text`);
      said("even", "balanced");
      const grids = node("div", "grids");
      this.layers.forEach(layer => {
        const whole = all && all.layers.find(one => one.layer === layer.layer), loads = whole ? whole.load : [];
        const top = Math.max(...layer.load, ...loads, 1.5 / layer.experts);
        const columns = node("div", "columns"), even = node("div", "even"), numbers = node("div", "numbers");
        even.style.bottom = `${100 / layer.experts / top}%`;
        layer.load.forEach((share, expert) => {
          const pair = node("span"), own = node("i");
          own.style.height = `${100 * share / top}%`;
          pair.title = `expert ${expert}: ${percent(share)} of this text`;
          pair.append(own);
          if (whole) { const other = node("i", "all"); other.style.height = `${100 * loads[expert] / top}%`; pair.append(other); pair.title += `, ${percent(loads[expert])} of the validation text`; }
          columns.append(pair);
          numbers.append(node("span", "", layer.experts <= 16 || expert % 8 === 0 ? String(expert) : ""));
        });
        columns.append(even);
        grids.append(add(node("div"), node("h4", "", `Layer ${layer.layer}`), columns, numbers));
      });
      return add(card, key, grids);
    }

    cardOfFavourites() {
      if (!this.layers.length) return null;
      const found = this.data.favourites, card = add(node("section", "card favourites"), node("h3", "", "Favourite tokens of each expert"));
      if (!found) return add(card, node("p", "note", "Not computed here."));
      const part = found.tokens < found.of ? `${number(found.tokens, 0)} of ${number(found.of, 0)} validation tokens` : `all ${number(found.of, 0)} validation tokens`;
      card.append(node("p", "note", `Over ${part}: how many times as often the expert takes a token as it takes tokens on average, and how often it took it.`));
      const likes = node("div", "likes");
      const fill = layer => {
        likes.replaceChildren();
        const one = found.layers.find(each => String(each.layer) === layer);
        one.experts.forEach((row, expert) => {
          const chips = node("div", "chips");
          row.slice(0, 8).forEach(([label, lift, taken, seen]) => {
            const chip = node("span");
            add(chip, node("em", "", label), node("small", "", ` \u00d7${number(lift, 1)}, ${number(taken, taken % 1 ? 1 : 0)} of ${number(seen, 0)}`));
            chips.append(chip);
          });
          if (!row.length) chips.append(node("small", "note", "none that it takes more often than others"));
          add(likes, node("div", "who", `expert ${expert}`), chips);
        });
      };
      const layers = found.layers.map(one => [one.layer, `layer ${one.layer}`]);
      fill(String(layers[0][0]));
      return add(card, choice("Layer", layers, fill), likes);
    }

    cardOfAttention() {
      const data = this.data, card = add(node("section", "card whole attention"), node("h3", "", "Attention"));
      if (!this.map) return add(card, node("p", "note", data.mapsNote || "Not computed here."));
      card.append(node("p", "note", "Each row is a token, and shows from which tokens before it (columns) the head takes how much: a stronger colour is more. The line is the chosen token."));
      const bars = node("div", "bar-top"), layers = [...new Set(data.maps.map(one => one.layer))];
      const heads = choice("Head", [], value => { this.map = data.maps.find(one => one.layer === this.layer && String(one.head) === value); this.newMap(); });
      const fill = value => {
        this.layer = Number(value);
        const select = heads.querySelector("select");
        select.replaceChildren(...data.maps.filter(one => one.layer === this.layer).map(one => { const option = node("option", "", `head ${one.head}`); option.value = one.head; return option; }));
        this.map = data.maps.find(one => one.layer === this.layer);
        if (this.canvas) this.newMap();
      };
      add(bars, choice("Layer", layers.map(one => [one, `layer ${one}`]), fill), heads);
      fill(layers[0]);
      this.canvas = node("canvas");
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", "Map of attention, token by token");
      this.row = node("div", "row");
      const at = event => { const box = this.canvas.getBoundingClientRect(); return Math.max(0, Math.min(data.tokens.length - 1, Math.floor((event.clientY - box.top) / box.height * data.tokens.length))); };
      this.canvas.addEventListener("click", event => this.pick(at(event), true));
      this.canvas.addEventListener("pointermove", event => { if (event.pointerType === "mouse") this.show(at(event)); });
      this.canvas.addEventListener("pointerleave", () => this.show(this.chosen));
      this.sees = node("div");
      add(card, bars, add(node("div", "looks"), add(node("div", "strip"), this.canvas, this.row), this.sees));
      if (data.mapsNote) card.append(node("p", "note", data.mapsNote));
      return card;
    }

    weight(row, column) {  // of the chosen map
      if (!this.map.table) this.map.table = unpacked(this.map.data);
      return column > row ? 0 : (this.map.table[row * (row + 1) / 2 + column] / 255) ** 2;
    }

    newMap() {
      this.drawMap();
      this.showRow(Math.min(this.shown, this.data.tokens.length - 1));
      if (this.view.mode === "attention") this.shade();
    }

    drawMap() {
      const tokens = this.data.tokens.length;
      paint(this.canvas, tokens, tokens, this.view.colour("--seen"), (x, y) => Math.sqrt(this.weight(y, x)));
    }

    showRow(place) {
      const tokens = this.data.tokens.length;
      this.row.style.top = `${100 * (place + 0.5) / tokens}%`;
      const seen = Array.from({ length: place + 1 }, (_, column) => [column, this.weight(place, column)]).sort((a, b) => b[1] - a[1]).slice(0, 8).filter(one => one[1] >= 0.001);
      const rows = node("div", "rows");
      seen.forEach(([column, share]) => add(rows, node("span", "name", this.data.tokens[column].label), bar("seen", share), node("span", "", percent(share))));
      this.sees.replaceChildren(node("h4", "", `Token ${place + 1}, ${quoted(this.data.tokens[place].label)}, looks at`), rows,
        node("p", "note", `Layer ${this.map.layer}, head ${this.map.head}. Choose \u201cattention\u201d above the text to see it there.`));
    }

    cardOfLogits() {
      const rows = this.data.maxLogits, tau = this.data.tau;
      if (!rows) return null;
      const card = add(node("section", "card logits"), node("h3", "", "Largest attention logit of each head"));
      card.append(node("p", "note", tau === null ? "Over this text; a dot is a head. The model was trained without QK-Clip, so there is no threshold."
        : `Over this text; a dot is a head. QK-Clip scales a head down when a training step has a logit above tau = ${tau} (dashed).`));
      const values = rows.flat(), low = Math.min(0, ...values), high = Math.max(...values, tau === null ? 1 : tau) * 1.03;
      const at = value => `${100 * (value - low) / (high - low)}%`;
      const levels = node("div", "levels");
      rows.forEach((row, layer) => {
        const dots = node("div", "dots");
        if (tau !== null) { const line = node("u"); line.style.left = at(tau); dots.append(line); }
        row.forEach((value, head) => { const dot = node("i"); dot.style.left = at(value); dot.title = `layer ${layer}, head ${head}: ${number(value, 2)}`; dots.append(dot); });
        add(levels, node("span", "", `layer ${layer}`), dots, node("span", "", `up to ${number(Math.max(...row), 1)}`));
      });
      return add(card, levels);
    }

    cardOfCache() {
      const cache = this.data.cache;
      if (!cache) return null;
      const card = add(node("section", "card cache"), node("h3", "", "What it keeps of each token"));
      const ordinary = cache.ordinary, most = Math.max(cache.bytes, ordinary || 0, 1), rows = node("div", "rows");
      const line = (words, value) => add(rows, node("span", "name words", words), bar("routed", value / most), node("span", "", bytes(value)));
      line(this.data.name, cache.bytes);
      if (ordinary !== null && ordinary !== cache.bytes) line("keys and values of every head", ordinary);
      card.append(rows);
      const said = parts => parts.map(([what, count]) => `${number(count, 0)} numbers (${what})`).join(" and ");
      const layers = this.data.layers ? ` In each of ${this.data.layers} layers it keeps ` : " It keeps ";
      let words = cache.parts.length ? `${layers}${said(cache.parts)}.` : "";
      if (cache.fixed) words += ` It keeps ${bytes(cache.fixed)} in all, however long the text is.`;
      if (ordinary && ordinary > cache.bytes && cache.bytes) words += ` Ordinary attention with the same heads keeps ${number(ordinary / cache.bytes, 1)} times as much.`;
      else if (ordinary === cache.bytes) words += " That is what ordinary attention keeps.";
      const tokens = Math.min(this.data.tokens.length, this.data.context);
      words += ` ${number(tokens, 0)} tokens: ${bytes(tokens * cache.bytes + cache.fixed)}.`;
      return add(card, node("p", "note", words.trim()));
    }

    shade() {
      const mode = this.view.mode, tokens = this.data.tokens, place = Math.min(this.chosen, tokens.length - 1);
      tokens.forEach((token, i) => {
        let share = 0;
        if (mode === "surprise") share = token.bits === undefined ? 0 : token.bits / BITS_SHOWN;
        else if (mode === "entropy") share = token.expected ? token.expected.entropy / BITS_SHOWN : 0;
        else share = this.map && i <= place ? Math.sqrt(this.weight(place, i)) : 0;
        this.spans[i].style.setProperty("--shade", Math.min(share, 1).toFixed(3));
      });
    }
  }

  function paint(canvas, width, height, [r, g, b], share) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i += 4) {
      image.data[i] = r; image.data[i + 1] = g; image.data[i + 2] = b;
      image.data[i + 3] = 255 * Math.min(share(x, y), 1);
    }
    context.putImageData(image, 0, 0);
  }

  class View {
    constructor(root) {
      this.root = root;
      this.id = `nanokimi-inside-${views++}`;
      this.mode = "surprise";
      this.models = [];
      const data = JSON.parse(root.querySelector("script, .data").textContent);
      data.forEach(one => this.models.push(new Model(one, this)));
      const several = this.models.length > 1 ? `several${this.models.length === 3 ? " three" : ""}` : "one";
      root.replaceChildren(this.bar(), add(node("div", `models ${several}`), ...this.models.map(model => model.root)));
      this.recolour();
      const scheme = window.matchMedia("(prefers-color-scheme: dark)");
      scheme.addEventListener("change", () => this.recolour());
    }

    bar() {
      const modes = [["surprise", "surprise"], ["entropy", "entropy (how unsure it was)"]];
      if (this.models.some(model => model.map)) modes.push(["attention", "attention of the chosen token"]);
      this.low = node("span", "", "0"); this.high = node("span", "", "");
      const ramp = add(node("span", "legend"), this.low, node("span", "ramp"), this.high, node("span", "note", "Underlined: the prompt"));
      return add(node("div", "bar-top"), choice("Shade by", modes, mode => { this.mode = mode; this.recolour(); }), ramp);
    }

    colour(name) { return getComputedStyle(this.root).getPropertyValue(name).split(",").map(Number); }

    recolour() {
      const share = this.mode === "attention";
      this.root.style.setProperty("--hue", `var(--${share ? "seen" : "surprise"})`);
      this.high.textContent = share ? "100 % of its attention" : `${BITS_SHOWN} bits or more`;
      this.models.forEach(model => model.draw());
    }
  }

  const start = () => document.readyState !== "loading" && document.querySelectorAll(".nanokimi-inside:not([data-ready])").forEach(root => {
    if (!root.querySelector("script, .data")) return;
    root.dataset.ready = "1";
    new View(root);
  });
  start();
  document.addEventListener("DOMContentLoaded", start);
  new MutationObserver(start).observe(document.documentElement, { childList: true, subtree: true });
})();
